"""``transformers.Trainer`` with guard rails: a run loses nothing, and ends with an error if it diverges."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils.data import Sampler, SequentialSampler
from transformers import Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, has_length, rotate_checkpoints

from fastkd.corpora.listing import listed
from fastkd.directories import claimed, writing_to
from fastkd.trainer import checkpoints, precision, saving
from fastkd.trainer.config import plain
from fastkd.trainer.finite import FiniteWatch, require_finite_weights
from fastkd.trainer.loading.weights import lost
from fastkd.trainer.teachers import SelfTeacher

logger = logging.getLogger(__name__)


class GuardedTrainer(Trainer):
    """A trainer that saves whole checkpoints of finite weights, into a directory that is its own."""

    _teacher: Any = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._finite = FiniteWatch()
        super().__init__(*args, **kwargs)

    @property
    def student(self) -> nn.Module:
        """The model that is saved."""
        raise NotImplementedError

    def init_hf_repo(self, *args: Any, **kwargs: Any) -> None:
        try:
            super().init_hf_repo(*args, **kwargs)
        except Exception as error:  # a network has many kinds of errors
            reason = " ".join(str(error).split())
            raise ValueError(
                f"push_to_hub: the repository cannot be reached ({reason}): log in with `hf auth login`, set "
                "hub_model_id to a repository of yours, or leave push_to_hub out"
            ) from error

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As that of :class:`transformers.Trainer`, which runs only if nothing can be lost.

        Args:
            resume_from_checkpoint: a checkpoint, which must be whole; True for the last whole one.
            args, kwargs: all other arguments.

        Raises:
            ValueError: a checkpoint that is not whole, an ``output_dir`` into which another run writes or
                from which the teacher was loaded, a student that could not be saved.
            Diverged: the weights are no longer finite.
            OSError: ``output_dir`` cannot be written.
        """
        folder = Path(str(self.args.output_dir))
        saving.refuse_teacher(folder, self._teacher)
        checkpoint = checkpoints.chosen(folder, resume_from_checkpoint)
        writes = self.args.should_save and plain(self.args.save_strategy) != "no"
        with claimed(folder) if writes else contextlib.nullcontext():
            if self.args.should_save:
                saving.try_out(self.student, self.processing_class, self.args)
            output = super().train(checkpoint, *args, **kwargs)
        require_finite_weights(self)
        return output

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        loss = super().training_step(*args, **kwargs)
        self._finite.saw(loss)
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            self._finite.examine(self)
        super().log(logs, start_time)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """A checkpoint counts once it is sealed; only then are older ones deleted."""
        require_finite_weights(self)
        folder = Path(self._get_output_dir(trial))
        made = folder / f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            checkpoints.unseal(made)
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            with writing_to(folder):
                super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            checkpoints.seal(made)
            rotate_checkpoints(str(folder), limit, self.state.best_model_checkpoint)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and not checkpoints.has_optimizer(Path(checkpoint)):
            logger.warning(
                "%s holds no optimizer state (save_only_model): the optimizer's moments and the random state "
                "of dropout begin anew, so the run ends with other weights than an uninterrupted one; the "
                "step, its learning rate and the order of the data are restored",
                checkpoint,
            )
            checkpoints.advance(self.lr_scheduler, self.state.global_step)

    def _get_eval_sampler(self, eval_dataset: Any) -> Sampler[Any] | None:
        """Evaluation keeps the order of the rows, so that a prediction can be told by its row.

        With ``train_sampling_strategy="group_by_length"``, transformers would group these rows too.
        """
        if self.args.world_size > 1 or eval_dataset is None or not has_length(eval_dataset):
            return None
        return SequentialSampler(eval_dataset)

    # Saving and loading work on the plain student, so that weights are saved without this wrapper's prefix.

    @contextlib.contextmanager
    def _plain_student(self) -> Iterator[Any]:
        outer = self.model
        self.model = self.student
        try:
            yield self.model
        finally:
            self.model = outer

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        learned = None
        if state_dict is not None:
            learned, state_dict = (
                {name.removeprefix(part): v for name, v in state_dict.items() if name.startswith(part)}
                for part in ("matching.", "student.")
            )
        folder = Path(output_dir or str(self.args.output_dir))
        with (
            writing_to(folder),
            self._plain_student() as student,
            saving.generation_settings_kept(student, folder),
        ):
            # A checkpoint keeps the weights exactly, so that a resumed run continues from them.
            is_result = not _is_checkpoint(folder)
            dtype = precision.saved_dtype(student) if is_result and self.args.should_save else None
            if dtype is not None:
                whole = student.state_dict() if state_dict is None else state_dict
                state_dict = precision.cast(student, whole, dtype)
            super()._save(output_dir, state_dict)
            if dtype is not None:
                with precision.stated(student.config, dtype):
                    student.config.save_pretrained(folder)
        matching = self.accelerator.unwrap_model(self.model).matching
        if matching is not None:
            matching.save(folder, learned)
        if isinstance(self._teacher, SelfTeacher) and _is_checkpoint(folder) and self.args.should_save:
            self._teacher.save(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if model is not None or self.is_fsdp_enabled:  # FSDP saves and loads the wrapped module
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        with self._plain_student():
            super()._load_from_checkpoint(resume_from_checkpoint)
        matching = self.accelerator.unwrap_model(self.model).matching
        if matching is not None:
            matching.load(Path(resume_from_checkpoint))
        if isinstance(self._teacher, SelfTeacher):
            self._teacher.load(Path(resume_from_checkpoint))

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Refuse a checkpoint that lacks weights. The second name of a tied weight is in no checkpoint."""
        if missing := lost(self.model, load_result.missing_keys):
            raise ValueError(
                f"the checkpoint lacks {len(missing):,} of the student's weights ({listed(missing)}): it is "
                "another model's, or damaged"
            )
        if load_result.unexpected_keys:
            names = listed(load_result.unexpected_keys)
            logger.warning("the checkpoint holds weights that the student does not have: %s", names)

    def _load_best_model(self) -> None:
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            return super()._load_best_model()
        with self._plain_student():
            super()._load_best_model()


def _is_checkpoint(folder: Path) -> bool:
    """Whether a directory is that of a checkpoint, and not that of the result."""
    return re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-\d+", folder.name) is not None
