"""``use_fastkd(trainer)`` for TRL's ``GKDTrainer`` and ``DistillationTrainer`` (as of 1.16)."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor

from fastkd import HiddenTeacher, kd_loss, linear_kd_loss
from fastkd.integrations.common import IGNORED, ancestor, labels_of, owner, refusal

CHUNKED = "_chunked_divergence_loss"


def use_fastkd(trainer: Any) -> Any:
    """Let a trainer of TRL compute its divergence with fastkd.

    Args:
        trainer: a ``GKDTrainer`` or ``DistillationTrainer``, which is changed; or one of these classes, to
            change all of its trainers.

    Returns:
        ``trainer``.

    Raises:
        Unsupported: another trainer, or one with its own method for the loss.
    """
    kind = trainer if isinstance(trainer, type) else type(trainer)
    for name, (method, replacement) in TRAINERS.items():
        base = ancestor(kind, name)
        if base is None:
            continue
        if owner(kind, method) is not base:
            what = f"a {kind.__name__} with its own {method}"
            raise refusal("trl", what, f"call use_fastkd({base.__name__}) if that calls TRL's")
        if not {"compute_loss", method} & _names_in(kind, "compute_loss"):
            what = f"a {kind.__name__}, whose loss is not that of {base.__name__}"
            raise refusal("trl", what, "keep its own")
        ours: Any = replacement(getattr(base, method))
        if not isinstance(vars(base)[method], staticmethod):
            ours = ours if kind is trainer else MethodType(ours, trainer)
        elif kind is trainer:
            ours = staticmethod(ours)
        setattr(trainer, method, ours)
        return trainer
    raise refusal("trl", f"a {kind.__name__}", "pass a GKDTrainer or a DistillationTrainer")


def _names_in(kind: type, method: str) -> set[str]:
    """The names that a method uses, of which that of a method of ``super()`` is one."""
    return set(inspect.unwrap(getattr(kind, method)).__code__.co_names)


def _generalized_jsd_loss(theirs: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A replacement for ``GKDTrainer.generalized_jsd_loss``, which is ``theirs``."""

    def generalized_jsd_loss(
        student_logits: Tensor,
        teacher_logits: Tensor,
        labels: Tensor | None = None,
        beta: float = 0.5,
        temperature: float = 1.0,
        reduction: str = "batchmean",
        num_items_in_batch: int | Tensor | None = None,
    ) -> Tensor:
        """The generalized JSD without ``T**2`` of logits ``(B, S, V)``, where the labels are not -100.

        The sum is divided by ``num_items_in_batch`` if given, else by the number of valid tokens
        (``"batchmean"``; without labels, of sequences), of valid logits (``"mean"``) or by nothing.
        """
        valid = None if labels is None else labels != -100
        items = num_items_in_batch
        if items is None and reduction not in ("batchmean", "mean", "sum"):
            # TRL returns one value per logit, which a fused loss never has.
            return theirs(student_logits, teacher_logits, labels, beta, temperature, reduction)
        if items is None and reduction == "mean":
            tokens = student_logits[..., 0].numel() if valid is None else valid.sum()
            items = tokens * student_logits.shape[-1]
        elif items is None and reduction == "batchmean" and valid is None:
            items = student_logits.shape[0]
        loss: Tensor = kd_loss(
            student_logits,
            teacher_logits,
            None if valid is None else labels_of(valid),
            divergence="jsd",
            beta=beta,
            temperature=temperature,
            t_squared=False,
            reduction="sum" if items is None and reduction == "sum" else "mean",
            num_items=items,
            ignore_index=IGNORED,
        )
        return loss

    return generalized_jsd_loss


