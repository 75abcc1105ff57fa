"""What a call adds to a model's layer: chains of layers with it and without it, captured as graphs.

A layer is what writes the packed buffers, the call, and what reads q and k. That reads what was written before the call
also where its results are elsewhere, so that it finds the same bytes in the same cache with the call and without it.
A sample is the time of the chain with the call less that of the chain without it, one right behind the other, over the
number of layers: what changes slowly, as clocks do, is in both. Its median and quantiles are reported.
"""

from collections.abc import Callable, Sequence

LAYERS = 24
SLOTS = 4  # of packed buffers, results and caches, which the layers take in turns


def chain(neighbour, calls: Sequence[Callable] = ()) -> Callable[[], None]:
    """All layers, with a call for each slot or without."""

    def run() -> None:
        for layer in range(LAYERS):
            slot = layer % SLOTS
            neighbour.write(layer, slot)
            if calls:
                calls[slot]()
            neighbour.read(slot)

    return run


class Step:
    """The layers of one case, with each kind of neighbour."""

    def __init__(self, inputs):
        self._device = inputs.device
        self._neighbours, self._floor = self._device.neighbours(inputs)
        self._without = {kind: self._device.timed(chain(x)) for kind, x in self._neighbours.items()}

    def roofs(self) -> dict[str, tuple[str, dict]]:
        """{"layer": without a call, "floor": with the least of calls}: what it is, samplers by kind."""
        layers = {kind: lambda without=without: without() / LAYERS for kind, without in self._without.items()}
        kinds = "; ".join(f"{kind}: {x.what}" for kind, x in self._neighbours.items())
        what, call = self._floor
        return {"layer": (f"a layer without the call; {kinds}", layers), "floor": (what, self._added([call] * SLOTS))}

    def samplers(self, peer, calls: list[Callable]) -> dict[str, Callable]:
        """Of one implementation, by kind; `calls` are those of each slot."""
        return self._added(calls)

    def without(self) -> dict[str, Callable]:
        """By kind, what leaves the memory as the chain without the call does."""
        return self._without

    def _added(self, calls: list[Callable]) -> dict[str, Callable]:
        def sampler(kind: str) -> Callable[[], float]:
            without, within = self._without[kind], self._device.timed(chain(self._neighbours[kind], calls))

            def sample() -> float:
                before = without()
                return (within() - before) / LAYERS

            return sample

        return {kind: sampler(kind) for kind in self._neighbours}
