"""Exceptions of pyrope. Bad arguments raise ValueError or TypeError, which name the argument."""


class RopeError(RuntimeError):
    """Base of pyrope's own exceptions, and a fault of the library itself."""


class UnsupportedError(RopeError):
    """A valid request that this build does not serve; the text says what is supported."""


class CudaError(RopeError):
    """The CUDA runtime reported an error, or there is no usable CUDA device."""
