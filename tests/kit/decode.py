"""Calls of DecodeAttention on a cache whose every other entry is NaN, and what they must give."""

import numpy as np

import pyrope
from kit.attention import reference
from kit.blocks import Block, cache_block
from kit.memory import memory_of
from kit.reference import decode, storage

NAN_CODE = 0x7F  # of fp8
OF_CACHE = ("k_out_dtype", "v_out_dtype", "k_scale_kind", "v_scale_kind")


class Filled:
    """Keys and values of requests in shuffled pages.

    k, v : of each request, [length, heads, dim], as float64
    blocks : the caches
    table, indptr : rows of pages, or one behind the other
    """

    def __init__(self, rng, lengths, page_size, heads, dim, form, layout="NHD", place="dense", scale=1.0):
        pages = [-(-n // page_size) for n in lengths]
        self.lengths, self.page_size, self.num_pages = np.array(lengths, np.int32), page_size, sum(pages) + 3
        numbers = rng.permutation(self.num_pages)[: sum(pages)].astype(np.int32)
        self.indptr = np.cumsum([0, *pages], dtype=np.int32)
        self.pages = numbers if len(numbers) else np.zeros(1, np.int32)
        self.table = np.full((len(lengths), max(*pages, 1) + 1), -1, np.int32)
        self.blocks, self.values = {}, {"k": [], "v": []}
        for name in ("k", "v"):
            block = cache_block(form, self.num_pages, page_size, heads, dim, layout, place)
            block.view().view(f"u{block.dtype.itemsize}")[...] = NAN_CODE * (1 if block.dtype.itemsize == 1 else 257)
            if block.dtype.itemsize > 1:
                block.view()[...] = np.nan
            for r, n in enumerate(lengths):
                x = rng.standard_normal((n, heads, dim)).astype(block.dtype)
                page, entry = np.divmod(np.arange(n), page_size)
                block.view()[numbers[self.indptr[r] + page], entry] = x
                self.values[name].append(decode(x) * float(np.float32(scale)))
            self.blocks[f"{name}_cache"] = block
        for r, n in enumerate(pages):
            self.table[r, :n] = numbers[self.indptr[r] : self.indptr[r] + n]

    def cache(self, layout="NHD"):
        strides = [self.blocks[f"{name}_cache"].strides[:3] for name in ("k", "v")]
        return pyrope.PagedCache(self.page_size, self.num_pages, layout, "int64", *strides)


def run(attention, q, blocks, lengths, strides=None, workspace=None, **options):
    """(out, lse) of a call with pointers; q: [requests * q_tokens, heads, dim] of the dtype.

    blocks : caches, and other arrays by the names of arguments
    strides : of [tokens, heads, dim] for q and out, from its shape
    workspace : memory of the device, or what is needed of it
    """
    memory, dtype = memory_of(attention.rope.device), storage(attention.rope.dtype)
    requests, place = len(lengths), strides(q.shape) if strides else None
    q_tokens = q.shape[0] // max(requests, 1) or 1
    all_blocks = {"q": Block(dtype, q.shape, place, values=q), "out": Block(dtype, q.shape, place),
                  "lse": Block(np.float32, (requests, q.shape[1], q_tokens)),
                  "lengths": Block(np.int32, (requests,), values=lengths)}  # fmt: skip
    all_blocks |= {name: x if isinstance(x, Block) else Block(x.dtype, x.shape, values=x)
                   for name, x in blocks.items()}  # fmt: skip
    buffers = {name: memory.put(block.flat) for name, block in all_blocks.items()}
    at = {name: memory.pointer(buffers[name]) + b.offset * b.dtype.itemsize for name, b in all_blocks.items()}
    if place:
        options |= {"q_strides": place[:2], "out_strides": place[:2]}
    if "page_indptr" not in blocks:
        options["page_table_stride"] = all_blocks["page_table"].shape[1]
    if workspace is None:
        width = options.get("page_table_stride", 0) * attention.rope.cache.page_size
        longest = options.get("max_length", width)
        workspace = workspace_of(attention, requests, longest, q_tokens)
    if workspace[1]:
        options |= {"workspace": (memory.pointer(workspace[0]) + 255) // 256 * 256, "workspace_size": workspace[1]}
    first = [at.pop(name) for name in ("q", "out", "k_cache", "v_cache", "page_table", "lengths")]
    attention.apply(*first, num_requests=requests, num_q_tokens=q_tokens, **at, **options)
    flats = {name: memory.get(buffer) for name, buffer in buffers.items()}
    for name, block in all_blocks.items():
        rest = block.flat.copy()
        if name in ("out", "lse"):
            block.view(rest)[...] = block.view(flats[name])
        np.testing.assert_array_equal(rest, flats[name], err_msg=f"{name}: written, or beside its elements")
    return [all_blocks[name].view(flats[name]).copy() for name in ("out", "lse")]


def workspace_of(attention, requests, max_length, q_tokens=1):
    """(memory, bytes), zeroed."""
    size = attention.workspace_size(requests, max_length, num_q_tokens=q_tokens)
    return memory_of(attention.rope.device).put(np.zeros(size + 256, np.uint8)), size


def expected(q, k, v, window_left, scale, softcap, sinks, weight_bits):
    """kit.attention's reference of one request's queries, the last of its keys."""
    place = np.arange(len(q))[:, None] + len(k) - len(q)
    ahead = np.arange(len(k))[None, :] - place
    mask = (ahead <= 0) & ((ahead >= -window_left) | (window_left < 0))
    return reference(q, k, v, mask, scale, softcap, sinks, weight_bits)
