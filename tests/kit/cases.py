"""Calls of the whole pipeline from a row of options: what is passed, what must come out, and the comparison."""

import numpy as np

import pyrope
from kit import reference as ref
from kit.blocks import Block, cache_block, call, same_on_both, sequences_block
from kit.checks import GROUPED, SCALES, Checked, Output
from kit.positions import BLOCKS, FLOATS, TABLE_ROWS, Positioned

Q_HEADS, K_HEADS = 3, 2
RANKS = 4  # that share a norm
THETAS = (10000.0, 500000.0, 100.0)
PARTIAL = {128: (64, 64), 64: (32, 16), 80: (36, 7), 20: (8, 12), 6: (4, 1)}  # head_dim: rotary_dim, rotary_offset
OTHER = {"float32": "bfloat16", "float16": "float32", "bfloat16": "float16"}  # dtypes to store another as
TWINS = {"float16": "bfloat16", "bfloat16": "float16"}  # of k beside q

# What rows of options have in common, and the arguments that a refusal names with what together is refused.
SECTIONS = ["sections64", "sections32", "interleaved64", "sections float", "streams64", "eight sections32", *BLOCKS]
FACTORS = {
    "dtype": ["float32", "float16", "bfloat16"],
    "layout": ["neox", "gptj"],
    "angle": ["exact", "fp32", "cos_sin"],
    "table": ["pairs", "elements", "radians"],  # with cos_sin
    "positions": ["offset", "ids32", "ids64", "ragged32", "ragged64", "ids float", *SECTIONS],
    "scale": ["host", "tensor", "head", "token", "dynamic", "groups"],
    "cache": ["slots32", "slots64", "indptr32", "indptr64", "stride32", "stride64"],
    "cache_layout": ["NHD", "HND"],
    "memory": ["dense", "padded", "odd"],
    "rotary": ["full", "partial"],
    "head_dim": [64, 128, 80, 20, 6],
    "tokens": [1, 3, 40],
    "inverse": [False, True],
    "origin": [False, True],
    "sets": ["none", "plain", "factors"],
    "xpos": ["none", "plain", "centered"],
    "skip": ["default", "none", "value"],
}
REFUSED = [
    ("positions_from", {"angle": ["cos_sin"], "origin": [True]}),
    ("positions", {"positions": ["offset", "ragged32", "ragged64"], "origin": [True]}),
    ("positions_from", {"positions": SECTIONS, "origin": [True]}),
    ("frequency_sets", {"angle": ["cos_sin"], "sets": ["plain", "factors"]}),
    ("position_dtype", {"angle": ["cos_sin"], "positions": FLOATS}),
    ("frequency_sets", {"angle": ["exact"], "positions": FLOATS, "sets": ["plain", "factors"]}),
]
# Refused by the constructor: see test_stages_refusals.py.
SHARED = {"angle": ["cos_sin"], "xpos": ["plain", "centered"]}


def not_grouped(out):
    """Rules for the factor of a stored type: what groups, and a block, do not divide."""
    return [
        {"scale": ["groups"], "head_dim": [20, 6]},
        {out: GROUPED, "head_dim": [20, 6]},
        {out: ["q8_0"], "head_dim": [80]},
    ]


