"""Reports as text for the terminal: one table, then what lies behind each cell that does not pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fastkd.conformance.loading import Missing
from fastkd.conformance.runner import Report, Status, Verdict

# A refusal's message is cut here.
MESSAGE = 160


def cell(verdict: Verdict) -> str:
    """A verdict in a few characters, with the error of the worst call."""
    if verdict.status is Status.CANNOT:
        return "-"
    worst = verdict.worst
    if verdict.status is not Status.WRONG or worst is None:
        return verdict.status.value
    return f"wrong: {worst.headline}" if worst.headline else "wrong"


def details(report: Report) -> Iterator[tuple[str, str]]:
    """For each case that does not pass: its name, and a sentence on what happened."""
    for verdict in report.verdicts:
        worst = verdict.worst
        if verdict.status is Status.CANNOT:
            yield verdict.case.name, f"cannot express: {verdict.message}"
        elif verdict.status is not Status.PASSES and worst is not None:
            others = sum(f.status is verdict.status for f in verdict.findings) - 1
            more = f" (and {others} more of {len(verdict.findings)} calls)" if others else ""
            text = worst.text if len(worst.text) <= MESSAGE else worst.text[: MESSAGE - 3] + "..."
            yield verdict.case.name, f"{verdict.status.value}: {worst.call}: {text}{more}"


def summary(report: Report) -> str:
    counts = ((status, report.count(status)) for status in Status)
    return ", ".join(f"{count} {status.value}" for status, count in counts if count)


def text(reports: Sequence[Report], missing: Sequence[Missing]) -> str:
    """Everything as text."""
    lines: list[str] = []
    if reports:
        lines += _grid(reports)
    for report in reports:
        lines += ["", f"{report.adapter.name}: {summary(report)}"]
        lines += [f"  {name}: {said}" for name, said in details(report)]
    lines += ["", *(f"{absent.name}: {absent.why}" for absent in missing)] if missing else []
    return "\n".join(lines)


def _grid(reports: Sequence[Report]) -> list[str]:
    rows = [["case", *(report.adapter.name for report in reports)]]
    for index, verdict in enumerate(reports[0].verdicts):
        rows.append([verdict.case.name, *(cell(report.verdicts[index]) for report in reports)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(x.ljust(n) for x, n in zip(row, widths, strict=True)).rstrip() for row in rows]
