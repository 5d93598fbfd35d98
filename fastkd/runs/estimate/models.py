"""Builds student and teacher from their configurations, with weights that hold no data."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from fastkd import SparseTeacher
from fastkd.corpora.store.manifest import HEAD, NAME, Manifest
from fastkd.corpora.tasks import TASKS, Batch, Task
from fastkd.trainer.config import DistillationConfig
from fastkd.trainer.heads import declared_head, output_width
from fastkd.trainer.loading import adapter_folder, build_student, read_config, settings_of_each
from fastkd.trainer.loading.adapters import untrained_copy
from fastkd.trainer.models import NOTHING_MORE, HiddenLogits, LinearHead, ModelOutput, Requested
from fastkd.trainer.teachers import (
    BaseTeacher,
    LiveTeacher,
    MixedTeachers,
    SelfTeacher,
    Teacher,
    TeacherSource,
)


@dataclass(frozen=True)
class Sides:
    """Both sides of a distillation, built inside a ``FakeTensorMode``.

    Attributes:
        student: with its adapter, in training mode.
        student_bytes: bytes of its weights as the run will keep them, quantised or not.
        head: the student's linear head if the run uses the fused loss, else the reason why it does not.
        teacher: the teacher; None to train on the labels alone.
        teacher_weights: weights of a live teacher or of a cached head; empty if the teacher has none itself.
        teacher_bytes: bytes of those weights as the run will keep them, quantised or not.
        columns: width of the student's logits.
    """

    student: Any
    student_bytes: int
    head: LinearHead | str
    teacher: Teacher | None
    teacher_weights: list[Tensor]
    teacher_bytes: int
    columns: int


def build(args: DistillationConfig) -> Sides:
    """The models of a configuration, from ``config.json`` alone.

    Raises:
        ValueError: a configuration cannot be read.
    """
    if isinstance(args.teachers, dict):
        return _with_several(args)
    task = TASKS[args.task]
    student = build_student(args)
    own = [*student.parameters(), *student.buffers()]
    student_bytes = _kept_bytes(student, own, args.model_init_kwargs)
    classifies = task.name == "classification"
    columns = int((student.config.num_labels if classifies else output_width(student)) or 0)
    head: LinearHead | str = "a classifier has few columns and no fused loss"
    if not classifies:
        head = declared_head(student) if args.fused_head != "false" else "fused_head: false"
    fused = isinstance(head, LinearHead)
    source = TeacherSource.parse(args.teacher)
    if source.kind == "none":
        return Sides(student, student_bytes, head, None, [], 0, columns)
    if source.is_self:
        mirror = SelfTeacher(student, task, fused=False)
        mirror.head = head if isinstance(head, LinearHead) else None
        copied = 0 if args.self_weights == "live" else student_bytes
        return Sides(student, student_bytes, head, mirror, [], copied, columns)
    if source.is_base:
        base = BaseTeacher(student, task, fused=False)
        base.head = head if isinstance(head, LinearHead) else None
        return Sides(student, student_bytes, head, base, [], 0, columns)
    if source.is_served:
        few = ServedStandIn(columns, min(columns, args.teacher_top_k), args.cache_tail)
        return Sides(student, student_bytes, head, few, [], 0, columns)
    if source.cache is not None:
        stored = StoredTeacher(source.cache, args, columns, hidden_size(student))
        weights = [] if stored.weight is None else [stored.weight]
        return Sides(student, student_bytes, head, stored, weights, _bytes(weights), columns)
    model = _teacher_model(args, task)
    live: Any = LiveTeacher(model, task, fused=False)
    if fused and isinstance(found := declared_head(model), LinearHead):
        live.head = found
    weights = [*model.parameters(), *model.buffers()]
    return Sides(
        student,
        student_bytes,
        head,
        live,
        weights,
        _kept_bytes(model, weights, args.teacher_model_init_kwargs),
        columns,
    )


def _with_several(args: DistillationConfig) -> Sides:
    """The sides of a run with several teachers: the weights of all, and a step with their mixture, or
    with the largest of those that take the rows in turn.
    """
    named = {name: build(one) for name, one in settings_of_each(args)}
    each = list(named.values())
    largest = max(each, key=lambda sides: sides.teacher_bytes)
    teacher = largest.teacher
    if isinstance(args.teacher_weights, dict):
        mixed: dict[str, Any] = {name: sides.teacher for name, sides in named.items()}
        teacher = MixedTeachers(mixed, args.teacher_weights)
    return replace(
        largest,
        teacher=teacher,
        teacher_weights=[weight for sides in each for weight in sides.teacher_weights],
        teacher_bytes=sum(sides.teacher_bytes for sides in each),
    )


def _teacher_model(args: DistillationConfig, task: Task) -> Any:
    kwargs = args.teacher_model_init_kwargs if isinstance(args.teacher_model_init_kwargs, dict) else {}
    config = read_config("teacher", args.teacher, args)
    dtype: Any = kwargs.get("dtype", kwargs.get("torch_dtype", "auto"))
    if isinstance(dtype, str):
        dtype = getattr(torch, dtype, None) or getattr(config, "dtype", None)
    if kwargs.get("quantization_config") is not None and dtype in (None, torch.float32):
        dtype = torch.bfloat16
    more = {name: kwargs[name] for name in ("attn_implementation",) if name in kwargs}
    if task.name == "classification":
        config.problem_type = args.problem_type
        if args.class_names:
            config.num_labels = len(args.class_names)
    model = task.auto_class.from_config(
        config, dtype=dtype or torch.float32, trust_remote_code=args.trust_remote_code, **more
    )
    folder = adapter_folder("teacher", args.teacher)
    return model if folder is None else untrained_copy(model, folder, "teacher")


def hidden_size(model: Any) -> int:
    """Width of the hidden states that the head multiplies; 0 where the configuration does not state it."""
    return int(getattr(model.config.get_text_config(decoder=True), "hidden_size", 0))


def _bytes(tensors: list[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def _kept_bytes(model: nn.Module, weights: list[Tensor], kwargs: Any) -> int:
    """Bytes of the weights, of which ``quantization_config`` keeps frozen linear layers in 4 or 8 bits."""
    bits = _bits(kwargs)
    seen = {id(t): t for t in weights}  # tied weights count once
    if bits is None:
        return _bytes(list(seen.values()))
    head = getattr(model, "get_output_embeddings", lambda: None)()
    linear = {
        id(m.weight): m.weight.numel()
        for m in model.modules()
        if type(m) is nn.Linear and m is not head and not m.weight.requires_grad
    }
    rest = [t for key, t in seen.items() if key not in linear]
    return _bytes(rest) + int(sum(linear.values()) * (bits / 8) * 1.06)  # 6 % for the blocks' scales


def _bits(kwargs: Any) -> int | None:
    given = (kwargs if isinstance(kwargs, dict) else {}).get("quantization_config")
    if given is None:
        return None
    read = given.get if isinstance(given, dict) else lambda name: getattr(given, name, None)
    if read("load_in_4bit"):
        return 4
    return int(read("bits") or 8)


class StoredTeacher:
    """A cached teacher whose outputs hold no data. The settings describe a cache that does not exist yet."""

    live = False

    def __init__(self, folder: Path, args: DistillationConfig, columns: int, hidden: int) -> None:
        manifest = Manifest.read(folder / "train") if (folder / "train" / NAME).exists() else None
        self.kind = args.cache_kind if manifest is None else manifest.kind
        made_from = {} if manifest is None else manifest.made_from
        self.columns = int(made_from.get("columns", columns))
        self.tail = "drop" if self.kind == "sampled" else args.cache_tail
        # Samples may coincide, so a token has at most as many distinct entries as samples.
        field = "cache_top_k" if self.kind == "topk" else "cache_samples"
        self.entries = min(self.columns, int(made_from.get(field, getattr(args, field))))
        self.weight = None
        if self.kind == "hidden":
            width = int(made_from.get("hidden_size", hidden))
            self.weight = torch.zeros(self.columns, width, dtype=_stored_dtype(folder / "train" / HEAD))

    def to(self, device: torch.device) -> None: ...

    def __call__(self, batch: Batch, requested: Requested = NOTHING_MORE) -> ModelOutput:
        shape = batch["labels"].shape
        if self.weight is not None:
            hidden = torch.ones(*shape, self.weight.shape[1], dtype=self.weight.dtype)
            return ModelOutput(HiddenLogits(hidden, self.weight))
        return ModelOutput(_few(tuple(shape), self.entries, self.tail))


class ServedStandIn:
    """A served teacher whose answers hold no data.

    Args:
        columns: the size of the vocabulary.
        entries, tail: as in :class:`SparseTeacher`.
    """

    live = True

    def __init__(self, columns: int, entries: int, tail: str) -> None:
        self.columns, self.entries, self.tail = columns, entries, tail

    def to(self, device: torch.device) -> None: ...

    def __call__(self, batch: Batch, requested: Requested = NOTHING_MORE) -> ModelOutput:
        return ModelOutput(_few(tuple(batch["labels"].shape), self.entries, self.tail))


def _few(shape: tuple[int, ...], entries: int, tail: str) -> SparseTeacher:
    """Entries of columns that exist, since a step may also run on real tensors."""
    indices = torch.arange(entries).expand(*shape, entries).contiguous()
    return SparseTeacher(indices, torch.full(indices.shape, -math.log(2 * entries)), tail)


def _stored_dtype(path: Path) -> torch.dtype:
    if not path.exists():
        return torch.float32
    with safe_open(path, "pt") as file:
        name = file.get_slice("weight").get_dtype()
    return {"BF16": torch.bfloat16, "F16": torch.float16}.get(name, torch.float32)
