"""Builds the kernel for the Hugging Face hub from fastkd's sources: ``python hub/build.py --out DIRECTORY``.

The result has the layout that the package ``kernels`` loads: ``build/torch-<backend>`` for each backend of
``hub/build.toml``, all with the same pure Python. It consists of the modules that ``hub/kernel/__init__.py``
imports, directly or not; a module in ``hub/kernel`` takes the place of fastkd's module of that name. Two
things change on the way: imports of fastkd become relative, because ``kernels`` gives each loaded kernel a
name of its own, and the ops get a namespace that belongs to these very sources.

The same sources give the same bytes. Nothing is imported or downloaded.
"""

from __future__ import annotations

import argparse
import ast
import base64
import functools
import hashlib
import json
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10, where pytest brings the package
    import tomli as tomllib

HUB = Path(__file__).resolve().parent
ROOT = HUB.parent
# The folders that a module is looked for in; the first that has it counts.
FOLDERS = (HUB / "kernel", ROOT / "fastkd")
# The hub allows the standard library and torch; kernels in Triton need Triton.
ALLOWED = frozenset({"torch", "triton", *sys.stdlib_module_names})
# Allowed inside functions: Triton's interpreter, which needs NumPy itself, is checked against its version.
ALLOWED_INSIDE = frozenset({"numpy"})

NAMESPACE_MODULE = ("ops", "namespace")
NAMESPACE_LINE = 'NAMESPACE = "fastkd"\n'

# A module's name within fastkd, in parts: () for the package itself.
Name = tuple[str, ...]


class BuildError(Exception):
    """The sources cannot become a kernel; the message names the line."""


class Import(NamedTuple):
    """An import of fastkd's own: ``from base import names``, with ``base`` within fastkd."""

    node: ast.ImportFrom
    base: Name
    names: tuple[str, ...]


