"""``transformers.Trainer`` with a teacher."""

from __future__ import annotations

import contextlib
import inspect
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, Trainer
from transformers.trainer_utils import EvalLoopOutput, rotate_checkpoints

from fastkd.corpora.tasks import IGNORE_INDEX, TASKS
from fastkd.corpora.tasks.base import Collator
from fastkd.trainer import checkpoints
from fastkd.trainer.classes import check_labels, fit_classes
from fastkd.trainer.config import DistillationConfig
from fastkd.trainer.matching import Matching
from fastkd.trainer.objective import Sums, means
from fastkd.trainer.on_policy import OnPolicy
from fastkd.trainer.sides import (
    check_documents_are_apart,
    common_columns,
    padding_token,
    student_head,
    teacher_side,
)
from fastkd.trainer.student import DistilledStudent
from fastkd.trainer.teachers import BaseTeacher, CachedTeacher, LiveTeacher, Teacher

logger = logging.getLogger(__name__)


class DistillationTrainer(Trainer):
    """Trains a model on a teacher's distributions and the data's labels.

    Args:
        model: the student, plain or with an adapter of `peft`. A checkpoint holds this model, and beside it
            the projections that ``feature_matches`` learned, if any.
        teacher: a model with the same tokenizer, frozen in place, or another
            :class:`~fastkd.trainer.teachers.Teacher`; None needs ``kd_ratio=0`` (plain supervised training).
            With a teacher and ``kd_ratio=0``, the student is compared with the teacher's distributions but
            not trained on them.
        args: a :class:`DistillationConfig`; its ``task`` is the task of both models.
        train_dataset, eval_dataset: rows with ``input_ids`` (and ``labels``, aligned with them), or with the
            columns that the task reads, which ``processing_class`` then tokenizes.
        processing_class: the tokenizer.
        kwargs: all other arguments of :class:`transformers.Trainer`.

    Evaluation reports loss, kd, ce, perplexity, top-1 agreement with the teacher, and the teacher's
    perplexity, all averaged over tokens (not over batches). Each line of the training log has the mean loss
    since the previous line, and kd, ce and agreement of its own step alone. (With ``logging_strategy`` other
    than ``steps``, they are averaged over every tenth step.)

    Raises:
        ValueError: ``kd_ratio`` above 0 without a teacher, vocabularies that do not match,
            ``fused_head="true"`` with a head that is not linear, weights that student and teacher share.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        teacher: PreTrainedModel | Teacher | None = None,
        args: DistillationConfig | None = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        **kwargs: Any,
    ) -> None:
        args = DistillationConfig() if args is None else args
        if args.n_gpu > 1:
            # torch.nn.DataParallel would copy the student to every GPU and leave the teacher on one.
            logger.warning("%d GPUs are visible, one is used; torchrun starts a process on each", args.n_gpu)
            args._n_gpu = 1
        if args.device.type == "cpu":
            args.dataloader_pin_memory = False  # without a GPU, it only warns on every epoch
        if teacher is None and args.kd_ratio > 0:
            raise ValueError(
                f"kd_ratio={args.kd_ratio} needs a teacher; kd_ratio=0 trains on the labels alone"
            )
        task = TASKS[args.task]
        head = student_head(model, args)
        self._teacher = teacher_side(model, teacher, task, fused=head is not None)
        vocab_size = common_columns(model, self._teacher, processing_class, task)
        pad_token_id = padding_token(model, processing_class)
        beside, more = self._teacher, ()
        if args.task == "classification":
            data = (train_dataset, eval_dataset)
            beside, more = fit_classes(model, self._teacher, args, data, pad_token_id)
        matching = None
        if args.feature_matches or args.gradient_match_weight:
            if not isinstance(self._teacher, (LiveTeacher, BaseTeacher)):
                raise ValueError(
                    "feature_matches and gradient_match_weight compare layers of the teacher: "
                    "give a model, not a cache"
                )
            matching = Matching(
                model,
                self._teacher.model,
                args.feature_matches or [],
                args.gradient_match_weight,
                vocab_size,
            )
        options = {**args.loss_options(), "vocab_size": vocab_size, "problem_type": args.problem_type}
        student = DistilledStudent(model, task, head, beside, options, matching)

        train_dataset = _encoded(train_dataset, processing_class, args, "train_dataset")
        eval_dataset = _encoded(eval_dataset, processing_class, args, "eval_dataset")
        check_labels({"train_dataset": train_dataset, "eval_dataset": eval_dataset}, model, args.problem_type)
        if data_collator is None:
            data_collator = Collator(task, pad_token_id, more)
            # The collator selects the columns that it needs, so `Trainer` must not remove any before it.
            args.remove_unused_columns = False
        if isinstance(self._teacher, CachedTeacher):
            train_dataset, eval_dataset, data_collator = self._teacher.attach(
                *(train_dataset, eval_dataset, data_collator),
                args=args,
                tokenizer=processing_class,
                fused=head is not None,
                vocab_size=vocab_size,
            )
        if args.packing:
            check_documents_are_apart(model, task)
        self._on_policy = None
        if args.lmbda > 0:
            self._on_policy = OnPolicy(self._teacher, task, processing_class, pad_token_id, args)
        self._train_sums: list[Sums] = []
        self._eval_sums: list[Sums] = []
        super().__init__(
            model=student,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        if args.gradient_match_weight and self.is_fsdp_enabled:
            raise ValueError(
                "gradient_match_weight differentiates inside the forward, which FSDP does not allow: use DDP"
            )
        # fastkd's loss smooths the labels itself. If the task shifts labels, `Trainer` must not count a row's
        # first one, which no position predicts.
        self.label_smoother = None
        self._loss_shifts_labels = task.shifts_labels
        if beside is not None:
            beside.to(args.device)

    @property
    def fused(self) -> bool:
        """Whether the loss is computed from hidden states."""
        return bool(self.accelerator.unwrap_model(self.model).head is not None)

    @property
    def student(self) -> nn.Module:
        """The plain student."""
        return self.accelerator.unwrap_model(self.model).student

    # Measuring and reporting.

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        if model.training and self._is_logged():
            inputs = {**inputs, "with_sums": True}
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if "sums" in outputs:
            (self._train_sums if model.training else self._eval_sums).append(outputs.pop("sums"))
        return (loss, outputs) if return_outputs else loss

    def _set_signature_columns_if_needed(self) -> None:
        # A caller's own collator gets the columns that the plain student accepts, as with a plain `Trainer`.
        if self._signature_columns is None:
            names = inspect.signature(self.student.forward).parameters
            self._signature_columns: Any = [*names, "label", "label_ids", "labels"]

    def _is_logged(self) -> bool:
        """Whether kd and ce are measured in this step. Measuring costs another forward of the loss, so only
        the steps that are logged are measured, or every tenth if ``logging_strategy`` is not ``steps``.
        """
        every = self.state.logging_steps if self.args.logging_strategy == "steps" else 10
        return (self.state.global_step + 1) % max(1, every) == 0

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
        """The batches of one optimizer step. In on-policy steps the student's samples replace the answers."""
        if self.state.global_step >= self.state.max_steps:  # resumed after its end: `Trainer` would go on
            self.control.should_training_stop = True
            return [], None
        if self._on_policy is not None and self._on_policy.is_due(self.state.global_step):
            epoch_iterator = self._on_policy.resample(
                epoch_iterator, self.model_wrapped, self.student, self.state.global_step
            )
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    def _drain(self, sums: list[Sums]) -> dict[str, float] | None:
        """The totals over batches and processes. All processes must call this together."""
        names = sorted({name for batch in sums for name in batch})
        if self.args.world_size > 1:  # a process may have had no batch
            names = sorted(set(gather_object(names)))
        if not names:
            return None
        zero = torch.zeros((), device=self.args.device)
        totals = torch.stack([sum((batch.get(name, zero) for batch in sums), zero) for name in names])
        sums.clear()
        totals = self.accelerator.reduce(totals, reduction="sum")
        found = dict(zip(names, totals.cpu().double().tolist(), strict=True))
        return found if found["tokens"] > 0 else None

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and (total := self._drain(self._train_sums)) is not None:
            known = means(total)
            logs.update({name: known[name] for name in known if name not in ("loss", "perplexity")})
        super().log(logs, start_time)

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> Any:
        inputs = {**inputs, "labels": self._once(inputs.get("labels"))}
        if not prediction_loss_only:
            inputs["with_logits"] = True
        return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)

    def _once(self, labels: Tensor | None) -> Tensor | None:
        """The labels, masked in the rows that `accelerate` repeats to fill up the last round of batches."""
        state = self.accelerator.gradient_state
        if labels is None or self.args.world_size == 1 or not state.end_of_dataloader or state.remainder <= 0:
            return labels
        mine = state.remainder - self.args.process_index * len(labels)
        labels = labels.clone()
        labels[max(0, mine) :] = IGNORE_INDEX
        return labels

    def evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        self._eval_sums.clear()
        output = super().evaluation_loop(
            dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
        )
        if output.metrics is not None and (total := self._drain(self._eval_sums)) is not None:
            output.metrics.update(means(total, f"{metric_key_prefix}_"))
        return output

    # Saving and loading work on the plain student, so that weights are saved without this wrapper's prefix.

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """A checkpoint counts once it is sealed; only then are older ones deleted."""
        folder = Path(self._get_output_dir(trial))
        made = folder / f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            checkpoints.unseal(made)
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            checkpoints.seal(made)
            rotate_checkpoints(str(folder), limit, self.state.best_model_checkpoint)

    @contextlib.contextmanager
    def _plain_student(self) -> Iterator[nn.Module]:
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
        with self._plain_student():
            super()._save(output_dir, state_dict)
        matching = self.accelerator.unwrap_model(self.model).matching
        if matching is not None:
            matching.save(Path(output_dir or str(self.args.output_dir)), learned)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if model is not None or self.is_fsdp_enabled:  # FSDP saves and loads the wrapped module
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        with self._plain_student():
            super()._load_from_checkpoint(resume_from_checkpoint)
        matching = self.accelerator.unwrap_model(self.model).matching
        if matching is not None:
            matching.load(Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            return super()._load_best_model()
        with self._plain_student():
            super()._load_best_model()


def _encoded(dataset: Any, tokenizer: Any, args: DistillationConfig, field: str) -> Any:
    """Encode data sets that still contain text; return all others unchanged."""
    if isinstance(dataset, dict):
        return {name: _encoded(part, tokenizer, args, f"{field}[{name}]") for name, part in dataset.items()}
    columns = getattr(dataset, "column_names", None) or []
    if not columns or "input_ids" in columns:
        return dataset
    if tokenizer is None:
        raise ValueError(f"{field} holds text: give the tokenizer as processing_class")
    return TASKS[args.task].tokenize(dataset, tokenizer, args, field)
