"""Test ``fastkd bench`` on small sizes: what it measures, what it refuses, and which files it writes."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support import oracle as formulas
from torch import Tensor

from fastkd.bench import (
    device as devices,
    floor,
    measure,
    memory,
    oracle,
    peers,
    plain,
    plan,
    results,
    routes,
    run as running,
    table,
)
from fastkd.bench.cases import TEMPERATURE, Case, Problem, make_problem, step
from fastkd.bench.peers import PEERS, ROUTES
from fastkd.cli import main
from fastkd.cli.bench import _parser
from fastkd.divergences import DIVERGENCES
from fastkd.losses.checks import UNUSED

TINY = ["--vocab", "40", "64", "--tokens", "6", "--heads", "8/16", "--device", "cpu", "--budget", "0"]
ONE = ["--op", "kd_loss", "--vocab", "40", "--dtype", "float32", "--divergence", "forward_kl"]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start no processes to measure memory, make few calls, draw no pictures: times do not matter here."""
    monkeypatch.setattr(memory, "peak_extra_in_child", lambda route, case: 5 * case.logits_bytes)
    monkeypatch.setattr(devices, "MOST_CALLS", 4)
    monkeypatch.setattr(devices, "MOST_SETS", 2)
    if importlib.util.find_spec("matplotlib") is not None:
        monkeypatch.setattr("fastkd.bench.plot.draw_all", lambda run, folder: [])


def bench(folder: Path, *arguments: str) -> int:
    return main(["bench", *TINY, "--peer", "eager", "--out", str(folder), *arguments])


def read(folder: Path) -> dict[str, Any]:
    run: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return run


# --- a whole run ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("bench")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "peak_extra_in_child", lambda route, case: 5 * case.logits_bytes)
        patch.setattr(devices, "MOST_CALLS", 4)
        patch.setattr(devices, "MOST_SETS", 2)
        assert bench(folder) == 0
    yield folder


NUMBER = (int, float)
ENTRY = {
    **{name: int for name in ("vocab", "tokens", "student_width", "teacher_width", "logits_bytes", "calls")},
    **{name: str for name in ("dtype", "device", "divergence", "op", "route", "allocator", "status")},
    **{name: NUMBER for name in ("kd_ratio", "value_error", "ms")},
    **{name: bool for name in ("backward", "ours")},
    **{name: list for name in ("floor_ms", "allowed_errors")},
    "quantiles_ms": dict,
    "input_sets": int,
}


def test_the_file_says_everything(whole: Path) -> None:
    run = read(whole)
    assert run["format"] == results.FORMAT
    assert run["device"] == devices.of("cpu").name()
    assert run["versions"]["torch"] == torch.__version__
    (command,) = run["commands"]
    assert command.startswith("fastkd bench --vocab 40 64")
    assert run["peers"] == {"eager": ROUTES["eager"].about}
    assert run["cases_left"] == 0
    assert run["entries"]
    for entry in run["entries"]:
        assert entry["status"] == "ok"
        for name, kind in ENTRY.items():
            assert isinstance(entry[name], kind), (name, entry[name])
        quantiles = list(entry["quantiles_ms"].values())
        assert quantiles == sorted(quantiles)
        assert 0 < quantiles[0] <= entry["ms"] <= quantiles[-1]
        assert (entry["gradient_error"] is None) == (not entry["backward"])
        if entry["op"] == "kd_loss":
            moved = (3 if entry["backward"] else 2) * entry["logits_bytes"]
            assert entry["gb_per_s"] == pytest.approx(moved / entry["ms"] / 1e6)
            times = [moved / rate / 1e6 for rate in entry["copy_gb_per_s"]]
            assert entry["floor_ms"] == pytest.approx(times)