@dataclass
class Module:
    """A module of the kernel.

    Attributes:
        path: its source.
        package: the package that its relative imports start from, within fastkd.
        text: the source.
    """

    path: Path
    package: Name
    text: str

    @property
    def target(self) -> str:
        """Its place in the kernel."""
        return "/".join((*self.package, self.path.name))

    def error(self, node: ast.stmt, message: str) -> BuildError:
        return BuildError(f"{self.path.relative_to(ROOT).as_posix()}:{node.lineno}: {message}")

    @functools.cached_property
    def imports(self) -> list[Import]:
        """Its imports of fastkd.

        Raises:
            BuildError: it imports something that a kernel may not, or fastkd in a form that cannot be
                relative.
        """
        nodes = list(ast.walk(ast.parse(self.text)))
        functions = [node for node in nodes if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
        inside = {id(node) for function in functions for node in ast.walk(function)}
        found = []
        for node in nodes:
            if isinstance(node, ast.Import):
                for name in (alias.name for alias in node.names):
                    if name.split(".")[0] == "fastkd":
                        raise self.error(node, f"'import {name}' cannot be relative: use 'from'")
                    self._check_foreign(node, name, id(node) in inside)
            elif isinstance(node, ast.ImportFrom):
                names = tuple(alias.name for alias in node.names)
                parts = tuple(node.module.split(".")) if node.module else ()
                if node.level:
                    kept = len(self.package) - node.level + 1
                    found.append(Import(node, self.package[:kept] + parts, names))
                elif parts[0] == "fastkd":
                    found.append(Import(node, parts[1:], names))
                else:
                    self._check_foreign(node, parts[0], id(node) in inside)
        return found

    def _check_foreign(self, node: ast.stmt, name: str, inside: bool) -> None:
        top = name.split(".")[0]
        if top not in ALLOWED and not (inside and top in ALLOWED_INSIDE):
            raise self.error(node, f"imports {top}, and a kernel of the hub has only torch and Triton")

    def relative(self) -> str:
        """Its text with relative imports in place of those of fastkd."""
        lines = self.text.splitlines(keepends=True)
        for each in self.imports:
            if each.node.level:
                continue
            row, start = each.node.lineno - 1, each.node.col_offset
            before = f"from {each.node.module} import"
            if not lines[row][start:].startswith(before):
                raise self.error(each.node, f"write '{before} ...' on one line, with single spaces")
            after = f"from {'.' * (len(self.package) + 1)}{'.'.join(each.base)} import"
            lines[row] = lines[row][:start] + after + lines[row][start + len(before) :]
        return "".join(lines)


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def find(name: Name) -> tuple[Path, Name] | None:
    """The source of the module with this name and its package, or None; a package is its ``__init__.py``."""
    for folder in FOLDERS:
        place = folder.joinpath(*name)
        if (place / "__init__.py").is_file():
            return place / "__init__.py", name
        if name and place.with_suffix(".py").is_file():
            return place.with_suffix(".py"), name[:-1]
    return None


def closure() -> list[Module]:
    """The modules that the kernel needs, sorted by their place in it.

    Raises:
        BuildError: an import is not allowed, or leads nowhere.
    """
    found: dict[Name, Module] = {}
    waiting: list[Name] = [()]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        place = find(name)
        assert place is not None
        found[name] = module = Module(*place, _read(place[0]))
        for node, base, names in module.imports:
            if find(base) is None:
                raise module.error(node, f"there is no fastkd.{'.'.join(base)}")
            if "_C" in names and not base:
                raise module.error(node, "imports the compiled module, which a kernel of the hub lacks")
            waiting += [base[:length] for length in range(len(base) + 1)]
            waiting += [(*base, name) for name in names if find((*base, name)) is not None]
    return sorted(found.values(), key=lambda module: module.target)


def sources() -> dict[str, str]:
    """The kernel's files of Python, with fastkd's own namespace in them.

    Raises:
        BuildError: see :func:`closure`.
    """
    return {module.target: module.relative() for module in closure()}


def with_namespace(texts: dict[str, str], namespace: str) -> dict[str, str]:
    """The files with their ops in another namespace."""
    target = "/".join(NAMESPACE_MODULE) + ".py"
    if texts.get(target, "").count(NAMESPACE_LINE) != 1:
        raise BuildError(f"{target} has not exactly one line {NAMESPACE_LINE.strip()}")
    changed = texts[target].replace(NAMESPACE_LINE, f"NAMESPACE = {json.dumps(namespace)}\n")
    return {**texts, target: changed}


def description() -> dict[str, Any]:
    """The section ``general`` of ``hub/build.toml``."""
    found: dict[str, Any] = tomllib.loads(_read(HUB / "build.toml"))["general"]
    return found


def _hash(data: bytes) -> str:
    return base64.b64encode(hashlib.sha256(data).digest()).decode()


def variant(texts: dict[str, str], backend: str, unique: str) -> dict[str, bytes]:
    """The files of one build variant.

    Args:
        unique: what distinguishes these sources from all others, of letters and digits.
    """
    general = description()
    name = f"_{general['name']}_{backend}_{unique}"
    files = {path: text.encode() for path, text in with_namespace(texts, name).items()}
    files["LICENSE"] = (ROOT / "LICENSE").read_bytes()
    metadata = {
        "name": general["name"],
        "id": name,
        "version": general["version"],
        "license": general["license"],
        "python-depends": [],
        "backend": {"type": backend},
        "digest": {"algorithm": "sha256", "files": {path: _hash(files[path]) for path in sorted(files)}},
    }
    files["metadata.json"] = (json.dumps(metadata, indent=2) + "\n").encode()
    return files


def card(repo_id: str) -> str:
    """The page that the hub shows, from ``hub/README.md``."""
    general = description()
    version = re.search(r'^__version__ = "(.+)"$', _read(ROOT / "fastkd/__init__.py"), re.MULTILINE)
    assert version is not None
    return _read(HUB / "README.md").format(
        repo_id=repo_id,
        license=general["license"],
        version=general["version"],
        fastkd_version=version[1],
    )


def kernel(repo_id: str | None = None) -> dict[str, bytes]:
    """All files of the repository on the hub, by their paths in it.

    Args:
        repo_id: ``owner/name`` on the hub; None for that of ``hub/build.toml``.

    Raises:
        BuildError: see :func:`closure`.
    """
    general, text = description(), _read(HUB / "build.toml")
    listed = general["hub"]["repo-id"]
    repo_id = repo_id or listed
    texts = sources()
    unique = hashlib.sha256(json.dumps(texts, sort_keys=True).encode()).hexdigest()[:7]
    files = {
        "build.toml": text.replace(json.dumps(listed), json.dumps(repo_id)).encode(),
        "README.md": card(repo_id).encode(),
        "LICENSE": (ROOT / "LICENSE").read_bytes(),
    }
    for backend in general["backends"]:
        for path, data in variant(texts, backend, unique).items():
            files[f"build/torch-{backend}/{path}"] = data
    return files


def write(files: dict[str, bytes], out: Path) -> None:
    """Write the files into ``out``, which is replaced if it holds an earlier build.

    Raises:
        BuildError: ``out`` holds something else.
    """
    if out.exists():
        there = {path.name for path in out.iterdir()} if out.is_dir() else {""}
        # build.toml is written first, so an interrupted build has it, too.
        if there and not {"build.toml"} <= there <= {path.split("/")[0] for path in files}:
            raise BuildError(f"{out} is not an earlier build: remove it or choose another directory")
        shutil.rmtree(out)
    for path, data in files.items():
        place = out / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split(":")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "build/hub-kernel", help="(default: %(default)s)")
    parser.add_argument("--repo-id", help="owner/name on the hub (default: that of hub/build.toml)")
    arguments = parser.parse_args()
    try:
        files = kernel(arguments.repo_id)
        write(files, arguments.out)
    except BuildError as error:
        parser.exit(1, f"{error}\n")
    size = sum(len(data) for data in files.values())
    print(f"{arguments.out}: {len(files)} files, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
