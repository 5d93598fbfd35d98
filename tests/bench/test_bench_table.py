"""Test that the benchmark's table gives no ratio from a busy machine, and no speed for a wrong result."""

from __future__ import annotations

from typing import Any

import pytest

from fastkd.bench import measure, oracle, render
from fastkd.bench.cases import Case
from fastkd.bench.peers import ROUTES

DENSE = Case(1000, 10, "float32")
LINEAR = Case(1000, 10, "float32", student_width=4, teacher_width=8)
RIGHT = oracle.Errors(1e-8, 1e-8)


def entry(
    route: str,
    ms: float,
    floor_ms: tuple[float, float],
    case: Case = DENSE,
    errors: oracle.Errors = RIGHT,
) -> dict[str, Any]:
    found = measure.blank(case, ROUTES[route])
    if measure.checked(found, errors, oracle.tolerance(case, ROUTES[route].ours)):
        found.update(ms=ms, floor_ms=list(floor_ms), gb_per_s=1.0)
    return found


def text(*entries: dict[str, Any], **more: Any) -> str:
    run = {"device": "a CPU", "device_type": "cpu", "date": "", "versions": {}, "entries": list(entries)}
    return render.text({**run, **more})


def row(*entries: dict[str, Any]) -> str:
    (line,) = [line for line in text(*entries).splitlines() if line.startswith("float32-V1000-N10")]
    return line


def test_quiet_machine_states_share_and_speedup() -> None:
    line = row(entry("fastkd native", 20.0, (10.0, 10.0)), entry("eager", 300.0, (10.0, 10.5)))
    assert "0.50" in line
    assert "15.0x" in line
    assert "busy" not in line


def test_peer_on_a_busier_machine_gets_no_ratio() -> None:
    line = row(entry("fastkd native", 20.0, (10.0, 10.0)), entry("eager", 300.0, (20.0, 20.0)))
    assert "0.50" in line
    assert "busy" in line
    assert "15.0x" not in line


def test_machine_that_grew_busy_states_nothing_beside_the_time() -> None:
    """An entry whose two floor measurements differ is marked busy and gets no ratio."""
    ours = entry("fastkd native", 288.7, (247.9, 515.0), LINEAR)
    line = row(ours, entry("liger chunked", 878.5, (516.9, 515.0), LINEAR))
    assert line.count("busy") == 2
    assert "0.56x" not in line


def test_wrong_answer_has_no_speed() -> None:
    ours = entry("fastkd native", 20.0, (10.0, 10.0), errors=oracle.Errors(1e-8, 3e-2))
    line = row(ours, entry("eager", 300.0, (10.0, 10.0)))
    assert "ms" not in ours
    assert "no speed is stated" in line
    assert "the gradient by 3.0e-02" in line
    assert "15.0x" not in line


@pytest.mark.parametrize("errors", [oracle.Errors(float("nan"), 0.0), oracle.Errors(0.0, float("nan"))])
def test_nan_is_wrong(errors: oracle.Errors) -> None:
    assert "no speed is stated" in row(entry("fastkd native", 20.0, (10.0, 10.0), errors=errors))


def test_case_without_ours_has_no_speed() -> None:
    assert "no speed is stated" in row(entry("eager", 300.0, (10.0, 10.0)))


def test_wrong_peer_gets_its_error_instead_of_a_ratio() -> None:
    peer = entry("eager", 300.0, (10.0, 10.0), errors=oracle.Errors(0.0, 0.31))
    whole = text(entry("fastkd native", 20.0, (10.0, 10.0)), peer)
    assert "wrong (3e-01)" in whole
    assert "15.0x" not in whole
    assert "the gradient by 3.1e-01" in whole  # in a sentence below the table


def test_backends_are_rows_of_their_own_and_like_is_compared_with_like() -> None:
    """Each backend has its own row, and ratios compare entries of the same case."""
    alone = Case(1000, 10, "float32", kd_ratio=1)
    whole = text(
        entry("fastkd native", 20.0, (10.0, 10.0)),
        entry("fastkd reference", 100.0, (10.0, 10.0)),
        entry("eager", 300.0, (10.0, 10.0)),
        entry("fastkd native", 10.0, (10.0, 10.0), alone),
        entry("trl", 40.0, (10.0, 10.0), alone),
    )
    rows = [line.split() for line in whole.splitlines() if line.startswith("float32")]
    assert [(r[1], r[5]) for r in rows] == [("native", "15.0x"), ("reference", "3.0x"), ("native", "4.0x")]


def test_missing_parts_are_reported() -> None:
    """The table lists skipped cases, absent peers and cases that were not run."""
    skipped = {**measure.blank(DENSE, ROUTES["fastkd native"]), "status": "skipped", "reason": "needs 9 GiB"}
    whole = text(skipped, absent={"trl": "not installed"}, cases_left=3)
    assert "skipped: needs 9 GiB" in whole
    assert "absent: trl: not installed" in whole
    assert "3 cases were left" in whole
