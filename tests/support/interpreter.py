"""A patch that makes Triton's interpreter faster by skipping work that it repeats.

For every call of a function inside a kernel, the interpreter searches ``triton.language`` for members to
replace by interpreted ones. The search costs two thirds of its time, although the launch or an earlier call
has already replaced all of them.
"""

from __future__ import annotations

from typing import Any


def patch_once() -> None:
    """Make the interpreter search only if the members have not been replaced yet."""
    import triton.language as tl
    from triton.runtime import interpreter

    patch = interpreter._patch_lang
    # Before Triton 3.6 this class does not exist, and the members stay replaced.
    nothing_to_undo = getattr(interpreter, "_LangPatchScope", lambda: None)

    def patch_new(fn: Any) -> Any:
        modules = [x for x in fn.__globals__.values() if x is tl or x is tl.core]
        if any(tl.core.is_builtin(module.load) for module in modules):
            return patch(fn)
        return nothing_to_undo()

    interpreter._patch_lang = patch_new
