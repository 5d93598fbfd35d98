"""Test that each peer computes the quantity on which it is compared, or is absent with a reason."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from support.benchmark import bench, read, without

from fastkd.bench import options, oracle, peers, plain, plan, routes
from fastkd.bench.cases import Case, make_problem, step
from fastkd.bench.peers import PEERS, ROUTES
from fastkd.divergences import DIVERGENCES

ELSEWHERE = [r.name for r in PEERS if r.name not in ("eager", "torch.compile")]


@pytest.mark.parametrize("name", ELSEWHERE)
def test_peers_compute_the_compared_quantity(name: str) -> None:
    """Each peer that is installed and can run on this machine computes the quantity it is compared on."""
    route, device = ROUTES[name], "cuda" if torch.cuda.is_available() else "cpu"
    if (reason := route.absent(device)) is not None:
        pytest.skip(reason)
    linear, taken = name not in ("liger", "liger JSD", "liger TVD", "trl"), 0
    for divergence in DIVERGENCES:
        for ratio in (0.0, 0.5, 1.0):
            case = Case(600, 8, "float32", device, 32 * linear, 64 * linear, divergence, ratio)
            if route.takes(case):
                taken += 1
                problem = make_problem(case)
                errors = oracle.errors(problem, step(route.loss, problem), oracle.answer(problem))
                assert errors.within(oracle.tolerance(case, ours=False)), (divergence, ratio, errors)
    assert taken


@pytest.mark.slow
def test_the_compiled_peer_is_the_eager_one() -> None:
    problem = make_problem(Case(300, 8, "float32"))
    right = oracle.answer(problem)
    errors = oracle.errors(problem, step(peers.compiled, problem), right)
    peers.forget_compiled()
    assert errors.within(oracle.tolerance(problem.case, ours=False))


def test_no_peer_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "liger_kernel", "trl", "orda_kernel")
    selection = options.select("cpu")
    assert {r.family for r in selection.routes} <= {
        *("native", "reference", "eager", "torch.compile", "F.linear_cross_entropy")
    }
    for name in ("liger", "liger chunked", "trl", "trl chunked", "orda"):
        assert "not installed: pip install 'fastkd[bench]'" in selection.absent[name]
    # No installed peer computes the forward KL alone, so there would be nothing to compare.
    assert not any(c.divergence == "forward_kl" and c.kd_ratio == 1 for c in plan.cases(selection))


def test_peer_that_cannot_be_imported_is_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "trl").mkdir()
    (tmp_path / "trl" / "__init__.py").write_text("raise RuntimeError('needs another torch')")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    for name in [name for name in sys.modules if name.partition(".")[0] == "trl"]:
        monkeypatch.delitem(sys.modules, name)  # another test may have imported the real one
    reason = routes.needs("trl", "trl.experimental.gkd")("cpu")
    assert reason is not None and "needs another torch" in reason


def test_peers_of_triton_are_absent_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "liger_kernel").mkdir()
    (tmp_path / "liger_kernel" / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    reason = ROUTES["liger"].absent("cpu")
    assert reason is not None and "GPU" in reason


def test_a_divergence_that_no_user_writes_by_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a plain formula fastkd is still checked and timed, and the output says what is missing."""
    monkeypatch.delitem(plain.FORMULAS, "renyi")
    assert bench(tmp_path, "--divergence", "renyi", "--dtype", "float32") == 0
    entries = read(tmp_path)["entries"]
    assert {(e["op"], e["route"], e["status"]) for e in entries} == {
        (op, "fastkd native", "ok") for op in options.OPS
    }
    assert "absent: eager for renyi: no formula of renyi" in capsys.readouterr().out
    with pytest.raises(
        ValueError, match=r"no formula of renyi, as a user would write it, is in fastkd/bench"
    ):
        plain.loss_of(Case(10, 2, "float32", divergence="renyi"))


def test_plain_formulas_are_those_of_divergences() -> None:
    assert set(plain.FORMULAS) <= set(DIVERGENCES)
