"""The documentation site: `python -m sphinx -W docs FOLDER` with pyrope, torch and docs/requirements.txt installed."""

import pyrope

project, author, copyright = "pyrope", "the pyrope developers", "the pyrope developers, Apache-2.0"
version = release = pyrope.__version__
extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "myst_parser"]
html_theme, html_title = "furo", f"pyrope {release}"
html_copy_source = False
exclude_patterns = ["requirements.txt"]
myst_enable_extensions = ["colon_fence"]
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings say what arguments may be
napoleon_google_docstring = False
