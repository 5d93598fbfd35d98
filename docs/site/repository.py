"""Gives the site the tree of the repository: each page keeps its path there, so the links between pages hold.

The pages are those that the nav of mkdocs.yml names, and what they link to, if a browser can show it.
A link to a file of code or to a folder, which have no place on the site, becomes plain text.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).resolve().parents[2]
# What a browser shows by itself.
SHOWN = (".png", ".svg", ".json", ".txt")
BLOCK = re.compile(r"(^ *```.*?^ *``` *$)", flags=re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!\\)\[((?:[^\[\]]|\[[^\]]*\])*)\]\((?!https?:|mailto:|#)([^)#\s]+)(#[^)\s]*)?\)")
PICTURE = re.compile(
    r'<picture>\s*<source media="\(prefers-color-scheme: dark\)" srcset="([^"]+)">\s*'
    r'<img alt="([^"]+)"\s+src="([^"]+)" width="(\d+)">\s*</picture>'
)


def _destination(path: str) -> str:
    """The place of a file on the site: pages of ``docs/`` and the reference stand at its top."""
    return path.removeprefix("docs/").removeprefix("site/").lower()


def _target(page: str, link: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), link))


def _in_nav(nav: Any) -> list[str]:
    """The paths that a nav names."""
    if isinstance(nav, str):
        return [nav]
    parts = nav.values() if isinstance(nav, dict) else nav
    return [path for part in parts for path in _in_nav(part)]


def _linked(page: str) -> list[str]:
    """The files of the repository that a page leads to and that can be shown."""
    text = BLOCK.sub("", (ROOT / page).read_text("utf-8"))
    links = [link for _, link, _ in LINK.findall(text)]
    links += [link for dark, _, light, _ in PICTURE.findall(text) for link in (dark, light)]
    found = [_target(page, link) for link in links]
    return [path for path in found if path.endswith((".md", *SHOWN)) and (ROOT / path).is_file()]


def _file(path: str, config: Any, inclusion: InclusionLevel) -> File:
    file = File.generated(config, path, abs_src_path=str(ROOT / path), inclusion=inclusion)
    file.dest_uri = _destination(file.dest_uri)
    return file


def on_files(files: Files, *, config: Any) -> Files:
    """Replace the files of ``docs_dir`` by the pages of the repository and what they show."""
    found = Files([f for f in files if f.src_dir != config.docs_dir or f.src_uri.endswith(".css")])
    named = _in_nav(config.nav)
    waiting, seen = list(named), set(named)
    while waiting:
        path = waiting.pop()
        if not (ROOT / path).is_file():
            continue  # mkdocs reports a path of the nav that does not exist
        inclusion = InclusionLevel.INCLUDED if path in named else InclusionLevel.NOT_IN_NAV
        found.append(_file(path, config, inclusion))
        if path.endswith(".md"):
            new = [link for link in _linked(path) if link not in seen]
            seen.update(new)
            waiting += dict.fromkeys(new)
    return found


def on_page_markdown(markdown: str, *, page: Any, files: Files, **_: Any) -> str:
    """Turn what only GitHub shows into what the site shows."""
    if page.parent is None:
        page.meta["hide"] = ["navigation"]  # the column at the left would hold this page alone

    def pictures(match: re.Match[str]) -> str:
        dark, alt, light, width = match.groups()
        sides = ((light, "light"), (dark, "dark"))
        return "\n".join(f"![{alt}]({path}#only-{side}){{width={width}}}" for path, side in sides)

    def link(match: re.Match[str]) -> str:
        target = _target(page.file.src_uri, match[2])
        on_site = files.get_file_from_path(target) is not None
        # A path that does not exist stays, so that mkdocs reports it.
        return match[0] if on_site or not (ROOT / target).exists() else match[1]

    def text(part: str) -> str:
        part = re.sub("^  - ", "    - ", part, flags=re.MULTILINE)  # Python-Markdown nests at four columns
        return LINK.sub(link, PICTURE.sub(pictures, part))

    parts = BLOCK.split(markdown)
    parts[::2] = [text(part) for part in parts[::2]]
    # A second word ("notest", or the library that a snippet needs) is for the tests, and no language.
    parts[1::2] = [re.sub(r"^( *```\w+) \w+$", r"\1", block, flags=re.MULTILINE) for block in parts[1::2]]
    return "".join(parts)
