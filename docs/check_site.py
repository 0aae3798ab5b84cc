"""Check the built site: `python docs/check_site.py .herald/site`, which `make docs` runs.

Every page has one first-level heading. Every diagram of the Markdown pages is an SVG element for
light and one for dark. No page, style sheet or script loads anything from another host, so the
site works without the internet.
"""

import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

DOCS = Path(__file__).parent
ELSEWHERE = re.compile(r"\s*(?:\w+:)?//")
LOADING = {
    "audio": ("src",),
    "embed": ("src",),
    "iframe": ("src",),
    "image": ("href", "xlink:href"),
    "img": ("src", "srcset"),
    "object": ("data",),
    "script": ("src",),
    "source": ("src", "srcset"),
    "use": ("href", "xlink:href"),
    "video": ("src", "poster"),
}
"""The attributes by which an element loads a file. An `a` element loads nothing."""
LOADING_LINKS = {"stylesheet", "icon", "preload", "modulepreload", "manifest", "preconnect"}
STYLE = re.compile(r"""(?:@import|url\()\s*(?:url\()?["']?\s*((?:\w+:)?//[^"')\s;]+)""")
SCRIPT = re.compile(
    r"""(?:\bimport\b[^;"']*|\bfetch\(|\bsrc\s*=|\bhref\s*=|importScripts\()\s*["'`]((?:\w+:)?//[^"'`]+)"""
)


class Page(HTMLParser):
    """The contents of a page: headings, diagrams, and the addresses of the files that it loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.headings = 0
        self.svgs: list[str] = []
        self.loaded: list[str] = []
        self._frame = ""
        self._text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attributes}
        self._text = tag
        self.headings += tag == "h1"
        if tag == "div" and values.get("class", "") in ("only-light", "only-dark"):
            self._frame = values["class"]
        if tag == "svg" and self._frame:
            self.svgs.append(self._frame)
            self._frame = ""
        names = LOADING.get(tag, ())
        if tag == "link" and LOADING_LINKS & set(values.get("rel", "").split()):
            names = ("href",)
        found = [values[name] for name in names if name in values]
        self.loaded += [address for address in found if ELSEWHERE.match(address)]
        self.loaded += STYLE.findall(values.get("style", ""))

    def handle_data(self, data: str) -> None:
        pattern = {"style": STYLE, "script": SCRIPT}.get(self._text)
        if pattern is not None:
            self.loaded += pattern.findall(data)

    def handle_endtag(self, tag: str) -> None:
        self._text = ""


def complaints(site: Path, diagrams: dict[str, int]) -> Iterator[str]:
    """Yield what is wrong with the site.

    Args:
        site: The folder of the built site.
        diagrams: How many diagrams each page must have, by its path without the suffix.
    """
    for path in sorted(site.rglob("*.html")):
        name = path.relative_to(site)
        page = Page(path.read_text())
        if page.headings != 1:
            yield f"{name} has {page.headings} first-level headings"
        expected = ["only-light", "only-dark"] * diagrams.get(str(name.with_suffix("")), 0)
        if page.svgs != expected:
            yield f"{name} has {len(page.svgs)} SVGs for {len(expected) // 2} diagrams"
        yield from (f"{name} loads {address}" for address in page.loaded)
    for suffix, pattern in (("css", STYLE), ("js", SCRIPT)):
        for path in sorted(site.rglob(f"*.{suffix}")):
            for address in pattern.findall(path.read_text()):
                yield f"{path.relative_to(site)} loads {address}"


def diagrams_of(docs: Path) -> dict[str, int]:
    """Return how many diagrams each Markdown page has, by its path without the suffix."""
    return {
        str(path.relative_to(docs).with_suffix("")): len(
            re.findall(r"^```mermaid$", path.read_text(), re.MULTILINE)
        )
        for path in docs.rglob("*.md")
    }


if __name__ == "__main__":
    sys.exit("\n".join(complaints(Path(sys.argv[1]), diagrams_of(DOCS))) or None)
