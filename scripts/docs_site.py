"""Hooks of mkdocs: pages and files from outside docs/, and formulas without JavaScript.

The pages of docs/ are read on GitHub, too. A link that leads out of docs/ (../conf/model/vae.yaml) works there as it
is; on the site the file it names is put beside the pages, under source/, and README, CHANGELOG and CONTRIBUTING
are pages of their own. A link that leads nowhere is left as it is, which mkdocs build --strict then complains of.
"""

from __future__ import annotations

import html
import os
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
"""Pages from outside docs/, and their names on the site."""
LINK = re.compile(r"(?<=\]\()([^)\s#:]+)((?:#[^)\s]*)?)(?=\))")
FORMULA = re.compile(r'<(span|div) class="arithmatex">(?:\\\(|\\\[)(.*?)(?:\\\)|\\\])</\1>', re.DOTALL)


def place(path: Path) -> str:
    """Returns where a file of the project stands on the site; the files of a folder are listed on a page."""
    if path.is_relative_to(DOCS):
        return path.relative_to(DOCS).as_posix()
    name = path.relative_to(ROOT).as_posix()
    return PAGES.get(name, f"source/{name}.md" if path.is_dir() else f"source/{name}")


def origin(uri: str) -> Path:
    """Returns the file of the project that a page of the site is made of."""
    return next((ROOT / name for name, page in PAGES.items() if page == uri), DOCS / uri)


def targets(text: str, page: Path) -> dict[str, Path]:
    """Returns the files that the links of a page lead to, if they are there, by what the links say."""
    found = {link: Path(os.path.normpath(page.parent / link)) for link, _ in LINK.findall(text)}
    return {link: path for link, path in found.items() if path.exists() and path.is_relative_to(ROOT)}


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages from outside docs/, and every file that a page links to there."""
    for name, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / name)))
    pages = [origin(file.src_uri) for file in files.documentation_pages()]
    linked = {path for page in pages for path in targets(page.read_text(encoding="utf-8"), page).values()}
    for path in sorted(linked):
        if files.get_file_from_path(place(path)) is None:
            if path.is_dir():
                content, aside = _listing(path, files, config), InclusionLevel.NOT_IN_NAV
                files.append(File.generated(config, place(path), content=content, inclusion=aside))
            else:
                files.append(File.generated(config, place(path), abs_src_path=str(path)))
    return files


def _listing(folder: Path, files: Files, config: Any) -> str:
    """Adds the files of a folder, and returns a page that links to them."""
    inside = [path for path in sorted(folder.iterdir()) if path.is_file()]
    for path in inside:
        if files.get_file_from_path(place(path)) is None:
            files.append(File.generated(config, place(path), abs_src_path=str(path)))
    links = [f"- [{path.name}]({folder.name}/{path.name})" for path in inside]
    return f"# {folder.relative_to(ROOT)}\n\n" + "\n".join(links) + "\n"


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Has the links of a page lead to where their files stand on the site."""
    path, here = origin(page.file.src_uri), Path(page.file.src_uri).parent.as_posix()
    to = {link: os.path.relpath(place(target), here) for link, target in targets(markdown, path).items()}
    return LINK.sub(lambda match: to.get(match[1], match[1]) + match[2], markdown)


def on_page_content(content: str, page: Any, config: Any, files: Files) -> str:
    """Makes MathML of formulas, which browsers show without any script."""
    display = {"span": "inline", "div": "block"}
    return FORMULA.sub(lambda match: convert(html.unescape(match[2]), display=display[match[1]]), content)
