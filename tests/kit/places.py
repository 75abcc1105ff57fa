"""Where rows of tensors and of caches may lie in memory: strides and offset in elements."""


def dense(shape):
    """Strides of an array without gaps."""
    strides = [1]
    for n in reversed(shape[1:]):
        strides.insert(0, strides[0] * n)
    return tuple(strides)


# Of [tokens, heads, head_dim]. Padded: to multiples of 8; odd: nowhere aligned; spread: elements apart.
PLACES = {
    "dense": lambda t, h, d: ((h * d, d, 1), 0),
    "padded": lambda t, h, d: ((h * (d + 8) + 24, d + 8, 1), 16),
    "odd": lambda t, h, d: ((h * (d + 1) + 3, d + 1, 1), 1),
    "spread": lambda t, h, d: ((2 * h * d + 6, 2 * d, 2), 1),
    "heads first": lambda t, h, d: ((d, t * d + 16, 1), 0),
}


def place_of_sequences(place, sequences, tokens, heads, d):
    """Of [sequence, token, head, dim]: a tensor of rows in each, apart or with the tokens of all heads side by side."""
    strides, offset = PLACES[place](tokens, heads, d)
    if place == "dense":  # [sequences, heads, tokens, dim] in memory
        return (heads * tokens * d, d, tokens * d, 1), 0
    return (tokens * strides[0] + 16, *strides), offset


def place_of_cache(layout, page_size, heads, d, place="dense"):
    """Of [page, entry, head, dim], whatever the order in memory."""
    pad, offset = {"dense": (0, 0), "padded": (8, 16), "odd": (1, 1)}[place]
    if layout == "NHD":
        head = d + pad
        entry = heads * head + 3 * pad
        return (page_size * entry, entry, head, 1), offset
    entry = d + pad
    head = page_size * entry + 5 * pad
    return (heads * head, entry, head, 1), offset
