"""Test the suite of ``fastkd bench``: its cases, the variants, both allocator modes, and pytest-benchmark."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support.benchmark import read

from fastkd.bench import allocators, device as devices, options, plan, render, run as running, suite, variants
from fastkd.bench.cases import Case
from fastkd.bench.peers import PEERS, ROUTES
from fastkd.cli import main
from fastkd.divergences import DIVERGENCES

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--elements", "2000", "--device", "cpu", "--peer", "eager", "--dtype", "float32"]


def selection(quick: bool = False) -> options.Selection:
    routes = (ROUTES["fastkd native"], *PEERS)
    return options.Selection("cpu", options.OPS, options.SUITE[quick], routes, {}, suite=True, quick=quick)


def test_every_case_has_as_many_logits() -> None:
    cases = plan.cases(selection())
    shapes = {(c.dtype, c.vocab) for c in cases if not c.linear}
    assert shapes == {(dtype, vocab) for dtype in suite.DTYPES for vocab in suite.VOCABULARIES}
    assert all(0.99 * suite.ELEMENTS < c.tokens * c.vocab <= suite.ELEMENTS for c in cases)
    assert {(c.dtype, c.vocab) for c in cases if c.kd_ratio == 1} == {
        (dtype, 151_936) for dtype in suite.DTYPES
    }
    (linear,) = [c for c in cases if c.linear]
    assert linear.id == "bfloat16-V151936-N512-H256/512"
    (memory,) = plan.memory_cases(selection())
    assert memory.id == "float32-V151936-N2048-H64/128"


def test_a_quick_suite_is_a_part_of_the_suite() -> None:
    quick = plan.cases(selection(True))
    assert {(c.op, c.vocab) for c in quick} == {
        *(("kd_loss", vocab) for vocab in suite.QUICK_VOCABULARIES),
        ("linear_kd_loss", 151_936),
    }
    assert all(c.kd_ratio < 1 for c in quick)
    assert options.select("cpu", suite=True, quick=True).elements == suite.ELEMENTS // 4


def test_the_memory_of_peers_is_measured_at_one_vocabulary() -> None:
    selected = selection()
    for case in plan.cases(selected):
        main_quantity = case.kd_ratio < 1 and not case.linear
        assert plan.measures_memory(selected, case, ROUTES["fastkd native"]) == main_quantity
        at_one = main_quantity and case.vocab == suite.VOCAB
        assert plan.measures_memory(selected, case, ROUTES["eager"]) == at_one


def test_every_divergence_is_a_variant() -> None:
    assert list(variants.VARIANTS)[: len(DIVERGENCES)] == list(DIVERGENCES)
    names = {variant.name for variant in options.select("cpu", suite=True).variants}
    assert names == set(variants.VARIANTS)
    assert options.select("cpu").variants == ()
    assert options.select("cpu", ["linear_kd_loss"], suite=True).variants == ()


@pytest.mark.parametrize("name", variants.VARIANTS)
def test_a_variant_is_checked_and_timed(name: str) -> None:
    variant = variants.VARIANTS[name]
    case = Case(600, 10, "float32")
    entry = variants.measured(devices.of("cpu"), variant, case, 0.0)
    assert entry["status"] == "ok" and entry["gradient_error"] < 1e-5
    assert entry["ns_per_element"] == pytest.approx(1e6 * entry["ms"] / 6000)


def test_no_speed_for_a_wrong_variant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(variants, "gradient_error", lambda *_: float("nan"))
    arguments = ["--op", "linear_kd_loss", "--vocab", "40", "--tokens", "2", "--heads", "4/8"]
    assert main(["bench", *SMALL, *arguments, "--variant", "tvd", "--out", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert "fastkd bench: tvd, float32: the gradient is off by nan" in said.err
    (row,) = [line for line in said.out.splitlines() if line.startswith("tvd  ")]
    assert row.split() == ["tvd", "WRONG", "-", "-"]
    (entry,) = read(tmp_path)["variants"]
    assert "ms" not in entry


def test_variants_and_memory_are_measured_once(tmp_path: Path) -> None:
    """The second run of the same command finds everything in the file."""
    selected = options.select(
        *("cpu", options.OPS, [40]),
        dtypes=["float32"],
        peers=["eager"],
        variants=["jsd", "forward_kl"],
        elements=2000,
        suite=True,
    )
    narrow = tuple(dataclasses.replace(variant, vocab=40) for variant in selected.variants)
    selected = dataclasses.replace(selected, variants=narrow)
    first = running.run(selected, tmp_path)
    assert {e["variant"] for e in first["variants"]} == {"jsd", "forward_kl"}
    alone = [e for e in first["entries"] if e["allocator"] is None]
    assert {(e["op"], e["route"]) for e in alone} == {
        ("linear_kd_loss", "fastkd native"),
        ("linear_kd_loss", "eager"),
    }
    assert all(e["peak_extra_bytes"] == 5 * e["logits_bytes"] for e in alone)
    text = render.text(first)
    assert "kd_loss in its other forms [the default allocator]" in text
    assert "jsd  " in text and "float32-V40-N200-H64/128" in text
    assert running.run(selected, tmp_path) == first
    kept = running.run(selected, tmp_path, allocator="kept")
    assert {e["allocator"] for e in kept["variants"]} == {"default", "kept"}
    # Memory is the same in both modes: it is measured in one, and the tables of both show it.
    assert sum("peak_extra_bytes" in e for e in kept["entries"]) == len(alone) + 2
    rows = [line for line in render.text(kept).splitlines() if line.startswith("float32-V40-N50 ")]
    assert len([row for row in rows if "0.0 MiB" in row]) >= 2


@pytest.mark.parametrize("option", ["--tokens 3", "--heads 4/8", "--divergence jsd"])
def test_the_suite_has_sizes_of_its_own(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "--suite", "--device", "cpu", "--out", str(tmp_path), *option.split()]) == 1
    assert "--suite has its own --tokens, --heads and --divergence" in capsys.readouterr().err


def test_a_gpu_has_no_allocator_modes() -> None:
    from fastkd.cli.bench import _allocators

    assert _allocators("cuda", None, True) == []
    with pytest.raises(ValueError, match="on a GPU the memory comes from torch's own allocator"):
        _allocators("cuda", ["kept"], False)
    assert _allocators("cpu", None, True) == ["default", "kept"]
    assert _allocators("cpu", None, False) == []


def test_each_mode_sets_the_allocator(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process in one mode has that mode's variables, whatever those of this process are."""
    monkeypatch.setenv("MALLOC_TOP_PAD_", "5")
    code = "import os; print(os.environ.get('MALLOC_TOP_PAD_'), os.environ.get('MALLOC_MMAP_MAX_'))"

    def said(mode: str) -> str:
        command = [*allocators._environment(mode), sys.executable, "-c", code]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    assert said("default") == "None None"
    assert said("kept") == "67108864 0"


