"""Configures Sphinx, which builds the site: https://www.sphinx-doc.org/en/master/usage/configuration.html"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # for diagrams.py

project = "Herald"
html_title = "Herald"
extensions = ["myst_parser", "diagrams"]
nitpicky = True

myst_heading_anchors = 3  # as GitHub makes them
myst_fence_as_directive = ["mermaid"]  # so that GitHub shows the diagrams, too

html_theme = "furo"
html_show_copyright = False
html_show_sphinx = False
html_favicon = "../console/icon.svg"
html_extra_path = ["openapi.yaml", "asyncapi.yaml"]
html_static_path = ["theme/static"]
html_css_files = ["site.css"]
templates_path = ["theme/templates"]
html_use_index = False  # there is nothing to index
