"""Writes pyrope/_capi.pxd, the public C headers for Cython.

python tools/capi.py [--check]
"""

import re
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parent.parent
INCLUDE = ROOT / "cuda/include"
HEADERS = ("roperope/roperope.h", "roperope/attention.h", "roperope/decode.h")
TARGET = ROOT / "pyrope/_capi.pxd"

START = """# The public headers, made by tools/capi.py. Ships in the wheel, for cimport.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
"""
DECLARATION = re.compile(
    r"^(?P<macros>(?:#define ROPE_\w+ .+\n)+)"
    r"|^typedef (?P<type>\w+) (?P<name>\w+);"
    r"|^typedef void \(\*(?P<pointer>\w+)\)\((?P<parameters>[^)]*)\);"
    r"|^enum \{(?P<enum>[^}]*)\};"
    r"|^typedef struct (?P<struct>\w+) \{(?P<fields>[^}]*)\} \w+;"
    r"|^ROPEROPE_API (?P<function>[^;]*);",
    re.M,
)


def declaration(found: re.Match[str]) -> list[str]:
    if found["macros"]:
        macros = [line.split(maxsplit=2)[1:] for line in found["macros"].splitlines()]
        real = {name for name, value in macros if re.search(r"[.e]", value)}
        return [
            "enum:",
            *(f"    {m}" for m, _ in macros if m not in real),
            *(f"double {m}" for m, _ in macros if m in real),
        ]
    if found["name"]:
        return [f"ctypedef {found['type']} {found['name']}"]
    if found["pointer"]:
        return [f"ctypedef void (*{found['pointer']})({found['parameters']})"]
    if found["enum"]:
        return ["enum:", *(f"    {name}" for name in re.findall(r"(\w+) =", found["enum"]))]
    if found["struct"]:
        fields = found["fields"].split(";")[:-1]
        return ["", f"ctypedef struct {found['struct']}:", *(f"    {' '.join(field.split())}" for field in fields), ""]
    name, parameters = " ".join(found["function"].split()).removesuffix(")").split("(")
    parameters = parameters.replace("void", "", parameters == "void").replace(" ", "\0").replace(",\0", ", ")
    lines = textwrap.wrap(f"{name}({parameters})", 116, subsequent_indent=" " * (len(name) + 1))
    return [line.replace("\0", " ") for line in lines]


def block(header: str) -> str:
    text = re.sub(r"/\*.*?\*/", "", (INCLUDE / header).read_text(), flags=re.S)
    lines = [line for found in DECLARATION.finditer(text) for line in declaration(found)]
    body = re.sub(r"\n{3,}", "\n\n", textwrap.indent("\n".join(lines), "    "))
    return f'\ncdef extern from "{header}" nogil:\n{body}\n'


def main(arguments: list[str]) -> int:
    want = START + "".join(map(block, HEADERS))
    stale = TARGET.read_text() != want
    if stale and "--check" not in arguments:
        TARGET.write_text(want)
    if stale:
        print(f"{TARGET.name}: {'not as tools/capi.py makes it' if '--check' in arguments else 'written'}")
    return int("--check" in arguments and stale)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
