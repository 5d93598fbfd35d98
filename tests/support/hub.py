"""The builder of the kernel for the Hugging Face hub, and the import of a build as ``kernels`` does it."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]


def _module(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


build = _module("hub_build", ROOT / "hub/build.py")


def load(variant: Path) -> ModuleType:
    """Import a build variant under its id. It needs no package but torch."""
    return _module(json.loads((variant / "metadata.json").read_text())["id"], variant / "__init__.py")
