"""A loaded model's rotations by pyrope: its methods over again, with other functions among their globals.

Only that model changes. Its modules get the methods as attributes of their own; classes and transformers' modules stay
as they are.
"""

import inspect
import re
from collections.abc import Callable
from types import CellType, CodeType, FunctionType, MethodType
from typing import Any, Literal, TypeVar

import torch

from pyrope.compat.transformers._angles import forward_of, ropes_of
from pyrope.compat.transformers._families import TABLES, functions
from pyrope.errors import UnsupportedError

Model = TypeVar("Model", bound=torch.nn.Module)

TURNS = re.compile(r"_?apply_rot|rotate_quer")  # what transformers calls functions that rotate q and k
ROTARY = re.compile(r"Rotary|RoPE|Rope")  # and modules
MARK = "_is_of_pyrope"


def patch(model: Model, angle: Literal["exact", "cos_sin"] = "exact") -> Model:
    """Rotate q and k in every layer of a model by pyrope.

    Parameters
    ----------
    model : torch.nn.Module
        Of transformers, or with parts that are. It is changed, and returned; other models of its class are not.
    angle : {"exact", "cos_sin"}
        ``"exact"``: by positions, as :meth:`pyrope.Rope.from_hf_config` reads the model's configuration. Parts that it
        does not read, such as vision towers, and frequencies that depend on the length have the model's cos and sin.
        ``"cos_sin"``: all layers have the model's, in the dtype that it gives them.

    Raises
    ------
    pyrope.UnsupportedError
        A part of the model rotates in a way that is not known, or none does. Nothing is changed.
    ValueError
        A method to be replaced has been replaced already, as by accelerate's hooks. Nothing is changed.
    """
    if angle not in ("exact", "cos_sin"):
        raise ValueError(f"angle: {angle!r}, must be 'exact' or 'cos_sin'")
    unpatch(model)
    scopes: dict[int, Scope] = {}
    kinds: dict[type, dict[str, FunctionType]] = {}
    parts = list(model.named_modules())
    for name, module in parts:
        kind = type(module)
        if kind not in kinds:
            kinds[kind] = _methods(kind, name, scopes)
        for method in kinds[kind].keys() & vars(module).keys():
            raise ValueError(f"model: {name}.{method} has been replaced already; patch the model before that")
    reached = {kind.__module__ for kind, methods in kinds.items() if methods}
    for name, module in parts:
        if ROTARY.search(type(module).__name__) and type(module).__module__ not in reached:
            raise UnsupportedError(f"model: {name} is a {type(module).__name__}, what it rotates is not known")
    if not reached:
        raise UnsupportedError(f"model: {type(model).__name__}, no function that rotates q and k is called in it")
    for _, module in parts:
        for method, f in kinds[type(module)].items():
            setattr(module, method, MethodType(f, module))
        if angle == "exact" and ROTARY.search(type(module).__name__) and (forward := _exact(module)):
            module.forward = MethodType(forward, module)
    return model


def _exact(module: torch.nn.Module) -> Callable[..., Any] | None:
    """A forward that gives positions where the module's own gives cos and sin; None where that is not the same."""
    package = package_of(type(module).__module__)
    if package in TABLES or not (ropes := ropes_of(module)):
        return None
    forward = forward_of(ropes, single="apply_rotary_emb" in functions(package))
    setattr(forward, MARK, True)
    return forward


def unpatch(model: Model) -> Model:
    """Undo :func:`patch`, in a copy of a patched model too. Returns the model."""
    for module in model.modules():
        for name in [name for name, value in vars(module).items() if hasattr(value, MARK)]:
            delattr(module, name)
    return model


def package_of(module: str) -> str:
    """The package of a module of transformers.models, else an empty one."""
    return module.split(".")[2] if module.startswith("transformers.models.") else ""


class Scope:
    """Globals with pyrope's functions among them, and the functions of that module that call them over again."""

    def __init__(self, original: dict[str, Any]) -> None:
        # Without a name: by that, dynamo looks for globals in the module.
        self.values = {name: value for name, value in original.items() if name != "__name__"}
        self.turning = {name for name in original if TURNS.match(name) and callable(original[name])}
        for name in self.turning:
            module = getattr(inspect.unwrap(original[name]), "__module__", None) or original["__name__"]
            self.values[name] = functions(package_of(module)).get(name)
        self.reach = {name: {name} for name in self.turning}
        others = {name: f for name, f in original.items() if inspect.isfunction(f) and name not in self.turning}
        others = {name: f for name, f in others.items() if f.__globals__ is original}
        while more := {
            n: reached for n, f in others.items() if (reached := self.reached(f)) != self.reach.get(n, set())
        }:
            self.reach |= more
        for name in self.reach.keys() - self.turning:
            self.values[name] = _over(others[name], self)

    def reached(self, f: FunctionType) -> set[str]:
        """The functions that rotate that f calls, itself or through others."""
        return set().union(*(self.reach.get(name, set()) for name in _names(f.__code__)))


def _methods(kind: type, where: str, scopes: dict[int, Scope]) -> dict[str, FunctionType]:
    """The methods of a class of modules that rotate, over again."""
    made = {}
    for method, f in inspect.getmembers(kind, inspect.isfunction):
        inner = inspect.unwrap(f)
        values = inner.__globals__
        if id(values) not in scopes:
            scopes[id(values)] = Scope(values)
        scope = scopes[id(values)]
        reached = scope.reached(inner)
        unknown = {name for name in reached if scope.values[name] is None} | {m for m in (method,) if TURNS.match(m)}
        if unknown:
            raise UnsupportedError(f"model: {where} is a {kind.__name__}, how {min(unknown)} rotates is not known")
        if reached:
            made[method] = _over(f, scope)
    return made


def _names(code: CodeType) -> set[str]:
    """Of globals that are read, in functions inside too."""
    return set(code.co_names).union(*(_names(c) for c in code.co_consts if isinstance(c, CodeType)))


def _over(f: FunctionType, scope: Scope) -> FunctionType:
    """f with the globals of a scope, and its decorators around."""
    inner, closure, values = getattr(f, "__wrapped__", None), f.__closure__, scope.values
    if inner is not None:
        new, cells = _over(inner, scope), f.__closure__ or ()
        closure = tuple(CellType(new) if c.cell_contents is inner else c for c in cells)
        values = f.__globals__
        if closure == cells:
            raise UnsupportedError(f"model: {f.__qualname__}, its decorator calls it in a way that is not known")
    made = FunctionType(f.__code__, values, f.__name__, f.__defaults__, closure)
    made.__kwdefaults__, made.__module__ = f.__kwdefaults__, f.__module__
    vars(made).update({**vars(f), MARK: True} | ({"__wrapped__": new} if inner is not None else {}))
    return made
