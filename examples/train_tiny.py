"""Trains the same small transformer twice, with pyrope's rotation and gradient and with torch's own formula.

    python examples/train_tiny.py [--steps N] [--device cpu|cuda] [--attention torch|fused] [--plot curves.png]

fused: pyrope rotates and attends in one call, forward and backward; else torch attends in both.

Both start from the same weights and see the same text, sources of Python's standard library by characters: the losses
are equal to rounding. Needs torch, and matplotlib with --plot.
"""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

try:
    import torch
    from torch.nn import functional

    import pyrope
    import pyrope.torch
except ModuleNotFoundError as error:
    sys.exit(f"{error}; install what this example needs: pip install 'torch>=2.11', and in the checkout pip install .")

HEADS, HEAD_DIM, LAYERS, CONTEXT, BATCH = 4, 16, 2, 64, 16
WIDTH, CHARACTERS = HEADS * HEAD_DIM, 128
FILES = ("textwrap.py", "heapq.py", "bisect.py", "string.py", "shlex.py")

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]  # of q, k, v: [batch, heads, seq, head_dim]


def text(device: str) -> torch.Tensor:
    """The characters as numbers below 128."""
    folder = Path(os.__file__).parent
    source = "".join((folder / name).read_text(encoding="utf-8") for name in FILES)
    return torch.tensor([min(ord(c), CHARACTERS - 1) for c in source], device=device)


def by_pyrope(device: str) -> Attend:
    rope = pyrope.Rope(HEAD_DIM, HEADS, HEADS, dtype="float32", device=device)

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        q_out, k_out = pyrope.torch.apply(rope, q, k, layout="bhsd")
        assert q_out is not None and k_out is not None
        return functional.scaled_dot_product_attention(q_out, k_out, v, is_causal=True)

    return attend


def by_pyrope_fused(device: str) -> Attend:
    rope = pyrope.Rope(HEAD_DIM, HEADS, HEADS, dtype="float32", device=device)
    attention = pyrope.RopeAttention(rope, causal=True)
    return lambda q, k, v: pyrope.torch.attention(attention, q, k, v, layout="bhsd")


def by_torch(device: str) -> Attend:
    """RoFormer (arXiv:2104.09864), equation 34, with halves as pairs."""
    inv_freq = 10000.0 ** (-torch.arange(0, HEAD_DIM, 2, device=device) / HEAD_DIM)
    angles = torch.arange(CONTEXT, device=device)[:, None] * inv_freq
    cos, sin = angles.cos(), angles.sin()

    def turn(x: torch.Tensor) -> torch.Tensor:
        a, b = x.chunk(2, -1)
        return torch.cat((a * cos - b * sin, a * sin + b * cos), -1)

    return lambda q, k, v: functional.scaled_dot_product_attention(turn(q), turn(k), v, is_causal=True)


class Block(torch.nn.Module):
    def __init__(self, attend: Attend) -> None:
        super().__init__()
        self.attend = attend
        self.norms = torch.nn.ModuleList(torch.nn.RMSNorm(WIDTH) for _ in range(2))
        self.qkv = torch.nn.Linear(WIDTH, 3 * WIDTH)
        self.out = torch.nn.Linear(WIDTH, WIDTH)
        self.feed = torch.nn.Sequential(
            torch.nn.Linear(WIDTH, 4 * WIDTH), torch.nn.GELU(), torch.nn.Linear(4 * WIDTH, WIDTH)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        qkv = self.qkv(self.norms[0](x)).unflatten(-1, (3, HEADS, HEAD_DIM))
        y = self.attend(*qkv.permute(2, 0, 3, 1, 4))
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.feed(self.norms[1](x))


def train(attend: Attend, steps: int, device: str) -> list[float]:
    """The loss of every step, in nats a character."""
    torch.manual_seed(0)
    layers = [Block(attend) for _ in range(LAYERS)]
    model = torch.nn.Sequential(
        torch.nn.Embedding(CHARACTERS, WIDTH), *layers, torch.nn.RMSNorm(WIDTH), torch.nn.Linear(WIDTH, CHARACTERS)
    ).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    data, losses = text(device), []
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        starts = torch.randint(len(data) - CONTEXT - 1, (BATCH, 1), generator=generator).to(device)
        window = data[starts + torch.arange(CONTEXT + 1, device=device)]
        loss = functional.cross_entropy(model(window[:, :-1]).flatten(0, 1), window[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def plot(curves: dict[str, list[float]], path: str) -> None:
    try:
        import matplotlib
    except ModuleNotFoundError as error:
        sys.exit(f"{error}; --plot needs matplotlib: pip install matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots()
    for (name, losses), style in zip(curves.items(), ("-", "--"), strict=True):
        axes.plot(losses, style, label=name)
    axes.set_xlabel("step")
    axes.set_ylabel("loss, nats a character")
    axes.legend()
    figure.savefig(path)


def main(arguments: list[str] | None = None) -> dict[str, list[float]]:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--attention", choices=["torch", "fused"], default="torch", help="whose attention pyrope's has")
    parser.add_argument("--plot", metavar="FILE", help="where to draw both curves")
    chosen = parser.parse_args(arguments)
    ours = by_pyrope_fused if chosen.attention == "fused" else by_pyrope
    curves = {
        name: train(make(chosen.device), chosen.steps, chosen.device)
        for name, make in (("pyrope", ours), ("torch", by_torch))
    }
    differences = [abs(a - b) for a, b in zip(*curves.values(), strict=True)]
    print(f"{'step':>6}{'pyrope':>10}{'torch':>10}{'difference':>12}")
    for step in sorted({*range(0, chosen.steps, max(chosen.steps // 10, 1)), chosen.steps - 1}):
        a, b = (losses[step] for losses in curves.values())
        print(f"{step:6}{a:10.5f}{b:10.5f}{differences[step]:12.1e}")
    print(f"largest difference: {max(differences):.1e}")
    if chosen.plot:
        plot(curves, chosen.plot)
    return curves


if __name__ == "__main__":
    main()
