"""What the benchmark's table must not say: a ratio from a busy machine, or a speed for a wrong answer."""

from __future__ import annotations

from typing import Any

from bench.report import table


def entry(route: str, ms: float, floor_ms: tuple[float, float], width: int = 0) -> dict[str, Any]:
    return {
        "allocator": "default",
        "case_id": "case",
        "route": route,
        "student_width": width,
        "ms": ms,
        "floor_ms": floor_ms,
        "gb_per_s": 1.0,
        "gradient_error": 1e-8,
    }


def row(*entries: dict[str, Any]) -> str:
    run = {"device": "a CPU", "device_type": "cpu", "date": "", "versions": {}, "entries": list(entries)}
    (line,) = [line for line in table(run).splitlines() if line.startswith("case ")]
    return line


def test_quiet_machine_states_share_and_speedup() -> None:
    line = row(entry("fastkd", 20.0, (10.0, 10.0)), entry("eager", 300.0, (10.0, 10.5)))
    assert "0.50" in line
    assert "15.0x" in line
    assert "busy" not in line


def test_peer_on_a_busier_machine_gets_no_ratio() -> None:
    line = row(entry("fastkd", 20.0, (10.0, 10.0)), entry("eager", 300.0, (20.0, 20.0)))
    assert "0.50" in line
    assert "busy" in line
    assert "15.0x" not in line


def test_machine_that_grew_busy_states_nothing_beside_the_time() -> None:
    line = row(entry("fastkd", 288.7, (247.9, 515.0), 256), entry("liger", 878.5, (516.9, 515.0), 256))
    assert line.count("busy") == 2
    assert "0.56x" not in line


def test_wrong_answer_has_no_speed() -> None:
    line = row(entry("eager", 300.0, (10.0, 10.0)))
    assert "no speed is stated" in line
    assert "x" not in line.split("stated")[1]
