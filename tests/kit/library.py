"""The checkout, and the compiled library that is tested."""

import sys
from pathlib import Path

import pyrope

ROOT = Path(__file__).parents[2]
# In a checkout, and where the package is installed as editable, the compiled modules are not beside the sources.
FOLDERS = list(dict.fromkeys(Path(module.__file__).parent for name, module in sys.modules.items()
                             if name.partition(".")[0] == pyrope.__name__))  # fmt: skip
INSTALLED = next(folder for folder in FOLDERS if (folder / "libroperope.so").exists())
