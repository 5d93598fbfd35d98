"""Writes the fields and the commands of the reference from the source of fastkd, which is not imported."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

FASTKD = Path(__file__).resolve().parents[2] / "fastkd"


def _tree(module: str) -> ast.Module:
    return ast.parse((FASTKD / f"{module}.py").read_text("utf-8"))


def _assigned(tree: ast.Module, name: str) -> Any:
    """The literal that a module assigns to a name, or None."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return ast.literal_eval(node.value)
    return None


def _fields() -> str:
    """A table of the fields that ``DistillationConfig`` adds to those of ``transformers``."""
    lines = ["| field | type | default | meaning |", "|---|---|---|---|"]
    for node in ast.walk(_tree("trainer/config")):
        if isinstance(node, ast.AnnAssign) and isinstance(node.value, ast.Call):
            given = {keyword.arg: ast.literal_eval(keyword.value) for keyword in node.value.keywords}
            default = given["default"]
            shown = "unset" if default is None else f"`{str(default).lower()}`"
            kind = ast.unparse(node.annotation).removesuffix(" | None").replace("|", "or")
            lines.append(
                f"| `{ast.unparse(node.target)}` | `{kind}` | {shown} | {given['metadata']['help']} |"
            )
    return "\n".join(lines)


def _commands() -> str:
    """A section for each command, with the text of its ``--help``."""
    lines = []
    for name, (module, line) in _assigned(_tree("cli/__init__"), "COMMANDS").items():
        tree = _tree(module.removeprefix("fastkd.").replace(".", "/"))
        about = _assigned(tree, "ABOUT") or ast.get_docstring(tree)
        parts = [f"```\n{part}\n```" if part.startswith("  ") else part for part in about.split("\n\n")]
        lines += [f"## fastkd {name}", f"{line[0].upper()}{line[1:]}.", *parts]
    return "\n\n".join(lines)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the reference in the places that are kept for it."""
    for mark, text in (("<!-- fields -->", _fields), ("<!-- commands -->", _commands)):
        if mark in markdown:
            markdown = markdown.replace(mark, text())
    return markdown
