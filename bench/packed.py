"""The buffers that the GEMMs of a model's layer write, and where in their rows the inputs of an operation lie."""

from dataclasses import dataclass

from cases import NOPE_DIM, SECTOR, Case

HIDDEN = 4096  # elements of a token between layers
MLA_HEAD = 128  # of mla-fp8: elements of a projected head before those that are rotated


@dataclass(frozen=True)
class Buffer:
    """[tokens, width], written by one GEMM: [tokens, inner] times [inner, width]."""

    width: int
    inner: int
    views: dict[str, tuple[int, int]]  # tensor -> (its first element in a row, elements from head to head)
    read: int = 0  # elements of a row that are read behind the call


def buffers(case: Case) -> dict[str, Buffer]:
    """Those of a case in a step, in the order in which they are written; of any other case none."""
    d, q, k = case.head_dim, case.num_heads, case.num_kv_heads
    if not case.step:
        return {}
    if case.op == "mla-fp8":
        # As in DeepSeek-V3: latent and rotated part of k by one projection, heads of q by another, whose part that is
        # not rotated is multiplied into the latent's space. That product goes head by head; here one GEMM with as
        # many weights and results stands for it.
        return {
            "kv": Buffer(k * (NOPE_DIM + d), HIDDEN, {"v": (0, NOPE_DIM + d), "k": (NOPE_DIM, NOPE_DIM + d)}),
            "q": Buffer(q * (MLA_HEAD + d), HIDDEN, {"q": (MLA_HEAD, MLA_HEAD + d)}, q * (MLA_HEAD + d)),
            "q_nope": Buffer(q * NOPE_DIM, MLA_HEAD, {"q_nope": (0, NOPE_DIM)}),
        }
    views = {"qkv": (0, d), "q": (0, d), "k": (q * d, d), "v": ((q + k) * d, d)}
    return {"qkv": Buffer((q + 2 * k) * d, HIDDEN, views, (q + k) * d)}


def refuses(case: Case) -> str | None:
    """Why a case cannot be measured in a step, or None."""
    if case.head_dim * case.itemsize % SECTOR:
        return f"in a step the heads must be a multiple of {SECTOR} bytes"
    return None
