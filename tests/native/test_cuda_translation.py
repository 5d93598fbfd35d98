"""Test the translation of CUDA sources for the emulation, on snippets."""

from __future__ import annotations

import pytest
from support.cuda_emulation import changed_texts
from support.cuda_faults import FAULTS, PlantedFault
from support.cuda_sources import CSRC
from support.cuda_translation import translate


def test_asm_becomes_a_call_with_the_same_text() -> None:
    found = translate('asm volatile("a.b %0, [%1];\\n" "c;" : "=r"(x) : "r"(f(y, 1)), "l"(z) : "memory");')
    assert found == (
        '[&] { static const emulation::Program program("a.b %0, [%1];\\n" "c;", 1); '
        "program.run({emulation::output(x)}, {emulation::input(f(y, 1)), emulation::input(z)}); }();"
    )


def test_asm_without_operands() -> None:
    assert "program.run({}, {});" in translate('asm volatile("d;" ::: "memory");')
    assert '("a:b::c;", 0)' in translate('asm("a:b::c;");')


@pytest.mark.parametrize("text", ['asm("a %0;" : "+r"(x));', 'asm("a;" : [name] "=r"(x));', 'asm("a;"'])
def test_asm_that_cannot_be_translated(text: str) -> None:
    with pytest.raises(ValueError):
        translate(text)


def test_shared_variables_become_references() -> None:
    assert translate("__shared__ typename Op::Value x[2][kN];") == (
        "using x_type = emulation::Watched<typename Op::Value>[2][kN]; "
        'x_type& x = emulation::shared_variable<x_type>("x", [] {});'
    )
    assert translate("__shared__ Moments moments;").startswith(
        "using moments_type = emulation::Watched<Moments>;"
    )
    assert translate("extern __shared__ uint4 all[];") == (
        "uint4* const all = reinterpret_cast<uint4*>(emulation::dynamic_shared());"
    )


def test_nothing_of_either_is_left() -> None:
    for path in CSRC.rglob("*.*"):
        assert "asm volatile" not in translate(path.read_text())
        assert "__shared__ " not in translate(path.read_text()).replace("// __shared__ ", "")


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_planted_faults_apply(fault: PlantedFault) -> None:
    assert changed_texts(fault.changes) != changed_texts(())


@pytest.mark.parametrize(
    "change",
    [
        ("cuda/memory/cluster.cuh", "a text that is not there", ""),
        ("cuda/memory/cluster.cuh", "asm", "two places"),
        ("no/file.h", "text", ""),
    ],
)
def test_changes_that_do_not_apply(change: tuple[str, str, str]) -> None:
    with pytest.raises(ValueError):
        changed_texts([change])
