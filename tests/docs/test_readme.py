"""Test the README's promises: its commands exist, its snippets run, its links and numbers are real."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", "CONTRIBUTING.md", "bench/README.md")
README = (ROOT / "README.md").read_text()


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES)
def test_make_targets_exist(page: str) -> None:
    named = set(re.findall(r"\bmake ([a-z][a-z-]*)", "\n".join(blocks((ROOT / page).read_text(), ""))))
    makefiles = "\n".join((ROOT / path).read_text() for path in ("Makefile", "tests/gpu/gpu.mk"))
    targets = set(re.findall(r"^([a-z][a-z-]*):", makefiles, flags=re.MULTILINE))
    assert named
    assert named <= targets, f"{page} names {named - targets}, which the Makefile lacks"


def test_python_snippets_run() -> None:
    snippets = blocks(README, "python")
    assert snippets
    scope: dict[str, object] = {}
    for snippet in snippets:  # later snippets use the names that earlier ones defined
        exec(compile(snippet, "README.md", "exec"), scope)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page: str) -> None:
    text = (ROOT / page).read_text()
    links = re.findall(r"\]\((?!https?:)([^)#]+)", text) + re.findall(r'(?:src|srcset)="([^"]+)"', text)
    missing = [link for link in links if not ((ROOT / page).parent / link).exists()]
    assert not missing


def test_the_table_is_what_was_measured() -> None:
    from bench.readme import BEGIN, END, whole_losses
    from fastkd.bench.render import markdown

    tables = README.split(BEGIN)[1].split(END)[0].strip()
    source = re.search(r"From \[`(.+?)`\]", tables)
    assert source, "the README has no table, or it names no source"
    run = json.loads((ROOT / source[1]).read_text())
    assert tables == markdown(whole_losses(run), source[1])


@pytest.mark.parametrize("name", ["benchmark.svg", "benchmark-dark.svg"])
def test_the_picture_shows_what_was_measured(name: str) -> None:
    """Each bar of the picture has its name, its number and its ratio to fastkd's in the text of the SVG."""
    pytest.importorskip("matplotlib")
    from fastkd.bench.summary import labels, scenes

    source = re.search(r"From \[`(.+?)`\]", README)
    assert source
    run = json.loads((ROOT / source[1]).read_text())
    shown = set(re.findall(r">([^<>]+)</text>", (ROOT / "docs" / name).read_text("utf-8")))
    found = [text for scene in scenes(run) for text in labels(scene)]
    assert len(found) >= 6 and set(found) <= shown
