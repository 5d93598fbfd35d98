"""Implementations of the row kernels; :mod:`fastkd.backends.registry` chooses among them.

The package can also be called: ``fastkd.backends()`` is an older name of :func:`fastkd.available_backends`.
"""

from __future__ import annotations

import sys
from types import ModuleType


class _CallablePackage(ModuleType):
    """A package that can be called: Python lets a module's class be replaced by a subclass."""

    def __call__(self) -> dict[str, str]:
        """See :func:`fastkd.available_backends`."""
        from fastkd.backends.registry import available_backends

        return available_backends()


sys.modules[__name__].__class__ = _CallablePackage
