"""The public loss functions."""

from fastkd.losses.dense import kd_loss
from fastkd.losses.linear import linear_kd_loss
from fastkd.losses.metrics import KDMetrics
from fastkd.losses.sampled import sampled_kd_loss
from fastkd.losses.token_logprobs import token_logprobs

__all__ = ["KDMetrics", "kd_loss", "linear_kd_loss", "sampled_kd_loss", "token_logprobs"]
