"""The stages of :class:`pyrope.FusedRope` around the rotation, as data."""

from pyrope._frozen import Frozen

__all__ = ["PagedCache", "RMSNorm"]


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
    """

    eps: float
    weight_dtype: object
    weight_bias: float
    after: bool
    across_heads: bool

    def __init__(
        self,
        eps: float = 1e-6,
        weight_dtype: object = None,
        weight_bias: float = 0.0,
        after: bool = False,
        across_heads: bool = False,
    ) -> None:
        vars(self).update(
            eps=eps, weight_dtype=weight_dtype, weight_bias=weight_bias, after=after, across_heads=across_heads
        )


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
        Strides of a page, of an entry (a token's place in it) and of a head, in elements of the stored type, for
        caches given as pointers. Default: contiguous in the layout. With multi-head latent attention both lie in one
        row, and their strides are those of the row.
    """

    page_size: int
    num_pages: int
    layout: str
    index_dtype: object
    k_strides: tuple[int, int, int] | None
    v_strides: tuple[int, int, int] | None

    def __init__(
        self,
        page_size: int,
        num_pages: int,
        layout: str = "NHD",
        index_dtype: object = "int64",
        k_strides: tuple[int, int, int] | None = None,
        v_strides: tuple[int, int, int] | None = None,
    ) -> None:
        vars(self).update(
            page_size=page_size,
            num_pages=num_pages,
            layout=layout,
            index_dtype=index_dtype,
            k_strides=k_strides,
            v_strides=v_strides,
        )
