"""Writes a data set for summarisation that every Python has: what its own functions do, in one line.

The source of a row is a function or class of the standard library: its name and arguments, the rest of its
docstring, and its code. The target is the first paragraph of its docstring.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import warnings
from collections.abc import Iterator
from pathlib import Path

from fastkd import files
from fastkd.demo import text

# Characters of a first paragraph: shorter ones say nothing, and longer ones are no summaries.
TARGET = (10, 200)
# Characters that a source needs beside its name, and its longest, which is about 400 tokens.
SOURCE = (60, 1600)
HELD_OUT = 0.06
# Packages that come with torch and fastkd's trainer, for a model that needs more examples than the standard
# library has.
PACKAGES = (
    "accelerate", "datasets", "fsspec", "huggingface_hub", "jinja2", "networkx", "numpy", "peft", "sympy",
    "torch", "transformers",
)  # fmt: skip
# Characters of a source in that larger set, and the line in which it ends: a language model reads it and
# goes on with the target.
SHORT_SOURCE = 200
ENDING = "\nSummary:\n"


def write(folder: Path, seed: int = 0, packages: bool = False) -> dict[str, int]:
    """Write ``train.jsonl`` and ``validation.jsonl``, rows of ``source`` and ``target``, to ``folder``.

    Whole modules are held out, so that no validation row has a sibling of its own module in training. Pairs
    that occur twice are kept once.

    Args:
        packages: Train on the functions of :data:`PACKAGES` too, as far as they are installed. Sources are
            then cut to :data:`SHORT_SOURCE` characters and end in :data:`ENDING`, and ``text.train.jsonl``
            and ``text.validation.jsonl`` hold source and target as one ``text``, to train a language model.

    Returns:
        The number of rows of each file.
    """
    modules = {name: code for name, code in text.documents().items() if name.endswith(".py")}
    train, held_out = text.split(modules, HELD_OUT, seed)
    if packages:
        train += [code for name in PACKAGES for code in _modules(name)]
    folder.mkdir(parents=True, exist_ok=True)
    seen: set[tuple[str, str]] = set()
    counts = {}
    for name, codes in (("validation", held_out), ("train", train)):
        found = [pair for code in codes for pair in pairs(code)]
        if packages:
            found = [(source[:SHORT_SOURCE] + ENDING, target) for source, target in found]
        found = [pair for pair in dict.fromkeys(found) if pair not in seen]
        seen.update(found)
        rows = [{"source": source, "target": target} for source, target in found]
        counts[name] = _write(folder / f"{name}.jsonl", rows)
        if packages:
            rows = [{"text": source + target} for source, target in found]
            counts[f"text.{name}"] = _write(folder / f"text.{name}.jsonl", rows)
    return counts


def _write(path: Path, rows: list[dict[str, str]]) -> int:
    files.write_text(path, "".join(f"{json.dumps(row)}\n" for row in rows))
    return len(rows)


def _modules(package: str) -> list[str]:
    """The code of an installed package's modules, without its tests; empty if it is not installed."""
    spec = importlib.util.find_spec(package)
    folders = (spec.submodule_search_locations if spec else None) or []
    return [
        path.read_text("utf-8", errors="replace")
        for folder in folders
        for path in sorted(Path(folder).rglob("*.py"))
        if not text.SKIPPED & set(path.relative_to(folder).parts)
    ]


def pairs(code: str) -> Iterator[tuple[str, str]]:
    """Sources and targets in the code of a module; none if it is not this Python's syntax."""
    with warnings.catch_warnings():
        # Other people's code has strings with a backslash that means nothing, of which the parser warns.
        warnings.simplefilter("ignore")
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
