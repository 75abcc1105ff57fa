"""Rotary position embedding on raw device pointers: exact at every position, the same bits on CPU and GPU.

The work is done by :class:`Rope` and, with more stages in the same launch, :class:`FusedRope`; :class:`RopeAttention`
attends over what they rotate, :class:`DecodeAttention` over what they appended to a cache. See their docstrings.
``python -m pyrope`` says what this installation can do.
"""

try:
    import pyrope._library  # noqa: F401
except ModuleNotFoundError:
    # A checkout, which Python started there finds first: the installed package has the compiled modules.
    import pkgutil

    __path__ = pkgutil.extend_path(__path__, __name__)

try:
    from pyrope._attention import RopeAttention
    from pyrope._decode import DecodeAttention
    from pyrope._fused import FusedRope
    from pyrope._library import build_info, device_count, supported, version
    from pyrope._rope import Rope
except ModuleNotFoundError:
    raise ImportError("pyrope's compiled modules are missing; install it: `pip install .` in the checkout") from None
from pyrope.errors import CudaError, RopeError, UnsupportedError
from pyrope.scaling import NTK, DynamicNTK, Linear, Llama3, LongRoPE, PairFactors, Proportional, Scaling, YaRN
from pyrope.stages import GroupScales, PagedCache, RMSNorm, XPos

__version__ = version()
__all__ = [
    "NTK",
    "CudaError",
    "DecodeAttention",
    "DynamicNTK",
    "FusedRope",
    "GroupScales",
    "Linear",
    "Llama3",
    "LongRoPE",
    "PagedCache",
    "PairFactors",
    "Proportional",
    "RMSNorm",
    "Rope",
    "RopeAttention",
    "RopeError",
    "Scaling",
    "UnsupportedError",
    "XPos",
    "YaRN",
    "__version__",
    "build_info",
    "device_count",
    "supported",
]
