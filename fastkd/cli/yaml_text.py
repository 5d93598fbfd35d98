"""Reads the YAML of a configuration, and says in one sentence, with the line, why it cannot be read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """Refuses a key that is given twice: YAML's own loader silently keeps the last of them."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            if key.value in lines:
                problem = f"{key.value} is given in line {lines[key.value]} already: leave one of them"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            lines[key.value] = key.start_mark.line + 1
        return super().construct_mapping(node, deep)


# YAML 1.1, which PyYAML reads, takes 1e-4 for text, since it has no dot. JSON and YAML 1.2 read a number.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read_file(path: Path) -> dict[str, Any]:
    """The fields of a configuration file.

    Raises:
        ValueError: there is no such file, it cannot be read as UTF-8 or as YAML, or it holds no fields.
    """
    if path.is_dir():
        raise ValueError(f"{str(path)!r} is a directory: give the configuration file in it")
    if not path.exists():
        raise ValueError(f"there is no configuration file {str(path)!r}")
    try:
        text = path.read_text("utf-8-sig")  # Windows editors put a byte order mark before the text
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start}): save it as UTF-8") from error
    given = read_value(text, str(path))
    if given is None:
        raise ValueError(f"{path} is empty: write `field: value` lines into it")
    if not isinstance(given, dict):
        raise ValueError(f"{path} must contain `field: value` lines, not a {type(given).__name__}")
    return given


def read_value(text: str, name: str) -> Any:
    """The value of a YAML text; ``name`` is that of its file or field, for messages.

    Raises:
        ValueError: the text is not YAML, or gives a key twice.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = "" if mark is None or "\n" not in text else f", line {mark.line + 1}"
        problem = " ".join(filter(None, (error.context, error.problem)))
        if "'\\t'" in problem:
            problem += ": indent with spaces, not with tabs"
        if isinstance(error, yaml.constructor.ConstructorError):
            raise ValueError(f"{name}{where}: {problem}") from error
        raise ValueError(f"{name} is not valid YAML{where}: {problem}") from error
    except yaml.YAMLError as error:  # a character that YAML does not allow
        raise ValueError(f"{name} is not valid YAML: {' '.join(str(error).split())}") from error
