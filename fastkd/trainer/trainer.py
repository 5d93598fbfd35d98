"""``transformers.Trainer`` with a teacher."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, set_seed
from transformers.trainer_utils import (
    EvalLoopOutput,
    default_compute_objective,
    has_length,
)

from fastkd.corpora.languages import prepare_model, set_languages
from fastkd.corpora.tasks import IGNORE_INDEX, TASKS, Task
from fastkd.corpora.tasks.base import Collator
from fastkd.trainer import zero
from fastkd.trainer.assembly import distilled
from fastkd.trainer.classes import check_labels
from fastkd.trainer.config import DistillationConfig
from fastkd.trainer.crossing import Crossing, teachers_rows
from fastkd.trainer.data_sets import encoded, named_data_sets
from fastkd.trainer.guarded import GuardedTrainer
from fastkd.trainer.loading import crossed_tokenizer, load_sides, own_tokenizer
from fastkd.trainer.objective import Sums, means
from fastkd.trainer.on_policy import OnPolicy
from fastkd.trainer.processes import prepare_processes
from fastkd.trainer.prompt_limits import check_teacher_prompts
from fastkd.trainer.quantized import check_trainable, keep_differentiable
from fastkd.trainer.row_limits import check_rows
from fastkd.trainer.sides import name_padding, padding_token
from fastkd.trainer.steps import no_step
from fastkd.trainer.student import DistilledStudent
from fastkd.trainer.teachers import (
    CachedTeacher,
    LiveTeacher,
    RoutedTeachers,
    SelfTeacher,
    ServedTeacher,
    plain_teacher,
)
from fastkd.trainer.teachers.own import Follow
from fastkd.trainer.teachers.prompted import prompts_of_teacher
from fastkd.trainer.teachers.several import each_of, route_numbers
from fastkd.trainer.unlabelled import learnable, learns_from_labels_alone, with_labels

logger = logging.getLogger(__name__)

# Number of rows in which an on-policy run looks for prompts before it starts.
_LOOKED_AT = 100


class DistillationTrainer(GuardedTrainer):
    """Trains a model on a teacher's distributions and the data's labels.

    Args:
        model: the student, plain or with an adapter of `peft`, or its name, which is loaded as the field
            ``model`` would be. A checkpoint holds this model, and beside it the projections that
            ``feature_matches`` learned, if any. It may be None with ``model_init``.
        teacher: a model with the same tokenizer, frozen in place, another
            :class:`~fastkd.trainer.teachers.Teacher`, or a name as in the field ``teacher``; several of these
            by name, of which each row has that in its column ``teacher``; None needs
            ``kd_ratio=0`` (plain supervised training). With a teacher and ``kd_ratio=0``, the student is
            compared with the teacher's distributions but not trained on them.
        args: a :class:`DistillationConfig`; its ``task`` is the task of both models.
        train_dataset: rows with ``input_ids`` (and ``labels``, aligned with them), or with the columns that
            the task reads, which ``processing_class`` then tokenizes.
        eval_dataset: held-out rows, likewise.
        processing_class: the tokenizer; if unset and ``model`` is a name, the one saved with that model.
        kwargs: all other arguments of :class:`transformers.Trainer`. ``model_init`` is a function of no
            argument or of a trial that returns a student: each :meth:`train` begins with a new one, which
            :meth:`hyperparameter_search` needs.

    Evaluation reports loss, kd, ce, perplexity, top-1 agreement with the teacher, and the teacher's
    perplexity, all averaged over tokens (not over batches). Each line of the training log has the mean loss
    since the previous line, and kd, ce and agreement of its own step alone. (With ``logging_strategy`` other
    than ``steps``, they are averaged over every tenth step.)

    Raises:
        ValueError: a named model that cannot be read or lacks weights, a quantised student without an
            adapter, ``kd_ratio`` above 0 without a teacher, vocabularies that do not match,
            ``fused_head="true"`` with a head that is not linear, weights that student and teacher share,
            languages that the tokenizer does not know.
    """

    def __init__(
        self,
        model: Any = None,
        teacher: Any = None,
        args: DistillationConfig | None = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        **kwargs: Any,
    ) -> None:
        args = DistillationConfig() if args is None else args
        if isinstance(model, str) and processing_class is None:
            processing_class = own_tokenizer("model", model, args)
        model, teacher = load_sides(model, teacher, args)
        if args.n_gpu > 1:
            # torch.nn.DataParallel would copy the student to every GPU and leave the teacher on one.
            logger.warning("%d GPUs are visible, one is used; torchrun starts a process on each", args.n_gpu)
            args._n_gpu = 1
        if args.device.type == "cpu":
            args.dataloader_pin_memory = False  # without a GPU, it only warns on every epoch
        zero.new_run(args)
        model_init = kwargs.pop("model_init", None)
        if model_init is not None and any(kwargs.get("optimizers") or ()):
            raise ValueError("model_init makes a new student for each run, for which optimizers do not fit")
        if model is None:
            if model_init is None:
                raise ValueError("give the student as model, or a function that makes it as model_init")
            set_seed(args.seed)
            self.model_init = model_init
            model = cast(PreTrainedModel, super().call_model_init())
        task = TASKS[args.task]
        if args.task == "seq2seq" and processing_class is not None:
            set_languages(processing_class, args)
        self._given_teacher, self._tokenizer = teacher, processing_class
        self._trains = train_dataset is not None
        self._pad_token_id = padding_token(model, processing_class)
        self._crossing = self._crossed(task, args)
        student = self._distilled(model, args, (train_dataset, eval_dataset))

        theirs = None if self._crossing is None else self._crossing.tokenizer
        train_dataset = encoded(train_dataset, processing_class, args, "train_dataset", theirs)
        eval_dataset = encoded(eval_dataset, processing_class, args, "eval_dataset", theirs)
        if data_collator is None:
            data_collator = Collator(task, self._pad_token_id)
            # The collator selects the columns that it needs, so `Trainer` must not remove any before it.
            args.remove_unused_columns = False
        models = {"student": model}
        for name, one in each_of(self._teacher).items():
            if isinstance(one, LiveTeacher):
                models[f"teacher {name}".strip()] = one.model
        for what, rows in named_data_sets(train_dataset, eval_dataset):
            check_labels(rows, what, model, args.problem_type)
            if theirs is None:
                check_rows(rows, what, task, models, processing_class)
            else:
                check_rows(rows, what, task, {"student": model}, processing_class)
                check_rows(teachers_rows(rows), what, task, {"teacher": models["teacher"]}, theirs)
            if args.teacher_prompt is not None:
                check_teacher_prompts(rows, what, task, args, each_of(self._teacher))
        train_dataset = learnable(train_dataset, args, "the training data")
        if isinstance(self._teacher, CachedTeacher):
            train_dataset, eval_dataset, data_collator = self._teacher.attach(
                *(train_dataset, eval_dataset, data_collator),
                args=args,
                tokenizer=processing_class,
                fused=student.head is not None,
                vocab_size=student.options["vocab_size"],
            )
        can_look = isinstance(data_collator, Collator) and hasattr(train_dataset, "__getitem__")
        if self._on_policy is not None and can_look:
            some = [train_dataset[i] for i in range(min(len(train_dataset), _LOOKED_AT))]
            self._on_policy.prompts(data_collator(some))  # raises an error if there are none
        data_collator = self._with_teachers_columns(data_collator, args)
        prepare_processes(args, student)
        self._train_sums: list[Sums] = []
        self._eval_sums: list[Sums] = []
        self._measured: set[str] = set()
        # Whether predictions are pairs: the student's logits, and the teacher's where it has some.
        self.predicts_teacher = False
        super().__init__(
            model=student,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        self.model_init = model_init
        if isinstance(self._teacher, SelfTeacher) and self._teacher.weights == "ema":
            if self.is_fsdp_enabled or self.is_deepspeed_enabled:
                raise ValueError("self_weights: ema needs whole weights on each process: use DDP, or live")
            self.add_callback(Follow(self._teacher))
        if args.gradient_match_weight and self.is_fsdp_enabled:
            raise ValueError(
                "gradient_match_weight differentiates inside the forward, which FSDP does not allow: use DDP"
            )
        # fastkd's loss smooths the labels itself. If the task shifts labels, `Trainer` must not count a row's
        # first one, which no position predicts.
        self.label_smoother = None
        self._loss_shifts_labels = task.shifts_labels
        if student.teacher is not None:
            student.teacher.to(args.device)
        if isinstance(self._teacher, LiveTeacher) and zero.is_sharded(self._teacher.model):
            zero.run_sharded(self._teacher.model, args)

    @property
    def fused(self) -> bool:
        """Whether the loss is computed from hidden states."""
        return bool(self.accelerator.unwrap_model(self.model).head is not None)

    @property
    def student(self) -> nn.Module:
        """The plain student."""
        return self.accelerator.unwrap_model(self.model).student

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As that of :class:`GuardedTrainer`."""
        try:
            return super().train(*args, **kwargs)
        finally:
            if self._on_policy is not None:
                self._on_policy.close()

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        if self._on_policy is not None:
            self._on_policy.save(Path(output_dir))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if self._on_policy is not None and checkpoint is not None:
            self._on_policy.load(Path(checkpoint))

    def get_train_dataloader(self) -> DataLoader[Any]:
        loader = super().get_train_dataloader()
        rows = len(self.train_dataset) if has_length(self.train_dataset) else None
        if (reason := no_step(self.args, rows)) is not None:
            raise ValueError(": ".join(reason))
        return loader

    def _with_teachers_columns(self, collator: Any, args: DistillationConfig) -> Any:
        """The collator, which adds what the teacher needs of a row, and asks a server ahead."""
        prompted = args.teacher_prompt is not None
        if isinstance(self._teacher, ServedTeacher) and not prompted:
            return self._teacher.attach(collator, args)
        routed = isinstance(self._teacher, RoutedTeachers)
        if not routed and not prompted and self._crossing is None:
            return collator
        if not isinstance(collator, Collator):
            raise ValueError(
                "several teachers, teacher_prompt and cross_tokenizer need fastkd's own collator: leave "
                "data_collator unset"
            )
        more: list[Any] = [
            *collator.more,
            *([route_numbers] if routed else []),
            *([prompts_of_teacher] if prompted else []),
            *([self._crossing.columns] if self._crossing is not None else []),
        ]
        return Collator(collator.task, collator.pad_token_id, more)

    # Making students.

    def _distilled(self, model: Any, args: DistillationConfig, datasets: Sequence[Any]) -> DistilledStudent:
        """A plain student with its teacher and its loss, which becomes the one that this trainer trains."""
        if self._trains:
            check_trainable(model, args)
            if args.objective == "sampled" and args.lmbda != 1:
                raise ValueError("objective: sampled learns from the student's own tokens: set lmbda: 1")
            keep_differentiable(model)
            if args.gradient_match_weight and isinstance(self._given_teacher, nn.Module):
                keep_differentiable(self._given_teacher)
        made = distilled(model, self._given_teacher, args, self._tokenizer, datasets, self._crossing)
        self._teacher = plain_teacher(made.teacher)
        if args.task == "classification":
            sides = {"student": model, "teacher": getattr(self._teacher, "model", None)}
            name_padding({side: x for side, x in sides.items() if x is not None}, self._pad_token_id)
        if isinstance(self._teacher, CachedTeacher):
            self._teacher.fused = made.head is not None
        self._on_policy = None
        if args.lmbda > 0:
            self._on_policy = OnPolicy(
                *(self._teacher, made.task, self._tokenizer, self._pad_token_id, args, self._crossing)
            )
        if args.task == "seq2seq":
            prepare_model(model, self._tokenizer, args)
            if (side := getattr(self._teacher, "model", None)) is not None:
                theirs = self._tokenizer if self._crossing is None else self._crossing.tokenizer
                prepare_model(side, theirs, args)
        return made

    def _crossed(self, task: Task, args: DistillationConfig) -> Crossing | None:
        """Both tokenizers of a run whose teacher has one of its own; None for any other run."""
        teacher = self._given_teacher
        if args.cross_tokenizer is None or teacher is None:
            return None
        model = teacher.model if isinstance(teacher, LiveTeacher) else teacher
        if not isinstance(model, nn.Module):
            raise ValueError("cross_tokenizer needs one teacher that is a model and reads its own tokens")
        theirs = crossed_tokenizer(model, self._tokenizer, args)
        return Crossing(
            args, task, self._tokenizer, theirs, padding_token(cast(PreTrainedModel, model), theirs)
        )

    def call_model_init(self, trial: Any = None) -> nn.Module:
        args = cast(DistillationConfig, self.args)
        return self._distilled(super().call_model_init(trial), args, self._rows)

    def _hp_search_setup(self, trial: Any) -> None:
        super()._hp_search_setup(trial)
        if trial is not None:  # the trial may have chosen fields that the student was made with
            args = cast(DistillationConfig, self.args)
            self.model = self.model_wrapped = self._distilled(self.student, args, self._rows)

    @property
    def _rows(self) -> tuple[Any, Any]:
        return self.train_dataset, self.eval_dataset

    def hyperparameter_search(
        self, hp_space: Any = None, compute_objective: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        """As in :class:`transformers.Trainer`. The default objective is the evaluation loss, or, with
        ``compute_metrics``, the sum of the metrics that it returns. The trainer ends with a new student.
        """
        found = super().hyperparameter_search(hp_space, compute_objective or self._objective, *args, **kwargs)
        if self.model is None:  # the search has released that of the last trial
            self.model = self.model_wrapped = self.call_model_init()
        return found

    def _objective(self, metrics: dict[str, float]) -> float:
        own = self._measured - {"eval_loss"} | {"eval_model_preparation_time"}
        return default_compute_objective({name: v for name, v in metrics.items() if name not in own})

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
        if self._on_policy is not None:
            step, last = self.state.global_step, self.state.max_steps
            epoch_iterator = self._on_policy.batches(
                epoch_iterator, num_batches, self.model_wrapped, self.student, step, last
            )
        if learns_from_labels_alone(cast(DistillationConfig, self.args)):
            epoch_iterator = map(with_labels, epoch_iterator)
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
        return dict(zip(names, totals.cpu().double().tolist(), strict=True))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and (total := self._drain(self._train_sums)) is not None and total["tokens"]:
            known = means(total)
            matching = self.accelerator.unwrap_model(self.model).matching
            if matching is not None and self.is_world_process_zero():
                matching.warn_of_drowning(known)
            logs.update({name: known[name] for name in known if name not in ("loss", "perplexity")})
        if "loss" in logs and self._on_policy is not None:
            logs["sampling_seconds"], self._on_policy.seconds = round(self._on_policy.seconds, 3), 0.0
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
            inputs |= {"with_logits": True, "with_teacher_logits": self.predicts_teacher}
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
            if not total["tokens"]:
                logger.warning("the rows of this evaluation have no label: its metrics are NaN")
            measured = means(total, f"{metric_key_prefix}_")
            self._measured.update(measured)
            output.metrics.update(measured)
        return output
