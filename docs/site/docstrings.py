"""Turns docstrings into what mkdocstrings reads: the roles of Sphinx, and parameters that share a line."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:class|func|meth):`(~?)([^`]+)`")
INLINE = re.compile(r":math:`([^`]+)`")
BLOCK = re.compile(r"^( *)\.\. math:: (.+)$", flags=re.MULTILINE)
PARAMETERS = re.compile(r"^( *)Args:\n(?:\1 +.*\n?)+", flags=re.MULTILINE)
TOGETHER = re.compile(r"^( +)(\w+(?:, \w+)+):(.*(?:\n\1 +.*)*)$", flags=re.MULTILINE)


def _role(match: re.Match[str]) -> str:
    """A name as code, which leads to its place in the reference if it has one."""
    shown = match[2].rpartition(".")[2] if match[1] else match[2]
    path = match[2] if match[2].startswith(("fastkd.", "transformers.")) else f"fastkd.{match[2]}"
    return f'<autoref identifier="{path}" optional><code>{shown}</code></autoref>'


def _apart(match: re.Match[str]) -> str:
    """The parameters of a line such as ``a, b: text``, each with the text."""
    return "\n".join(f"{match[1]}{name}:{match[3]}" for name in match[2].split(", "))


class SphinxRoles(griffe.Extension):
    """Rewrites what ``help()`` shows as it is: ``:class:`X```, ``:math:`x```, ``.. math::``, and parameters
    such as ``alpha, beta: text``.
    """

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None and not obj.is_alias:
            text = INLINE.sub(r"$\1$", ROLE.sub(_role, obj.docstring.value))
            text = PARAMETERS.sub(lambda args: TOGETHER.sub(_apart, args[0]), text)
            obj.docstring.value = BLOCK.sub(r"\1$$\2$$", text)
