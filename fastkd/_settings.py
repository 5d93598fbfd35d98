"""The environment variables of fastkd, all read here and nowhere else."""

from __future__ import annotations

import os


def default_backend() -> str | None:
    """``FASTKD_BACKEND``: the backend used where a call names none (unset: the best that can run)."""
    return os.environ.get("FASTKD_BACKEND") or None


def cpu_isa() -> str | None:
    """``FASTKD_CPU_ISA``: ``avx512``, ``avx2`` or ``baseline`` instead of the best this CPU has."""
    return os.environ.get("FASTKD_CPU_ISA") or None
