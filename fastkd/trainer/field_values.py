"""Values of a configuration's fields as people write them: paths at home, and mappings as text or files."""

from __future__ import annotations

import contextlib
import json
import os
from typing import Any

import yaml

# Fields whose text, unless it is a mapping, names a JSON file.
MAPPING_FILES = ("accelerator_config", "fsdp_config", "deepspeed")


def at_home(place: Any) -> Any:
    """A path, or a list of them, with ~ replaced by the home directory."""
    if isinstance(place, list):
        return [at_home(one) for one in place]
    return os.path.expanduser(place) if isinstance(place, str) else place


def mapping_of(name: str, given: Any) -> Any:
    """A field that holds a mapping, or the text of one in JSON or YAML.

    Raises:
        ValueError: the field holds something else, or text that is no mapping and names no file.
    """
    if isinstance(given, str):
        if name in MAPPING_FILES and not given.lstrip().startswith("{"):
            if not os.path.isfile(given):
                raise ValueError(f"{name} is {given!r}: give a mapping, or the path of a JSON file")
            return given
        text = given
        try:
            given = json.loads(text)
        except ValueError:
            with contextlib.suppress(yaml.YAMLError):
                given = yaml.safe_load(text)
    if isinstance(given, (str, int, float, list)):
        raise ValueError(f"{name} must be a mapping such as {{name: value}}, not {given!r}")
    return given
