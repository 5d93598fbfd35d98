"""Test the benchmark's code for GPUs on a fake device."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fastkd.bench import device as devices, measure, options, render, run as running, table
from fastkd.bench.peers import ROUTES


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
    sizes = options.Sizes(vocab=(500,), tokens=(32,), heads=((8, 16),), dtypes=("float32",), seconds=0.01)
    chosen = (ROUTES["fastkd native"], ROUTES["eager"])
    run = running.run(options.Selection("cuda", options.OPS, sizes, chosen, {}), tmp_path)
    assert run["device_type"] == "cuda"
    assert run["entries"] and all(e["status"] == "ok" for e in run["entries"])
    for entry in run["entries"]:
        assert entry["peak_extra_bytes"] == 500
        assert entry["input_sets"] * table.case_of(entry).input_bytes >= devices.CACHES * 2**16 or (
            entry["input_sets"] == devices.MOST_SETS
        )
    assert "allocator" not in render.text(run)
    assert Event.log.count("sleep") * 2 == Event.log.count("event") > 100


def test_a_full_gpu_skips_the_case(gpu: FakeGpu, tmp_path: Path) -> None:
    gpu.free_now = 2 * 500 * 32 * 4
    sizes = options.Sizes(vocab=(500,), tokens=(32,), heads=((8, 16),), dtypes=("float32",))
    run = running.run(
        options.Selection("cuda", ("kd_loss",), sizes, (ROUTES["fastkd native"],), {}), tmp_path
    )
    assert {e["status"] for e in run["entries"]} == {"skipped"}
    assert not running.wrong(run)
    assert measure.without({}, torch.OutOfMemoryError("16 GiB"))["reason"] == "out of memory"
