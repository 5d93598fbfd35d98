"""Names of the device and of the software, so that a number can be placed later."""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
import re
from pathlib import Path

import torch

PACKAGES = ("fastkd", "torch", "triton", "liger-kernel", "trl", "transformers", "pytest-benchmark")


def describe_device(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    match = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.exists() else None
    name = match[1] if match else platform.processor() or platform.machine()
    return f"{name}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"


def versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "cuda": torch.version.cuda or "none"}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found