def test_every_case_and_route_is_there(whole: Path) -> None:
    entries = read(whole)["entries"]
    found = {(e["op"], e["divergence"], e["kd_ratio"], e["backward"]) for e in entries}
    assert {("kd_loss", "forward_kl", 0.5, True), ("kd_loss", "forward_kl", 0.5, False)} <= found
    assert {(op, name, 1.0, True) for op in plan.OPS for name in ("jsd", "tvd")} <= found
    shapes = {(e["dtype"], e["vocab"]) for e in entries if e["op"] == "kd_loss" and e["backward"]}
    assert shapes == {(dtype, vocab) for dtype in ("bfloat16", "float32") for vocab in (40, 64)}
    for case in {table.case_of(e) for e in entries}:
        assert {e["route"] for e in entries if table.case_of(e) == case} == {"fastkd native", "eager"}


def test_the_table_has_a_row_for_each_case(whole: Path) -> None:
    text = (whole / "table.txt").read_text()
    assert "kd_loss, forward + backward: 0.5 forward_kl (T = 2) + 0.5 cross-entropy" in text
    assert "kd_loss, forward + backward: jsd (T = 2) alone" in text
    assert "kd_loss, forward only" in text
    head = next(line for line in text.splitlines() if line.startswith("case"))
    assert head.split("  ")[0] == "case"
    for column in ("backend", "ms", "GB/s", "of floor", "vs eager", "peak extra", "grad err"):
        assert column in head
    assert sum(line.startswith("float32-V64-N6 ") for line in text.splitlines()) >= 4


def test_the_pictures_show_something(whole: Path) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.image import imread

    for name in ("roofline", "peers", "memory"):
        path = whole / f"{name}.png"
        if name == "roofline" and not path.exists():  # a busy machine gives no times that could be plotted
            entries = [e for e in read(whole)["entries"]]
            assert not any(table.quiet(e) for e in entries)
            continue
        picture = imread(path)[..., :3]
        assert picture.shape[0] > 300 and picture.shape[1] > 400
        painted = (abs(picture - picture[0, 0]) > 0.1).any(-1)
        assert 0.005 < painted.mean() < 0.6


