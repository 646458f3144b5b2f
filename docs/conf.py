"""How `make docs` builds the pages of this folder: Sphinx with MyST's Markdown and Furo; nothing is fetched."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import anchorite

ROOMS = (
    "anchors",
    "boxes",
    "data",
    "evaluate",
    "inspect",
    "loss",
    "metrics",
    "model",
    "predict",
    "report",
    "serve",
    "train",
    "tune",
)
# Rooms that import a name only when it is asked for show autodoc no more than what somebody has asked for.
for room in (importlib.import_module(f"anchorite.{name}") for name in ROOMS):
    vars(room).update({name: getattr(room, name) for name in room.__all__})
vars(anchorite).update({name: getattr(anchorite, name) for name in anchorite.__all__})

project = "anchorite"
release = version = anchorite.__version__
author = "the authors of anchorite"
extensions = ["myst_parser", "sphinx.ext.autodoc", "site_pages"]
exclude_patterns = ["_build", "pictures"]

# Docstrings are prose with single backticks, and these mean code.
default_role = "code"
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
add_module_names = False

# Headings are link targets, as they are where the same pages are read unbuilt.
myst_heading_anchors = 4
# A figure of the text is a figure of the text: no quotes or dashes are made of it.
smartquotes = False

html_theme = "furo"
html_title = "anchorite"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
html_show_copyright = False
html_theme_options = {"top_of_page_buttons": []}
# Results of the search are titles: their texts would have to be fetched, which a browser does not do from disk.
html_show_search_summary = False
