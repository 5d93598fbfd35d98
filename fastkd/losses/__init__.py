"""The public loss functions."""

from fastkd.losses.dense import kd_loss
from fastkd.losses.linear import linear_kd_loss

__all__ = ["kd_loss", "linear_kd_loss"]
