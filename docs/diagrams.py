"""A Sphinx extension that renders Mermaid diagrams to SVG while the site is built.

Decision 21 says why. A diagram is rendered twice, with light and with dark colors, and the theme
shows the one that fits.
"""

from typing import Any, ClassVar

import mermaidx
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

RENDERED_ID = "my-svg"  # the id of each SVG that mermaidx renders
THEMES = {"light": "default", "dark": "dark"}
CONFIG = {
    "fontFamily": "system-ui, sans-serif",
    "htmlLabels": False,  # labels as SVG text, which the page's style sheets leave alone
    "fontSize": 13,
    "sequence": {
        "wrap": True,  # long labels would make a diagram wider than the page
        "mirrorActors": False,
        "width": 110,
        "height": 40,
        "actorMargin": 20,
        "boxMargin": 8,
        "diagramMarginX": 4,
        "diagramMarginY": 4,
    },
}


class Diagram(SphinxDirective):
    """The directive of a ``mermaid`` code block."""

    has_content = True
    option_spec: ClassVar[dict[str, Any]] = {}

    def run(self) -> list[nodes.Node]:
        """Return the diagram as HTML.

        Raises:
            DirectiveError: Mermaid can't read the diagram. Sphinx reports its line.
        """
        name = f"diagram-{self.env.new_serialno('diagram')}"
        source = "\n".join(self.content)
        try:
            both = [render(source, theme, f"{name}-{theme}") for theme in THEMES]
        except RuntimeError as error:
            raise self.error(f"Mermaid can't render this diagram: {error}") from error
        # The frame scrolls sideways on a phone, so the keyboard must reach it.
        frame = '<div class="diagram" tabindex="0" role="group" aria-label="Diagram">'
        return [nodes.raw("", f"{frame}{''.join(both)}</div>", format="html")]


def render(source: str, theme: str, name: str) -> str:
    """Return an HTML element that only `theme` shows: the diagram as an SVG with the id `name`.

    Raises:
        RuntimeError: Mermaid can't read the diagram.
    """
    svg = mermaidx.render(source, theme=THEMES[theme], config=CONFIG).svg()
    return f'<div class="only-{theme}">{svg.replace(RENDERED_ID, name)}</div>'


def setup(app: Sphinx) -> dict[str, Any]:
    """Add the directive to Sphinx."""
    app.add_directive("mermaid", Diagram)
    return {"parallel_read_safe": True}
