"""Test the choice of program shapes: when it is made, what is stored, and that every shape computes right."""

from __future__ import annotations

import json
import logging
import pathlib
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
import torch
from support.closeness import assert_gradient, assert_value, during, value_rounding
from support.oracle import reference_gradients

pytest.importorskip("fastkd.backends.triton.launch", exc_type=ImportError)

import fastkd
from fastkd.backends.triton import launch, tuning
from fastkd.backends.triton.divergences import FORMULAS, Formulas
from fastkd.backends.triton.shapes import CANDIDATES, Shape, usual
from fastkd.divergences import DIVERGENCES

DEVICE = torch.device("cuda", 0)
LIGHT = CANDIDATES["light"]
FASTEST = LIGHT[2]
USUAL = usual(FORMULAS["forward_kl"], 128_256)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> Iterator[list[tuple[Shape, ...]]]:
    """Replace the parts of tuning that need a GPU, and use a fresh cache directory.

    The list gets one entry, the candidate shapes, for each timing.
    """
    timings: list[tuple[Shape, ...]] = []

    def times(candidates: tuple[Shape, ...], run: tuning.Run) -> dict[Shape, float]:
        timings.append(candidates)
        return {shape: 1.0 if shape == FASTEST else 2.0 for shape in candidates}

    monkeypatch.setenv("FASTKD_TRITON_AUTOTUNE", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(tuning, "_times", times)
    monkeypatch.setattr(tuning, "_chosen", {})
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Imagined 100")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    yield timings


def choose(divergence: str = "forward_kl", vocab: int = 128_256) -> Shape:
    return tuning.choose(
        DEVICE, FORMULAS[divergence], "bfloat16, bfloat16", vocab, lambda: lambda shape: None
    )


def another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Continue as a new process, which knows only the choices on disk."""
    monkeypatch.setattr(tuning, "_chosen", {})


def files(path: pathlib.Path) -> list[pathlib.Path]:
    return [p for p in path.rglob("*") if p.is_file()]


@pytest.mark.parametrize("value", [None, "", "0"])
def test_off_unless_asked_for(
    gpu: list[object], monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path, value: str | None
) -> None:
    """Without FASTKD_TRITON_AUTOTUNE=1 nothing is tuned, and stored choices are ignored."""
    choose()
    if value is None:
        monkeypatch.delenv("FASTKD_TRITON_AUTOTUNE")
    else:
        monkeypatch.setenv("FASTKD_TRITON_AUTOTUNE", value)
    # The choice of an earlier process, which is on disk, is not used either.
    assert choose() == USUAL != FASTEST
    assert len(gpu) == 1 and len(files(tmp_path)) == 1


def test_any_other_value_is_refused(gpu: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTKD_TRITON_AUTOTUNE", "yes")
    with pytest.raises(ValueError, match="FASTKD_TRITON_AUTOTUNE is 'yes'; set it to 1"):
        choose()


def test_tunes_once_and_reports_it(
    gpu: list[object], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert [choose() for _ in range(3)] == [FASTEST] * 3
    assert gpu == [LIGHT] and "forward_kl" in caplog.text and "131072" in caplog.text
    assert choose(vocab=100_000) == FASTEST and len(gpu) == 1  # the same power of two
    another_process(monkeypatch)
    assert choose() == FASTEST and len(gpu) == 1
    choose("tvd"), choose(vocab=32_000)
    assert len(gpu) == 3


def test_changes_that_start_another_tuning(gpu: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    choose()
    for change in (
        lambda: monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Imagined 200"),
        lambda: monkeypatch.setattr(tuning.triton, "__version__", "99.0"),
        lambda: monkeypatch.setattr(tuning.sources, "digest", lambda: "other kernels"),
    ):
        before = len(gpu)
        change()
        another_process(monkeypatch)
        choose()
        assert len(gpu) == before + 1


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: "[1, 2]",
        lambda text: json.dumps(json.loads(text) | {"shape": [96, 3, 7]}),
        lambda text: json.dumps(json.loads(text) | {"shape": 5}),
        lambda text: json.dumps(json.loads(text) | {"call": {"device": "another"}}),
    ],
    ids=["empty", "cut off", "foreign", "no candidate", "no shape", "another call"],
)
def test_a_spoilt_file_is_replaced(
    gpu: list[object], monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path, spoil: Callable[[str], str]
) -> None:
    choose()
    (path,) = files(tmp_path)
    good = path.read_text()
    path.write_text(spoil(good))
    another_process(monkeypatch)
    assert choose() == FASTEST and len(gpu) == 2
    assert path.read_text() == good and files(tmp_path) == [path]


def test_while_a_graph_is_captured(
    gpu: list[object], monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    """While a graph is captured nothing is timed, and later calls of the process use the graph's shape."""
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert choose() == USUAL
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert choose() == USUAL
    assert gpu == [] and files(tmp_path) == []
    another_process(monkeypatch)
    assert choose() == FASTEST
    another_process(monkeypatch)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert choose() == FASTEST  # known from disk


def test_without_memory_or_a_place_to_write(
    gpu: list[object],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: pathlib.Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Without a writable folder a choice is kept for the process; without memory the usual shape is used."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING):
        assert choose() == FASTEST and choose() == FASTEST and len(gpu) == 1
    assert "not kept on disk" in caplog.text

    def full(candidates: object, run: object) -> dict[Shape, float]:
        raise torch.cuda.OutOfMemoryError

    monkeypatch.setattr(tuning, "_times", full)
    with caplog.at_level(logging.WARNING):
        assert choose("tvd") == usual(FORMULAS["tvd"], 128_256)
    assert "no memory" in caplog.text


@pytest.mark.slow
def test_the_first_of_several_processes_decides(tmp_path: pathlib.Path) -> None:
    """If processes finish tuning at the same time with different results, all use the first one's."""
    code = """
import sys
from fastkd.backends.triton import tuning
from fastkd.backends.triton.shapes import CANDIDATES
identity = {"device": "d", "class": "light"}
sys.stdin.readline()
print(list(tuning._store(identity, CANDIDATES["light"][int(sys.argv[1])])))
"""
    environment = {"XDG_CACHE_HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    children = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(index)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=pathlib.Path(__file__).resolve().parents[2],
        )
        for index in range(len(LIGHT))
    ]
    for child in children:
        assert child.stdin is not None
        child.stdin.write("\n")
        child.stdin.flush()
    found = [child.communicate()[0].strip() for child in children]
    assert len(set(found)) == 1 and json.loads(found[0]) in [list(shape) for shape in LIGHT]
    (path,) = files(tmp_path)
    assert json.loads(path.read_text())["shape"] == json.loads(found[0])


def loss(divergence: str, columns: int, **options: object) -> None:
    """Compare a call with the oracle."""
    s, t = (torch.randn(2, columns) * 2).requires_grad_(), torch.randn(2, columns) * 2
    labels = torch.tensor([3, columns - 1])
    options |= {"divergence": divergence, "kd_ratio": 0.5, "temperature": 2.0}
    value = fastkd.kd_loss(s, t, labels, backend="triton", **options)  # type: ignore[arg-type]
    value.backward()
    expected, by_s, _ = reference_gradients(s, t, labels, **options)
    assert s.grad is not None
    assert_value(value.detach(), expected)
    assert_gradient(s.grad, by_s)


@pytest.mark.triton_interpret
@pytest.mark.parametrize("divergence", ["forward_kl", "tvd", "hellinger", "decoupled"])
def test_every_shape_computes_the_same(monkeypatch: pytest.MonkeyPatch, divergence: str) -> None:
    for shape in CANDIDATES[FORMULAS[divergence].weight]:
        monkeypatch.setattr(tuning, "usual", lambda *_, shape=shape: shape)
        for columns in (1029, 2 * shape.threads * shape.elements + 37):
            with during(shape=shape, columns=columns):
                loss(divergence, columns)


@pytest.mark.triton_interpret
def test_tuning_does_not_change_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tuning runs on tensors of its own, with few enough rows to fit into free memory."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (4 * 5 * 300 * 12, 0))
    made = []
    monkeypatch.setattr(launch, "_launch", lambda call, *rest: made.append((call, rest)))
    s, t = torch.randn(4, 300), torch.randn(4, 300)
    x = (s * 1.0).requires_grad_()

    def choose(
        device: object, formulas: Formulas, dtypes: str, vocab: int, scratch: Callable[[], tuning.Run]
    ) -> Shape:
        assert (formulas.name, vocab) == ("forward_kl", 300)
        assert dtypes in ("float32, float32", "float16, float32")
        scratch()(FASTEST)
        return FASTEST

    monkeypatch.setattr(launch.tuning, "choose", choose)
    fastkd.kd_loss(x * 1.0, t, inplace=True, backend="triton")
    (scratch, run), (call, _) = made
    assert run[-1] == FASTEST and scratch.student.shape == (1, 5, 300)
    theirs = {x.data_ptr() for x in (call.student, call.teacher, call.grad_student, call.row_loss)}
    ours = {x.data_ptr() for x in (scratch.student, scratch.teacher, scratch.grad_student, scratch.row_loss)}
    assert not theirs & ours
    made.clear()
    fastkd.kd_loss(s.half().requires_grad_(), t, backend="triton").backward()
    assert [call.upstream is None for call, _ in made] == [True, True, True, False]


@pytest.mark.repeats(interpreted=5)
@pytest.mark.triton_interpret
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_the_row_maximum_is_far_above_the_first_block(divergence: str) -> None:
    """Kernels guess the row maximum from the first columns; here the guess is far too low or too high."""
    torch.manual_seed(1)
    s, t = torch.randn(4, 5000), torch.randn(4, 5000)
    s[0, 4000], t[0, 4100] = 170.0, 175.0
    s[1, :3000] -= 400.0
    t[2, :4096] = -float("inf")
    s[2, :4096] = -float("inf")
    s[3] += 1000.0
    t[3] += 990.0
    labels = torch.tensor([4000, 4500, 4200, 7])
    for temperature in (1.0, 2.0, 100.0):
        options = {"divergence": divergence, "kd_ratio": 0.5, "temperature": temperature, "reduction": "none"}
        x, y = s.clone().requires_grad_(), t.clone().requires_grad_()
        value = fastkd.kd_loss(x, y, labels, backend="triton", **options)  # type: ignore[arg-type]
        value.sum().backward()
        expected, by_s, by_t = reference_gradients(s, t, labels, **options)
        assert x.grad is not None and y.grad is not None
        with during(temperature=temperature):
            # float32 rounds logits of 1000 by 6e-5, and a gradient is a small difference of such numbers.
            atol = 3e-4 + value_rounding(temperature, options)
            assert_value(value.detach(), expected, rtol=3e-5, atol=atol)
            # Rows in which an unbounded divergence exceeds float32 have no gradients to compare.
            finite = expected.to(value.dtype).isfinite()
            for grad, exact in ((x.grad[finite], by_s[finite]), (y.grad[finite], by_t[finite])):
                error = (grad - exact).norm(dim=-1)
                assert (error <= 3e-4 * exact.norm(dim=-1).clamp(min=1.0)).all()


@pytest.mark.gpu
def test_on_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    monkeypatch.setenv("FASTKD_TRITON_AUTOTUNE", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(tuning, "_chosen", {})
    s = torch.randn(64, 50_257, device="cuda", dtype=torch.bfloat16)
    t = torch.randn_like(s)

    def step() -> tuple[torch.Tensor, torch.Tensor]:
        x = s.clone().requires_grad_()
        value = fastkd.kd_loss(x, t, backend="triton")
        value.backward()
        assert x.grad is not None
        return value.detach(), x.grad

    first, *others = [step() for _ in range(3)]
    expected, by_s, _ = reference_gradients(s, t)
    assert_value(first[0], expected)
    assert_gradient(first[1], by_s)
    assert all(torch.equal(first[0], a) and torch.equal(first[1], b) for a, b in others)
    assert len(files(tmp_path)) == 1
    torch.cuda.set_sync_debug_mode("error")  # after tuning, the host must not wait
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
