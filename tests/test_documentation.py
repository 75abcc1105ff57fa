"""What the documentation says runs: examples in docstrings, in README and in docs/, and their types.

The Python blocks of a page are one program, in their order. A comment before a block says what it needs:
`<!-- test: torch -->`, `<!-- test: cuda -->`. Blocks of C are whole programs.
"""

import doctest
import importlib
import importlib.util
import inspect
import pkgutil
import re
import subprocess
import sys

import pytest

import pyrope
from kit.library import ROOT
from kit.memory import EMULATED
from kit.torch_tensors import REQUIRED
from kit.type_checker import mypy

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"(?:<!-- test: (\w+) -->\n)?^```python\n(.*?)^```$", re.S | re.M)
TORCH = importlib.util.find_spec("torch") is not None
HAS = {"": True, "torch": TORCH, "cuda": pyrope.device_count() > 0 and not EMULATED}


def python_blocks(page):
    """(what it needs, line, source) of each."""
    text = page.read_text()
    return [(m.group(1) or "", text.count("\n", 0, m.start(2)), m.group(2)) for m in BLOCK.finditer(text)]


def modules():
    """Those that can be imported, with the compiled ones."""
    for found in pkgutil.walk_packages(pyrope.__path__, "pyrope."):
        needs_torch = found.name.startswith(("pyrope.torch", "pyrope.compat"))
        if found.name != "pyrope.__main__" and (TORCH or not needs_torch) and "libroperope" not in found.name:
            yield importlib.import_module(found.name)


def docstrings():
    """{name: text} of every docstring with an example."""
    found = {}
    for module in [pyrope, *modules()]:
        own = [(name, x) for name, x in vars(module).items() if getattr(x, "__module__", None) == module.__name__]
        members = [(f"{cls}.{name}", x) for cls, c in own if inspect.isclass(c) for name, x in vars(c).items()]
        for name, x in [("", module), *own, *members]:
            text = getattr(x, "__doc__", None)
            if isinstance(text, str) and ">>>" in text:
                found[f"{module.__name__}.{name}"] = text
    return found


DOCSTRINGS = docstrings()


def test_docstrings_are_found():
    assert {"pyrope._rope.Rope", "pyrope._fused.FusedRope"} <= set(DOCSTRINGS)
    assert not TORCH or "pyrope.torch._module.RotaryEmbedding" in DOCSTRINGS


@pytest.mark.parametrize("name", DOCSTRINGS)
def test_docstring(name):
    test = doctest.DocTestParser().get_doctest(DOCSTRINGS[name], {}, name, None, 0)
    said = []
    result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=said.append)
    assert result.attempted > 0 and result.failed == 0, "".join(said)


# torch 2.11 to itself; and dynamo looks at the gradient of inputs.
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_page(page):
    """Every block, but for those whose needs are not met, of which there may be none with PYROPE_REQUIRE_TORCH=1."""
    names, left_out = {"__name__": "__main__"}, set()
    for needs, line, source in python_blocks(page):
        if HAS[needs]:
            exec(compile("\n" * line + source, str(page), "exec"), names)
        else:
            left_out.add(needs)
    assert not (REQUIRED and "torch" in left_out)


def test_types_of_examples(tmp_path):
    """A strict type checker, which reads the stubs, finds nothing in what needs no more than NumPy."""
    programs = {str(page.relative_to(ROOT)): "".join(s for needs, _, s in python_blocks(page) if not needs)
                for page in PAGES}  # fmt: skip
    programs |= {name: doctest.script_from_examples(text) for name, text in DOCSTRINGS.items()
                 if not name.startswith(("pyrope.torch", "pyrope.compat"))}  # fmt: skip
    files = []
    for name, source in programs.items():
        files.append(tmp_path / (re.sub(r"\W", "_", name) + ".py"))
        files[-1].write_text(source)
    done = mypy(tmp_path, "--strict", "--allow-redefinition", *files)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.stem)
def test_examples_say_what_they_need(path, tmp_path):
    """Without site-packages."""
    done = subprocess.run([sys.executable, "-S", path], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stdout == ""
    assert re.fullmatch(r"No module named '\w+'; install what this example needs: pip install .*\n", done.stderr)


def test_links():
    """Files that pages link to exist."""
    links = [(page, target) for page in PAGES for target in re.findall(r"\]\(([^)#\s]+)", page.read_text())
             if "://" not in target]  # fmt: skip
    assert links and [(str(page), target) for page, target in links if not (page.parent / target).exists()] == []


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 180
