"""Fused distillation losses for PyTorch: start with :func:`kd_loss` and :func:`linear_kd_loss`."""

from fastkd import backends
from fastkd.backends.memory import keep_memory, release_memory
from fastkd.backends.registry import available_backends
from fastkd.errors import BackendUnavailable
from fastkd.losses import KDMetrics, kd_loss, linear_kd_loss, sampled_kd_loss, token_logprobs
from fastkd.modules import KDLoss, LinearKDLoss
from fastkd.teachers import HiddenTeacher, SparseTeacher

__version__ = "0.1.0"
__all__ = [
    "BackendUnavailable",
    "HiddenTeacher",
    "KDLoss",
    "KDMetrics",
    "LinearKDLoss",
    "SparseTeacher",
    "available_backends",
    "backends",
    "kd_loss",
    "keep_memory",
    "linear_kd_loss",
    "release_memory",
    "sampled_kd_loss",
    "token_logprobs",
]