def chunked_divergence_loss(
    student_hidden_states: Tensor,
    teacher_hidden_states: Tensor,
    student_lm_head_weight: Tensor,
    teacher_lm_head_weight: Tensor,
    completion_mask: Tensor,
    beta: float,
    num_items_in_batch: int | Tensor | None = None,
    student_lm_head_bias: Tensor | None = None,
    teacher_lm_head_bias: Tensor | None = None,
    student_logit_scale: float = 1.0,
    teacher_logit_scale: float = 1.0,
    student_final_logit_softcapping: float | None = None,
    teacher_final_logit_softcapping: float | None = None,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """As ``trl.trainer.distillation_trainer._chunked_divergence_loss``: the loss of ``DistillationTrainer``.

    Args:
        student_hidden_states, teacher_hidden_states: ``(B, K, H)``, each with its own ``H``.
        student_lm_head_weight, teacher_lm_head_weight: ``(V, H)``.
        completion_mask: ``(B, K)``, nonzero where a token counts.
        num_items_in_batch: the divisor of the sum; None for the number of tokens that count.

    Returns:
        The loss, the sum of the student's entropies in nats, and the number of tokens that count.

    Raises:
        Unsupported: a head that DeepSpeed ZeRO-3 has partitioned.
    """
    if hasattr(student_lm_head_weight, "ds_id") or hasattr(teacher_lm_head_weight, "ds_id"):
        remedy = "use ZeRO-2 or FSDP, or train without use_fastkd"
        raise refusal("trl", "a head that DeepSpeed ZeRO-3 has partitioned", remedy)
    valid = completion_mask.reshape(-1) != 0
    student = _head(student_hidden_states, student_lm_head_weight, student_lm_head_bias, valid)
    teacher_bias = None if teacher_lm_head_bias is None else teacher_lm_head_bias.detach()
    teacher_states, teacher_weight = teacher_hidden_states.detach(), teacher_lm_head_weight.detach()
    teacher = _head(teacher_states, teacher_weight, teacher_bias, valid)
    with torch.autocast(valid.device.type, enabled=False):  # the operands have its dtype already
        loss, metrics = linear_kd_loss(
            *student[:2],
            HiddenTeacher(*teacher, float(teacher_logit_scale), teacher_final_logit_softcapping),
            student_bias=student[2],
            logit_scale=float(student_logit_scale),
            logit_softcap=student_final_logit_softcapping,
            divergence="jsd",
            beta=beta,
            temperature=temperature,
            t_squared=False,
            num_items=num_items_in_batch,
            return_metrics=True,
        )
    tokens = valid.sum()
    return loss, metrics.student_entropy * tokens, tokens


def _head(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, valid: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The valid hidden states ``(N, H)``, the weight and the bias, in the dtype of TRL's products.

    TRL rounds the operands to the dtype of autocast or of the hidden states, and keeps float32 logits. On a
    CPU that takes float32 operands. On a GPU they stay in 16 bits, and bfloat16 logits are rounded.
    """
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    wide = dtype if hidden.is_cuda else torch.promote_types(dtype, torch.float32)
    hidden = hidden.reshape(-1, hidden.shape[-1])[valid]
    bias = None if bias is None else _whole(bias).to(wide)
    return hidden.to(dtype).to(wide), _whole(weight).to(dtype).to(wide), bias


def _whole(x: Tensor) -> Tensor:
    """All of a tensor of which FSDP2 gives this process a part (a ``DTensor``)."""
    whole: Tensor = x.full_tensor() if hasattr(x, "full_tensor") else x
    return whole


def _compute_loss(theirs: FunctionType) -> FunctionType:
    """``DistillationTrainer._compute_loss`` with fastkd's loss in the place of the one that it calls.

    That one is a function of its module. A copy of the method with other globals leaves the module, and all
    other trainers, as they are.
    """
    if CHUNKED not in theirs.__code__.co_names:
        remedy = "fastkd knows the loss of TRL 1.16"
        raise refusal("trl", "the DistillationTrainer of this version", remedy)
    scope = {**theirs.__globals__, CHUNKED: chunked_divergence_loss}
    ours = FunctionType(theirs.__code__, scope, theirs.__name__, theirs.__defaults__, theirs.__closure__)
    ours.__kwdefaults__ = theirs.__kwdefaults__
    return ours


# The trainers, the method of each that has the loss, and the function that makes its replacement.
TRAINERS: dict[str, tuple[str, Callable[..., Callable[..., Any]]]] = {
    "trl.experimental.gkd.gkd_trainer.GKDTrainer": ("generalized_jsd_loss", _generalized_jsd_loss),
    "trl.trainer.distillation_trainer.DistillationTrainer": ("_compute_loss", _compute_loss),
}
