"""The documentation site: Sphinx with furo, pages in Markdown.  ``make docs`` builds it; a warning is an error.

Pages are written for whoever reads them in the repository, too.  So links lead where they lead there, and are turned
for the site when a page is read: to the site's own page where there is one, else to the file as a download.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
sys.path[:0] = [str(DOCS), str(ROOT / "client"), str(ROOT / "shared")]

from protocol_page import protocol_page  # noqa: E402

from cbir.core.version import __version__  # noqa: E402

project = "Ensemble-CBIR"
author = "The Ensemble-CBIR Authors"
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
root_doc = "index"
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"{project} {release}"
html_show_copyright = False

# Anchors of headings as GitHub makes them.
myst_heading_anchors = 4
autodoc_typehints = "description"
napoleon_use_ivar = True
autodoc_member_order = "bysource"
# What the client loads only when it is used; the site is built without it.
autodoc_mock_imports = ["numpy", "PIL"]

#: Pages that are files of the repository elsewhere; in docs/ lies a line that leads to them.
SHOWN = {
    "security": "SECURITY.md",
    "contributing": "CONTRIBUTING.md",
    "changelog": "CHANGELOG.md",
    "api-for-other-languages": "protos/README.md",
    "examples": "examples/README.md",
}
#: Where links to files of the repository lead on the site.
_PAGE_OF = {**{(ROOT / file).resolve(): page for page, file in SHOWN.items()}, ROOT / "README.md": root_doc}
#: Code, in which links are no links, or a link.
_CODE_OR_LINK = re.compile(
    r"^```.*?^```|(?P<mark>!?)\[(?P<words>(?:[^\[\]]|\[[^\]]*\])*)\]\((?P<target>[^()\s]+)\)|`[^`\n]+`", re.M | re.S
)


def turned(text: str, folder: Path) -> str:
    """A page that lies in ``folder``, with its links as the site has them."""

    def link(found: re.Match[str]) -> str:
        mark, words, target = found["mark"], found["words"], found["target"]
        if target is None:
            return found[0]
        path, _, anchor = target.partition("#")
        if not path or ":" in path:
            return found[0]
        place = (folder / path).resolve()
        anchor = f"#{anchor}" if anchor else ""
        if place in _PAGE_OF:
            return f"{mark}[{words}]({_PAGE_OF[place]}.md{anchor})"
        if place.is_relative_to(DOCS):
            return f"{mark}[{words}]({place.relative_to(DOCS)}{anchor})"
        if place.is_file():
            return f"{mark}[{words}](../{place.relative_to(ROOT)})"
        if not place.exists():
            raise FileNotFoundError(f"a link to {target} leads nowhere")
        return words  # a folder: the site has none to show

    return _CODE_OR_LINK.sub(link, text)


def _read(app: Any, name: str, content: list[str]) -> None:
    if name in SHOWN:
        file = ROOT / SHOWN[name]
        app.env.note_dependency(str(file))
        content[0] = turned(file.read_text(), file.parent)
    else:
        content[0] = turned(content[0], DOCS)
    if name == "protocol":
        content[0] += protocol_page(ROOT / "protos")


def setup(app: Any) -> None:
    """Turn the links of every page that is read."""
    app.connect("source-read", _read)
