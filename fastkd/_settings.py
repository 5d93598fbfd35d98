"""The environment variables that fastkd reads, and the one that it sets, all in this module. Those that
every call needs are read once.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path


@functools.cache
def default_backend() -> str | None:
    """``FASTKD_BACKEND``: the backend for calls that name none; if unset, the best one that can run."""
    return os.environ.get("FASTKD_BACKEND") or None


@functools.cache
def cpu_isa() -> str | None:
    """``FASTKD_CPU_ISA``: ``avx512``, ``avx2`` or ``baseline`` in place of the best that this CPU has."""
    return os.environ.get("FASTKD_CPU_ISA") or None


def triton_autotune() -> bool:
    """``FASTKD_TRITON_AUTOTUNE``: 1 times Triton's tiles on this GPU once and keeps the fastest; 0, the
    default, uses those of a fixed table.

    Raises:
        ValueError: the variable has any other value.
    """
    value = os.environ.get("FASTKD_TRITON_AUTOTUNE", "0").strip() or "0"
    if value not in ("0", "1"):
        raise ValueError(f"FASTKD_TRITON_AUTOTUNE is {value!r}; set it to 1 (tune) or 0 (do not)")
    return value == "1"


def cache_directory() -> Path | None:
    """``fastkd`` in the user's cache directory, for files that can be rebuilt; None without a home."""
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "fastkd"
    except RuntimeError:
        return None


def named_variable(name: str) -> str | None:
    """A variable that the caller names, such as that of a server's key; None if it is unset or blank."""
    return os.environ.get(name, "").strip() or None


def run_vllm_in_process() -> None:
    """Tell vLLM to run its engine in this process, where its weights can be replaced."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
