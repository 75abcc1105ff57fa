"""What stands before and behind a call in a model's layer: a GEMM and a reader, or kernels that start early.

The small kernels are compiled by NVRTC when they are first needed. They need programmatic dependent launch.
"""

import ctypes
import functools

from cuda.bindings import driver, nvrtc, runtime
from gpu import DeviceError
from gpu import check as checked
from step import LAYERS

SPIN = 2500  # clocks that the early kernel takes before it writes: a little more than a launch
BLOCK = 256
CAPABILITY = (9, 0)  # the first with programmatic dependent launch

SOURCE = """
// Lets its dependents start, and only then takes its time and writes.
extern "C" __global__ void __launch_bounds__(256) early(uint4* out, unsigned n, unsigned spin) {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
  const long long start = clock64();
  while (clock64() - start < spin) {}
  const uint4 value = make_uint4(0x3f803f80u, 0x3f803f80u, 0x3f803f80u, 0x3f803f80u);
  for (unsigned i = blockIdx.x * 256 + threadIdx.x; i < n; i += gridDim.x * 256) out[i] = value;
}

// The first row_out 16-byte words of each row of row_in.
extern "C" __global__ void __launch_bounds__(256) reader(const uint4* in, uint4* out, unsigned n, unsigned row_in,
                                                         unsigned row_out) {
  asm volatile("griddepcontrol.wait;" ::: "memory");
  const unsigned i = blockIdx.x * 256 + threadIdx.x;
  if (i >= n) return;
  const unsigned row = i / row_out;
  uint4 x = in[row * static_cast<unsigned long long>(row_in) + (i - row * row_out)];
  x.x += 1; x.y += 1; x.z += 1; x.w += 1;
  out[i] = x;
}

extern "C" __global__ void __launch_bounds__(256) add_one(float* x) {
  if (threadIdx.x == 0) *x += 1;
}
"""
POINTER, UNSIGNED = ctypes.c_void_p, ctypes.c_uint
PARAMETERS = {
    "early": (POINTER, UNSIGNED, UNSIGNED),
    "reader": (POINTER, POINTER, UNSIGNED, UNSIGNED, UNSIGNED),
    "add_one": (POINTER,),
}


def _check(result: tuple):
    """The value of a call of the driver or of NVRTC, or a DeviceError."""
    status, *values = result
    if status.value:
        raise DeviceError(status.name)
    return values[0] if values else None


def compiled(architecture: str) -> bytes:
    """The kernels as a cubin."""
    program = _check(nvrtc.nvrtcCreateProgram(SOURCE.encode(), b"neighbours.cu", 0, [], []))
    try:
        options = [f"--gpu-architecture={architecture}".encode()]
        if nvrtc.nvrtcCompileProgram(program, len(options), options)[0].value:
            log = bytearray(_check(nvrtc.nvrtcGetProgramLogSize(program)))
            _check(nvrtc.nvrtcGetProgramLog(program, log))
            raise DeviceError(log.decode().rstrip("\0\n"))
        cubin = bytearray(_check(nvrtc.nvrtcGetCUBINSize(program)))
        _check(nvrtc.nvrtcGetCUBIN(program, cubin))
        return bytes(cubin)
    finally:
        _check(nvrtc.nvrtcDestroyProgram(program))


def launch_config(stream: int, blocks: int, dependent: bool) -> driver.CUlaunchConfig:
    """Blocks of BLOCK threads, on a stream; `dependent`: before the kernel in front has ended, if that allows it."""
    config = driver.CUlaunchConfig()
    config.gridDimX, config.gridDimY, config.gridDimZ = blocks, 1, 1
    config.blockDimX, config.blockDimY, config.blockDimZ = BLOCK, 1, 1
    config.hStream = driver.CUstream(stream)
    if dependent:
        attribute = driver.CUlaunchAttribute()
        attribute.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
        attribute.value.programmaticStreamSerializationAllowed = 1
        config.attrs, config.numAttrs = [attribute], 1
    return config


class Kernels:
    """The kernels of SOURCE on one device."""

    def __init__(self, architecture: str):
        self._module = _check(driver.cuModuleLoadData(compiled(architecture)))
        self._functions = {name: _check(driver.cuModuleGetFunction(self._module, name.encode())) for name in PARAMETERS}

    def launch(self, name: str, stream: int, blocks: int, *values: int, dependent: bool = False) -> None:
        """Queue one of them."""
        config = launch_config(stream, blocks, dependent)
        _check(driver.cuLaunchKernelEx(config, self._functions[name], (values, PARAMETERS[name]), 0))


