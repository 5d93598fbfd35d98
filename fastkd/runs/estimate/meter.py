"""Counts the bytes of live tensors while operators run on fake tensors, which hold no data."""

from __future__ import annotations

import contextlib
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from fastkd.backends import registry
from fastkd.ops.head import row_bytes
from fastkd.ops.linear import chunks_of
from fastkd.spec import NAMES, spec_of

WIDE = 4  # bytes of a float32, the dtype in which 16-bit values are summed


class Meter(TorchDispatchMode):
    """Follows every storage from its creation to its release.

    Attributes:
        label: label of the storages that are created now.
        phase: current phase of the run.
        live: bytes of the live storages, by label.
        peaks: for each phase, ``live`` at the moment when its sum was largest.
        flops, operators, written: floating-point operations, operator calls and bytes of results so far.

    Args:
        columns: widths of the logits; tensors of one of these widths are labelled "logits and loss".
        device: the device on which the real run will compute.
    """

    def __init__(self, columns: set[int], device: torch.device) -> None:
        super().__init__()
        self.columns, self.device = columns, device
        self.label, self.phase = "other", "setup"
        self.live: Counter[str] = Counter()
        self.peaks: dict[str, Counter[str]] = {}
        self.flops = self.operators = self.written = 0
        # Keyed by id, since a storage does not hash by identity.
        self._known: dict[int, tuple[weakref.ref[Any], str, int]] = {}

    def name(self, tensors: Iterable[Tensor | None], label: str, shares: int = 1) -> None:
        """Label the storages of these tensors, new or known; this process holds one of ``shares`` shards."""
        for tensor in tensors:
            if tensor is not None:
                self._forget(id(tensor.untyped_storage()))
                self._see(tensor, label, shares)

    def take(self, label: str, size: int) -> None:
        """Record that ``size`` more bytes are needed briefly."""
        self._note(Counter({label: size}))

    @contextlib.contextmanager
    def during(self, label: str, phase: str | None = None) -> Iterator[None]:
        before = self.label, self.phase
        self.label, self.phase = label, phase or self.phase
        self._note(Counter())
        try:
            yield
        finally:
            self.label, self.phase = before

    @property
    def peak(self) -> tuple[str, Counter[str]]:
        """The phase that needs the most memory, and its live bytes by label at that moment."""
        return max(self.peaks.items(), key=lambda item: item[1].total())

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        packet = getattr(func, "_overloadpacket", None)
        if func.name() == "aten::_grouped_mm":
            # The version for fake tensors accepts only bfloat16; the real operator accepts other dtypes too.
            narrow = [x.bfloat16() for x in args[:2]]
            out = func(*narrow, *args[2:], **kwargs).to(args[0].dtype)
        else:
            out = func(*args, **kwargs)
        ours = func.namespace == "fastkd"
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._see(tensor, "logits and loss" if ours else self._label_of(tensor))
        if packet in flop_registry:
            self.flops += flop_registry[packet](*args, **kwargs, out_val=out)
        self.operators += 1
        scratch: Counter[str] = Counter()
        if ours:
            names = [argument.name for argument in func._schema.arguments]
            given = {**dict(zip(names, args, strict=False)), **kwargs}
            scratch["logits and loss"], flops = inside(
                func._schema.name.removeprefix("fastkd::"), given, self.device
            )
            self.flops += flops
        self._note(scratch)
        return out

    def _label_of(self, tensor: Tensor) -> str:
        is_logits = tensor.dim() > 1 and tensor.shape[-1] in self.columns and self.phase != "backward"
        return "logits and loss" if is_logits else self.label

    def _see(self, tensor: Tensor, label: str, shares: int = 1) -> None:
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._known:
            return
        size = storage.nbytes() // shares
        self._known[key] = weakref.ref(storage, lambda _: self._forget(key)), label, size
        self.live[label] += size
        self.written += size

    def _forget(self, key: int) -> None:
        found = self._known.pop(key, None)
        if found is not None:
            self.live[found[1]] -= found[2]

    def _note(self, scratch: Counter[str]) -> None:
        """Update the phase's peak with the live bytes and ``scratch``."""
        before = self.peaks.get(self.phase)
        if before is None or self.live.total() + scratch.total() > before.total():
            self.peaks[self.phase] = self.live + scratch


def inside(name: str, given: dict[str, Any], device: torch.device) -> tuple[int, int]:
    """Scratch bytes and floating-point operations of one call of a fastkd operator."""
    if name not in ("linear_kd", "dense_kd"):
        return 0, 0
    student, teacher = given["student"], given["teacher"]
    tokens = given["loss_scale"].numel()
    logits = torch.float32 if teacher is None or given["indices"] is not None else teacher.dtype
    backend = registry.choose(given["backend"], device, student.dtype, logits)
    # The reference backend keeps about four float32 copies of a call's logits.
    spare = 4 * WIDE if backend.name == "reference" else 0
    if name == "dense_kd":
        return spare * tokens * student.shape[-1], 0
    weights = given["student_weight"], given["teacher_weight"]
    vocab = given["vocab_size"]
    by_weight = given["grad_student_weight"]
    wanted = by_weight is not None, given["grad_teacher_weight"] is not None
    softcaps = given["student_softcap"], given["teacher_softcap"]
    sharded = given["group"] is not None
    rows, part = chunks_of(
        tokens, vocab, *weights, wanted, given["chunk_size"], sharded, device, softcaps=softcaps
    )
    spec = spec_of([given[name] for name in NAMES], given["numbers"], given["changing"])
    # The operator computes the teacher's logits only if the loss or the metrics read them.
    reads_teacher = weights[1] is not None and (spec.kd_weight != 0 or given["metrics"] is not None)
    student_bytes, teacher_bytes = row_bytes(weights[0], vocab, softcaps[0]), row_bytes(weights[1], vocab)
    scratch = rows * (student_bytes + spare * vocab) + part * teacher_bytes * reads_teacher
    if by_weight is not None and rows < tokens and by_weight.element_size() < WIDE:
        scratch += by_weight.numel() * WIDE
    flops = 0
    if weights[0] is not None:
        gemms = 1 + (given["grad_student"] is not None) + wanted[0]
        flops += 2 * tokens * vocab * weights[0].shape[1] * gemms
    if reads_teacher:
        flops += 2 * tokens * weights[1].numel()
    return scratch, flops