def test_pictures_know_what_was_measured(whole: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from fastkd.bench import plot

    run = read(whole)
    for entry in run["entries"]:
        entry["floor_ms"] = [1.0, 1.0]
        entry["ms"] = 2.0 if entry["ours"] else 8.0
    colours = plot._colours(run)
    roofline, times = plot.roofline(run, colours), plot.peers(run, colours)
    for figure, values in ((roofline, {0.5, 0.125}), (times, {2.0, 8.0})):
        drawn = {float(y) for axes in figure.axes for line in axes.lines for y in line.get_ydata()}
        assert values <= drawn
    assert "bfloat16, N = 6" in roofline.axes[0].get_title(loc="left")
    widths = [bar.get_width() for axes in plot.memory(run, colours).axes for bar in axes.patches]
    assert widths == pytest.approx([5 * 64 * 6 * b / 2**20 for b in (4, 4)] * 2)


def test_pictures_can_be_drawn_later(whole: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "results.json").write_text((whole / "results.json").read_text())
    command = [sys.executable, "-m", "fastkd.bench.plot", str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"wrote {tmp_path / 'peers.png'}" in ran.stdout
    assert (tmp_path / "peers.png").stat().st_size > 10_000


def test_without_matplotlib_all_else_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    without(monkeypatch, "matplotlib")
    assert bench(tmp_path, *ONE) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["results.json", "table.txt"]
    assert "pip install 'fastkd[bench]'" in capsys.readouterr().err


def without(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name in packages else real(name, *rest)
    )


# --- right before fast ------------------------------------------------------------------------------------


def gradient_scaled(loss: Tensor, factor: float) -> Tensor:
    """The same loss, with a gradient ``factor`` times as large."""
    return loss.detach() + factor * (loss - loss.detach())


@pytest.mark.parametrize(
    "wrong",
    [
        lambda loss: loss * 1.01,
        lambda loss: gradient_scaled(loss, 1.01),
        lambda loss: loss * float("nan"),
    ],
    ids=["value", "gradient", "nan"],
)
def test_no_speed_for_a_wrong_result(
    wrong: Callable[[Tensor], Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    right = routes.fastkd_loss
    monkeypatch.setattr(routes, "fastkd_loss", lambda problem, backend=None: wrong(right(problem, backend)))
    assert bench(tmp_path, *ONE, "--vocab", "64") == 1
    said = capsys.readouterr()
    (entry,) = [e for e in read(tmp_path)["entries"] if e["ours"] and e["backward"]]
    assert entry["status"] == "wrong"
    assert "ms" not in entry
    assert "NaN" not in (tmp_path / "results.json").read_text()  # not JSON outside Python
    (row,) = [
        line for line in said.out.splitlines() if line.startswith("float32-V64-N6") and "off by" in line
    ][:1]
    assert "WRONG, no speed is stated" in row
    assert "fastkd bench: fastkd native" in said.err


def test_a_wrong_part_is_not_hidden_by_the_labels_gradient() -> None:
    """A wrong gradient of the divergence is found, although the cross-entropy's entry at the label is by far
    the largest of its row."""
    case = Case(512, 16, "bfloat16")
    problem = make_problem(case)

    def kd_gradient_off(problem: Problem) -> Tensor:
        ce = torch.nn.functional.cross_entropy(problem.student[0].float(), problem.labels)
        both = plain.loss_of(case)(problem.student[0].float(), problem.teacher[0].float(), problem.labels)
        return gradient_scaled(both - 0.5 * ce, 1.015) + 0.5 * ce

    errors = oracle.errors(problem, step(kd_gradient_off, problem), oracle.answer(problem))
    assert errors.value < 1e-4
    assert not errors.within(oracle.tolerance(case, ours=True))
    whole = problem.student[0].grad.double() / torch.linalg.norm(problem.student[0].grad.double())
    step(ROUTES["fastkd native"].loss, problem)
    right = problem.student[0].grad.double() / torch.linalg.norm(problem.student[0].grad.double())
    assert float((whole - right).norm()) < 4e-3  # the error over all entries at once would pass


def test_a_failing_call_of_ours_is_an_error_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An exception in fastkd's own call ends the benchmark with exit status 1."""

    def fails(problem: Problem, backend: str | None = None) -> Tensor:
        raise RuntimeError("no kernel")

    monkeypatch.setattr(routes, "fastkd_loss", fails)
    assert bench(tmp_path, *ONE) == 1
    assert "RuntimeError: no kernel" in capsys.readouterr().err


def test_a_wrong_peer_is_marked_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    replaced = dataclasses.replace(ROUTES["eager"], loss=lambda problem: 4 * peers.eager(problem))
    monkeypatch.setattr(plan, "PEERS", [replaced])
    assert bench(tmp_path, *ONE) == 0
    assert "wrong (3e+00)" in capsys.readouterr().out
    by_route = {e["route"]: e for e in read(tmp_path)["entries"]}
    assert "ms" in by_route["fastkd native"]
    assert "ms" not in by_route["eager"]


def test_a_peer_that_runs_out_of_memory_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def out_of_memory(problem: Problem) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 16 GiB.")

    monkeypatch.setattr(plan, "PEERS", [dataclasses.replace(ROUTES["eager"], loss=out_of_memory)])
    assert bench(tmp_path, *ONE) == 0
    assert "no memory" in capsys.readouterr().out


def test_a_case_that_does_not_fit_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(devices.Cpu, "free_bytes", lambda self: 10_000)
    assert bench(tmp_path, *ONE, "--vocab", "64", "--tokens", "2", "64") == 0
    out = capsys.readouterr().out
    (line,) = [line for line in out.splitlines() if line.startswith("float32-V64-N64") and "skipped" in line]
    assert "GiB of memory" in line
    assert any("float32-V64-N2 " in line and "skipped" not in line for line in out.splitlines())


def test_where_memory_cannot_be_measured_the_time_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """If the peak of memory cannot be measured, the entry still has its time."""

    def elsewhere(route: str, case: Case) -> int:
        raise RuntimeError("the peak of memory on a CPU needs Linux")

    monkeypatch.setattr(memory, "peak_extra_in_child", elsewhere)
    assert bench(tmp_path, *ONE) == 0
    assert "no peak of memory: the peak of memory on a CPU needs Linux" in capsys.readouterr().out
    assert all("ms" in e and "peak_extra_bytes" not in e for e in read(tmp_path)["entries"])


@pytest.mark.parametrize("name", DIVERGENCES)
def test_the_oracle_is_that_of_the_tests(name: str) -> None:
    for ratio in (0.5, 1.0):
        case = Case(50, 5, "float64", divergence=name, kd_ratio=ratio)
        problem = make_problem(case)
        s, beta = problem.student[0], DIVERGENCES[name].parameters.get("beta")
        expected = formulas.kd_loss(
            *(s, problem.teacher[0], problem.labels),
            kd_ratio=ratio,
            divergence=name,
            beta=UNUSED.default if beta is None else beta.default,
            alpha=0.5,
            temperature=TEMPERATURE,
            t_squared=case.t_squared,
        )
        right = oracle.answer(problem)
        torch.testing.assert_close(right.value, expected.detach())
        (by_logits,) = torch.autograd.grad(expected, s)
        torch.testing.assert_close(right.grads[0], by_logits[right.rows])


def test_what_rounding_decides_is_no_error() -> None:
    """Where p and q are nearly equal, rounding decides the sign of the gradient of |p - q|; both pass."""
    case = Case(3000, 4, "float32", divergence="tvd", kd_ratio=1)
    problem = make_problem(case)
    with torch.no_grad():
        rest = torch.logsumexp(problem.student[0][:, 1:] / TEMPERATURE, -1)
        other = torch.logsumexp(problem.teacher[0][:, 1:] / TEMPERATURE, -1)
        # Column 0 has the same odds on both sides, so the same probability up to rounding.
        problem.teacher[0][:, 0] = problem.student[0][:, 0] + TEMPERATURE * (other - rest)
    right = oracle.answer(problem)
    assert right.ties is not None and right.ties[:, 0].all() and right.ties.sum() < 8
    value = step(ROUTES["fastkd native"].loss, problem)
    assert problem.student[0].grad is not None
    problem.student[0].grad[:, 0] *= -1
    assert oracle.errors(problem, value, right).within(oracle.tolerance(case, ours=True))
    problem.student[0].grad[:, 1:100] *= -1
    assert not oracle.errors(problem, value, right).within(oracle.tolerance(case, ours=True))


@pytest.mark.parametrize("width", [0, 6])
def test_the_oracle_is_the_same_in_pieces(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = make_problem(Case(40, 90, "float32", student_width=width, teacher_width=2 * width))
    whole = oracle.answer(problem)
    monkeypatch.setattr(oracle, "BLOCK", 7 * 40)
    pieces = oracle.answer(problem)
    torch.testing.assert_close(pieces.value, whole.value)
    for a, b in zip(pieces.grads, whole.grads, strict=True):
        torch.testing.assert_close(a, b)


def test_the_sample_has_both_ends_and_no_row_twice() -> None:
    rows = oracle.checked_rows(Case(10, 1000, "float32"))
    assert {0, 15, 984, 999} <= set(rows.tolist())
    assert len(rows.unique()) == len(rows) > 50
    assert oracle.checked_rows(Case(10, 3, "float32")).tolist() == [0, 1, 2]


CASES = [
    Case(2000, 16, dtype, student_width=w, teacher_width=2 * w, divergence=divergence, kd_ratio=ratio)
    for dtype in ("bfloat16", "float32")
    for w in (0, 32)
    for divergence, ratio in (("forward_kl", 0.5), ("forward_kl", 1.0), ("jsd", 1.0), ("tvd", 1.0))
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.op}-{c.dtype}-{c.divergence}-{c.kd_ratio:g}")
def test_the_tolerance_tells_rounding_from_another_quantity(case: Case) -> None:
    """Right results pass the tolerance; another divergence or another kd_ratio does not."""
    problem = make_problem(case)
    right, allowed = oracle.answer(problem), oracle.tolerance(case, ours=False)

    def errors(loss: Callable[[Problem], Tensor]) -> oracle.Errors:
        return oracle.errors(problem, step(loss, problem), right)

    assert errors(peers.eager).within(allowed)
    ours = errors(ROUTES["fastkd native"].loss)
    assert ours.within(oracle.tolerance(case, ours=True))

    def other(**changes: Any) -> oracle.Errors:
        problem.case = dataclasses.replace(case, **changes)
        value = step(ROUTES["fastkd reference"].loss, problem)
        problem.case = case
        return oracle.errors(problem, value, right)

    assert not other(divergence="reverse_kl").within(allowed)
    if case.kd_ratio < 1:
        assert not other(kd_ratio=0.4).within(allowed)


# --- peers ------------------------------------------------------------------------------------------------

ELSEWHERE = [r.name for r in PEERS if r.name not in ("eager", "torch.compile")]


@pytest.mark.parametrize("name", ELSEWHERE)
def test_peers_compute_what_they_are_compared_on(name: str) -> None:
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
    selection = plan.select("cpu")
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
    reason = routes.needs("trl", "trl.experimental.gkd")("cpu")
    assert reason is not None and "needs another torch" in reason


def test_peers_of_triton_are_absent_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "liger_kernel").mkdir()
    (tmp_path / "liger_kernel" / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    reason = ROUTES["liger"].absent("cpu")
    assert reason is not None and "GPU" in reason


# --- what is measured -------------------------------------------------------------------------------------


def gpu_selection(**changes: Any) -> plan.Selection:
    ours = [r for r in ROUTES.values() if r.name in ("fastkd native", "fastkd triton")]
    sizes = dataclasses.replace(plan.SIZES["cuda", False], **changes)
    return plan.Selection("cuda", plan.OPS, sizes, (*ours, *PEERS), {})


def test_a_gpu_measures_the_most_important_first() -> None:
    cases = plan.cases(gpu_selection())
    first = cases[0]
    assert (first.op, first.dtype, first.tokens, first.quantity) == (
        *("kd_loss", "bfloat16", 8192),
        "0.5 forward_kl (T = 2) + 0.5 cross-entropy",
    )
    leading = [c for c in cases if c.dtype == "bfloat16" and c.tokens == 8192]
    assert cases[: len(leading)] == leading
    order = list(dict.fromkeys((c.op, c.divergence, c.kd_ratio) for c in leading))
    assert order[:4] == [
        ("kd_loss", "forward_kl", 0.5),
        ("linear_kd_loss", "forward_kl", 0.5),
        ("kd_loss", "jsd", 1.0),
        ("kd_loss", "tvd", 1.0),
    ]
    assert len(set(cases)) == len(cases)


def test_a_gpu_measures_all_shapes() -> None:
    cases = plan.cases(gpu_selection())
    for divergence in ("forward_kl", "jsd", "tvd"):
        shapes = {
            (c.dtype, c.tokens, c.vocab)
            for c in cases
            if c.op == "kd_loss" and c.divergence == divergence and c.backward
        }
        assert shapes == {
            (dtype, tokens, vocab)
            for dtype in ("bfloat16", "float32")
            for tokens in (2048, 8192, 16384)
            for vocab in (32_000, 50_257, 128_256, 151_936, 262_144)
        }
    heads = {(c.student_width, c.teacher_width) for c in cases if c.linear}
    assert heads == {(1024, 2048), (2048, 4096)}
    assert any(not c.backward for c in cases)
    assert any(c.linear and c.kd_ratio == 0 for c in cases)  # to compare with F.linear_cross_entropy


def test_bytes_are_counted() -> None:
    case = Case(1000, 30, "bfloat16")
    assert case.least_bytes == 3 * 30 * 1000 * 2
    assert dataclasses.replace(case, backward=False).least_bytes == 2 * 30 * 1000 * 2
    linear = Case(1000, 30, "float32", student_width=4, teacher_width=8)
    problem = make_problem(linear)
    tensors = (*problem.student, *problem.teacher)
    assert linear.input_bytes == sum(x.nbytes for x in tensors)
    assert linear.gradient_bytes == sum(x.nbytes for x in problem.student)


def test_inputs_together_exceed_the_cache_several_times() -> None:
    cpu = devices.of("cpu")
    case = Case(1000, 1000, "float32")  # 8 MB for both sides
    sets = devices.sets_needed(cpu, case)
    assert sets == devices.MOST_SETS or sets * case.input_bytes >= devices.CACHES * cpu.cache_bytes()
    a, b = (make_problem(case, seed=seed) for seed in (0, 1))
    assert not torch.equal(a.student[0], b.student[0])
    assert torch.equal(a.student[0], make_problem(case).student[0])


def test_the_floor_behind_heads_is_the_products_alone() -> None:
    """The floor of a linear loss is its matrix products: four with a teacher, three without."""
    torch.manual_seed(0)
    case = Case(30, 5, "float32", student_width=4, teacher_width=8)
    problem = make_problem(case)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        floor.products(problem)()
    counts = {event.key: event.count for event in profile.key_averages()}
    assert counts["aten::mm"] == 4
    problem.case = dataclasses.replace(case, kd_ratio=0)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        floor.products(problem)()
    assert {event.key: event.count for event in profile.key_averages()}["aten::mm"] == 3


def test_the_threaded_copy_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[bool] = []
    real = floor._median

    def watched(device: Any, calls: list[Callable[[], object]]) -> float:
        seconds = real(device, calls)
        copied.append(all(torch.equal(target, source) for target, source in pairs))
        return seconds

    pairs: list[tuple[Tensor, Tensor]] = []
    real_copy = floor._threaded_copy
    monkeypatch.setattr(
        floor, "_threaded_copy", lambda pool, t, s: (pairs.append((t, s)), real_copy(pool, t.zero_(), s))[1]
    )
    monkeypatch.setattr(floor, "_median", watched)
    source = torch.randn(7, 1001, dtype=torch.bfloat16)
    assert floor.copy_bandwidth(devices.of("cpu"), [source]) > 0
    assert len(pairs) == 2 and copied[-1]


# --- time that runs out, and a run that is resumed ----------------------------------------------------------


class Clock:
    """A clock that advances by ten seconds each time it is read."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        self.now += 10
        return self.now


def test_the_budget_ends_a_run_and_the_next_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "--op",
        "kd_loss",
        "--vocab",
        "40",
        "--divergence",
        "forward_kl",
        "jsd",
        "--dtype",
        "float32",
    ]
    selection = plan.select(
        "cpu", ["kd_loss"], [40], [6], dtypes=["float32"], divergences=["forward_kl", "jsd"], peers=["eager"]
    )
    assert len(plan.cases(selection)) == 3
    with monkeypatch.context() as patch:
        patch.setattr(running, "time", Clock())
        run = running.run(selection, tmp_path, budget=25)
    assert run["cases_left"] == 1
    assert len({table.case_of(e) for e in run["entries"]}) == 2
    assert "1 cases were left" in table.text(run)
    before = read(tmp_path)["entries"]
    assert bench(tmp_path, *arguments) == 0
    after = read(tmp_path)
    assert after["entries"][: len(before)] == before
    assert len(after["entries"]) == len(before) + 2
    assert after["cases_left"] == 0
    assert len(after["commands"]) == 2
    assert set(after["peers"]) == {"eager"}
    assert "4 measurements were there already" in capsys.readouterr().err


def test_an_interrupted_run_keeps_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = []

    def interrupts(problem: Problem) -> Tensor:
        calls.append(problem)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(plan, "PEERS", [dataclasses.replace(ROUTES["eager"], loss=interrupts)])
        assert bench(tmp_path, *ONE) == 130
    assert calls
    assert "the same command goes on" in capsys.readouterr().err
    assert read(tmp_path)["cases_left"] == 2
    (kept,) = read(tmp_path)["entries"]
    assert kept["route"] == "fastkd native" and kept["status"] == "ok"
    assert bench(tmp_path, *ONE) == 0
    entries = read(tmp_path)["entries"]
    assert entries[0] == kept
    assert [e["route"] for e in entries] == ["fastkd native", "eager"] * 2


def test_what_failed_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(problem: Problem) -> Tensor:
        raise RuntimeError("today not")

    with monkeypatch.context() as patch:
        patch.setattr(plan, "PEERS", [dataclasses.replace(ROUTES["eager"], loss=fails)])
        bench(tmp_path, *ONE)
    assert {e["status"] for e in read(tmp_path)["entries"]} == {"ok", "failed"}
    bench(tmp_path, *ONE)
    assert {e["status"] for e in read(tmp_path)["entries"]} == {"ok"}


def test_fresh_measures_again(tmp_path: Path) -> None:
    bench(tmp_path, *ONE)
    first = read(tmp_path)["entries"]
    bench(tmp_path, *ONE)
    assert read(tmp_path)["entries"] == first
    bench(tmp_path, *ONE, "--fresh")
    again = read(tmp_path)["entries"]
    assert len(again) == len(first)
    assert [e["quantiles_ms"] for e in again] != [e["quantiles_ms"] for e in first]


@pytest.mark.parametrize("what", ["device", "versions", "format", "text"])
def test_results_of_another_machine_are_not_mixed_in(
    what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench(tmp_path, *ONE)
    run = read(tmp_path)
    run[what] = {"device": "another CPU", "versions": {"torch": "1.0"}, "format": 1}.get(what)
    (tmp_path / "results.json").write_text("half a fi" if what == "text" else json.dumps(run))
    before = (tmp_path / "results.json").read_text()
    assert bench(tmp_path, *ONE) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "--out" in said and "--fresh" in said
    assert (tmp_path / "results.json").read_text() == before
    assert bench(tmp_path, *ONE, "--fresh") == 0


# --- the command ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--vocab", "0"], "--vocab must be a whole number from 1, not 0"),
        (["--tokens", "-3"], "--tokens must be a whole number from 1, not -3"),
        (["--vocab", "many"], "invalid int value: 'many'"),
        (["--heads", "12"], "'12' is not STUDENT/TEACHER, such as 1024/2048"),
        (["--op", "kd_los"], "did you mean 'kd_loss'?"),
        (["--dtype", "bfloat"], "did you mean 'bfloat16'?"),
        (["--divergence", "jds"], "did you mean 'jsd'?"),
        (["--peer", "ligger"], "did you mean 'liger'?"),
        (["--backend", "nativ"], "did you mean 'native'?"),
        (["--device", "cud"], "did you mean 'cuda'?"),
        (["--backend", "triton"], "backend 'triton' cannot be measured on cpu"),
        (["--budget", "-1"], "--budget must be seconds, not -1"),
        (["--budget", "nan"], "--budget must be seconds, not nan"),
        (["--vocabulary-size", "8"], "fastkd bench --help lists the options"),
    ],
)
def test_a_mistake_is_one_sentence(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "--device", "cpu", "--out", str(tmp_path), *arguments]) == 1
    err = capsys.readouterr().err
    assert err.startswith("fastkd bench: ")
    assert said in err
    assert len(err.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="torch sees no GPU"):
        plan.select("cuda")
    assert plan.select().device == "cpu"


def test_a_peer_that_was_asked_for_and_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "trl")
    with pytest.raises(ValueError, match=r"peer 'trl' cannot be measured on cpu: trl is not installed"):
        plan.select("cpu", peers=["trl"])


def test_no_peers_at_all(tmp_path: Path) -> None:
    assert bench(tmp_path, *ONE, "--peer") == 0
    assert {e["route"] for e in read(tmp_path)["entries"]} == {"fastkd native"}


def test_help_states_every_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["bench", "--help"])
    assert stopped.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for number in ("128256", "262144", "8192", "16384", "1024/2048"):
        assert number in text
    options = [action for action in _parser()._actions if action.dest != "help"]
    assert len(options) == 13
    assert all("default" in str(action.help) for action in options)


@pytest.mark.slow
def test_memory_is_measured_in_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    case = Case(50_000, 256, "float32")
    peaks = {
        route: memory.peak_extra_in_child(route, case) / case.logits_bytes
        for route in ("fastkd native", "eager")
    }
    assert 0.95 < peaks["fastkd native"] < 1.3
    assert 3 < peaks["eager"] < 8
    with pytest.raises(RuntimeError, match="the process that measures memory failed"):
        memory.peak_extra_in_child("nobody", case)


# --- the code for GPUs, on a fake device --------------------------------------------------------------------


class Event:
    """A fake CUDA event, whose time is its position in a log of calls."""

    log: list[str]

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.at = len(Event.log)
        Event.log.append("event")

    def elapsed_time(self, end: Event) -> float:
        return 1e3 * (end.at - self.at)


class FakeGpu(devices.Cuda):
    where = torch.device("cpu")
    free_now = 2**40

    def name(self) -> str:
        return "a GPU that is none"

    def cache_bytes(self) -> int:
        return 2**16


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    fake = FakeGpu()
    Event.log = []
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: Event.log.append("sleep"))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: Event.log.append("wait"))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (fake.free_now, 2**40))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 1000)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 1500)
    monkeypatch.setattr(devices, "of", lambda kind: fake)
    return fake


def test_events_stand_around_each_call_and_inputs_take_turns(gpu: FakeGpu) -> None:
    """Each call is timed by an event before it and one after it, and the sets of inputs are used in turn."""
    calls = [lambda i=i: Event.log.append(f"call {i}") for i in range(3)]
    seconds = gpu.clock(calls, 4)
    assert seconds == [2.0] * 4  # only the call is logged between the two events
    each = [["sleep", "event", f"call {i}", "event"] for i in (0, 1, 2, 0)]
    assert Event.log == [*(x for part in each for x in part), "wait"]


def test_a_run_on_a_gpu(gpu: FakeGpu, tmp_path: Path) -> None:
    sizes = plan.Sizes(vocab=(500,), tokens=(32,), heads=((8, 16),), dtypes=("float32",), seconds=0.01)
    chosen = (ROUTES["fastkd native"], ROUTES["eager"])
    run = running.run(plan.Selection("cuda", plan.OPS, sizes, chosen, {}), tmp_path)
    assert run["device_type"] == "cuda"
    assert run["entries"] and all(e["status"] == "ok" for e in run["entries"])
    for entry in run["entries"]:
        assert entry["peak_extra_bytes"] == 500
        assert entry["input_sets"] * table.case_of(entry).input_bytes >= devices.CACHES * 2**16 or (
            entry["input_sets"] == devices.MOST_SETS
        )
    assert "allocator" not in table.text(run)
    assert Event.log.count("sleep") * 2 == Event.log.count("event") > 100


def test_a_full_gpu_skips_the_case(gpu: FakeGpu, tmp_path: Path) -> None:
    gpu.free_now = 2 * 500 * 32 * 4
    sizes = plan.Sizes(vocab=(500,), tokens=(32,), heads=((8, 16),), dtypes=("float32",))
    run = running.run(plan.Selection("cuda", ("kd_loss",), sizes, (ROUTES["fastkd native"],), {}), tmp_path)
    assert {e["status"] for e in run["entries"]} == {"skipped"}
    assert not running.wrong(run)
    assert measure.without({}, torch.OutOfMemoryError("16 GiB"))["reason"] == "out of memory"
