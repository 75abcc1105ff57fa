"""Typed memory of either device, and the tensors of one case."""

import ctypes
import math
from functools import cached_property

import numpy as np
from cases import FP8, ITEMSIZE, OPS, PAGE_SIZE, SECTIONS, Case
from packed import buffers
from reference import inv_freq

THETA = 10000.0
MAX_START = 8192  # requests start at a position below this
ALIGNMENT = 256  # bytes
_WORDS = {1: np.int8, 2: np.int16, 4: np.int32, 8: np.int64}


class Array:
    """`shape` elements of `dtype` at address `ptr`, with views for NumPy, CuPy and torch; it owns nothing.

    strides : (token, head) in elements, of a tensor in the rows of a packed buffer; else it is contiguous
    bfloat16 and the 8-bit floats are unknown to the array protocols, so every view starts as integers of the same size.
    """

    def __init__(self, device, ptr: int, shape: tuple[int, ...], dtype: str, strides: tuple[int, int] | None = None):
        self.device, self.ptr, self.shape, self.dtype = device, ptr, shape, dtype
        self.packed = strides is not None
        self.itemsize = ITEMSIZE[dtype]
        self.strides = (*strides, 1) if strides else tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))

    @property
    def _steps(self) -> tuple[int, ...]:
        """The strides in bytes."""
        return tuple(stride * self.itemsize for stride in self.strides)

    @property
    def __cuda_array_interface__(self) -> dict:
        """Integers of the element size, on a CUDA device."""
        word = np.dtype(_WORDS[self.itemsize]).str
        strides = self._steps if self.packed else None
        return {"shape": self.shape, "typestr": word, "data": (self.ptr, False), "strides": strides, "version": 3}

    @cached_property
    def numpy(self) -> np.ndarray:
        """In host memory: the array itself."""
        flat = (ctypes.c_byte * (extent(self.shape, self.strides) * self.itemsize)).from_address(self.ptr)
        return np.ndarray(self.shape, numpy_dtype(self.dtype), flat, strides=self._steps)

    @cached_property
    def torch(self):
        """The array as a torch tensor, sharing its memory."""
        import torch

        if self.device.kind == "cuda":
            words = torch.as_tensor(self, device=self.device.name)
        else:
            words = torch.from_numpy(self.numpy.view(_WORDS[self.itemsize]))
        return words.view(getattr(torch, self.dtype))

    def rows(self, tokens: np.ndarray) -> np.ndarray:
        """A host copy of some rows of the first dimension."""
        shape, size = (len(tokens), *self.shape[1:]), extent(self.shape[1:], self.strides[1:]) * self.itemsize
        data = b"".join(self.device.read(self.ptr + int(t) * self._steps[0], size) for t in tokens)
        return np.ndarray(shape, numpy_dtype(self.dtype), data, strides=(size, *self._steps[1:])).copy()

    def head(self, token: int) -> tuple[int, int]:
        """(address, bytes) of a token's first head."""
        return self.ptr + token * self._steps[0], self.shape[-1] * self.itemsize


