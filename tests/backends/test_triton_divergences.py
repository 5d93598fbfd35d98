"""Test the objects by which the Triton kernels know a divergence, and that no edited formula meets an old
kernel."""

from __future__ import annotations

import os
import pathlib
import runpy
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

pytest.importorskip("fastkd.backends.triton.launch", exc_type=ImportError)

from support.triton_variants import arguments, main

import fastkd
from fastkd.backends.triton import divergences, host, sources
from fastkd.backends.triton.divergences import FORMULAS, Formulas
from fastkd.backends.triton.divergences.streams import NO_STREAMS
from fastkd.divergences import DIVERGENCES

PACKAGE = pathlib.Path(fastkd.__file__).parent
TESTS = pathlib.Path(__file__).parents[1]


def test_every_divergence_has_formulas() -> None:
    assert set(FORMULAS) == {*DIVERGENCES, "off_support"}
    for name, divergence in DIVERGENCES.items():
        assert FORMULAS[name].divergence is divergence


@pytest.mark.triton_interpret
def test_a_divergence_without_formulas_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(divergences.FORMULAS, "tvd")
    s, t = torch.randn(2, 8), torch.randn(2, 8)
    with pytest.raises(NotImplementedError, match="cannot compute divergence='tvd'"):
        fastkd.kd_loss(s, t, divergence="tvd", backend="triton")


@pytest.mark.parametrize(
    ("name", "change", "match"),
    [
        ("jsd", {"add_sums": None}, "add_sums is missing"),
        ("forward_kl", {"add_sums": FORMULAS["tvd"].add_sums}, "add_sums is given but never called"),
        ("forward_kl", {"streams": NO_STREAMS}, "0 streams in Triton, 1 elsewhere"),
        ("jeffreys", {"streams": FORMULAS["forward_kl"].streams}, "1 streams in Triton, 2 elsewhere"),
        ("alpha", {"streams": FORMULAS["forward_kl"].streams}, "streams.normalised is missing"),
        ("reverse_kl", {"streams": FORMULAS["renyi"].streams}, "streams.normalised is given"),
        ("log_acceptance", {"distant": None}, "distant is missing"),
        ("tvd", {"evaluate": None}, "evaluate is missing"),
        ("tvd", {"gradients": None}, "gradients is missing"),
    ],
)
def test_incomplete_formulas_are_refused(name: str, change: dict[str, object], match: str) -> None:
    with pytest.raises(TypeError, match=f"{name}: {match}"):
        replace(FORMULAS[name], **change)  # type: ignore[arg-type]


def test_objects_differ_by_name_and_sources() -> None:
    """Triton's caches identify a constant by its ``cache_key`` or its ``repr``."""
    objects: list[Formulas] = [divergences.NOTHING, *FORMULAS.values(), *FORMULAS["jsd"].at_beta.values()]
    assert len({formulas.cache_key for formulas in objects}) == len(objects)
    for formulas in objects:
        assert repr(formulas) == formulas.cache_key
        assert formulas.name in formulas.cache_key and "object at" not in formulas.cache_key


EDITS = [
    ("divergences/kl.py", "return e.gap, times(e.et,", "return e.gap, times(e.es,"),
    ("divergences/jsd.py", "0.28012025356292725", "0.28"),
    ("arithmetic.py", "tl.where(weight < TINY, 0.0, weight * x)", "weight * x"),  # called by formulas
    ("arithmetic.py", "TINY = constant(2.0**-126)", "TINY = constant(2.0**-100)"),
    ("terms.py", 'self.metrics or self.sparse or self.phase == "statistics"', "True"),
]


def edit(path: pathlib.Path, old: str, new: str) -> None:
    source = path.read_text()
    assert old in source
    path.write_text(source.replace(old, new))


@pytest.mark.parametrize(("file", "old", "new"), EDITS)
def test_an_edited_source_changes_the_digest(tmp_path: pathlib.Path, file: str, old: str, new: str) -> None:
    shutil.copytree(PACKAGE / "backends/triton", tmp_path / "triton")

    def digest() -> str:
        found: str = runpy.run_path(str(tmp_path / "triton/sources.py"))["digest"]()
        return found

    before = digest()
    assert digest() == before == sources.digest()
    edit(tmp_path / "triton" / file, old, new)
    assert digest() != before


@pytest.mark.skipif(host.INTERPRETED, reason="interpreted kernels are not compiled")
@pytest.mark.parametrize("name", DIVERGENCES)
def test_the_digest_is_part_of_the_keys(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The cache on disk uses the hash of the source, the cache of the process the ``repr`` of constants."""
    from triton.compiler import ASTSource

    formulas = FORMULAS[name]
    key, text = ASTSource(*arguments(main(name))).hash(), repr(formulas)
    assert ASTSource(*arguments(main(name))).hash() == key
    monkeypatch.setattr(sources, "digest", lambda: "edited")
    assert ASTSource(*arguments(main(name))).hash() != key and repr(formulas) != text


# Prints the key by which Triton's cache on disk finds a compiled kernel.
KEY = """
from triton.compiler import ASTSource
from support.triton_variants import arguments, main
print(ASTSource(*arguments(main("forward_kl"))).hash())
"""


@pytest.mark.slow
def test_an_edited_formula_changes_the_key_of_the_kernel(tmp_path: pathlib.Path) -> None:
    copy = tmp_path / "fastkd"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__", "trainer", "demo"))

    def key() -> str:
        environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path), str(TESTS)])
        # -S: neither an editable install nor a `.pth` file may put another copy of fastkd before this one.
        command = [sys.executable, "-S", "-c", f"import sys; sys.path += {sys.path!r}\n{KEY}"]
        child = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
        assert child.returncode == 0, child.stderr
        return child.stdout

    before = key()
    assert key() == before
    edit(copy / "backends/triton/divergences/kl.py", "return e.gap, times(e.et,", "return e.gap, times(e.es,")
    assert key() != before
