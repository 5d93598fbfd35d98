"""Saving the student: what cannot be saved is known before the first step, and a save changes no setting."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.utils import GENERATION_CONFIG_NAME, logging as transformers_logging

from fastkd.directories import writing_to


def refuse_teacher(folder: Path, teacher: Any) -> None:
    """Raise a ``ValueError`` if ``folder`` is the directory from which the teacher was loaded."""
    name = getattr(getattr(teacher, "model", None), "name_or_path", None)
    if name and os.path.isdir(name) and os.path.realpath(name) == os.path.realpath(folder):
        raise ValueError(
            f"output_dir {str(folder)!r} is also the directory of the teacher, which the run would "
            "overwrite: give another output_dir"
        )


def try_out(student: Any, processing_class: Any, args: Any) -> None:
    """Save everything but the weights into a directory that is deleted again.

    Args:
        student: a plain model, or one with an adapter.
        processing_class: the tokenizer; None if there is none.
        args: the configuration, whose ``output_dir`` gets the directory for a moment.

    Raises:
        ValueError: something that cannot be saved.
        OSError: ``output_dir`` cannot be written.
    """
    folder = Path(str(args.output_dir))
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".trying-", dir=folder) as place:
            try:
                with writing_to(folder):
                    _save_all_but_weights(student, processing_class, args, Path(place))
            except OSError:
                raise
            except Exception as error:  # each part has its own kinds of errors
                reason = " ".join(str(error).split()) or type(error).__name__
                raise ValueError(f"the student could not be saved at the end of the run: {reason}") from error


def _save_all_but_weights(student: Any, processing_class: Any, args: Any, place: Path) -> None:
    adapters = getattr(student, "peft_config", None)
    if adapters:
        for adapter in adapters.values():
            adapter.save_pretrained(str(place))
    elif getattr(student.config, "distributed_config", None) or getattr(student, "_tp_size", None):
        student.config.save_pretrained(place)  # to save such a model, all processes must take part
    else:
        with generation_settings_kept(student, place), _no_progress_bar():
            student.save_pretrained(place, state_dict={})
    if processing_class is not None:
        processing_class.save_pretrained(place)
    torch.save(args, place / "training_args.bin")


@contextlib.contextmanager
def _no_progress_bar() -> Iterator[None]:
    enabled = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            transformers_logging.enable_progress_bar()


@contextlib.contextmanager
def generation_settings_kept(model: Any, folder: Path) -> Iterator[None]:
    """Let a model be saved whose generation settings `transformers` would refuse, and save them as they are.

    Published models have such settings (a ``temperature`` beside ``do_sample: false``), and they can be
    loaded: a student that was saved with them behaves as the model that it came from.

    Args:
        model: the model that is saved inside the block.
        folder: the directory that it is saved into.
    """
    settings: Any = getattr(model, "generation_config", None)
    try:
        if settings is not None:
            settings.validate(strict=True)
    except ValueError:
        model.generation_config = GenerationConfig()
        try:
            yield
        finally:
            model.generation_config = settings
        if (folder / GENERATION_CONFIG_NAME).is_file():
            settings.to_json_file(folder / GENERATION_CONFIG_NAME, use_diff=True)
        return
    yield