def extent(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Elements from the first to the last, both included."""
    return 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True)) if 0 not in shape else 0


def numpy_dtype(name: str) -> np.dtype:
    if name in ("bfloat16", FP8):
        import ml_dtypes

        return np.dtype(getattr(ml_dtypes, name))
    return np.dtype(name)


class Inputs:
    """The memory of one case: `slots` sets of its tensors, filled with normal random values, and what they share.

    A slot is a dict from the op's tensor names to arrays. Slots lie behind each other, so that calls which go through
    them find a cold cache. In a step `buffers` has the packed buffers of each slot, by name.
    """

    def __init__(self, device, case: Case, slots: int, seed: int):
        self.device, self.case, self.rng = device, case, np.random.default_rng(seed)
        op, sizes = OPS[case.op], self._sizes(case)
        self.slot_bytes = sum(sizes.values())
        self.input_bytes = sum(size for name, size in sizes.items() if name in op.inputs)
        self.base = device.allocate(max(slots * self.slot_bytes, 1))
        ends = np.cumsum([0, *sizes.values()])
        starts = [{name: self.base + i * self.slot_bytes + int(at) for name, at in zip(sizes, ends, strict=False)}
                  for i in range(slots)]  # fmt: skip
        self.slots = [self._slot(start) for start in starts]
        self.buffers = [{name: Array(device, start[name], (case.tokens, buffer.width), case.dtype)
                         for name, buffer in buffers(case).items()} for start in starts]  # fmt: skip
        block = self.rng.standard_normal(min(1 << 20, max(self.slot_bytes, 1)), np.float32)
        self._block = block.astype(numpy_dtype(case.dtype)).tobytes()
        self.fill(slots)

    @staticmethod
    def _sizes(case: Case) -> dict[str, int]:
        """Bytes of every tensor, of those in a packed buffer by its name."""
        op, packed = OPS[case.op], buffers(case)
        inside = {name for buffer in packed.values() for name in buffer.views}
        nbytes = {name: case.tokens * buffer.width * case.itemsize for name, buffer in packed.items()} | {
            name: int(np.prod(shape)) * ITEMSIZE[op.dtypes.get(name, case.dtype)]
            for name, shape in op.tensors(case).items()
            if name not in inside
        }
        return {name: -(-size // ALIGNMENT) * ALIGNMENT for name, size in nbytes.items()}

    def _slot(self, starts: dict[str, int]) -> dict[str, Array]:
        """The tensors of a slot, by the addresses of what _sizes lists."""
        case, op, slot = self.case, OPS[self.case.op], {}
        places = {name: (key, buffer, view) for key, buffer in buffers(case).items()
                  for name, view in buffer.views.items()}  # fmt: skip
        for name, shape in op.tensors(case).items():
            if name in places:
                key, buffer, (first, stride) = places[name]
                at = starts[key] + first * case.itemsize
                slot[name] = Array(self.device, at, shape, case.dtype, (buffer.width, stride))
            else:
                slot[name] = Array(self.device, starts[name], shape, op.dtypes.get(name, case.dtype))
        return slot

    @classmethod
    def bytes_of(cls, case: Case) -> int:
        """Bytes of one slot."""
        return sum(cls._sizes(case).values())

    def fill(self, slots: int = 1) -> None:
        """Random values into the first slots."""
        self.device.fill(self.base, slots * self.slot_bytes, self._block)

    @cached_property
    def starts(self) -> np.ndarray:
        """First position of each request."""
        return self.rng.integers(0, MAX_START, self.case.batch_size)

    @cached_property
    def positions(self) -> np.ndarray:
        """Position of every token, int64."""
        if self.case.positions == "offset":
            return self.starts[:1].sum() + np.arange(self.case.tokens)
        return (self.starts[:, None] + np.arange(self.case.seq_len)).reshape(-1)

    @cached_property
    def streams(self) -> np.ndarray:
        """Positions of every token, int64 [number of SECTIONS, tokens]; the first are `positions`."""
        others = self.rng.integers(0, MAX_START, (len(SECTIONS) - 1, self.case.tokens))
        return np.concatenate([self.positions[None], others])

    def turns(self, case: Case, tokens: np.ndarray) -> np.ndarray:
        """Position of some tokens, or of each of their pairs, as the operation of the case takes them."""
        if not OPS[case.op].sections:
            return self.positions[tokens]
        return np.repeat(self.streams[:, tokens], OPS[case.op].sections, axis=0).T

    # ---- a KV cache: the pages that the tokens lie in, in any order; the rest of each request is left out

    @cached_property
    def runs(self) -> np.ndarray:
        """[requests, 2]: first position and tokens of each run of tokens."""
        if self.case.positions == "offset":
            return np.array([[self.starts[0], self.case.tokens]])
        return np.stack([self.starts, np.full_like(self.starts, self.case.seq_len)], 1)

    @cached_property
    def requests(self) -> np.ndarray:
        """Run of every token."""
        return np.repeat(np.arange(len(self.runs)), self.runs[:, 1])

    @cached_property
    def page_table(self) -> np.ndarray:
        """[requests, pages of the longest]: the page of each PAGE_SIZE tokens of each request; 0 where none is used."""
        first, last = self.runs[:, 0] // PAGE_SIZE, (self.runs.sum(1) - 1) // PAGE_SIZE
        table = np.zeros((len(first), max(last.max() + 1, 1)), np.int64)
        pages = iter(self.rng.permutation(self.case.num_pages))
        for row, start, end in zip(table, first, last + 1, strict=True):
            row[start:end] = [next(pages) for _ in range(start, end)]
        return table

    @cached_property
    def entries(self) -> np.ndarray:
        """Entry of the cache that each token is appended to, int64."""
        pages = self.page_table[self.requests, self.positions // PAGE_SIZE]
        return pages * PAGE_SIZE + self.positions % PAGE_SIZE

    def rows_of(self, name: str, tokens: np.ndarray) -> np.ndarray:
        """Rows of a tensor that belong to some tokens."""
        return self.entries[tokens] if name.endswith("_cache") else tokens

    @cached_property
    def slot_mapping(self) -> Array:
        """`entries` on the device."""
        return self.upload(self.entries)

    @cached_property
    def paged(self) -> dict[str, Array]:
        """int32, as kernels with page tables take them: by request the tokens before it and its length after the call;
        by token its request and position; the page table, with the start of each row, and tokens in the last pages.
        """
        lengths = self.runs.sum(1)
        found = {
            "indptr": np.concatenate([[0], self.runs[:, 1].cumsum()]),
            "lengths": lengths,
            "requests": self.requests,
            "positions": self.positions,
            "table": self.page_table,
            "table_indptr": np.arange(len(lengths) + 1) * self.page_table.shape[1],
            "last_page": (lengths - 1) % PAGE_SIZE + 1,
        }
        return {name: self.upload(values.astype(np.int32)) for name, values in found.items()}

    @cached_property
    def weights(self) -> dict[str, np.ndarray]:
        """float32 [head_dim] of q and k: of the norm."""
        return {name: self.rng.uniform(0.5, 1.5, self.case.head_dim).astype(np.float32) for name in ("q", "k")}

    @cached_property
    def norm_weights(self) -> dict[str, Array]:
        """`weights` on the device."""
        return {name: self.upload(values) for name, values in self.weights.items()}

    @cached_property
    def stream_ids(self) -> Array:
        """`streams` on the device."""
        return self.upload(self.streams)

    # ---- positions and tables on the device

    @property
    def table_rows(self) -> int:
        return int(self.positions.max(initial=0)) + 1

    def upload(self, values: np.ndarray) -> Array:
        """A copy of a host array in the device's memory, freed with the case."""
        array = Array(self.device, self.device.allocate(max(values.nbytes, 1)), values.shape, values.dtype.name)
        self.device.write(array.ptr, np.ascontiguousarray(values))
        return array

    @cached_property
    def ids(self) -> Array:
        return self.upload(self.positions)

    @cached_property
    def indptr(self) -> Array:
        return self.upload(np.arange(self.case.batch_size + 1) * self.case.seq_len)

    @cached_property
    def offsets(self) -> Array:
        return self.upload(self.starts)

    @cached_property
    def angles(self) -> np.ndarray:
        """float64 [table_rows, rotated / 2], radians."""
        return np.arange(self.table_rows)[:, None] * inv_freq(self.case.rotated, THETA)

    @cached_property
    def cos(self) -> Array:
        """float32 [table_rows, rotated / 2], rounded from the exact values."""
        return self.upload(np.cos(self.angles).astype(np.float32))

    @cached_property
    def sin(self) -> Array:
        return self.upload(np.sin(self.angles).astype(np.float32))

    @cached_property
    def cos_sin(self) -> Array:
        """float32 [table_rows, rotated]: [cos | sin]."""
        return self.upload(np.concatenate([np.cos(self.angles), np.sin(self.angles)], 1).astype(np.float32))

    @cached_property
    def token_cos(self) -> Array:
        """float32 [tokens, rotated]: each token's row of cosines, twice."""
        return self.upload(np.tile(np.cos(self.angles)[self.positions], 2).astype(np.float32))

    @cached_property
    def token_sin(self) -> Array:
        return self.upload(np.tile(np.sin(self.angles)[self.positions], 2).astype(np.float32))

    @cached_property
    def frequencies(self) -> Array:
        """float32 [rotated / 2]: radians per position."""
        return self.upload(inv_freq(self.case.rotated, THETA).astype(np.float32))
