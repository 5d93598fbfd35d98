"""The losses as layers for ``kernels.kernelize``, which replaces the ``forward`` of a model's own layers.

The hub accepts layers without a constructor, so they read the attribute ``options`` of the layer that adopts
them: the keyword arguments of the loss, as in the modules of the same names.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from fastkd import modules


class KDLoss(nn.Module):
    """:func:`kd_loss` in a layer with ``forward(student_logits, teacher, labels=None, **options)``."""

    options: dict[str, Any]
    can_torch_compile = True
    forward = modules.KDLoss.forward


class LinearKDLoss(nn.Module):
    """:func:`linear_kd_loss` in a layer with ``forward(student_hidden, student_weight, teacher, labels=None,
    **options)``."""

    options: dict[str, Any]
    can_torch_compile = True
    forward = modules.LinearKDLoss.forward
