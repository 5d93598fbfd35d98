"""Writes a data set for summarisation that every Python has: what its own functions do, in one line.

The source of a row is a function or class of the standard library: its name and arguments, the rest of its
docstring, and its code. The target is the first paragraph of its docstring.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path

from fastkd import files
from fastkd.demo import text

# Characters of a first paragraph: shorter ones say nothing, and longer ones are no summaries.
TARGET = (10, 200)
# Characters that a source needs beside its name, and its longest, which is about 400 tokens.
SOURCE = (60, 1600)
HELD_OUT = 0.06


def write(folder: Path, seed: int = 0) -> dict[str, int]:
    """Write ``train.jsonl`` and ``validation.jsonl``, rows of ``source`` and ``target``, to ``folder``.

    Whole modules are held out, so that no validation row has a sibling of its own module in training. Pairs
    that occur twice are kept once.

    Returns:
        The number of rows of each file.
    """
    modules = {name: code for name, code in text.documents().items() if name.endswith(".py")}
    train, held_out = text.split(modules, HELD_OUT, seed)
    folder.mkdir(parents=True, exist_ok=True)
    seen: set[tuple[str, str]] = set()
    counts = {}
    for name, codes in (("validation", held_out), ("train", train)):
        found = [pair for code in codes for pair in pairs(code) if pair not in seen]
        found = list(dict.fromkeys(found))
        seen.update(found)
        lines = [json.dumps({"source": source, "target": target}) for source, target in found]
        files.write_text(folder / f"{name}.jsonl", "".join(f"{line}\n" for line in lines))
        counts[name] = len(found)
    return counts


def pairs(code: str) -> Iterator[tuple[str, str]]:
    """Sources and targets in the code of a module; none if it is not this Python's syntax."""
    try:
        tree = ast.parse(code)
    except SyntaxError:
        return
    for node in ast.walk(tree):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            continue
        first, _, rest = (ast.get_docstring(node) or "").partition("\n\n")
        target = " ".join(first.split())
        if not TARGET[0] <= len(target) <= TARGET[1]:
            continue
        inside = f"{rest.strip()}\n{ast.unparse(ast.Module(node.body[1:], []))}".strip()
        if len(inside) >= SOURCE[0]:
            yield f"{_head(node)}\n{inside}"[: SOURCE[1]], target


def _head(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> str:
    """The name, with the arguments of a function or the bases of a class."""
    if isinstance(node, ast.ClassDef):
        return f"class {node.name}({', '.join(map(ast.unparse, node.bases))})"
    return f"{node.name}({ast.unparse(node.args)})"