def test_the_modes_share_the_budget_and_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requests: list[dict[str, Any]] = []

    def in_this_process(command: list[str]) -> subprocess.CompletedProcess[str]:
        requests.append(json.loads(command[-1]))
        return subprocess.CompletedProcess(command, allocators.main(requests[-1]))

    monkeypatch.setattr(subprocess, "run", in_this_process)
    arguments = {"device": "cpu", "ops": ["kd_loss"], "vocab": [40], "tokens": [6], "dtypes": ["float32"]}
    arguments |= {"divergences": ["tvd"], "peers": [], "heads": [(8, 16)]}
    found = allocators.run(["default", "kept"], arguments, tmp_path, 100.0)
    assert [e["allocator"] for e in found["entries"]] == ["default", "kept"]
    assert found == read(tmp_path)
    assert 0 < requests[1]["budget"] < requests[0]["budget"] <= 100
    assert allocators.run(["kept"], arguments, tmp_path)["entries"] == found["entries"]
    assert allocators.run(["default", "kept"], arguments, tmp_path, 0.0, fresh=True)["cases_left"] == 2
    monkeypatch.setattr(subprocess, "run", lambda command: subprocess.CompletedProcess(command, 9))
    with pytest.raises(RuntimeError, match="the process with the allocator 'kept' ended with status 9"):
        allocators.run(["kept"], arguments, tmp_path)
    monkeypatch.setattr(subprocess, "run", lambda command: subprocess.CompletedProcess(command, 130))
    with pytest.raises(KeyboardInterrupt):
        allocators.run(["kept"], arguments, tmp_path)


@pytest.mark.slow
def test_the_suite_in_both_modes_ends_in_one_table(tmp_path: Path) -> None:
    """The suite writes one file for both modes, and a copy that is named after the device."""
    command = [sys.executable, "-m", "fastkd.cli", "bench", "--suite", "--elements", "40000"]
    command += ["--vocab", "8192", "--dtype", "float32", "--op", "kd_loss", "--peer", "--variant", "jsd"]
    command += ["--allocator", "kept", "default", "--out", str(tmp_path / "out"), "--save", str(tmp_path)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    (path,) = tmp_path.glob("*.json")
    run = json.loads(path.read_text())
    timed = [e for e in run["entries"] if e["route"] == "fastkd native"]
    assert {e["allocator"] for e in timed} == {"kept", "default"}
    assert all(e["status"] == "ok" and e["ms"] > 0 for e in timed)
    assert any("peak_extra_bytes" in e for e in timed)
    assert {(e["variant"], e["allocator"]) for e in run["variants"]} == {("jsd", "kept"), ("jsd", "default")}
    text = path.with_suffix(".txt").read_text()
    assert "[mapped memory kept]" in text and "[the default allocator]" in text
    assert "ms, float32" in text
    assert ran.stdout.strip().splitlines()[-1].startswith("saved")


@pytest.mark.slow
def test_pytest_benchmark_measures_the_same_entries(tmp_path: Path) -> None:
    pytest.importorskip("pytest_benchmark")
    raw = tmp_path / "raw.json"
    command = [sys.executable, "-m", "pytest", "bench", "--benchmark-only", "-q", "-p", "no:cacheprovider"]
    command += ["--elements", "40000", f"--benchmark-json={raw}"]
    command += ["-k", "(V8192 or jsd) and float32 and not compile and not eager"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    found = json.loads(raw.read_text())
    assert found["machine_info"]["fastkd"]["versions"]["torch"] == torch.__version__
    entries = {benchmark["name"]: benchmark["extra_info"]["entry"] for benchmark in found["benchmarks"]}
    assert set(entries) == {
        "test_time[float32-V8192-N4-fastkd native]",
        "test_memory[float32-V8192-N4-fastkd native]",
        "test_variant[jsd-float32]",
    }
    times = [e for e in entries.values() if "ms" in e]
    assert len(times) == 2 and all(e["status"] == "ok" and len(e["floor_ms"]) == 2 for e in times)
