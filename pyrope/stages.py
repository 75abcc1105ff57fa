"""The stages of :class:`pyrope.FusedRope` around the rotation, as data."""

from pyrope._frozen import Frozen

__all__ = ["GroupScales", "PagedCache", "RMSNorm", "XPos"]


class RMSNorm(Frozen):
    """RMS norm of q and k (Zhang and Sennrich, arXiv:1910.07467), as Qwen 3, Gemma 3 and OLMo 2 have it.

    ``x / sqrt(mean(x ** 2) + eps) * (weight + weight_bias)`` in float32. The weights come with each call.

    Parameters
    ----------
    eps : float
        At least 0.
    weight_dtype : {"float32"} or the Rope's dtype, optional
        Of the weights. Default: the Rope's.
    weight_bias : float
        Added to every weight: 1 for Gemma, whose weights are stored as differences from 1.
    after : bool
        Whether the norm comes after the rotation instead of before it.
    across_heads : bool
        Whether the mean is over all heads of a token, at most 1024, with a weight for every element of each (OLMo 2),
        instead of over the ``head_dim`` elements of a head (Qwen 3, Gemma 3).
    ranks : int
        Ranks that share a norm across heads, each with as many heads of a token (tensor parallelism).
        :meth:`FusedRope.apply` is then called twice: with ``write_sums=True`` it writes the sums of the squares of each
        token's heads to ``q_sums`` and ``k_sums``, and nothing else; once those of all ranks are added up (all-reduce),
        the same call without it reads them.
    """

    eps: float
    weight_dtype: object
    weight_bias: float
    after: bool
    across_heads: bool
    ranks: int

    def __init__(
        self,
        eps: float = 1e-6,
        weight_dtype: object = None,
        weight_bias: float = 0.0,
        after: bool = False,
        across_heads: bool = False,
        ranks: int = 1,
    ) -> None:
        vars(self).update(
            eps=eps,
            weight_dtype=weight_dtype,
            weight_bias=weight_bias,
            after=after,
            across_heads=across_heads,
            ranks=ranks,
        )


class GroupScales(Frozen):
    """Scales for groups of the elements of a row, computed from what is stored and written beside it.

    ========  ======================  ==========================================================
    name      ``out_dtype``           scales
    ========  ======================  ==========================================================
    DeepSeek  ``"float8_e4m3fn"``     ``GroupScales(128)``, ``GroupScales(64)``
    MXFP8     ``"float8_e4m3fn"``     ``GroupScales(32, "float8_e8m0fnu")``
    MXFP4     ``"float4_e2m1fn"``     ``GroupScales(32, "float8_e8m0fnu")``
    NVFP4     ``"float4_e2m1fn"``     ``GroupScales(16, "float8_e4m3fn")``
    ========  ======================  ==========================================================

    Parameters
    ----------
    size : {16, 32, 64, 128}
        Elements of a group, which lie one behind the other; it divides those of a head.
    dtype : {"float32", "float8_e8m0fnu", "float8_e4m3fn"}
        Of the scales. With ``x`` the largest magnitude of a group and ``m`` the largest value of the element type,
        ``float32``: ``x / m``, 1 for a group of zeros. ``float8_e8m0fnu``, of MXFP8 and MXFP4 (OCP Microscaling formats
        v1.0): the least power of two that nothing saturates with, as FlashInfer has it; the specification's example
        takes the power of two below, and saturates. ``float8_e4m3fn``, of NVFP4: ``x / (m * tensor_scale)``, rounded,
        with a scale of the whole tensor that comes with the call; an element is its code times both.
    strides : tuple of int, optional
        For scales given as pointers: strides of a page, an entry (a token's place in it) and a head in a cache, of a
        token and a head elsewhere, in elements of the scales. Default: contiguous, as ``[rows, heads, groups]``.
    """

    size: int
    dtype: str
    strides: tuple[int, ...] | None

    def __init__(self, size: int, dtype: str = "float32", strides: tuple[int, ...] | None = None) -> None:
        vars(self).update(size=size, dtype=dtype, strides=strides)


class PagedCache(Frozen):
    """Shape of a KV cache in pages, which k and v are appended to.

    Parameters
    ----------
    page_size : int
        Tokens of a page, 1 to 2**20. A cache that is not paged is one page.
    num_pages : int
        Pages of the cache. Tokens whose page is outside are not appended.
    layout : {"NHD", "HND"}
        ``[num_pages, page_size, heads, dim]`` or ``[num_pages, heads, page_size, dim]``.
    index_dtype : {"int64", "int32"}
        Of ``slots`` and ``cache_positions`` given as pointers; arrays bring their own.
    k_strides, v_strides : (int, int, int), optional
        Strides of a page, of an entry (a token's place in it) and of a head, in elements of the stored type (of
        float4_e2m1fn, q8_0 and q4_0 in bytes), for caches given as pointers. Default: contiguous in the layout. With
        multi-head latent attention both lie in one row, and their strides are those of the row.
    skip_q : bool
        Whether a token whose slot, request or cache position is negative is left alone as a whole, its q too, as one
        whose position says so. Default: it is only not appended.
    k_nope_strides : (int, int, int), optional
        As ``k_strides``, of ``k_nope_cache``.
    """

    page_size: int
    num_pages: int
    layout: str
    index_dtype: object
    k_strides: tuple[int, int, int] | None
    v_strides: tuple[int, int, int] | None
    skip_q: bool
    k_nope_strides: tuple[int, int, int] | None

    def __init__(
        self,
        page_size: int,
        num_pages: int,
        layout: str = "NHD",
        index_dtype: object = "int64",
        k_strides: tuple[int, int, int] | None = None,
        v_strides: tuple[int, int, int] | None = None,
        skip_q: bool = False,
        k_nope_strides: tuple[int, int, int] | None = None,
    ) -> None:
        vars(self).update(
            page_size=page_size,
            num_pages=num_pages,
            layout=layout,
            index_dtype=index_dtype,
            k_strides=k_strides,
            v_strides=v_strides,
            skip_q=skip_q,
            k_nope_strides=k_nope_strides,
        )


class XPos(Frozen):
    """Magnitudes of q and k that decay with their distance (Sun et al., "A length-extrapolatable transformer",
    arXiv:2212.10554).

    Pair ``i`` of the rotated q is multiplied by ``zeta ** ((position - center) / scale_base)``, that of the rotated k
    by the reciprocal, ``zeta = (2 * i / rotary_dim + gamma) / (1 + gamma)``. What the pair adds to an inner product is
    thus multiplied by ``zeta ** ((position of q - position of k) / scale_base)``, wherever both stand.

    Parameters
    ----------
    scale_base : float
        Positions; 1e-6 to 1e18. The larger, the slower the decay.
    gamma : float
        1e-6 to 1e6. The larger, the more alike the pairs, and the slower.
    center : int
        The position whose factors are 1. Inner products do not depend on it, but the numbers that are stored do.

    Notes
    -----
    The factors are within 1e-7 of the truth, relative. With the defaults those of pair 0, the steepest, change by a
    factor of 2 every 283 positions. Behind ``center`` those of k grow: past what float16 holds after 4,500 positions,
    past what bfloat16 and float32 hold after 36,200, where infinities and NaNs are stored; those of q fall to 0 as
    soon. Before ``center`` it is the other way round: one in the middle of the context doubles what is finite.
    """

    scale_base: float
    gamma: float
    center: int

    def __init__(self, scale_base: float = 512, gamma: float = 0.4, center: int = 0) -> None:
        vars(self).update(scale_base=scale_base, gamma=gamma, center=center)
