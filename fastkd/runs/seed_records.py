"""Decides whether the runs of several seeds may use their directories, before any of them begins."""

from __future__ import annotations

import copy
import hashlib
from dataclasses import dataclass
from pathlib import Path

from fastkd import files
from fastkd.corpora.store.manifest import differences
from fastkd.runs.output_directory import (
    RECORD,
    Record,
    open_record,
    read_record,
    refuse_foreign,
    settings_of,
)
from fastkd.trainer.config import DistillationConfig
from fastkd.trainer.seeds import named_seeds, seed_folder, seeds_in, seeds_of

# Fields that may differ between the seeds of a directory.
_OF_A_SEED = {"seed", "seeds"}


@dataclass(frozen=True)
class SeedRun:
    """The run of one seed.

    Attributes:
        seed: its seed.
        args: its configuration, with a directory of its own; no process has changed it since.
        record: the record of its directory, opened before any run began.
    """

    seed: int
    args: DistillationConfig
    record: Record


def open_seeds(args: DistillationConfig) -> list[SeedRun]:
    """The runs of all seeds of a configuration; nothing is written yet.

    Raises:
        ValueError: ``output_dir`` holds the result of one run, files that no run wrote, or seeds with other
            settings; a checkpoint of one seed is named; or a seed's own directory may not be used.
    """
    folder = Path(str(args.output_dir))
    choice = str(args.resume_from_checkpoint).lower()
    if choice not in ("none", "true", "false"):
        raise ValueError(
            f"resume_from_checkpoint is {args.resume_from_checkpoint!r}, a checkpoint of one run, and seeds "
            "makes several: leave it out, since each seed goes on from its own last checkpoint"
        )
    before = read_record(folder)
    if before is None:
        refuse_foreign(args, folder)
    elif "seeds" not in before:
        raise ValueError(
            f"output_dir {str(folder)!r} holds a run of one seed, and seeds makes a directory for each: give "
            "another output_dir"
        )
    elif choice == "none" and (held := seeds_in(folder)):
        changed = differences(before.get("settings", {}), _shared_settings(args))
        if changed:
            raise ValueError(
                f"{folder} holds {named_seeds(held)} of a run with other settings ({', '.join(changed)}): "
                "give another output_dir, or resume_from_checkpoint: false to start again"
            )
        if before.get("student") != _student_digest(args):
            raise ValueError(
                f"{folder} holds {named_seeds(held)} of a run before the student changed under the same name "
                f"({args.model}): give another output_dir, or resume_from_checkpoint: false to start again"
            )
    runs = []
    for seed in seeds_of(args.seeds, args.seed):
        of_seed = copy.deepcopy(args)
        of_seed.seed, of_seed.seeds = seed, 1
        of_seed.output_dir = str(seed_folder(folder, seed))
        runs.append(SeedRun(seed, of_seed, open_record(copy.copy(of_seed))))
    return runs


def begin_seeds(args: DistillationConfig) -> None:
    """Write the record of the directory that holds the seeds."""
    folder = Path(str(args.output_dir))
    seeds = sorted({*seeds_in(folder), *seeds_of(args.seeds, args.seed)})
    record = {"settings": _shared_settings(args), "student": _student_digest(args), "seeds": seeds}
    files.write_json(folder / RECORD, record)


def _shared_settings(args: DistillationConfig) -> dict[str, object]:
    return {name: value for name, value in settings_of(args).items() if name not in _OF_A_SEED}


def _student_digest(args: DistillationConfig) -> str | None:
    """The digest of the files from which every seed's student starts; None for a model of the hub.

    A run that resumes reads its checkpoint and not these files, so its own record does not know them. Seeds
    that are added later read them again.
    """
    patterns = ["config.json", "adapter_config.json"]
    if args.model_init != "scratch":
        patterns += ["*.safetensors", "*.bin"]
    paths = sorted(path for pattern in patterns for path in Path(str(args.model)).glob(pattern))
    made = "".join(files.file_digest(path) for path in paths)
    return hashlib.sha256(made.encode()).hexdigest() if paths else None
