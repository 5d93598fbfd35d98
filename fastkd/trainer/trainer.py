"""``transformers.Trainer`` with a teacher."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, Trainer
from transformers.trainer_utils import EvalLoopOutput

from fastkd.trainer.config import DistillationConfig
from fastkd.trainer.data import CausalCollator, tokenize
from fastkd.trainer.heads import LinearHead, find_linear_head, output_width
from fastkd.trainer.measure import means
from fastkd.trainer.student import DistilledStudent
from fastkd.trainer.teacher import LiveTeacher

logger = logging.getLogger(__name__)


class DistillationTrainer(Trainer):
    """Trains a causal language model on a teacher's distributions and the data's labels.

    Args:
        model: the student. What is saved is this model and nothing else.
        teacher: a causal language model with the same tokenizer, frozen in place; None needs ``kd_ratio=0``
            (plain supervised training). With a teacher and ``kd_ratio=0`` it is only compared with.
        args: a :class:`DistillationConfig`.
        train_dataset, eval_dataset: rows with ``input_ids`` (and ``labels``, aligned with them), or with
            ``text`` for ``processing_class`` to tokenize.
        processing_class: the tokenizer.
        kwargs: everything else that :class:`transformers.Trainer` takes.

    Evaluation reports loss, kd, ce, perplexity, top-1 agreement with the teacher, and the teacher's
    perplexity, all over tokens (not over batches). Each line of the training log has the mean loss since the
    line before, and kd, ce and agreement as they are in its own step.

    Raises:
        ValueError: a share for the teacher and none given, vocabularies that do not fit,
            ``fused_head="true"`` with a head that is not linear, weights that student and teacher share.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        teacher: PreTrainedModel | None = None,
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
        if teacher is None and args.kd_ratio > 0:
            raise ValueError(
                f"kd_ratio={args.kd_ratio} needs a teacher; kd_ratio=0 trains on the labels alone"
            )
        if teacher is not None and not {id(p) for p in teacher.parameters()}.isdisjoint(
            map(id, model.parameters())
        ):
            raise ValueError(
                "student and teacher share weights, and a teacher is frozen: give the teacher its own copy"
            )
        head = _student_head(model, args.fused_head)
        self._teacher = None if teacher is None else LiveTeacher(teacher, fused=head is not None)
        vocab_size = (
            None if self._teacher is None else _common_vocabulary(model, self._teacher, processing_class)
        )
        student = DistilledStudent(model, head, self._teacher, args.loss_options(), vocab_size)

        if data_collator is None:
            data_collator = CausalCollator(_pad_token_id(model, processing_class))
        self._train_sums: list[Tensor] = []
        self._eval_sums: list[Tensor] = []
        super().__init__(
            model=student,
            args=args,
            data_collator=data_collator,
            train_dataset=_tokenized(train_dataset, processing_class, args, "train_dataset"),
            eval_dataset=_tokenized(eval_dataset, processing_class, args, "eval_dataset"),
            processing_class=processing_class,
            **kwargs,
        )
        # The loss smooths. The forward shifts the labels, so they are counted from the second one on.
        self.label_smoother = None
        self._loss_shifts_labels = True
        if self._teacher is not None:
            self._teacher.to(args.device)

    @property
    def fused(self) -> bool:
        """Whether the loss is computed from hidden states."""
        return bool(self.accelerator.unwrap_model(self.model).head is not None)

    @property
    def student(self) -> nn.Module:
        """The plain student."""
        return self.accelerator.unwrap_model(self.model).student

    # What is measured, and where it is reported.

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

    def _is_logged(self) -> bool:
        """Whether kd and ce are measured in this step; not in all, for it costs a forward of the loss."""
        every = self.state.logging_steps if self.args.logging_strategy == "steps" else 10
        return (self.state.global_step + 1) % max(1, every) == 0

    def _drain(self, sums: list[Tensor]) -> Tensor | None:
        """The total over batches and processes; every process must call this together."""
        total = torch.stack(sums).sum(0) if sums else torch.zeros(6, device=self.args.device)
        sums.clear()
        total = self.accelerator.reduce(total, reduction="sum")
        return total if total[-1] > 0 else None

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and (total := self._drain(self._train_sums)) is not None:
            logs.update(
                {name: value for name, value in means(total).items() if name in ("kd", "ce", "agreement")}
            )
        super().log(logs, start_time)

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> Any:
        if not prediction_loss_only:
            inputs = {**inputs, "with_logits": True}
        return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)

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

    # What is saved and loaded: the plain student, whose weights carry no prefix of ours.

    @contextlib.contextmanager
    def _plain_student(self) -> Iterator[nn.Module]:
        outer = self.model
        self.model = self.student
        try:
            yield self.model
        finally:
            self.model = outer

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if state_dict is not None:
            state_dict = {name.removeprefix("student."): value for name, value in state_dict.items()}
        with self._plain_student():
            super()._save(output_dir, state_dict)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if model is not None:
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        with self._plain_student():
            super()._load_from_checkpoint(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            return super()._load_best_model()
        with self._plain_student():
            super()._load_best_model()


def _student_head(model: PreTrainedModel, fused_head: str) -> LinearHead | None:
    if fused_head == "false":
        return None
    head = find_linear_head(model)
    if isinstance(head, LinearHead):
        return head
    if fused_head == "true":
        raise ValueError(f"fused_head=true, but {head}")
    return None


def _common_vocabulary(model: PreTrainedModel, teacher: LiveTeacher, tokenizer: Any) -> int | None:
    """The columns both heads have. Widths may differ by padding, which no token of the tokenizer reaches."""
    widths = output_width(model), teacher.columns
    if widths[0] == widths[1]:
        return None
    if tokenizer is None:
        raise ValueError(
            f"the student has {widths[0]} output columns and the teacher {widths[1]}: "
            "give the tokenizer as processing_class to tell padding from tokens"
        )
    if len(tokenizer) > min(widths):
        raise ValueError(
            f"the student has {widths[0]} output columns and the teacher {widths[1]}, "
            f"but the tokenizer has {len(tokenizer)} tokens: the two were made for different vocabularies"
        )
    return min(widths)


def _pad_token_id(model: PreTrainedModel, tokenizer: Any) -> int:
    for source in (tokenizer, model.config):
        for name in ("pad_token_id", "eos_token_id"):
            value = getattr(source, name, None)
            value = value[0] if isinstance(value, list) else value
            if value is not None:
                return value
    return 0  # masked out wherever it stands


def _tokenized(dataset: Any, tokenizer: Any, args: DistillationConfig, field: str) -> Any:
    """Tokenize data sets that still hold text; leave all others alone."""
    if isinstance(dataset, dict):
        return {name: _tokenized(part, tokenizer, args, f"{field}[{name}]") for name, part in dataset.items()}
    columns = getattr(dataset, "column_names", None) or []
    if "text" not in columns or "input_ids" in columns:
        return dataset
    if tokenizer is None:
        raise ValueError(f"{field} holds text: give the tokenizer as processing_class")
    return tokenize(dataset, tokenizer, args, field)
