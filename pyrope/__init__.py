"""Rotary position embedding on raw device pointers: exact at every position, the same bits on CPU and GPU.

The work is done by :class:`Rope`; see its docstring. ``python -m pyrope`` says what this installation can do.
"""

try:
    import pyrope._core  # noqa: F401
except ModuleNotFoundError:
    # A checkout, which Python started there finds first: the installed package has the compiled modules.
    import pkgutil

    __path__ = pkgutil.extend_path(__path__, __name__)

try:
    from pyrope._core import Rope, build_info, device_count, supported, version
except ModuleNotFoundError:
    raise ImportError("pyrope's compiled modules are missing; install it: `pip install .` in the checkout") from None
from pyrope.errors import CudaError, RopeError, UnsupportedError
from pyrope.scaling import NTK, DynamicNTK, Linear, Llama3, LongRoPE, PairFactors, Proportional, Scaling, YaRN

__version__ = version()
__all__ = [
    "NTK",
    "CudaError",
    "DynamicNTK",
    "Linear",
    "Llama3",
    "LongRoPE",
    "PairFactors",
    "Proportional",
    "Rope",
    "RopeError",
    "Scaling",
    "UnsupportedError",
    "YaRN",
    "__version__",
    "build_info",
    "device_count",
    "supported",
]
