"""The positions of a case's tokens: what is passed, and those of every pair."""

import numpy as np

from kit import reference as ref

TABLE_ROWS = 64
FLOATS = ["ids float", "sections float"]
BLOCKS = ["blocks64", "blocks in streams32"]


def wide(positions):
    """As Python's numbers are."""
    return positions.astype(np.float64 if positions.dtype == np.float32 else np.int64)


class Positioned:
    """The positions of a Case (kit.cases), which has the row, the options, the blocks and the live tokens."""

    def make_sequences(self):
        if self.row.get("sequences"):
            self.sequences = max(n for n in (1, 2, 3, 4) if self.tokens % n == 0)
            self.scalars["sequence_length"] = self.tokens // self.sequences

    def left_alone(self, positions):
        """The option, and positions two of which it may concern: whether it does."""
        kind = self.row["skip"]
        if kind != "default":
            self.options["skip"] = None if kind == "none" else 7
        if self.tokens > 1:
            positions[1] = 7 if kind == "value" else -1
        if self.tokens > 2:
            positions[2] = -1 if kind == "value" else 7
        if kind == "none" or positions.dtype == np.float32:
            return np.zeros(self.tokens, bool)
        return positions == (7 if kind == "value" else -1)

    def random_positions(self, shape, dtype):
        if dtype == "float32":  # of every size
            return (self.rng.uniform(-1, 1, shape) * 2.0 ** self.rng.integers(-30, 20, shape)).astype(dtype)
        return self.rng.integers(0, TABLE_ROWS if self.row["angle"] == "cos_sin" else 2**20, shape).astype(dtype)

    def make_positions(self):
        """[tokens, pairs]; tokens that are left alone are no longer live."""
        kind, tokens = self.row["positions"], self.tokens
        dtype = "float32" if kind in FLOATS else "int32" if kind.endswith("32") else "int64"
        self.options["position_dtype"] = dtype
        if kind == "offset":
            self.scalars["offset"] = 40
            positions = 40 + np.arange(tokens) % (tokens // self.sequences)
        elif kind.startswith("ragged"):
            indptr = {1: [0, 1], 3: [0, 1, 1, 2], 40: [2, 10, 10, 37]}.get(tokens)
            if indptr is None:
                indptr = np.sort(self.rng.integers(0, tokens + 1, 4))
            offsets = self.array("offsets", self.random_positions(len(indptr) - 1, dtype) // 2, dtype)
            self.array("indptr", indptr, dtype)
            self.scalars["num_requests"] = len(indptr) - 1
            token = np.arange(tokens)
            request = np.searchsorted(indptr, token, side="right") - 1
            self.live &= (token >= indptr[0]) & (token < indptr[-1])
            request = np.clip(request, 0, len(indptr) - 2)
            positions = offsets[request] + token - np.array(indptr)[request]
        elif kind.startswith("ids"):
            positions = self.random_positions(tokens, dtype)
            self.live &= ~self.left_alone(positions)
            self.array("positions", positions, dtype)
        else:
            return self.make_sections(dtype)
        self.stream = np.zeros(self.pairs, int)
        self.origin = self.make_origin(tokens, dtype)
        return np.repeat(wide(positions)[:, None], self.pairs, axis=1)

    def make_sections(self, dtype):
        kind = self.row["positions"]
        if kind in BLOCKS:
            self.options["num_blocks"] = self.num_blocks
        if "streams" in kind:
            self.stream = self.rng.integers(0, 8, self.pairs)
            self.stream[0] = count = 1 + self.rng.integers(1, 8)
            self.stream %= count
            self.stream[-1] = count - 1
            self.options["pair_streams"] = tuple(int(i) for i in self.stream)
        elif kind in BLOCKS:
            count = self.num_blocks
            self.stream = np.repeat(np.arange(count), self.pairs // count)
        else:
            count = min(self.pairs, 8 if kind.startswith("eight") else 2 + self.head_dim % 3)
            sizes = [self.pairs // count] * count
            sizes[0] += self.pairs - sum(sizes)
            interleaved = kind.startswith("interleaved") or (kind.startswith("eight") and self.tokens == 3)
            self.options |= {"sections": tuple(sizes), "sections_interleaved": interleaved}
            self.stream = ref.streams(self.pairs, sizes, interleaved)
        positions = self.random_positions((count, self.tokens), dtype)
        self.live &= ~self.left_alone(positions[0])
        self.array("positions", positions, dtype)
        self.origin = self.make_origin((count, self.tokens), dtype)
        return wide(positions)[self.stream].T

    def make_origin(self, shape, dtype):
        """positions_from, as [tokens, pairs]."""
        if not self.row["origin"]:
            return None
        values = wide(self.array("positions_from", self.random_positions(shape, dtype), dtype))
        return np.repeat(values[:, None], self.pairs, axis=1) if values.ndim == 1 else values[self.stream].T
