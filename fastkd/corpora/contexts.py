"""Contexts in which a model is run: eval mode, and a random state of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Puts ``model`` into eval mode, and each of its modules back into the mode that it had."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextlib.contextmanager
def seeded(seed: int | None, device: torch.device) -> Iterator[None]:
    """Seeds the random state of the CPU and of ``device``, and restores the previous state afterwards.

    With None nothing is seeded and nothing is restored.
    """
    if seed is None:
        yield
        return
    on_cpu = device.type == "cpu"
    kept = [] if on_cpu else [torch.get_device_module(device).current_device()]
    with torch.random.fork_rng(devices=kept, **({} if on_cpu else {"device_type": device.type})):
        torch.default_generator.manual_seed(seed)
        if not on_cpu:
            torch.get_device_module(device).manual_seed(seed)
        yield
