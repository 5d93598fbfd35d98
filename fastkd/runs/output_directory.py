"""The directory that a run writes into: nothing in it that another run or a person made is replaced."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastkd import files
from fastkd.corpora.store.manifest import differences
from fastkd.runs import report
from fastkd.trainer import checkpoints
from fastkd.trainer.config import DistillationConfig
from fastkd.trainer.seeds import named_seeds, seeds_in
from fastkd.trainer.teachers import TeacherSource

logger = logging.getLogger(__name__)

RECORD = "run.json"
# Fields that may differ between a run and the run that resumes it.
_NOT_THE_RUN = {
    "output_dir",
    "resume_from_checkpoint",
    "disable_tqdm",
    "report_to",
    "logging_dir",
    "run_name",
    "eval_answers",
    "eval_beam",
    "headline",
}
# Files that a run writes into its directory, besides its weights and checkpoints.
_WRITTEN = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
    "adapter_config.json", "training_args.bin", "projections.safetensors", "README.md", "config.yaml",
    "report.json", "report.html",
)  # fmt: skip


@dataclass(frozen=True)
class Record:
    """``run.json``: the settings of a run, and the digests of what it reads.

    Attributes:
        folder: the run's ``output_dir``.
        settings: those of this run that decide its result.
        before: the record of the run that used the directory before; None if there was none.
        result: whether that run left its weights.
        last: the last whole checkpoint; None if there is none, or if the run starts again.
        choice: ``resume_from_checkpoint`` as it was set: ``true``, ``false``, a directory, or None.
    """

    folder: Path
    settings: dict[str, Any]
    before: dict[str, Any] | None
    result: bool
    last: Path | None
    choice: str | None

    @property
    def continues(self) -> bool:
        """Whether the run was told to go on from a checkpoint of this directory."""
        if self.choice in (None, "true", "false"):
            return self.choice == "true" and self.last is not None
        return _absolute(self.folder) in _absolute(self.choice).parents

    def check_settings(self) -> None:
        """Raise a ``ValueError`` if the directory belongs to a run with other settings."""
        if self.before is None or self.choice == "false" or self.continues:
            return
        changed = differences(self.before.get("settings", {}), self.settings)
        if changed and (self.result or self.last is not None):
            raise ValueError(self._refusal(f"of a run with other settings ({', '.join(changed)})"))

    def check_contents(self, contents: dict[str, str | None]) -> list[str]:
        """Compare what the run reads with what the run before it read.

        Args:
            contents: the digests, by what they are of.

        Returns:
            The names of what has changed, where the run was told to go on in spite of it.

        Raises:
            ValueError: other contents under the same names.
        """
        changed: list[str] = []
        if self.before is not None and self.choice != "false" and (self.result or self.last is not None):
            changed = differences(self.before.get("contents", {}), contents)
            if changed and not self.continues:
                raise ValueError(
                    self._refusal(f"of a run before {', '.join(changed)} changed under the same name")
                )
        return changed

    def begin(self, contents: dict[str, str | None], writes: bool) -> None:
        """Write the record of this run, unless what it reads is no longer what the run before it read.

        Args:
            contents: the digests, by what they are of.
            writes: whether this process writes the file. With ``resume_from_checkpoint: false`` it also
                unseals the checkpoints that are there.

        Raises:
            ValueError: other contents under the same names.
        """
        if changed := self.check_contents(contents):
            logger.warning("resuming although %s changed since the run began", ", ".join(changed))
        if self.choice is None and self.last is not None:
            logger.warning("resuming from %s", self.last)
        if not writes:
            return
        if self.choice == "false":
            for path in (*self.folder.glob("checkpoint-*"), *self.folder.glob("control/checkpoint-*")):
                checkpoints.unseal(path)
        files.write_json(self.folder / RECORD, {"settings": self.settings, "contents": contents})

    def _refusal(self, of_whom: str) -> str:
        if self.last is None:
            return (
                f"{self.folder} holds the result {of_whom}: give another output_dir, or "
                "resume_from_checkpoint: false to replace it"
            )
        return (
            f"{self.folder} holds checkpoints {of_whom}: give another output_dir, or "
            "resume_from_checkpoint: true to resume with what is set and there now, or false to start again"
        )


def open_record(args: DistillationConfig) -> Record:
    """Decide whether the run may use its ``output_dir``, and from what it resumes; nothing is written yet.

    It sets ``args.resume_from_checkpoint``. If the field is unset, the run resumes from its own last whole
    checkpoint, if there is one.

    Raises:
        ValueError: the directory is an input of the run, holds files that no run wrote, or holds the result
            or the checkpoints of a run with other settings; or the named checkpoint is not whole.
    """
    folder = Path(str(args.output_dir))
    refuse_inputs(args)
    choice = args.resume_from_checkpoint
    if choice is not None:
        choice = str(choice).lower() if str(choice).lower() in ("true", "false") else str(choice)
    if choice not in (None, "true", "false"):
        checkpoints.require_whole(Path(str(choice)))
    if seeds := seeds_in(folder):
        raise ValueError(
            f"output_dir {str(folder)!r} holds the runs of {named_seeds(seeds)}: give another output_dir, or "
            "--seeds to go on with them"
        )
    record = Record(
        folder,
        settings_of(args),
        read_record(folder),
        any(folder.glob("*.safetensors")),
        None if choice == "false" else checkpoints.last_whole(folder),
        choice,
    )
    if record.before is None and not record.continues:
        refuse_foreign(args, folder)
    record.check_settings()
    if choice is None and record.last is not None:
        args.resume_from_checkpoint = "true"
    elif choice == "false":
        args.resume_from_checkpoint = None
    return record


def settings_of(args: DistillationConfig) -> dict[str, Any]:
    """The settings that decide the result of a run, as its record has them."""
    settings = {k: v for k, v in report.settings(args).items() if k not in _NOT_THE_RUN}
    found: dict[str, Any] = json.loads(json.dumps(settings, default=str))
    return found


def read_record(folder: Path) -> dict[str, Any] | None:
    """The record in a directory; None if there is none.

    Raises:
        ValueError: it cannot be read.
    """
    return _read(folder / RECORD)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{path} cannot be read ({error}): give another output_dir") from error
    return found if isinstance(found, dict) else {}


def refuse_foreign(args: DistillationConfig, folder: Path) -> None:
    """Refuse a directory in which the run would replace files that no run of fastkd wrote."""
    found = [name for name in _WRITTEN if (folder / name).exists()]
    for pattern in ("*.safetensors", "checkpoint-*", *(["control"] if args.control else [])):
        found += sorted(path.name for path in folder.glob(pattern))
    if found:
        raise ValueError(
            f"output_dir {str(folder)!r} holds {', '.join(dict.fromkeys(found))}, which no run of fastkd "
            "distill or train wrote there and this one may replace: give another output_dir"
        )


def refuse_other_commands(folder: Path, command: str) -> None:
    """Raise a ``ValueError`` if a directory holds files that another command than this one wrote."""
    there = any((folder / name).exists() for name in (*_WRITTEN, RECORD)) or any(folder.glob("*.safetensors"))
    if there and (_read(folder / "report.json") or {}).get("command") != command:
        raise ValueError(
            f"output_dir {str(folder)!r} holds files that fastkd {command} did not write: give another one"
        )


def refuse_inputs(args: DistillationConfig, checkpoints_too: bool = True) -> None:
    """Refuse an ``output_dir`` that the command also reads.

    Args:
        args: the configuration.
        checkpoints_too: whether the command also writes checkpoints and a control, as training does.

    Raises:
        ValueError: the directory is that of the teacher, the student, a cache or a generated set, or one of
            those is among its checkpoints.
    """
    folder = _absolute(args.output_dir)
    for field, value, name in _inputs(args):
        place = _absolute(name)
        if place == folder:
            raise ValueError(
                f"output_dir {str(args.output_dir)!r} is also the directory of {field} ({value}), which the "
                "run would overwrite: give another output_dir"
            )
        if not checkpoints_too or folder not in place.parents:
            continue
        part = place.relative_to(folder).parts[0]
        if part.startswith("checkpoint-") or part == "control":
            raise ValueError(
                f"{field} ({value}) is in output_dir {str(args.output_dir)!r}, where the run may replace or "
                "delete it: give another output_dir"
            )


def _inputs(args: DistillationConfig) -> Iterator[tuple[str, str, str]]:
    """The field, the value and the path of everything that the run reads from a directory."""
    if args.model is not None:
        yield "model", args.model, args.model
    teacher = TeacherSource.parse(args.teacher)
    several = args.teachers if isinstance(args.teachers, dict) else {"": args.teacher}
    for name, one in several.items():
        source = TeacherSource.parse(one)
        if source.name and not source.is_served:
            yield f"teacher {name}".strip(), str(one), source.name
    if teacher.cache is not None:
        for part in ("train", "eval"):
            yield "teacher", str(args.teacher), str(teacher.cache / part)
    for field in ("train_file", "eval_file"):
        given = getattr(args, field)
        for name in given if isinstance(given, list) else [given]:
            if name is not None and Path(name).is_dir():
                yield field, name, name


def _absolute(name: Any) -> Path:
    return Path(os.path.realpath(os.path.expanduser(str(name))))
