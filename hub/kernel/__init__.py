"""Fused distillation losses for PyTorch, as a kernel of the Hugging Face hub: start with :func:`kd_loss`.

It has fastkd's Triton kernels and its reference in plain torch, which runs everywhere. The compiled kernels
for CPUs and NVIDIA GPUs are in the package fastkd, whose functions have the same names and results.
"""

from fastkd.backends.registry import available_backends
from fastkd.errors import BackendUnavailable
from fastkd.losses import KDMetrics, kd_loss, linear_kd_loss, sampled_kd_loss, token_logprobs
from fastkd.modules import KDLoss, LinearKDLoss
from fastkd.teachers import HiddenTeacher, SparseTeacher

from . import layers

__all__ = [
    "BackendUnavailable",
    "HiddenTeacher",
    "KDLoss",
    "KDMetrics",
    "LinearKDLoss",
    "SparseTeacher",
    "available_backends",
    "kd_loss",
    "layers",
    "linear_kd_loss",
    "sampled_kd_loss",
    "token_logprobs",
]
