"""Versions of the software, so that a number can be placed later."""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform

import torch

PACKAGES = (
    "fastkd", "torch", "triton", "liger-kernel", "trl", "orda-kernel", "transformers", "pytest-benchmark",
)  # fmt: skip


def versions() -> dict[str, str]:
    """Of Python, CUDA and the packages that are installed."""
    found = {"python": platform.python_version(), "cuda": torch.version.cuda or "none"}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    found["torch"] = torch.__version__  # with the kind of build, which pip does not know of all versions
    return found
