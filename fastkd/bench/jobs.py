"""The measurements of one run as a list of jobs: cases with all their routes, memory alone, and variants."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass

from fastkd.bench import device as devices, measure, options, oracle, peers, plan, table, variants
from fastkd.bench.cases import Case, Problem, make_problem
from fastkd.bench.device import Device
from fastkd.bench.results import Results
from fastkd.bench.routes import Route


@dataclass(frozen=True)
class Job:
    """A case, or one variant, and the function that measures it."""

    title: str
    measure: Callable[[], None]


def jobs_of(selection: options.Selection, found: Results, allocator: str) -> list[Job | None]:
    """The measurements of the selection, in order; None in place of each that the file holds already."""
    device = devices.of(selection.device)
    jobs: list[Job | None] = []
    for case in plan.cases(selection):
        blank = {r: measure.blank(case, r, allocator) for r in selection.routes if r.takes(case)}
        todo = [r for r, entry in blank.items() if not found.has(entry)]
        jobs.append(_case_job(device, case, todo, found, selection, allocator) if todo else None)
    # Memory is measured once, in a process with the default allocator.
    for case in plan.memory_cases(selection) if allocator == measure.DEFAULT else ():
        taking = [r for r in selection.routes if r.takes(case)]
        todo = [r for r in taking if not found.has(measure.blank(case, r, None))]
        jobs.append(_memory_job(device, case, todo, found) if todo else None)
    for variant, case in plan.variant_cases(selection):
        has = found.has(variants.blank(variant, case, allocator))
        jobs.append(None if has else _variant_job(device, variant, case, found, selection, allocator))
    return jobs


def _case_job(
    device: Device,
    case: Case,
    todo: list[Route],
    found: Results,
    selection: options.Selection,
    allocator: str,
) -> Job:
    def measure_routes() -> None:
        sets = devices.sets_needed(device, case)
        reason = plan.too_large(case, device, sets)
        if reason is not None:
            say(f"skipped, {reason}", end="")
            skipped = {"status": "skipped", "reason": reason}
            found.add(*({**measure.blank(case, r, allocator), **skipped} for r in todo))
            return
        problems = [make_problem(case, device.where, seed) for seed in range(sets)]
        right = oracle.answer(problems[0])
        for number, route in enumerate(todo):
            say(f"{', ' if number else ''}{route.name} ", end="")
            # Memory is measured once, in a process with the default allocator.
            memory = allocator == measure.DEFAULT and plan.measures_memory(selection, case, route)
            seconds = selection.sizes.seconds
            entry = _guarded(device, route, problems, right, seconds, memory, allocator)
            say(f"{entry['ms']:.3g} ms" if "ms" in entry else entry["status"].upper(), end="")
            found.add(entry)
        peers.forget_compiled()
        for problem in problems:
            _drop(problem)
        device.tidy()

    return Job(table.case_title(case), measure_routes)


def _memory_job(device: Device, case: Case, todo: list[Route], found: Results) -> Job:
    def measure_peaks() -> None:
        for number, route in enumerate(todo):
            say(f"{', ' if number else ''}{route.name} ", end="")
            blank = measure.blank(case, route, None)
            reason = None if route.ours else plan.too_large(case, device, 1)
            try:
                if reason is not None:
                    raise MemoryError(reason)
                entry = measure.memory_of(device, route, case)
                say(table.size(entry["peak_extra_bytes"]), end="")
            except Exception as error:  # nothing else depends on this peak
                said = " ".join(str(error).split())
                entry = {**blank, "status": "skipped", "reason": said, "no_memory_because": said}
                say("SKIPPED", end="")
            found.add(entry)
        peers.forget_compiled()
        device.tidy()

    return Job(f"memory of {table.case_title(case)}", measure_peaks)


def _variant_job(
    device: Device,
    variant: variants.Variant,
    case: Case,
    found: Results,
    selection: options.Selection,
    allocator: str,
) -> Job:
    def measure_variant() -> None:
        blank = variants.blank(variant, case, allocator)
        try:
            entry = variants.measured(device, variant, case, selection.sizes.seconds, allocator)
        except Exception as error:  # the failure of one must not stop the others
            entry = measure.without(blank, error)
        say(f"{entry['ms']:.3g} ms" if "ms" in entry else entry["status"].upper(), end="")
        found.add(entry)
        device.tidy()

    return Job(f"kd_loss, {variant.name}, {case.id}", measure_variant)


def _guarded(
    device: Device,
    route: Route,
    problems: list[Problem],
    right: oracle.Answer,
    seconds: float,
    memory: bool,
    allocator: str,
) -> measure.Entry:
    """The entry of a route, even if the route raises: its failure must not stop the others."""
    try:
        with warnings.catch_warnings():
            if not route.ours:  # peers warn of what the table states anyway
                warnings.simplefilter("ignore")
            return measure.route_on_case(device, route, problems, right, seconds, memory, allocator)
    except Exception as error:
        failed = measure.without(measure.blank(problems[0].case, route, allocator), error)
    for problem in problems:  # a failed call may have left gradients
        for x in problem.student:
            x.grad = None
    device.tidy()
    return failed


def _drop(problem: Problem) -> None:
    problem.student = problem.teacher = ()


def say(text: str, end: str = "\n") -> None:
    """Print progress, which does not belong to the results on standard output."""
    print(text, end=end, file=sys.stderr, flush=True)
