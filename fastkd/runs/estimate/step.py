"""Runs a training step on fake tensors, which hold no data, to count its peak memory and its arithmetic."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor, FakeTensorMode

from fastkd.corpora.labels import MULTI_LABEL, REGRESSION
from fastkd.corpora.shared_tokens import SharedTokens
from fastkd.corpora.spans import SPANS, TEACHER_IDS, TEACHER_LABELS, TEACHER_SPANS
from fastkd.corpora.tasks import TASKS, Batch
from fastkd.runs.estimate.engine import engine_bytes
from fastkd.runs.estimate.meter import Meter
from fastkd.runs.estimate.models import Sides, build, hidden_size
from fastkd.runs.estimate.optimizers import optimizer_bytes, step_bytes
from fastkd.trainer.config import DistillationConfig, plain
from fastkd.trainer.crossing import CLASSES, objective_of
from fastkd.trainer.matching import Matching
from fastkd.trainer.models import NOTHING_MORE, LinearHead, ModelOutput, Requested
from fastkd.trainer.precision import autocast
from fastkd.trainer.student import DistilledStudent
from fastkd.trainer.teachers import CrossedTeacher, LiveTeacher
from fastkd.trainer.teachers.crossed import AlignedColumns
from fastkd.trainer.teachers.several import each_of


@dataclass(frozen=True)
class Shape:
    """A batch: rows, tokens per row (``length``), tokens per row in the decoder, if any (``target``), and for
    a teacher with a tokenizer of its own its tokens per token of the student's (``share``).
    """

    rows: int
    length: int
    target: int = 0
    share: float = 1.0


@dataclass(frozen=True)
class Step:
    """Memory and arithmetic of one optimizer step in one process.

    Attributes:
        phases: for each phase, the bytes at its peak by what holds them.
        flops: floating-point operations of one micro-batch, forward and backward, the teacher included.
        operators, written: operator calls of one micro-batch, and bytes of their results.
        parameters, trained: numbers of the student's parameters, and of those that are trained.
        teacher_parameters: number of the teacher's parameters; 0 where it has no model of its own.
        columns: width of the student's logits.
        hidden: width of the student's hidden states.
        teacher_columns: width of the teacher's logits; 0 without a teacher.
        teacher_hidden, teacher_itemsize: width of the teacher's hidden states (0 without a teacher model, and
            for a classifier) and bytes of one of their elements.
        head: why the loss needs whole logits; None where the loss is fused with the heads.
        optim: name of the optimizer.
        reason: why activations are not counted; None where they are.
    """

    phases: dict[str, Counter[str]]
    flops: int
    operators: int
    written: int
    parameters: int
    trained: int
    teacher_parameters: int
    columns: int
    hidden: int
    teacher_columns: int
    teacher_hidden: int
    teacher_itemsize: int
    head: str | None
    optim: str
    reason: str | None = None

    @property
    def phase(self) -> str:
        """The phase that needs the most memory."""
        return max(self.phases, key=lambda name: self.phases[name].total())

    @property
    def peak(self) -> int:
        """Bytes at the peak."""
        return self.phases[self.phase].total()


def run_step(
    args: DistillationConfig, train: Shape, held_out: Shape | None = None, processes: int = 1
) -> Step:
    """Run an optimizer step, and an evaluation batch where there is evaluation data, and count.

    Nothing is computed and no weights are read: the operators only work out shapes. The model's own code
    chooses its operators (for attention, for example) as in a real run, so the count reflects every setting
    that the model reads.

    Args:
        args: the configuration.
        train, held_out: the batches of one process.
        processes: number of processes. With ``fsdp`` each holds a shard of parameters, gradients and
            optimizer state, and one whole layer at a time; otherwise each holds all of them, and the
            gradients a second time in the buckets of DDP.

    If the model's code cannot run without data (it branches on values, say), only weights, gradients and
    optimizer state are counted, and the result's ``reason`` is set.

    Raises:
        ValueError: a model or a setting does not fit.
    """
    device = torch.device(args.device.type)
    moved = mock.patch.object(nn.Module, "_apply", _apply)
    copied = mock.patch.object(FakeTensor, "__deepcopy__", _deepcopy, create=True)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device(device), moved, copied:
        run = Run(args, build(args), device, processes)
        try:
            return run.step(train, held_out)
        except ValueError:
            raise
        except Exception as error:  # a model's code may raise any error on fake tensors
            reason = textwrap.shorten(str(error), 400, placeholder=" ...")
            return run.weights_alone(f"{type(error).__name__}: {reason}")


def _apply(module: nn.Module, change: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """Replaces ``Module._apply``: puts new parameters in the place of the old ones. The original exchanges
    the contents of the existing parameters, which fake tensors do not support.
    """
    made: dict[int, nn.Parameter] = {}
    for part in module.modules() if recurse else [module]:
        for name, p in part._parameters.items():
            if p is not None:
                changed = change(p.data)
                same = changed.device == p.device and changed.dtype == p.dtype
                part._parameters[name] = made.setdefault(
                    id(p), p if same else nn.Parameter(changed, p.requires_grad)
                )
        for name, buffer in part._buffers.items():
            part._buffers[name] = None if buffer is None else change(buffer)
    return module


def _deepcopy(tensor: Tensor, memo: dict[int, Any]) -> Tensor:
    """Replaces ``Tensor.__deepcopy__``, which copies the bytes of a storage. A fake tensor has none, so the
    original writes past the end of an empty storage; `peft` copies the head of a classifier in this way.
    """
    if id(tensor) not in memo:
        made = tensor.detach().clone()
        is_parameter = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = nn.Parameter(made, tensor.requires_grad) if is_parameter else made
    return memo[id(tensor)]


class Run:
    """The models of a run and the step that trains them."""

    def __init__(
        self,
        args: DistillationConfig,
        sides: Sides,
        device: torch.device,
        processes: int,
    ) -> None:
        self.args, self.sides, self.device, self.processes = args, sides, device, processes
        self.task = TASKS[args.task]
        widths = {sides.columns} | ({sides.teacher.columns} if sides.teacher is not None else set())
        self.meter = Meter(widths, device)
        self.trained = [p for p in sides.student.parameters() if p.requires_grad]
        self.shards = processes if args.fsdp else 1
        self.optim = plain(args.optim)
        teacher: Any = None if sides.teacher is None else _Labelled(sides.teacher, self.meter)
        matching = None
        if (args.feature_matches or args.gradient_match_weight) and isinstance(sides.teacher, LiveTeacher):
            matching = Matching(
                sides.student, sides.teacher.model, args.feature_matches or [], args.gradient_match_weight
            )
        crossed = None
        if args.cross_tokenizer is not None and isinstance(sides.teacher, LiveTeacher):
            teacher = CrossedTeacher(teacher)
            crossed = objective_of(args, self.task, _classes(args, sides))
        self.columns = None if crossed is None else AlignedColumns(self.task, 0)
        common = min(widths) if len(widths) > 1 and crossed is None else None
        self.module = DistilledStudent(
            sides.student,
            self.task,
            sides.head if isinstance(sides.head, LinearHead) else None,
            teacher,
            {**args.loss_options(), "vocab_size": common, "problem_type": args.problem_type},
            matching,
            crossed=crossed,
        )
        if checkpoints_activations(args):
            _checkpoint_activations(sides.student, args)

    def step(self, train: Shape, held_out: Shape | None) -> Step:
        args, meter, sides = self.args, self.meter, self.sides
        shares = self.shards
        meter.name([*sides.student.parameters(), *sides.student.buffers()], "student weights", shares)
        if shares > 1:  # a layer is gathered whole while it runs: counts the largest
            meter.live["student weights"] += max(map(_weight_bytes, _layers(sides.student)), default=0)
        own = {id(t): t for t in [*sides.student.parameters(), *sides.student.buffers()]}
        meter.live["student weights"] += (sides.student_bytes - _bytes(list(own.values()))) // shares
        if engine := self._engine_bytes():
            meter.live["sampling engine"] += engine
        meter.name(sides.teacher_weights, "teacher weights")
        raw = sum(t.numel() * t.element_size() for t in {id(t): t for t in sides.teacher_weights}.values())
        meter.live["teacher weights"] += sides.teacher_bytes - raw
        for p in self.trained:
            p.register_post_accumulate_grad_hook(lambda p: meter.name([p.grad], "gradients", shares))
        optim = self.optim
        meter.live["optimizer state"] += optimizer_bytes(optim, args.optim_args, self.trained) // shares
        if self.processes > shares:  # DDP copies the gradients to its buckets
            meter.live["gradients"] += _bytes(self.trained)
        with meter:
            # With accumulation, a second micro-batch runs while the gradients of the first are alive.
            for _ in range(min(2, args.gradient_accumulation_steps)):
                before = meter.flops, meter.operators, meter.written
                self.backward(self.batch(train, "train"))
            after = meter.flops, meter.operators, meter.written
            with meter.during("optimizer", "optimizer step"):
                meter.take("optimizer state", step_bytes(optim, self.device.type, self.trained) // shares)
            for p in self.trained:
                p.grad = None
            if args.lmbda > 0 and args.sampler != "vllm":
                together = args.sampling_steps * args.gradient_accumulation_steps
                rows = train.rows * (together if args.sampling_steps > 1 else 1)
                tokens = rows * max(train.length, args.max_completion_length)
                with meter.during("sampling", "sampling"):
                    meter.take("keys and values", key_value_bytes(sides.student.config, tokens))
            if held_out is not None:
                self.evaluate(self.batch(held_out, "evaluation"))
        phases = {name: +counts for name, counts in meter.peaks.items() if name != "setup"}
        return self._found(phases, *(b - a for a, b in zip(before, after, strict=True)))

    def weights_alone(self, reason: str) -> Step:
        """The result without running the models: weights, gradients and optimizer state."""
        phase = Counter(
            {
                "student weights": self.sides.student_bytes // self.shards,
                "sampling engine": self._engine_bytes(),
                "teacher weights": self.sides.teacher_bytes,
                "gradients": _bytes(self.trained) // self.shards,
                "optimizer state": optimizer_bytes(self.optim, self.args.optim_args, self.trained)
                // self.shards,
            }
        )
        return replace(self._found({"optimizer step": +phase}, 0, 0, 0), reason=reason)

    def _engine_bytes(self) -> int:
        return engine_bytes(self.args, self.sides.student_bytes, self.sides.student.dtype.itemsize)

    def _found(self, phases: dict[str, Counter[str]], flops: int, operators: int, written: int) -> Step:
        sides = self.sides
        models = [one.model for one in each_of(sides.teacher).values() if hasattr(one, "model")]
        teacher = max(models, key=lambda model: hidden_size(model), default=None)
        return Step(
            phases,
            flops,
            operators,
            written,
            sum(p.numel() for p in sides.student.parameters()),
            sum(p.numel() for p in self.trained),
            sum(p.numel() for model in models for p in model.parameters()) if sides.teacher_weights else 0,
            sides.columns,
            hidden_size(sides.student),
            0 if sides.teacher is None else sides.teacher.columns,
            hidden_size(teacher) if teacher is not None and self.task.name != "classification" else 0,
            4 if teacher is None else teacher.dtype.itemsize,
            sides.head if isinstance(sides.head, str) else None,
            self.optim,
        )

    def batch(self, shape: Shape, phase: str) -> Batch:
        row: dict[str, Any] = {"input_ids": [1] * shape.length, "labels": [1] * shape.length}
        if self.task.name == "seq2seq":
            row["labels"] = [1] * shape.target
        elif self.task.name == "classification":
            row["labels"] = self._label()
        elif self.args.packing and phase == "train":
            row["position_ids"] = list(range(shape.length))
        with self.meter.during("batch"):
            made = self.task.collate([row] * shape.rows, 0)
            if self.columns is not None:
                made |= self.columns([{**row, **_of_teacher(row, shape)}] * shape.rows, made)
            return made

    def _label(self) -> Any:
        if self.args.problem_type == MULTI_LABEL:
            return [0] * self.sides.columns
        return [0.0] * self.sides.columns if self.args.problem_type == REGRESSION else 0

    def backward(self, batch: Batch) -> None:
        meter = self.meter
        self.module.train()
        with meter.during("activations", "forward"), self._autocast():
            items = torch.ones((), dtype=torch.int64)
            out = self.module(**batch, num_items_in_batch=items, with_sums=True)
        with meter.during("activations", "backward"):
            out["loss"].backward()

    def evaluate(self, batch: Batch) -> None:
        self.module.eval()
        with self.meter.during("activations", "evaluation"), torch.no_grad(), self._autocast():
            self.module(**batch)

    def _autocast(self) -> Any:
        return autocast(self.args, self.device)


def _classes(args: DistillationConfig, sides: Sides) -> SharedTokens | None:
    """Classes of as many tokens as the smaller side has; None if ``cross_tokenizer`` needs none. The larger
    side's other tokens have a class with ``hybrid``, and none with ``gold``.
    """
    if args.cross_tokenizer not in CLASSES or sides.teacher is None:
        return None
    widths = sides.columns, sides.teacher.columns
    count = min(widths)
    all_have_one = args.cross_tokenizer == "hybrid"
    mine, theirs = (
        [i % count if i < count or all_have_one else -1 for i in range(width)] for width in widths
    )
    return SharedTokens(mine, theirs, count, count)


def _of_teacher(row: dict[str, Any], shape: Shape) -> dict[str, Any]:
    """The teacher's columns of a row, whose spans are as many as the shorter side has tokens."""
    own = len(row["labels"])
    count = max(2, round(own * shape.share))
    most = min(own, count)
    return {
        TEACHER_IDS: [1] * max(2, round(len(row["input_ids"]) * shape.share)),
        TEACHER_LABELS: [1] * count,
        SPANS: [i * most // own for i in range(own)],
        TEACHER_SPANS: [i * most // count for i in range(count)],
    }


class _Labelled:
    """Wraps a teacher, so that its activations have a label of their own."""

    def __init__(self, teacher: Any, meter: Meter) -> None:
        self.teacher, self.meter = teacher, meter
        self.live, self.columns = teacher.live, teacher.columns

    def to(self, device: torch.device) -> None: ...

    def __call__(self, batch: Batch, requested: Requested = NOTHING_MORE) -> ModelOutput:
        with self.meter.during("teacher's activations"):
            return self.teacher(batch, requested)


def key_value_bytes(config: Any, tokens: int, itemsize: int = 4) -> int:
    """Bytes of the keys and values that generation keeps for ``tokens`` tokens, over all layers."""
    config = config.get_text_config(decoder=True)

    def number(name: str, otherwise: int) -> int:
        return int(getattr(config, name, None) or otherwise)

    heads = number("num_attention_heads", 1)
    layers = number("decoder_layers", number("num_hidden_layers", 0))
    width = number("head_dim", number("hidden_size", 0) // heads)
    return 2 * layers * number("num_key_value_heads", heads) * width * tokens * itemsize


def checkpoints_activations(args: DistillationConfig) -> bool:
    """Whether ``gradient_checkpointing`` is set (``activation_checkpointing`` in newer `transformers`)."""
    return bool(getattr(args, "activation_checkpointing", None) or args.gradient_checkpointing)


def _checkpoint_activations(model: Any, args: DistillationConfig) -> None:
    given = getattr(args, "activation_checkpointing_kwargs", None) or args.gradient_checkpointing_kwargs
    kwargs: dict[str, Any] = dict(given) if isinstance(given, dict) else {}
    if not hasattr(model, "activation_checkpointing_enable"):
        model.gradient_checkpointing_enable(kwargs or None)
        return
    own = {name: kwargs.pop(name) for name in ("every_n_layers", "offload") if name in kwargs}
    model.activation_checkpointing_enable(kwargs or None, **own)


def _layers(model: Any) -> list[Any]:
    """The repeated blocks, which FSDP gathers one at a time."""
    return [m for block in model.modules() if isinstance(block, nn.ModuleList) for m in block]


def _weight_bytes(module: nn.Module) -> int:
    return _bytes(list(module.parameters()))


def _bytes(tensors: list[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)
