"""The parts of Triton that the kernels need and that old versions lack. They are looked for here alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import triton
import triton.language as tl

# Marks a plain function of constants, which the compiler calls while it compiles a kernel. Triton 3.4 has it
# in its language module, later versions at the top. Earlier versions have no such functions, and there a
# function of a kernel cannot return nested tuples either.
_mark: Any = getattr(triton, "constexpr_function", getattr(tl, "constexpr_function", None))

# Why the kernels cannot be compiled, and what mends it; None where they can.
lacking: str | None = None
if _mark is None:
    lacking = (
        f"its kernels need Triton 3.4 or newer, and this is {triton.__version__}: install torch 2.8 or "
        "newer, which brings one"
    )


def constexpr_function(function: Callable[..., Any]) -> Any:
    """``triton.constexpr_function`` of any Triton that has it.

    Raises:
        ImportError: this Triton lacks it.
    """
    if lacking is not None:
        raise ImportError(lacking)
    return _mark(function)
