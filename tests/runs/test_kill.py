"""Test ``kill -9`` at random moments: every rerun completes with the files of an uninterrupted run."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import stored

# For each command, how often it is killed, and the settings that its runs use in turn.
KILLS: dict[str, tuple[int, list[dict[str, Any]]]] = {
    "cache": (7, [{"cache_kind": kind} for kind in ("topk", "sampled", "hidden")]),
    "generate": (7, [{"generation_mode": mode} for mode in ("beam", "sample", "interpolate")]),
    "distill": (6, [{"kd_ratio": 0.7}, {"temperature": 2.0, "gradient_accumulation_steps": 2}]),
}


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A context whose processes have already imported all modules, so that kills hit the work itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("OMP_NUM_THREADS", "1")
        # The fork server, from which the processes are forked, finds the modules to import first here.
        here = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
        patch.setenv("PYTHONPATH", os.pathsep.join(here))
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["support.stored"])
        yield context


def begun(sign: Any, *arguments: Any) -> None:
    sign.set()
    stored.job(*arguments)


def start(processes: Any, *arguments: Any) -> Any:
    sign = processes.Event()
    process = processes.Process(target=begun, args=(sign, *arguments))
    process.start()
    assert sign.wait(60)
    return process


def await_files(folder: Path, process: Any) -> None:
    while not (folder.exists() and any(folder.iterdir())) and process.is_alive():
        time.sleep(0.001)


def result(command: str, folder: Path) -> dict[str, bytes]:
    """The files to compare. For a distillation only the weights: its report and checkpoints contain times."""
    found = stored.files(folder)
    return {"model": found["model.safetensors"]} if command == "distill" else found


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
@pytest.mark.parametrize("command", KILLS)
def test_killed_at_random_moments(command: str, processes: Any, tmp_path: Path) -> None:
    chance = random.Random(command)
    common = stored.workplace(tmp_path / "place", 30)
    common |= {
        "num_beams": 2,
        "max_steps": 8,
        "save_steps": 1,
        "save_total_limit": 2,
        "save_strategy": "steps",
    }
    times, variants = KILLS[command]
    whole: list[tuple[dict[str, bytes], float, float]] = []
    for number, fields in enumerate(variants):
        folder = tmp_path / f"whole{number}"
        process = start(processes, command, folder, {**common, **fields})
        began = time.monotonic()
        await_files(folder, process)
        wrote = time.monotonic()
        process.join(120)
        assert process.exitcode == 0
        ended = time.monotonic()
        whole.append((result(command, folder), ended - began, ended - wrote))
    for number in range(times):
        fields = {**common, **variants[number % len(variants)]}
        expected, all_of_it, writing = whole[number % len(variants)]
        # Every other run is killed only after it has written something.
        late = number % 2 == 1
        moment = writing * chance.random() if late else all_of_it * (number + chance.random()) / times
        while True:
            folder = tmp_path / f"killed{number}"
            process = start(processes, command, folder, fields)
            if late:
                await_files(folder, process)
            time.sleep(moment)
            process.kill()
            process.join()
            if process.exitcode == -9:
                break
            assert process.exitcode == 0  # the run ended before the kill
            shutil.rmtree(folder)
            moment *= chance.random()
        again = start(processes, command, folder, fields)
        again.join(120)
        assert again.exitcode == 0, f"killed after {moment:.2f} s"
        assert result(command, folder) == expected, f"killed after {moment:.2f} s"
