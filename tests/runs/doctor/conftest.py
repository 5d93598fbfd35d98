"""Fixtures of the doctor's tests."""

from support.trainer import collect_ignore_glob

__all__ = ["collect_ignore_glob"]

if not collect_ignore_glob:
    from support.doctor import healthy, healthy_findings, place

    __all__ += ["healthy", "healthy_findings", "place"]
