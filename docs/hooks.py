"""The pages of the documentation site: the repository's Markdown, the tutorial, and the docstrings of `adpe`.

Markdown keeps its place below the root of the repository, so that a relative link means the same on the site as in a
checkout. mkdocs calls `on_files`; mkdocs.yml names this file.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

PAGES = ("README.md", "CONTRIBUTING.md", "configs/README.md", "benchmarks/README.md")
_LINK = re.compile(r"\]\(([^)#\s:]+)(?:#[^)]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Put the pages, and the files that they link to, in place of what lies in docs/; and the navigation with them."""
    root = Path(config.docs_dir).parent
    for file in list(files.documentation_pages()) + files.media_files():
        if file.src_dir == config.docs_dir:
            files.remove(file)
    guides = sorted(path.relative_to(root).as_posix() for path in Path(config.docs_dir).rglob("*.md"))
    texts = {name: (root / name).read_text(encoding="utf-8") for name in (*PAGES, *guides)}
    texts["docs/tutorial.md"] = notebook_as_markdown(json.loads((root / "docs/tutorial.ipynb").read_text("utf-8")))
    for name, text in list(texts.items()):
        texts[name] = text.replace("tutorial.ipynb)", "tutorial.md)")
        for target in _LINK.findall(texts[name]):
            linked = (root / name).parent.joinpath(target).resolve()
            if linked.is_file() and linked.suffix != ".md":
                where = str(linked.relative_to(root))
                if files.get_file_from_path(where) is None:
                    files.append(File.generated(config, where, abs_src_path=str(linked)))
    api = api_pages(root / "adpe")
    for name, text in {**texts, **api}.items():
        files.append(File.generated(config, name, content=text))
    config.nav = [
        {"Home": "README.md"},
        {"Tutorial": "docs/tutorial.md"},
        {"Guides": guides},
        {"Recipes": "configs/README.md"},
        {"Results": "benchmarks/README.md"},
        {"Contributing": "CONTRIBUTING.md"},
        {"API": list(api)},
    ]
    return files


def notebook_as_markdown(notebook: dict[str, Any]) -> str:
    """A notebook's cells: text as it is, code in fences."""
    parts = []
    for cell in notebook["cells"]:
        text = "".join(cell["source"])
        parts.append(f"```python\n{text}\n```" if cell["cell_type"] == "code" else text)
    return "\n\n".join(parts) + "\n"


def api_pages(package: Path) -> dict[str, str]:
    """Path of a page to its Markdown: a page for each folder of the package, with its modules one after the other."""
    pages = {}
    for folder in sorted({path.parent for path in package.rglob("*.py")}):
        name = ".".join(folder.relative_to(package.parent).parts)
        modules = [f"{name}.{path.stem}" for path in sorted(folder.glob("*.py")) if path.stem[0] != "_"]
        blocks = [f"::: {module}" for module in [name, *modules]]
        pages[f"api/{name}.md"] = "\n\n".join([f"# {name}", *blocks]) + "\n"
    return pages
