"""Measures all cases and routes of a selection and writes results, table and pictures into a folder."""

from __future__ import annotations

import datetime
import importlib.util
import shlex
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import fastkd
from fastkd.bench import device as devices, measure, oracle, peers, plan, table
from fastkd.bench.cases import TEMPERATURE, Case, Problem, make_problem
from fastkd.bench.device import Device
from fastkd.bench.results import NAME, Results, Run
from fastkd.bench.routes import Route
from fastkd.bench.versions import versions

NO_PICTURES = "no pictures: they need matplotlib (pip install 'fastkd[bench]'); all else is there"


def run(
    selection: plan.Selection,
    folder: Path,
    budget: float | None = None,
    fresh: bool = False,
    command: Sequence[str] = (),
) -> Run:
    """Measure everything that ``folder`` does not hold yet, and return the content of ``results.json``.

    Args:
        budget: seconds after which no further case is started; None for no limit.
        fresh: measure again what ``folder`` holds.
        command: the command line, which the file records.
    """
    device = devices.of(selection.device)
    found = Results(folder, _describe(selection, device, command), fresh)
    cases = plan.cases(selection)
    began = time.perf_counter()
    try:
        for number, case in enumerate(cases, 1):
            todo = [r for r in selection.routes if r.takes(case) and not found.has(case, r)]
            if not todo:
                continue
            found.run["cases_left"] = (
                len(cases) - number + 1
            )  # stored with the entries of this case, in case no further one starts
            spent = time.perf_counter() - began
            if budget is not None and spent > budget:
                break
            _say(f"[{number}/{len(cases)}, {_clock(spent)}] {table.case_title(case)}: ", end="")
            _one_case(device, case, todo, found, selection.sizes)
            _say("")
        else:
            found.run["cases_left"] = 0
    except KeyboardInterrupt:
        _say(
            f"\ninterrupted: {len(found.run['entries'])} measurements are in {found.path}; "
            "the same command goes on"
        )
        raise
    finally:
        found.save()
    if found.taken_up:
        _say(f"{found.taken_up} measurements were there already (--fresh measures again)")
    return found.run


def finish(run: Run, folder: Path) -> list[Path]:
    """Write table and pictures of ``run`` into ``folder``, and return the paths of its files."""
    text = folder / "table.txt"
    text.write_text(table.text(run).lstrip("\n"))
    written = [folder / NAME, text]
    if importlib.util.find_spec("matplotlib") is None:
        _say(NO_PICTURES)
        return written
    from fastkd.bench import plot

    return [*written, *plot.draw_all(run, folder)]


def wrong(run: Run) -> list[str]:
    """A sentence for each of fastkd's measurements that failed or disagreed with the oracle."""
    return [
        f"{entry['route']}, {table.entry_title(entry)}: {entry['reason']}"
        for entry in run["entries"]
        if entry["ours"] and entry["status"] in ("wrong", "failed")
    ]


def _describe(selection: plan.Selection, device: Device, command: Sequence[str]) -> Run:
    return {
        "device": device.name(),
        "device_type": device.kind,
        "date": datetime.date.today().isoformat(),
        "commands": [shlex.join(command)],
        "versions": versions(),
        "backends": fastkd.available_backends(),
        "peers": {r.name: r.about for r in selection.routes if not r.ours},
        "absent": selection.absent,
        "temperature": TEMPERATURE,
    }


def _one_case(device: Device, case: Case, todo: list[Route], found: Results, sizes: plan.Sizes) -> None:
    sets = devices.sets_needed(device, case)
    reason = plan.too_large(case, device, sets)
    if reason is not None:
        _say(f"skipped, {reason}", end="")
        found.add(*({**measure.blank(case, r), "status": "skipped", "reason": reason} for r in todo))
        return
    problems = [make_problem(case, device.where, seed) for seed in range(sets)]
    right = oracle.answer(problems[0])
    # On a CPU each measurement of memory starts a process, so only the main quantity at the largest
    # vocabulary gets one.
    main = case.kd_ratio == plan.KD_RATIO and case.backward and case.vocab == max(sizes.vocab)
    memory = device.kind != "cpu" or main
    for number, route in enumerate(todo):
        _say(f"{', ' if number else ''}{route.name} ", end="")
        entry = _guarded(device, route, problems, right, sizes.seconds, memory)
        _say(f"{entry['ms']:.3g} ms" if "ms" in entry else entry["status"].upper(), end="")
        found.add(entry)
    peers.forget_compiled()
    for problem in problems:
        _drop(problem)
    device.tidy()


def _guarded(
    device: Device,
    route: Route,
    problems: list[Problem],
    right: oracle.Answer,
    seconds: float,
    memory: bool,
) -> measure.Entry:
    """The entry of a route, even if the route raises: its failure must not stop the others."""
    try:
        with warnings.catch_warnings():
            if not route.ours:  # peers warn of what the table states anyway
                warnings.simplefilter("ignore")
            return measure.route_on_case(device, route, problems, right, seconds, memory)
    except Exception as error:
        failed = measure.without(measure.blank(problems[0].case, route), error)
    for problem in problems:  # a failed call may have left gradients
        for x in problem.student:
            x.grad = None
    device.tidy()
    return failed


def _drop(problem: Problem) -> None:
    problem.student = problem.teacher = ()


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


def _say(text: str, end: str = "\n") -> None:
    print(text, end=end, file=sys.stderr, flush=True)
