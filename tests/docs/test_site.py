"""Test the site: its nav has every page, its reference every public name; and what is built."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fastkd
import fastkd.conformance

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = sorted((ROOT / "docs" / "site" / "api").glob("*.md"))
# `make docs` sets up this environment, which CI does before the slow tests.
MKDOCS = ROOT / "build" / "docs" / "bin" / "mkdocs"


def in_nav() -> set[str]:
    """The paths that the nav of mkdocs.yml names."""
    yaml = pytest.importorskip("yaml")

    class Loader(yaml.SafeLoader):  # type: ignore[misc,name-defined]
        """Leaves out the Python objects among the extensions."""

    Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: None)

    def paths(nav: Any) -> Iterator[str]:
        if isinstance(nav, str):
            yield nav
        else:
            for part in nav.values() if isinstance(nav, dict) else nav:
                yield from paths(part)

    return set(paths(yaml.load((ROOT / "mkdocs.yml").read_text("utf-8"), Loader)["nav"]))


def test_every_page_is_in_the_nav() -> None:
    pages = [*(ROOT / "docs").glob("*.md"), *REFERENCE, *(ROOT / "examples").rglob("README.md")]
    assert {page.relative_to(ROOT).as_posix() for page in pages} - in_nav() == set()


def test_the_nav_names_pages_that_exist() -> None:
    assert [path for path in in_nav() if not (ROOT / path).is_file()] == []


def test_the_reference_has_every_public_name() -> None:
    text = "\n".join(page.read_text("utf-8") for page in REFERENCE)
    # `fastkd.backends()` is an older name of `available_backends`.
    names = [*(f"fastkd.{name}" for name in fastkd.__all__ if name != "backends"),
             *(f"fastkd.conformance.{name}" for name in fastkd.conformance.__all__),
             "fastkd.trainer.DistillationConfig", "fastkd.trainer.DistillationTrainer"]  # fmt: skip
    assert [name for name in names if not re.search(rf"(:::|heading:) {re.escape(name)}$", text, re.M)] == []


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not MKDOCS.exists():
        pytest.skip("make docs sets up the environment of the site")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [MKDOCS, "build", "--strict", "--site-dir", folder],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr, done.stderr
    return folder


@pytest.mark.slow
def test_the_site_asks_no_other_server(site: Path) -> None:
    loading = re.compile(r"<(?:script|img|link|source|iframe)[^>]* (?:src|href|srcset)=[\"']?https?:[^>]*>")
    found = {page: loading.findall(page.read_text("utf-8")) for page in site.rglob("*.html")}
    assert len(found) > 25
    assert {page.relative_to(site).as_posix(): tags for page, tags in found.items() if tags} == {}
    styles = "".join(path.read_text("utf-8") for path in site.rglob("*.css"))
    assert "fonts/KaTeX_Main" in styles and not re.search(r"url\([\"']?https?:", styles)


@pytest.mark.slow
def test_formulas_are_rendered(site: Path) -> None:
    source = re.sub(r"`[^`\n]+`", "", (ROOT / "docs" / "losses.md").read_text("utf-8"))
    blocks = source.count("```math")
    inline = len(re.findall(r"\$[^$\n]+\$", re.sub(r"```.*?```", "", source, flags=re.DOTALL)))
    page = (site / "losses" / "index.html").read_text("utf-8")
    assert (page.count('<div class="formula">'), page.count('<span class="formula">')) == (blocks, inline)
    for path in site.rglob("*.html"):
        text = path.read_text("utf-8")
        assert "arithmatex" not in text and "katex-error" not in text, path


@pytest.mark.slow
def test_the_reference_has_every_field_and_command(site: Path) -> None:
    from fastkd.cli import COMMANDS

    commands = (site / "api" / "commands" / "index.html").read_text("utf-8")
    assert [name for name in COMMANDS if f'id="fastkd-{name}"' not in commands] == []
    pytest.importorskip("transformers")
    import dataclasses

    from transformers import TrainingArguments

    from fastkd.trainer import DistillationConfig

    inherited = {field.name for field in dataclasses.fields(TrainingArguments)}
    own = [f.name for f in dataclasses.fields(DistillationConfig) if f.init and f.name not in inherited]
    fields = (site / "api" / "fields" / "index.html").read_text("utf-8")
    assert len(own) > 60 and [name for name in own if f"<td><code>{name}</code></td>" not in fields] == []


@pytest.mark.slow
def test_what_is_not_on_the_site_is_no_link(site: Path) -> None:
    """Links to folders and to code lead somewhere in the repository, and nowhere on the site."""
    page = (site / "results" / "index.html").read_text("utf-8")
    assert "<code>bench/results/tasks</code>" in page
    for path in site.rglob("index.html"):
        for link in re.findall(r'<a [^>]*?href="([^"#?]+)', path.read_text("utf-8")):
            if not re.match(r"[a-z]+:", link):
                assert (path.parent / link).resolve().exists(), f"{path.relative_to(site)}: {link}"
