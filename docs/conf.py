"""Sphinx configuration: the pages are Markdown (MyST), the notebooks are shown as they were executed."""

import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from avalanche_contrastive import __version__  # noqa: E402

project = "avalanche-contrastive"
author = "The avalanche-contrastive authors"
copyright = author
version = release = __version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "myst_nb",
    "sphinx_copybutton",
]
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb"}
exclude_patterns = ["_build", "jupyter_execute"]

html_theme = "furo"
html_title = f"{project} {version}"
html_static_path = ["_static"]
html_js_files = ["accessible.js"]
pygments_dark_style = "github-dark"  # its comments are readable on furo's dark background

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # notebooks/build.py executes them and checks what they say

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
suppress_warnings = ["myst.xref_missing"]  # links of the repository's pages to files that are not pages


def setup(app: object) -> None:
    """Put the executed notebooks where Sphinx finds them."""
    target = Path(__file__).parent / "notebooks"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
        shutil.copy(notebook, target)
