"""``fastkd distill`` and ``train`` with ``seeds``: the same run with several seeds, and one report of all."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastkd.directories import claimed, writing_to
from fastkd.errors import Diverged
from fastkd.runs import disk_space, report, train
from fastkd.runs.classes import settle_classes
from fastkd.runs.evaluate import has_model
from fastkd.runs.seed_records import SeedRun, begin_seeds, open_seeds
from fastkd.trainer.config import DistillationConfig
from fastkd.trainer.loading import load_student
from fastkd.trainer.seeds import named_seeds, seed_folder


def run(args: DistillationConfig, command: str) -> dict[str, Any]:
    """Run a configuration once per seed, and write ``report.json`` and ``report.html`` of all to
    ``output_dir``.

    Each seed has a directory ``output_dir``/seed-N, which is complete as a run of its own. A seed that has
    ended is not run again, and one that was interrupted goes on from its own checkpoints. The data is encoded
    once, and the teacher loaded once. A seed whose weights are no longer finite is reported as failed, and
    the others count. With ``seeds: 1`` this is :func:`fastkd.runs.train.run`.

    Args:
        args: the configuration.
        command: ``train`` (no teacher) or ``distill``.

    Returns:
        The report.

    Raises:
        ValueError: a setting, or a directory in which something would be lost, of any seed: none has begun.
        Diverged: the weights of every seed are no longer finite.
        OSError: ``output_dir`` cannot be written.
    """
    if args.seeds == 1:
        return train.run(args, command)
    train.check(args, command)
    folder = Path(str(args.output_dir))
    with claimed(folder) if args.should_save else writing_to(folder):
        return _run(args, command, folder)


def _run(args: DistillationConfig, command: str, folder: Path) -> dict[str, Any]:
    runs = open_seeds(args)
    read = copy.copy(args)  # reading the data settles classes, which no record of a run has
    inputs = train.load_inputs(read, command)
    done = {run.seed: known for run in runs if (known := _ended(run, inputs)) is not None}
    if args.should_save:
        student = load_student(_with_classes(runs[0].args, inputs))
        disk_space.require(args, student, disk_space.steps_of(args, inputs.data.train))
        del student
    # A process that is ahead would write records and reports that the others have not looked at yet.
    args.distributed_state.wait_for_everyone()  # type: ignore[union-attr]
    main_process = args.process_index == 0
    if args.should_save:
        begin_seeds(args)
    if done and main_process:
        print(f"{named_seeds(list(done))} ended before: not run again")
    head = report.about(args, command)
    failed: dict[int, str] = {}
    waiting = [run.seed for run in runs if run.seed not in done]
    for number, run in enumerate(runs, 1):
        if run.seed in done:
            continue
        if main_process:
            print(f"\nseed {run.seed} ({number} of {len(runs)}), in {run.args.output_dir}", flush=True)
        try:
            done[run.seed] = train.run(run.args, command, inputs)
        except Diverged as error:
            failed[run.seed] = str(error)
            if main_process:
                print(f"seed {run.seed} failed: {error}", flush=True)
        waiting.remove(run.seed)
        if main_process:
            found = _summary(runs, done, failed, waiting) | head
            report.write(folder, found)
    found = _summary(runs, done, failed, waiting) | head
    if main_process:
        path = report.write(folder, found)
        print(_text(found, path))
    if not done:
        raise Diverged(f"{named_seeds(list(failed))} failed: {next(iter(failed.values()))}")
    return found


def _ended(run: SeedRun, inputs: train.Inputs) -> dict[str, Any] | None:
    """The report of a seed whose run has ended with these settings and inputs; None if it is to be run.

    Raises:
        ValueError: the seed's run read other contents under the same names.
    """
    record = run.record
    if record.before is None or record.choice == "false":
        return None
    contents = inputs.contents(load_student(_with_classes(run.args, inputs)))
    changed = record.check_contents(contents)
    if changed or record.before.get("settings") != record.settings or not has_model(record.folder):
        return None
    try:
        found: Any = json.loads((record.folder / "report.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    if isinstance(found, dict) and _measures_other(found, run.args):
        return None
    if not isinstance(found, dict) or "written" not in found or {"failed", "unfinished"} & found.keys():
        return None
    return None if run.args.control and "control" not in found else found


def _measures_other(found: dict[str, Any], args: DistillationConfig) -> bool:
    """Whether a run was measured in another way than is set now, which no record of a run has."""
    before, now = found.get("settings") or {}, report.settings(args)
    return any(before.get(name) != now.get(name) for name in ("eval_answers", "eval_beam"))


def _with_classes(args: DistillationConfig, inputs: train.Inputs) -> DistillationConfig:
    """A copy with the classes of the data, which the student's head needs."""
    args = copy.copy(args)
    settle_classes(args, inputs.data.raw["train_file"])
    return args


def _summary(
    runs: list[SeedRun], done: Mapping[int, dict[str, Any]], failed: Mapping[int, str], waiting: list[int]
) -> dict[str, Any]:
    """The reports of all seeds as one, in the order of the seeds."""
    found = report.summary({run.seed: done[run.seed] for run in runs if run.seed in done}, failed)
    found["seeds"]["folders"] = {str(run.seed): str(run.args.output_dir) for run in runs}
    if waiting:
        found["seeds"]["waiting"] = list(waiting)
    found["warnings"] = [
        f"seed {run.seed}: {sentence}"
        for run in runs
        for sentence in done.get(run.seed, {}).get("warnings") or []
    ]
    return found


def _text(found: dict[str, Any], path: Path) -> str:
    """The end of the command's output: tables with means and spreads, the verdicts, and the places."""
    with_spreads = report.shown(found)
    ended = found["seeds"]["ended"]
    lines = [f"\n{named_seeds(ended)}: mean ± standard deviation" if len(ended) > 1 else ""]
    lines.append(report.tables_text(with_spreads))
    if verdicts := report.outcomes(found):
        lines += ["", "the student, compared with its control:", verdicts]
    lines += ["", report.verdict(found) + report.warnings_text(found), "", "the models:"]
    for seed in ended:
        folder = seed_folder(path.parent, seed)
        aside = f", without the teacher {folder / 'control'}" if "control" in found else ""
        lines.append(f"  seed {seed}: {folder}{aside}")
    return "\n".join([*lines, f"wrote {path}, and the same as a page beside it"])
