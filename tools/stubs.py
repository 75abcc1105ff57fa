"""Writes the stubs of pyrope's Cython modules, and the signatures that their classes' docstrings begin with.

    python tools/stubs.py [--check]

A stub has every function that is annotated and every readonly attribute, whose type is in its "type:" comment where
Cython's own says less. A method that passes its *arguments and **options on has the parameters of that other one.
stubgen-pyx 0.3.0 cannot: its attributes are str and object, it drops the annotation of **options, and mypy --strict
refuses the "cls: type" that it writes.
"""

import ast
import builtins
import re
import subprocess
import sys
import textwrap
import typing
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "pyrope"
TYPES = {"bint": "bool", "double": "float"}
CLASS = re.compile(r"^cdef class (\w+)(?:\((\w+)\))?:\n(.*?)(?=^c?def |\Z)", re.M | re.S)
ATTRIBUTE = re.compile(r"^    cdef readonly (\w+) (\w+(?:, \w+)*)(?:  # type: (.*))?$", re.M)
FUNCTION = re.compile(r"^( *)((?:@\w+\n +)?def (\w+)\(([^()]*)\) -> .*:)$", re.M)
PASSED_ON = re.compile(r"self\.(\w+)\(\*arguments, (\w+)=")


def exported(path: Path) -> set[str]:
    """What a module's __all__ names, or the classes of a Cython one."""
    text = path.read_text()
    names = re.search(r"^__all__ = (\[.*?\])", text, re.M | re.S)
    return set(ast.literal_eval(names.group(1)) if names else [c[0] for c in CLASS.findall(text)])


def functions(text: str) -> Iterator[str]:
    """Source of the public functions of a module or of a class, without bodies."""
    found = {m.group(3): m for m in FUNCTION.finditer(text)}
    for name, m in found.items():
        source = m.group(2)
        passed_on = PASSED_ON.search(text, m.end()) if "*arguments" in source else None
        if passed_on:
            other, option = passed_on.groups()
            source = found[other].group(2).replace(f"def {other}(", f"def {name}(")
            source = re.sub(rf"\b{option}: [^,]*,", "", source)
        if name == "__init__" or not name.startswith("_"):
            yield textwrap.dedent(m.group(1) + source) + " ..."


def class_stub(name: str, base: str, body: str, declaration: str) -> str:
    lines = [f"@disjoint_base\nclass {name}{f'({base})' if base else ''}:"]
    for c_type, names, comment in ATTRIBUTE.findall(declaration):
        for attribute in names.split(", "):
            result = comment or TYPES.get(c_type, c_type)
            lines += ["@property", f"def {attribute}(self) -> {result}: ..."]
    lines += functions(body)
    return "\n".join([lines[0], *(textwrap.indent(line, "    ") for line in lines[1:])])


def imports(stub: str, home: str) -> str:
    """Of every name that is used and not defined."""
    tree = ast.parse(stub)
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} - set(dir(builtins))
    used -= {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
    homes = {f"pyrope.{path.stem}": exported(path) for path in PACKAGE.glob("[!_]*.py")}
    homes |= {f"pyrope.{path.stem}": exported(path) for path in PACKAGE.glob("*.pyx") if path.stem != home}
    homes |= {"typing": set(typing.__all__), "typing_extensions": {"disjoint_base"}}
    known = {"np": "import numpy as np", "npt": "import numpy.typing as npt"}
    for module, names in homes.items():
        known |= {name: f"from {module} import {name}" for name in names}
    return "\n".join(known[name] for name in sorted(used))


def ruff(text: str, *arguments: str) -> str:
    command = [sys.executable, "-m", "ruff", *arguments, "--stdin-filename", f"{PACKAGE}/module.pyi", "-"]
    done = subprocess.run(command, input=text, stdout=subprocess.PIPE, text=True, check=True)
    return str(done.stdout)


def make_stub(path: Path) -> str:
    text = path.read_text()
    header = path.with_suffix(".pxd")
    declared = {name: body for name, _, body in CLASS.findall(header.read_text())} if header.exists() else {}
    parts = [class_stub(name, base, body, declared.get(name, body)) for name, base, body in CLASS.findall(text)]
    parts += functions(CLASS.sub("", text))
    if not parts:
        return ""
    stub = "\n".join(parts)
    stub = f"# Made by tools/stubs.py from {path.name}.\n{imports(stub, path.stem)}\n{stub}"
    return ruff(ruff(stub, "check", "--select=I", "--fix", "--quiet"), "format")


def with_signatures(text: str) -> str:
    """A Cython module whose classes' docstrings begin with the signature that inspect and help() read there."""
    for name, _, body in CLASS.findall(text):
        init = next(m.group(4) for m in FUNCTION.finditer(body) if m.group(3) == "__init__")
        tree = ast.parse(f"def __init__({init}): ...")
        arguments = next(node for node in ast.walk(tree) if isinstance(node, ast.arguments))
        for argument in [*arguments.args, *arguments.kwonlyargs]:
            argument.annotation = None
        signature = f'"""{name}({ast.unparse(arguments).removeprefix("self, ")})'
        lines = textwrap.wrap(signature, 118, initial_indent="    ", break_on_hyphens=False)
        head, tail = re.split(rf'    """{name}\(.*?\)(?=\n--\n)', text, maxsplit=1, flags=re.S)
        text = head + " \\\n".join(lines) + tail
    return text


def main(arguments: list[str]) -> int:
    stale = []
    for path in sorted(PACKAGE.glob("*.pyx")):
        for target, want in ((path, with_signatures(path.read_text())), (path.with_suffix(".pyi"), make_stub(path))):
            if want and (not target.exists() or target.read_text() != want):
                stale.append(target)
                if "--check" not in arguments:
                    target.write_text(want)
    for target in stale:
        print(f"{target.name}: {'not as tools/stubs.py makes it' if '--check' in arguments else 'written'}")
    return int("--check" in arguments and bool(stale))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
