"""The stages of :class:`pyrope.FusedRope` around the rotation, as data."""

from pyrope._frozen import Frozen

__all__ = ["PagedCache", "RMSNorm"]


class RMSNorm(Frozen):
    """RMS norm of every head of q and k (Zhang and Sennrich, arXiv:1910.07467), as Qwen 3 and Gemma 3 have it.

    ``x / sqrt(mean(x ** 2) + eps) * (weight + weight_bias)`` over the ``head_dim`` elements of a head, in float32. The
    weights come with each call.

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
    """

    eps: float
    weight_dtype: object
    weight_bias: float
    after: bool

    def __init__(
        self, eps: float = 1e-6, weight_dtype: object = None, weight_bias: float = 0.0, after: bool = False
    ) -> None:
        vars(self).update(eps=eps, weight_dtype=weight_dtype, weight_bias=weight_bias, after=after)


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
