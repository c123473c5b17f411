"""Relative links of the repository's Markdown and of the tutorial: the file is there, and so is the heading."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).resolve().parents[2]
# Folders of the checkout that have Markdown; others are data, results and environments.
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "docs/*.ipynb", "configs/**/*.md", "benchmarks/**/*.md", "tools/**/*.md")
    for path in ROOT.glob(pattern)
)


def tokens(text: str) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(text)


def markdown(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb":
        return text
    return "\n\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown")


def links(text: str) -> list[str]:
    inline = [child for token in tokens(text) for child in token.children or []]
    return [str(token.attrs[key]) for token in inline for key in ("href", "src") if key in token.attrs]


def anchors(text: str) -> set[str]:
    """Of the headings, as GitHub makes them: lower case, without punctuation, dashes for spaces."""
    found = tokens(text)
    headings = [found[index + 1].content for index, token in enumerate(found) if token.type == "heading_open"]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken(path: Path, text: str) -> list[str]:
    """Links of `text`, which lies at `path`, that lead nowhere."""
    wrong = []
    for link in links(text):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = path.parent / name if name else path
        if not target.exists() or (anchor and anchor not in anchors(text if target == path else markdown(target))):
            wrong.append(link)
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=[str(path.relative_to(ROOT)) for path in PAGES])
def test_links_lead_somewhere(page: Path):
    assert broken(page, markdown(page)) == []


def test_the_pages_are_found():
    names = {str(path.relative_to(ROOT)) for path in PAGES}
    assert {"README.md", "configs/README.md", "benchmarks/README.md", "docs/tutorial.ipynb"} <= names
    assert "configs/README.md#pretraining-methods" in links(markdown(ROOT / "README.md"))


def test_a_broken_link_is_found(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text("# Two words, a comma\n")
    text = "[a](page.md#two-words-a-comma) [b](page.md#three) ![c](c.png) [d](https://example.org)\n\n```\n[e](e.md)\n```\n"
    assert broken(tmp_path / "other.md", text) == ["page.md#three", "c.png"]
