"""Which layers of a model a layer_type means, and in what they differ."""

from typing import Any, NamedTuple

from pyrope._hf_read import Section
from pyrope.errors import UnsupportedError

_OLD_NAMES = {
    "attention": "full_attention",
    "deepseek_sparse_attention": "indexed_attention",
    "mamba": "linear_attention",
    "qwen_sparse_attention": "indexed_attention",
}
# Layers without q and k, which None leaves out.
_NO_QK = ("conv", "linear_attention", "moe", "recurrent")
# Lists of a value for each layer; 0: its q and k are not rotated.
_ROTATED = ("no_rope_layers", "use_rope_layers", "layer_rope_theta")
# Head counts by layer.
_HEADS = {
    "num_attention_heads_per_layer": "num_attention_heads",
    "num_key_value_heads_per_layer": "num_key_value_heads",
}


class Layer(NamedTuple):
    """What layers of a kind have in common."""

    type: str  # "" where the model has no types
    rotated: bool = True
    scaled: bool = True
    theta: float | None = None
    heads: tuple[tuple[str, Any], ...] = ()  # keys of the configuration that they have of their own


def layers_of(c: Section, entry: dict[str, Any], layer_type: str | int | None) -> list[Layer]:
    """The kinds of layers that are rotated, among those asked for."""
    if isinstance(layer_type, bool) or not isinstance(layer_type, (str, int, type(None))):
        raise TypeError(f"layer_type: {layer_type!r}, must be the name of a type of layers or the number of a layer")
    kinds: dict[str, Any] = entry["layers"]
    if "rotated_without" in entry and not c.get(entry["rotated_without"]):
        one = next(kind for kind in kinds.values() if kind is not None)
        entry = entry | {"layers": {name: kind or one for name, kind in kinds.items()}}
        kinds = entry["layers"]
    numbers, names = _numbers(c, entry, layer_type)
    if numbers is None:
        if isinstance(layer_type, int):
            layer_type = None  # they are all alike
        names = list(kinds) if list(kinds) != [""] else [layer_type or ""]
        names = [name for name in names if layer_type in (None, name)]
        found = [Layer(name, _rotates(kinds, name)) for name in names]
        if not found:
            raise _not_one_of(layer_type, [name for name in kinds if kinds[name] is not None])
    else:
        found = [_layer(c, entry, i, names[i]) for i in numbers]
    found = list(dict.fromkeys(found))
    rotated = [layer for layer in found if layer.rotated]
    still = [layer for layer in found if not layer.rotated and layer.type not in _NO_QK]
    if not rotated:
        raise UnsupportedError(f"layer_type: {layer_type!r}, q and k of these layers are not rotated")
    if still:
        others = sorted({layer.type for layer in rotated} - {layer.type for layer in still})
        raise _not_one_of(layer_type, others) if others else _number(layer_type, "some of these layers are not rotated")
    return rotated


def _numbers(c: Section, entry: dict[str, Any], layer_type: Any) -> tuple[list[int] | None, list[str]]:
    """The numbers of the layers, None if the configuration does not tell them apart; and the types of all."""
    kinds = entry["layers"]
    lists = [len(c.items(key)) for key in (*_ROTATED, *_HEADS) if _has(c, key)]
    if not lists and (_rule(c, entry) or "rope_scaling_layers" in c):
        lists = [c.integer("num_hidden_layers")]
    count = min(lists, default=0)
    if "layer_types" in c:
        types = [_OLD_NAMES.get(name, name) if name not in kinds else name for name in c.items("layer_types")]
        types = [name for name in types if name != "mlp"]  # Dory's, which have no number
        count = min(count, len(types)) or len(types)
    else:
        types = _types(c, entry, count, layer_type)
    if isinstance(layer_type, int):
        if not count and len(kinds) == 1:
            return None, []
        if not count:
            raise ValueError(f"layer_types: missing, with layer_type={layer_type}")
        if not 0 <= layer_type < count:
            raise ValueError(f"layer_type: {layer_type}, must be a layer type or the number of one of {count} layers")
        return [layer_type], types
    if not count:
        return None, []
    numbers = [i for i in range(count) if layer_type in (None, types[i])]
    if not numbers:
        raise _not_one_of(layer_type, sorted({name for name in types if _rotates(kinds, name)}))
    return numbers, types


def _types(c: Section, entry: dict[str, Any], count: int, layer_type: Any) -> list[str]:
    """The types of the layers where the configuration does not name them."""
    kinds = entry["layers"]
    one = [name for name, kind in kinds.items() if kind is not None]
    if count and any(kinds[name] != kinds[one[0]] for name in one) and layer_type not in one:
        raise ValueError("layer_types: missing, but the layers differ")
    name = layer_type if layer_type in one else one[0]
    still = next((name for name, kind in kinds.items() if kind is None and name not in _NO_QK), name)
    return [name if _layer(c, entry, i, name).rotated else still for i in range(count)]


def _rule(c: Section, entry: dict[str, Any]) -> bool:
    return "nope_every" in entry and not _has(c, "no_rope_layers")


def _has(c: Section, key: str) -> bool:
    """A list that is empty says no more than one that is missing."""
    return key in c and len(c.items(key)) > 0


def _rotates(kinds: dict[str, Any], name: str) -> bool:
    if name not in kinds and "" not in kinds:
        raise UnsupportedError(f"layer_types: {name!r}, must be one of {', '.join(map(repr, kinds))} for this model")
    return name not in _NO_QK if name not in kinds else kinds[name] is not None


def _layer(c: Section, entry: dict[str, Any], i: int, name: str) -> Layer:
    rotated, theta = _rotates(entry["layers"], name), None
    for key in _ROTATED:
        if _has(c, key):
            value = c.items(key)[i]
            if not isinstance(value, (int, float)) or value < 0:
                raise ValueError(f"{key}[{i}]: {value!r}, must be a number, 0 or above")
            rotated = rotated and bool(value)
            theta = float(value) if key == "layer_rope_theta" else theta
    if _rule(c, entry):
        every = c.integer("no_rope_layer_interval", default=entry["nope_every"])
        rotated = rotated and (i + 1) % every != 0
    scaled = "rope_scaling_layers" not in c or i in c.items("rope_scaling_layers")
    heads = {own: c.items(key)[i] for key, own in _HEADS.items() if _has(c, key)}
    if None in heads.values():  # a block without attention
        return Layer(_NO_QK[0], rotated=False)
    if "per_layer_config" in c:
        heads |= c.section("per_layer_config").values.get(str(i)) or c.get("per_layer_config").get(i) or {}
    return Layer(name, rotated, scaled, theta if rotated else None, tuple(sorted(heads.items())))


def _not_one_of(layer_type: Any, allowed: list[str]) -> ValueError:
    shown = ", ".join(map(repr, allowed))
    return ValueError(f"layer_type: {layer_type!r}, must be one of {shown}, the layers that are rotated")


def _number(layer_type: Any, reason: str) -> ValueError:
    return ValueError(f"layer_type: {layer_type!r}, {reason}; must be the number of a layer")


def differ(layer_type: Any, layers: list[Layer]) -> ValueError:
    """The refusal where what was asked for is not one rotation."""
    types = sorted({layer.type for layer in layers})
    if layer_type is None and len(types) == len(layers):
        return _not_one_of(layer_type, types)
    return _number(layer_type, "these layers are not rotated alike")