class Case(Positioned, Checked):
    """One row of options as a call: `options` of FusedRope, `blocks` and `scalars` of apply, and what must come out.

    A row may have other shapes than those here: "heads" of q and k, "part" (rotary_dim, rotary_offset), "pages".
    """

    def __init__(self, row, rng):
        self.row, self.rng, self.tokens = row, rng, row["tokens"]
        d = self.head_dim = row["head_dim"]
        self.q_heads, self.k_heads = row.get("heads", (Q_HEADS, K_HEADS))
        part = row.get("part") or PARTIAL.get(d)
        self.rotary_dim, self.rotary_offset = part if row["rotary"] == "partial" else (d, 0)
        self.pairs = self.rotary_dim // 2
        self.turns = row["rotary"] != "none"
        self.sequences = 1
        self.num_blocks = next(n for n in (2, 3) if self.pairs % n == 0) if row["positions"] in BLOCKS else 1
        self.k_dtype = TWINS[row["dtype"]] if row.get("k_dtype") == "other" else row["dtype"]
        self.method = "inverse" if row["inverse"] else "apply"
        self.live = np.ones(self.tokens, bool)  # tokens that anything is written for
        self.blocks, self.scalars, self.counters, self.outputs = {}, {}, {}, {}
        self.options = {
            "dtype": row["dtype"],
            "layout": row["layout"],
            "angle": row["angle"],
            "rotary_dim": self.rotary_dim if self.turns else 0,
            "rotary_offset": self.rotary_offset,
        }
        if row.get("k_dtype") == "other":
            self.options["k_dtype"] = self.k_dtype
        self.make_sequences()
        positions = self.make_positions()
        factor = self.make_sets()
        cos, sin = self.make_table(positions) if row["angle"] == "cos_sin" else self.make_angles(positions)
        if row["inverse"]:
            sin = -sin if sin.ndim == 2 else -sin[::-1]
        self.cos, self.sin = factor * cos, factor * sin
        self.magnitude = self.make_xpos(positions)
        self.make_norm()
        self.slots = self.make_cache()
        self.scalars |= {"skipped": "copy"} if row.get("skipped") == "copy" else {}
        self.out_layout = row["layout"]
        if row.get("out_layout") == "other":
            self.out_layout = self.options["out_layout"] = "gptj" if row["layout"] == "neox" else "neox"
        self.make_tensors()

    def rope(self, device):
        return pyrope.FusedRope(self.head_dim, self.q_heads, self.k_heads, device=device, **self.options)

    def run(self, device):
        """The contents of every block after the call, which are what they must be, and on CUDA the CPU's too."""
        operands = self.blocks | self.scalars
        if device == "cuda":
            flats = same_on_both(self.rope, operands, self.tokens, self.method)
        else:
            flats = call(self.rope(device), operands, self.tokens, self.method)
        self.check(flats)
        return flats

    def is_refused(self, device, name):
        """The call is refused for an argument, and writes nothing."""
        operands = self.blocks | self.scalars
        call(self.rope(device), operands, self.tokens, self.method, refused=f"^{name}: ")

    def array(self, name, values, dtype):
        values = np.asarray(values, dtype)
        self.blocks[name] = Block(dtype, values.shape, values=values)
        return values

    # ---- angles

    def make_angles(self, positions):
        mode, base = self.row["angle"], THETAS[0]
        block = self.rotary_dim // self.num_blocks
        turns = ref.phases(positions, mode, block, [THETAS[i] for i in self.ids] or base)
        if self.origin is not None:
            others = ref.phases(self.origin, mode, block, [THETAS[i] for i in self.ids_from] or base)
            turns = ref.minus(turns, others)
        return ref.cos_sin_of_phases(turns)

    def make_sets(self):
        """Frequencies for each token; returns the attention factors, [tokens, 1]."""
        self.ids = self.ids_from = ()
        self.options["attention_factor"] = 1.5
        if self.row["sets"] == "none":
            return np.full((self.tokens, 1), 1.5)
        shape = {"head_dim": self.rotary_dim, "num_q_heads": 1, "num_k_heads": 1, "device": "cpu"}
        angle = "fp32" if self.row["angle"] == "fp32" else "exact"
        if self.num_blocks > 1:
            shape["num_blocks"] = self.num_blocks
        words = [pyrope.FusedRope(**shape, theta=theta, angle=angle).frequencies for theta in THETAS]
        self.array("frequency_sets", np.stack(words), np.uint64)
        self.scalars["num_sets"] = len(THETAS)
        ids = self.rng.integers(0, len(THETAS), self.tokens)
        if self.tokens > 1:
            ids[-1] = len(THETAS)
        self.array("set_ids", ids, np.int32)
        self.live &= ids < len(THETAS)
        self.ids = self.ids_from = ids % len(THETAS)
        if self.row["sets"] == "plain":
            return np.full((self.tokens, 1), 1.5)
        if self.row["origin"]:
            self.ids_from = self.array("set_ids_from", self.rng.integers(0, len(THETAS), self.tokens), np.int32)
        return 1.5 * self.array("set_factors", [1.25, 0.75, 1.0], np.float32).astype(np.float64)[self.ids][:, None]

    def make_table(self, positions):
        dtype = ("float32", "float16", "bfloat16")[self.rng.integers(3)]
        merged = self.tokens == 3
        self.options["cos_sin_dtype"] = dtype
        kind = self.row["table"]
        columns = self.pairs if kind == "pairs" else self.rotary_dim
        if kind != "pairs":
            self.options["cos_sin_columns"] = "elements"
        if kind == "radians":
            self.options |= {"angle": "radians", "cos_sin_dtype": "float32"}
            values = self.rng.uniform(-1000, 1000, (TABLE_ROWS, columns)).astype(np.float32)
            parts, merged, dtype = {"angles": values}, False, "float32"
        else:
            values = self.rng.uniform(-1, 1, (TABLE_ROWS, 2 * columns)).astype(ref.storage(dtype))
            parts = {"cos": values} if merged else {"cos": values[:, :columns], "sin": values[:, columns:]}
        stride = (2 if merged else 1) * columns + (5 if self.row["layout"] == "gptj" else 0)
        for name, part in parts.items():
            self.blocks[name] = Block(dtype, part.shape, (stride, 1), values=part)
        self.scalars |= {"cos_sin_rows": TABLE_ROWS, "cos_sin_stride": stride}
        if self.tokens > 6 and "positions" in self.blocks:
            outside = np.atleast_2d(self.blocks["positions"].view())[-1]
            for token, place in ((5, TABLE_ROWS), (6, -2)):
                if self.live[token]:
                    outside[token] = positions[token, self.stream == self.stream.max()] = place
        inside = ((positions >= 0) & (positions < TABLE_ROWS)).all(1)
        self.counter("cos_sin_skipped", (self.live & ~inside).sum())
        self.live &= inside
        chosen, values = np.clip(positions, 0, TABLE_ROWS - 1).astype(np.int64), values.astype(np.float64)
        if kind == "pairs":
            elements = np.arange(self.pairs)
        else:  # of the first and the second element of each pair
            elements = np.array(ref.pair_indices(self.rotary_dim, self.row["layout"], self.num_blocks))[:, None]
        if kind == "radians":
            return np.cos(values[chosen, elements]), np.sin(values[chosen, elements])
        return values[chosen, elements], values[chosen, columns + elements]

    def make_xpos(self, positions):
        """Magnitudes of q, [tokens, pairs]; those of k are the reciprocals."""
        if self.row["xpos"] == "none":
            return None
        span = 80 if self.row["positions"] == "offset" and self.origin is None else 2**20
        gamma, center = (0.4, 0) if self.row["xpos"] == "plain" else (2.5, span // 3)
        scale_base = span / 4  # magnitudes of up to 2^7.3, which float16 bears
        self.options["xpos"] = pyrope.XPos(scale_base, gamma, center)
        distances = positions - (center if self.origin is None else self.origin)
        return ref.xpos(distances, self.rotary_dim, scale_base, gamma)

    def rotate(self, value, name, tokens=slice(None)):
        """Rows of these tokens."""
        if not self.turns:
            return value
        cos, sin, relative = self.cos[..., tokens, :], self.sin[..., tokens, :], ref.ROTATION
        if self.magnitude is not None:
            magnitude = self.magnitude[tokens] if name == "q" else 1 / self.magnitude[tokens]
            cos, sin, relative = cos * magnitude, sin * magnitude, ref.ROTATION + ref.XPOS
        place = self.rotary_dim, self.rotary_offset
        value = ref.rotate(value, cos, sin, self.row["layout"], *place, relative, self.num_blocks)
        return tuple(ref.relaid(part, self.row["layout"], self.out_layout, *place) for part in value)

    def counter(self, name, count):
        self.array(name, [41], np.int64)
        self.counters[name] = 41 + count

    # ---- stages

    def make_norm(self):
        kind = self.row["norm"]  # none, or "before" or "after" and what else
        if kind == "none":
            return
        words = kind.split()
        wide, self.bias = "f32" in words, 1.0 if "bias" in words else 0.0
        self.options["norm"] = pyrope.RMSNorm(
            eps=1e-5,
            weight_dtype="float32" if wide else None,
            weight_bias=self.bias,
            after=words[0] == "after",
            across_heads="across" in words,
            ranks=RANKS if "ranks" in words else 1,
        )
        for name, heads in (("q_weight", self.q_heads), ("k_weight", self.k_heads))[: 1 if "q" in words else 2]:
            count = heads * self.head_dim if "across" in words else self.head_dim
            weight = ref.storage("float32" if wide else self.dtype_of(name))
            self.array(name, self.rng.standard_normal(count) + 1 - self.bias, weight)
            if "ranks" in words:  # the sums of all ranks
                sums = RANKS * heads * self.head_dim * self.rng.uniform(0.5, 2, self.tokens)
                self.array(f"{name[0]}_sums", sums, np.float32)

    def norm(self, value, name, when):
        weight = self.blocks.get(f"{name}_weight")
        if weight is None or not self.row["norm"].startswith(when):
            return value
        if "across" not in self.row["norm"]:
            return ref.rms_norm(value, weight.view(), 1e-5, self.bias)
        shape = value[0].shape
        flat, given = tuple(x.reshape(self.tokens, -1) for x in value), None
        if f"{name}_sums" in self.blocks:
            sums = self.blocks[f"{name}_sums"].view().astype(np.float64)[:, None]
            given = sums, RANKS * flat[0].shape[-1]
        return tuple(x.reshape(shape) for x in ref.rms_norm(flat, weight.view(), 1e-5, self.bias, given))

    def make_cache(self):
        """The slot of every token; negative: nothing is appended."""
        kind = self.row["cache"]
        self.num_pages, self.page_size = self.row.get("pages", (11, 5))
        if kind == "none":
            return None
        rng, tokens, limit = self.rng, self.tokens, self.num_pages * self.page_size
        dtype = "int32" if kind.endswith("32") else "int64"
        form = {"layout": self.row["cache_layout"], "skip_q": self.row.get("skip_q", False), "index_dtype": dtype}
        self.options["cache"] = pyrope.PagedCache(self.page_size, self.num_pages, **form)
        if kind.startswith("slots"):
            slots = rng.permutation(limit)[:tokens]
            if tokens > 3:
                slots[[2, 9 % tokens, 20 % tokens]] = -1, limit, -7
            if tokens > 1:
                slots[0] = limit + 3
            self.array("slots", slots, dtype)
            listed = slots >= 0
        else:
            pages = rng.permutation(self.num_pages).astype(np.int32)
            starts = [0, 3, 3, 9] if "indptr" in kind else [0, 3, 6, 9]
            # Tokens of requests in any order, each with its own place in its request.
            where = [(r, n) for r in range(3) for n in range(self.page_size * (starts[r + 1] - starts[r]))]
            where = np.array([where[i] for i in rng.permutation(len(where))[:tokens]])
            request, position = where.T.astype(np.int64)
            if tokens > 3:
                pages[[1, 4]] = self.num_pages, -3
                request[2], position[9 % tokens] = -1, -2
            page_table = self.array("page_table", pages, np.int32)
            if "indptr" in kind:
                self.array("page_indptr", starts, np.int32)
            else:
                self.scalars["page_table_stride"] = 3
            self.array("request_ids", request, np.int32)
            self.array("cache_positions", position, dtype)
            slots = ref.slots_of_pages(position, request, page_table, starts, self.page_size)
            listed = (request >= 0) & (position >= 0)
            slots[listed & (slots < 0)] = limit
        if form["skip_q"]:
            self.live &= listed
        outside = self.live & (slots >= limit)
        self.counter("cache_skipped", outside.sum())
        return np.where(self.live & (slots < limit), slots, -1)

    def make_tensors(self):
        row, d = self.row, self.head_dim
        q, kv, v_heads, v_dim = row["q_out"], row["kv_out"], self.k_heads, d
        if row["v"] == "own":
            v_heads, v_dim = self.options["num_v_heads"], self.options["v_head_dim"] = 1, 40
        self.place("q", self.q_heads, d, q, in_place=row["place"] != "out")
        self.place("k", self.k_heads, d, kv, in_place=row["place"] == "in")
        if row["v"] != "none":
            self.place("v", v_heads, v_dim, kv)
        if row["q_nope"] in (True, "q"):
            self.options["q_nope_dim"] = 24
            self.place("q_nope", self.q_heads, 24, q)
        if row["q_nope"] == "k":
            self.options["k_nope_dim"] = 24
            self.place("k_nope", self.k_heads, 24, kv)

    def place(self, name, heads, d, out, in_place=False):
        """An operand, where it goes, its scale and its expected value."""
        row, dtype = self.row, self.dtype_of(name)
        values = self.rng.standard_normal((self.tokens, heads, d)).astype(ref.storage(dtype))
        self.blocks[name] = sequences_block(dtype, self.sequences, values.shape, row["memory"], values)
        value = ref.exact(values)
        if name in "qk":
            value = self.norm(value, name, "before")
            value = self.rotate(value, name)
            value = self.norm(value, name, "after")
        form = {"same": dtype, "other": OTHER[dtype]}.get(out, out)
        if out == "other":
            self.options[f"{name[0]}_out_dtype"] = form
        o = Output(name if in_place else f"{name}_out", name, form)
        width = self.choose_groups(o, d)
        o.tokens, count = np.flatnonzero(self.live), self.tokens
        o.rows, o.scale_rows = self.rows_of(o.tokens), o.tokens
        cached = self.slots is not None and name in ("k", "v", "k_nope")
        if cached and row.get("kept"):
            self.place_kept(name, value, values.shape, in_place)
        if cached:
            o.where, count = f"{name}_cache", self.num_pages * self.page_size
            self.blocks[o.where] = cache_block(o.format, self.num_pages, self.page_size, heads, width,
                                               row["cache_layout"])  # fmt: skip
            o.tokens = np.flatnonzero(self.slots >= 0)
            o.scale_rows = self.slots[o.tokens]
            o.rows = tuple(np.divmod(o.scale_rows, self.page_size))
        elif not in_place:
            self.blocks[o.where] = sequences_block(o.format, self.sequences, (self.tokens, heads, width), row["memory"])
            o.copies = row.get("skipped") == "copy" and o.format == dtype
        o.value = tuple(part[o.tokens] for part in value)
        if o.groups:
            self.make_groups(o, heads, d)
        elif o.format in SCALES and name in "qkv":
            self.make_scale(o, heads, count)
        self.outputs[name] = o

    def dtype_of(self, name):
        return self.row["dtype"] if name[0] == "q" else self.k_dtype

    def rows_of(self, tokens):
        """The index of tokens in blocks of rows."""
        return (tokens,) if self.sequences == 1 else np.divmod(tokens, self.tokens // self.sequences)

    def place_kept(self, name, value, shape, in_place):
        """What goes to a cache is stored outside it too."""
        o = self.outputs[f"{name} kept"] = Output(f"{name}_out", name, self.dtype_of(name))
        same = in_place and name == "k"
        own = None if same else sequences_block(o.format, self.sequences, shape, self.row["memory"])
        self.blocks[o.where] = own or self.blocks[name]
        o.tokens, o.copies = np.flatnonzero(self.live), self.row.get("skipped") == "copy" and not same
        o.rows = self.rows_of(o.tokens)
        o.value = tuple(part[o.tokens] for part in value)

    def make_scale(self, o, heads, count):
        kind, size, name = self.row["scale"], SCALES[o.format], f"{o.operand}_scale"
        self.options[f"{o.operand}_out_dtype"] = o.format
        self.options[f"{o.operand}_scale_kind"] = "tensor" if kind == "host" else kind
        if kind == "host":
            self.scalars[name] = size
            o.scale = float(np.float32(size))
        elif kind == "dynamic":
            self.blocks[name] = Block(np.float32, (count, heads), (heads, 1))
        else:
            shape = {"tensor": (1, 1), "head": (1, heads), "token": (self.tokens, 1)}[kind]
            scales = (size * self.rng.uniform(0.5, 2, shape)).astype(np.float32)
            self.blocks[name] = Block(np.float32, (scales.size,), values=scales.ravel())
            o.scale = scales.astype(np.float64)[o.tokens if kind == "token" else slice(None), :, None]
