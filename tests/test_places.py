"""Tokens whose slot or page is outside of the cache: skipped, counted, or with `check` an error that names them."""

import numpy as np
import pytest

import pyrope
from kit.blocks import cache_block, call, index, rows_block
from kit.ropes import DIM, K_HEADS, make

TOKENS, PAGES, PAGE_SIZE = 5, 4, 8


def places(numbers, kind, table=None):
    """Arguments that say where each token goes; numbers: a slot, or (request, number in it)."""
    if kind == "slots":
        return {"slots": index(numbers)}
    requests, positions = zip(*numbers, strict=True)
    table = np.array([[0, 1], [2, 3]] if table is None else table)
    found = {"request_ids": index(requests, np.int32), "cache_positions": index(positions, np.int32)}
    if kind == "indptr":
        starts = np.arange(len(table) + 1) * table.shape[1]
        return found | {"page_table": index(table.ravel(), np.int32), "page_indptr": index(starts, np.int32)}
    return found | {"page_table": index(table.ravel(), np.int32), "page_table_stride": table.shape[1]}


IN_PAGES = [(0, 15), (1, 0), (-1, 99), (0, -1), (1, 9)]
OUTSIDE = [
    ("slots", [0, 31, -1, 32, 99], None, "slots: token 3 has slot 32, must be below num_pages [*] page_size .32"),
    ("slots", [0, 1, 2, 3, 2**40], None, "slots: token 4 has slot 1099511627776"),
    ("stride", [*IN_PAGES[:4], (1, 16)], None, "page_table: token 4, number 16 of request 1, has no page of the 4"),
    ("indptr", [*IN_PAGES[:4], (0, 16)], None, "page_table: token 4, number 16 of request 0, has no page"),
    ("stride", IN_PAGES, [[0, 1], [4, 3]], "page_table: token 1, number 0 of request 1, has no page"),
    ("indptr", IN_PAGES, [[0, -1], [2, 3]], "page_table: token 0, number 15 of request 0, has no page"),
]
INSIDE = [("slots", [0, 31, -1, -5, 7], None), ("stride", IN_PAGES, None), ("indptr", IN_PAGES, [[0, 1], [2, 3]])]


def cache_call(device, method, where, **options):
    rope = make(device, fused=True, cache=pyrope.PagedCache(PAGE_SIZE, PAGES, index_dtype="int32"))
    if "slots" in where:
        rope = make(device, fused=True, cache=pyrope.PagedCache(PAGE_SIZE, PAGES))
    operands = {"k_cache": cache_block("float32", PAGES, PAGE_SIZE, K_HEADS, DIM)} | where
    if method == "apply":
        operands["k"] = rows_block("float32", (TOKENS, K_HEADS, DIM), values=np.ones((TOKENS, K_HEADS, DIM)))
    more = {name: x for name, x in options.items() if name != "refused"} | {"offset": 3}
    return call(rope, operands | more, TOKENS, method, refused=options.get("refused"), error=ValueError)


@pytest.mark.parametrize("method", ["apply", "rotate_cache"])
@pytest.mark.parametrize(("kind", "numbers", "table", "text"), OUTSIDE)
def test_outside(device, method, kind, numbers, table, text):
    where = places(numbers, kind, table)
    cache_call(device, method, where, check=True, refused=text)
    default = {"refused": text} if device == "cpu" else {}  # where it costs no synchronisation
    cache_call(device, method, where, **default)
    cache_call(device, method, where, check=False)
    flats = cache_call(device, method, where | {"cache_skipped": index([0])})
    assert flats["cache_skipped"].view(np.int64)[0] >= 1


@pytest.mark.parametrize(("kind", "numbers", "table"), INSIDE)
def test_inside(device, kind, numbers, table):
    where = places(numbers, kind, table)
    checked, plain = (cache_call(device, "apply", where, check=check) for check in (True, False))
    assert all(np.array_equal(checked[name], plain[name]) for name in plain)


def test_nothing_to_check(device):
    rope = make(device, fused=True)
    q = rows_block("float32", (TOKENS, 3, DIM))
    call(rope, {"q": q, "check": True}, refused="check: only allowed with a cache", error=ValueError)
    cached = make(device, fused=True, cache=pyrope.PagedCache(PAGE_SIZE, PAGES))
    call(cached, {"q": q, "check": 1}, refused="check: only allowed with a cache, and k or v", error=ValueError)
    call(cached, {"q": q})
