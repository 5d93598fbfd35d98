"""A drop-in for Liger's ``LigerFusedLinearJSD``, which also runs where Triton does not."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastkd import HiddenTeacher, linear_kd_loss
from fastkd.integrations.common import IGNORED, labels_of, refusal


class LigerFusedLinearJSD(nn.Module):
    """Liger's ``liger_kernel.transformers.LigerFusedLinearJSD`` (as of 0.8.5), computed by fastkd.

    The loss is the mean over valid tokens of the generalized JSD (GKD, Agarwal et al. 2024) between the two
    heads' distributions, without a factor ``T**2``, and no gradient flows to the teacher.

    Args:
        jsd_beta: in [0, 1]; 0 means the forward and 1 the reverse KL.
        ignore_index: tokens with this label do not count.
        temperature: ``T`` > 0.
        accum_dtype: None or ``torch.float32``, in which fastkd always sums the weight's gradient.

    Raises:
        Unsupported: another ``accum_dtype``.
    """

    def __init__(
        self,
        jsd_beta: float = 0.5,
        ignore_index: int = -100,
        temperature: float = 1.0,
        accum_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if accum_dtype not in (None, torch.float32):
            raise refusal("liger", f"accum_dtype={accum_dtype}", "pass None; the sums are float32")
        self.jsd_beta, self.ignore_index, self.temperature = jsd_beta, ignore_index, temperature
        self.accum_dtype = accum_dtype

    def forward(
        self,
        student_input: Tensor,
        student_weight: Tensor,
        teacher_input: Tensor,
        teacher_weight: Tensor,
        shift_labels: Tensor | None = None,
    ) -> Tensor:
        """The loss, a float32 scalar (float64 if an input is).

        Args:
            student_input, student_weight: ``(N, H_s)`` and ``(V, H_s)``.
            teacher_input, teacher_weight: ``(N, H_t)`` and ``(V, H_t)``.
            shift_labels: ``(N,)`` int64 or None. They only tell which tokens count.
        """
        loss: Tensor = linear_kd_loss(
            student_input,
            student_weight,
            HiddenTeacher(teacher_input.detach(), teacher_weight.detach()),
            None if shift_labels is None else labels_of(shift_labels != self.ignore_index),
            divergence="jsd",
            beta=self.jsd_beta,
            temperature=self.temperature,
            t_squared=False,
            ignore_index=IGNORED,
        )
        return loss
