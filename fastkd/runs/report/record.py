"""Records how a run was made: settings, versions, the machine, and how to repeat it."""

from __future__ import annotations

import dataclasses
import datetime
import os
import platform
import shlex
import sys
from typing import Any

import torch
import transformers
from transformers import TrainingArguments

import fastkd
from fastkd.trainer.config import DistillationConfig

_HIDDEN = ("_token", "_password", "_secret")


def versions() -> dict[str, str]:
    return {
        "fastkd": getattr(fastkd, "__version__", "unknown"),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


def settings(args: DistillationConfig) -> dict[str, Any]:
    """The fields that differ from their defaults, except tokens, passwords and secrets."""
    before = untouched(type(args))
    return {k: v for k, v in args.to_dict().items() if v != before[k] and not k.endswith(_HIDDEN)}


def untouched(kind: type[DistillationConfig]) -> dict[str, Any]:
    """The fields of a configuration in which nothing is set."""

    class Untouched(kind):  # type: ignore[valid-type, misc]
        # The original property would set up the process group again, as if this configuration were the run's.
        _setup_devices = torch.device("cpu")

    found = Untouched().to_dict()
    # The original property would also have removed this entry.
    found["accelerator_config"].pop("use_configured_state", None)
    return found


def configuration(args: DistillationConfig) -> dict[str, Any]:
    """The fields that repeat the run: all of fastkd's that are set, and those of `transformers` that differ
    from their defaults.
    """
    inherited = {field.name for field in dataclasses.fields(TrainingArguments)}
    given = {field.name for field in dataclasses.fields(args) if field.init}
    everything, changed = args.to_dict(), settings(args)
    ours = {name for name in given if name not in inherited and everything[name] is not None}
    kept = {"output_dir", "seed", *ours, *(name for name in changed if name in given)}
    return {name: everything[name] for name in everything if name in kept}


def defaults(args: DistillationConfig) -> dict[str, Any]:
    """The default values of the fields in :func:`settings`."""
    before = untouched(type(args))
    return {name: before[name] for name in settings(args)}


def machine(args: DistillationConfig) -> dict[str, Any]:
    """The device, the losses' backend on it, and the number of processes and threads."""
    device = args.device.type
    name = torch.cuda.get_device_name(args.device) if device == "cuda" else platform.processor() or device
    return {
        "device": device if name == device else f"{device} ({name})",
        "backend": backend(device),
        "processes": args.world_size,
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.release()}",
    }


def backend(device: str) -> str:
    """The backend that the losses use on a device: the first that is available."""
    available = [name for name, state in fastkd.available_backends().items() if state == "available"]
    named = (name.partition(":") for name in available)
    return next((name for name, _, where in named if where.endswith(device)), "reference")


def about(args: DistillationConfig, command: str) -> dict[str, Any]:
    """The head of every report."""
    return {
        "command": command,
        "began": now(),
        "repeat": repeat(command, str(args.output_dir), args.world_size),
        "versions": versions(),
        "machine": machine(args),
        "settings": settings(args),
        "defaults": defaults(args),
        "configuration": configuration(args),
    }


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def repeat(command: str, output_dir: str, processes: int) -> str:
    """The command as it was typed, with tokens hidden; if the run did not start from the command line, the
    command that reads the report's configuration.
    """
    if sys.argv[1:2] != [command]:
        return shlex.join(["fastkd", command, os.path.join(output_dir, "config.yaml")])
    typed: list[str] = []
    hidden = False
    for argument in sys.argv[1:]:
        name, equals, _ = argument.partition("=")
        secret = name.startswith("--") and name.replace("-", "_").endswith(_HIDDEN)
        typed.append("..." if hidden else f"{name}=..." if secret and equals else argument)
        hidden = secret and not equals
    if processes > 1:
        return shlex.join(["torchrun", "--nproc_per_node", str(processes), "-m", "fastkd.cli", *typed])
    return shlex.join(["fastkd", *typed])
