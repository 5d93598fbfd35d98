"""Records the versions of the software, so that a measurement can be interpreted later."""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform

import torch

PACKAGES = (
    "fastkd", "torch", "triton", "liger-kernel", "trl", "orda-kernel", "transformers", "pytest-benchmark",
)  # fmt: skip


def versions() -> dict[str, str]:
    """Versions of Python, CUDA and those of ``PACKAGES`` that are installed."""
    found = {"python": platform.python_version(), "cuda": torch.version.cuda or "none"}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    found["torch"] = torch.__version__  # states the build too, which the package metadata may lack
    return found
