"""Test that the files of a release agree: version, changelog, citation, templates, source distribution."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import yaml

import fastkd
from fastkd.cli import COMMANDS
from fastkd.divergences import DIVERGENCES

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT = (ROOT / "pyproject.toml").read_text()
CHANGELOG = (ROOT / "CHANGELOG.md").read_text()
SETTINGS = (ROOT / "fastkd" / "_settings.py").read_text()
MAKE_SDIST = "import sys; from scikit_build_core.build import build_sdist; print(build_sdist(sys.argv[1]))"


def from_pyproject(key: str) -> str:
    (value,) = re.findall(rf'^{key} = "(.*)"$', PYPROJECT, flags=re.MULTILINE)
    return str(value)


def extras() -> set[str]:
    (section,) = re.findall(r"^\[project.optional-dependencies\]\n(.*?)^\[", PYPROJECT, flags=re.M | re.S)
    return set(re.findall(r"^(\w+) = \[", section, flags=re.M))


def test_one_version() -> None:
    """A wheel with the CUDA kernels adds a label, ``+cu13``, to the version that the sources state."""
    newest = re.findall(r"^## \[(.+?)\] - (unreleased|\d{4}-\d\d-\d\d)$", CHANGELOG, flags=re.MULTILINE)[0][0]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    installed = importlib.metadata.version("fastkd").partition("+")[0]
    stated = {from_pyproject("version"), str(citation["version"]), newest, installed}
    assert stated == {fastkd.__version__}


def test_no_page_names_another_version() -> None:
    """Sentences on the newest wheel are read when the version changes; results keep that of their run."""
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")):
        for version in re.findall(r"fastkd-(\d+\.\d+\.\d+)\b", page.read_text()):
            assert version == fastkd.__version__, page.name


def test_the_citation_is_that_of_the_package() -> None:
    """``cffconvert --validate`` checks the format; the checklist of a release names it."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["license"] == from_pyproject("license")
    assert citation["type"] == "software" and citation["title"].startswith("fastkd")


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(set(fastkd.__all__) - {"backends"}, id="public names"),
        pytest.param(set(COMMANDS), id="commands"),
        pytest.param(extras() - {"test", "dev"}, id="extras"),
        pytest.param(set(re.findall(r"FASTKD_\w+", SETTINGS)), id="environment variables"),
    ],
)
def test_the_changelog_names(names: set[str]) -> None:
    assert names and not [name for name in sorted(names) if not re.search(rf"`[^`]*\b{name}\b", CHANGELOG)]


def test_the_changelog_counts_the_divergences() -> None:
    numbers = {14: "fourteen", 15: "fifteen", 16: "sixteen", 17: "seventeen", 18: "eighteen", 19: "nineteen"}
    assert f"{numbers[len(DIVERGENCES)]} divergences" in CHANGELOG


def test_issues_ask_for_the_environment() -> None:
    for name, required in (("bug_report", True), ("feature_request", False)):
        form = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / f"{name}.yml").read_text())
        (field,) = [part for part in form["body"] if part.get("id") == "environment"]
        assert "fastkd env" in field["attributes"]["label"]
        assert field.get("validations", {}).get("required", False) is required


def test_every_python_gets_a_wheel() -> None:
    """The versions that the package's metadata names are those of cibuildwheel and of the workflow."""
    named = re.findall(r'"Programming Language :: Python :: 3\.(\d+)"', PYPROJECT)
    built = re.findall(r"\bcp3(\d+)-\*", from_pyproject("build"))
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "wheels.yml").read_text())
    with_cuda = workflow["jobs"]["cuda"]["strategy"]["matrix"]["python"]
    assert named == built == [version.removeprefix("3.") for version in with_cuda]
    assert from_pyproject("requires-python") == f">=3.{named[0]}"


def test_source_distribution(tmp_path: Path) -> None:
    """All that git tracks but results, CI and templates; from it alone, the wheels are built."""
    command = [sys.executable, "-c", MAKE_SDIST, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (sdist,) = tmp_path.glob("*.tar.gz")
    assert sdist.name == f"fastkd-{fastkd.__version__}.tar.gz"
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    sources = {
        str(path.relative_to(ROOT))
        for folder in ("csrc", "cmake", "wheels", "tests/support")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix not in (".pyc", ".so")
    }
    beside = {"CMakeLists.txt", "pyproject.toml", "LICENSE", "README.md", "CHANGELOG.md", "Makefile"}
    assert not (sources | beside | {"fastkd/_C.pyi", "fastkd/py.typed"}) - names
    unwanted = ("bench/results", ".ci", ".github", "build/", "dist/")
    assert not [name for name in names if name.startswith(unwanted) or name.endswith((".so", ".pyc"))]
    assert sdist.stat().st_size < 5 * 10**6