@functools.cache
def kernels(index: int) -> Kernels:
    """Those of a device."""
    found = checked(runtime.cudaGetDeviceProperties(index))
    if (found.major, found.minor) < CAPABILITY:
        raise DeviceError(f"compute capability {found.major}.{found.minor}, must be 9.0 or later")
    return Kernels(f"sm_{found.major}{found.minor}")


def unable(device) -> str | None:
    """Why the layers cannot run on a CUDA device, or None."""
    if device.torch is None:
        return "needs torch with CUDA, whose GEMM is one of the neighbours"
    try:
        kernels(device.index)
    except Exception as error:  # where NVRTC (nvidia-cuda-nvrtc) is not installed cuda-python raises what it likes
        return f"its kernels cannot be compiled: {type(error).__name__}: {error}"
    return None


def floor(inputs):
    """(what it is, call): the least that a launch takes."""
    device = inputs.device
    number = device.allocate(4)
    return "a kernel that adds 1 to one number", lambda: kernels(device.index).launch(
        "add_one", device.stream, 1, number
    )


class Gemm:
    """cuBLAS, through torch, writes each packed buffer with weights of the layer's own, which leave L2 cold; behind the
    call torch adds 1 to the rows of q and k. Both are launched plainly.
    """

    what = "torch.mm before, torch.add behind"

    def __init__(self, inputs, packed: dict):
        torch, device, case = inputs.device.torch, inputs.device, inputs.case
        form = {"device": device.name, "dtype": getattr(torch, case.dtype)}
        self._mm, self._add = torch.mm, torch.add
        inner = {name: buffer.inner for name, buffer in packed.items()}
        self._tokens = {n: torch.randn(case.tokens, n, **form) for n in set(inner.values())}
        self._weights = [
            {name: torch.randn(buffer.width, buffer.inner, **form).mul_(buffer.inner**-0.5).t()
             for name, buffer in packed.items()} for _ in range(LAYERS)
        ]  # fmt: skip
        self._out = [{name: array.torch for name, array in slot.items()} for slot in inputs.buffers]
        self._inner = inner
        name, buffer = next((name, buffer) for name, buffer in packed.items() if buffer.read)
        self._read = [slot[name][:, : buffer.read] for slot in self._out]
        self._sink = torch.empty(case.tokens, buffer.read, **form)

    def write(self, layer: int, slot: int) -> None:
        """What comes before the call."""
        for name, weights in self._weights[layer].items():
            self._mm(self._tokens[self._inner[name]], weights, out=self._out[slot][name])

    def read(self, slot: int) -> None:
        """What comes behind it."""
        self._add(self._read[slot], 1, out=self._sink)


class Early:
    """A kernel that lets its dependents start before it writes the packed buffer, as norms of late do; behind the call
    a reader that is launched as a dependent, and waits.
    """

    what = "a kernel that triggers its dependents at once before, a dependent reader behind"

    def __init__(self, inputs, packed: dict):
        device, case = inputs.device, inputs.case
        self._launch, self._stream = kernels(device.index).launch, device.stream
        multiprocessors = checked(runtime.cudaGetDeviceProperties(device.index)).multiProcessorCount
        self._buffers = inputs.buffers
        words = {name: case.tokens * buffer.width * case.itemsize // 16 for name, buffer in packed.items()}
        # Two blocks a multiprocessor leave room for the dependents beside them.
        self._writers = {name: (min(-(-n // BLOCK), 2 * multiprocessors), n) for name, n in words.items()}
        self._name, buffer = next((name, buffer) for name, buffer in packed.items() if buffer.read)
        self._row = [n * case.itemsize // 16 for n in (buffer.width, buffer.read)]
        self._words = case.tokens * self._row[1]
        self._sink = device.allocate(16 * self._words)

    def write(self, layer: int, slot: int) -> None:
        """What comes before the call."""
        for name, (blocks, words) in self._writers.items():
            self._launch("early", self._stream, blocks, self._buffers[slot][name].ptr, words, SPIN)

    def read(self, slot: int) -> None:
        """What comes behind it."""
        blocks, source = -(-self._words // BLOCK), self._buffers[slot][self._name].ptr
        self._launch("reader", self._stream, blocks, source, self._sink, self._words, *self._row, dependent=True)


NEIGHBOURS = {"gemm": Gemm, "early": Early}
