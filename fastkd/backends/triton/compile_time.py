"""Handles the differences between versions of Triton, and between its compiler and its interpreter."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import triton
import triton.language as tl

# Before Triton 3.4 a function that a kernel calls cannot return nested tuples. Those versions also lack this
# decorator, which 3.4 has in its language module and later versions have at the top level.
_OLD = not hasattr(triton, "constexpr_function") and not hasattr(tl, "constexpr_function")
# Whether kernels are interpreted, which Triton decides when their functions are decorated.
_INTERPRETED = not _OLD and bool(triton.knobs.runtime.interpret)


def _version(text: str) -> tuple[int, ...]:
    """The first two numbers of a version: (3, 8) for ``3.8.0+git``."""
    return tuple(int(number) for number in re.findall(r"\d+", text)[:2])


def _find_lacking() -> str | None:
    if _OLD:
        return (
            f"its kernels need Triton 3.4 or newer, and this is {triton.__version__}: install torch 2.8 or "
            "newer, which brings one"
        )
    if _INTERPRETED and _version(triton.__version__) < (3, 7):
        import numpy  # the interpreter needs it, the compiler does not

        # That interpreter converts a loop's bounds by `int` of a one-element array, an error in NumPy 2.4.
        if _version(numpy.__version__) >= (2, 4):
            return (
                f"the interpreter of Triton {triton.__version__} cannot run loops with NumPy "
                f"{numpy.__version__}: install 'numpy<2.4' or Triton 3.7 or newer"
            )
    return None


# Why the kernels cannot run, and the remedy; None if they can.
lacking: str | None = _find_lacking()
# Whether `tl.fma` rounds once. The interpreter of Triton before 3.9 multiplies and then adds.
FUSED = not _INTERPRETED or _version(triton.__version__) >= (3, 9)


def require() -> None:
    """Check that the kernels can run with this Triton.

    Raises:
        ImportError: they cannot; the message gives the reason and the remedy.
    """
    if lacking is not None:
        raise ImportError(lacking)


def constant(value: Any) -> Any:
    """A number, or a tuple of them, that kernels read from their module: a ``tl.constexpr``; while
    interpreted, the number itself.

    The interpreter leaves arithmetic between a ``tl.constexpr`` and a tensor to Python, and the result is a
    ``tl.constexpr`` that holds a tensor. Triton 3.7 and 3.8 reject those in ``tl.maximum`` and the like.
    """
    if _INTERPRETED:
        return value
    found = tl.constexpr(value)
    for name in getattr(value, "_fields", ()):
        setattr(found, name, getattr(value, name))  # where Triton 3.4 and 3.5 look for a tuple's fields
    return found


def inlined(function: Callable[..., Any]) -> Any:
    """``triton.jit`` for small functions that kernels call often; while interpreted, the function itself.

    The interpreter spends more time on the call of a jitted function than on one operation. A plain function
    costs it nothing, but must not assign: the interpreter turns numbers into tensors in jitted ones only.
    """
    return function if _INTERPRETED else triton.jit(function)
