"""Fixtures of this folder."""

from support.trainer import collect_ignore_glob, configuration, one_thread

__all__ = ["collect_ignore_glob", "configuration", "one_thread"]
