"""Measures all cases and routes of a selection and writes results, table and pictures into a folder."""

from __future__ import annotations

import datetime
import importlib.util
import json
import re
import shlex
import time
from collections.abc import Sequence
from pathlib import Path

import torch

import fastkd
from fastkd.bench import device as devices, measure, options, render, table
from fastkd.bench.cases import TEMPERATURE
from fastkd.bench.jobs import jobs_of, say
from fastkd.bench.results import NAME, Results, Run
from fastkd.bench.versions import versions

NO_PICTURES = "no pictures: they need matplotlib (pip install 'fastkd[bench]'); all else is there"


def run(
    selection: options.Selection,
    folder: Path,
    budget: float | None = None,
    fresh: bool = False,
    command: Sequence[str] = (),
    allocator: str = measure.DEFAULT,
) -> Run:
    """Measure everything that ``folder`` does not hold yet, and return the content of ``results.json``.

    Args:
        budget: seconds after which no further case is started; None for no limit.
        fresh: measure again what ``folder`` holds.
        command: the command line, which the file records.
        allocator: the mode in which this process was started.
    """
    found = Results(folder, describe(selection, command), fresh)
    jobs = jobs_of(selection, found, allocator)
    began = time.perf_counter()
    try:
        for number, job in enumerate(jobs, 1):
            if job is None:
                continue
            # Stored with the entries of this case, in case no further one starts.
            found.run["cases_left"] = len(jobs) - number + 1
            spent = time.perf_counter() - began
            if budget is not None and spent > budget:
                break
            say(f"[{number}/{len(jobs)}, {_clock(spent)}] {job.title}: ", end="")
            job.measure()
            say("")
        else:
            found.run["cases_left"] = 0
    except KeyboardInterrupt:
        done = len(found.run["entries"]) + len(found.run["variants"])
        say(f"\ninterrupted: {done} measurements are in {found.path}; the same command resumes the run")
        raise
    finally:
        found.save()
    earlier = sum(entry["allocator"] == allocator for entry in found.taken_up)
    if earlier:
        say(f"{earlier} measurements were there already (--fresh measures again)")
    return found.run


def finish(run: Run, folder: Path) -> list[Path]:
    """Write table and pictures of ``run`` into ``folder``, and return the paths of its files."""
    text = folder / "table.txt"
    text.write_text(render.text(run).lstrip("\n"))
    written = [folder / NAME, text]
    if importlib.util.find_spec("matplotlib") is None:
        say(NO_PICTURES)
        return written
    from fastkd.bench import plot

    return [*written, *plot.draw_all(run, folder)]


def save(run: Run, folder: Path) -> list[Path]:
    """Write ``<device>-<date>.json`` and ``.txt``, and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    name = stem(run["device"], run["date"])
    paths = [folder / f"{name}.json", folder / f"{name}.txt"]
    paths[0].write_text(json.dumps(run, indent=1) + "\n")
    paths[1].write_text(render.text(run).lstrip("\n"))
    return paths


def stem(device: str, date: str) -> str:
    """The name of a file with results of this device, without its ending."""
    name = " ".join(part for part in device.split(", ") if "threads" not in part)
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") + "-" + date


def wrong(run: Run) -> list[str]:
    """A sentence for each of fastkd's measurements that failed or disagreed with the oracle."""
    entries = [
        *((f"{e['route']}, {table.entry_title(e)}", e) for e in run["entries"] if e["ours"]),
        *((f"{e['variant']}, {e['dtype']}", e) for e in run["variants"]),
    ]
    return [f"{title}: {e['reason']}" for title, e in entries if e["status"] in ("wrong", "failed")]


def describe(selection: options.Selection, command: Sequence[str]) -> Run:
    """The fields of the file that no measurement changes."""
    device = devices.of(selection.device)
    return {
        "device": device.name(),
        "device_type": device.kind,
        "threads": torch.get_num_threads(),
        "date": datetime.date.today().isoformat(),
        "commands": [shlex.join(command)],
        "versions": versions(),
        "backends": fastkd.available_backends(),
        "peers": {r.name: r.about for r in selection.routes if not r.ours},
        "absent": selection.absent,
        "temperature": TEMPERATURE,
    }


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"
