"""Finds adapters: those that ship with fastkd by a name, and a user's by the path of a Python file."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import warnings
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from fastkd.conformance.adapter import Adapter

# name -> (module, the library's heading, the package to install)
SHIPPED = {
    "fastkd": ("fastkd_loss", "fastkd", "fastkd"),
    "torch": ("plain_torch", "plain torch", "torch"),
    "compile": ("compiled_torch", "torch.compile", "torch"),
    "trl": ("trl_gkd", "TRL", "trl"),
    "liger": ("liger_chunked", "Liger chunked", "liger-kernel"),
    "liger-triton": ("liger_triton", "Liger's Triton losses", "liger-kernel"),
    "modelopt": ("modelopt", "ModelOpt", "nvidia-modelopt"),
    "orda": ("orda", "orda-kernel", "orda-kernel"),
    "textbrewer": ("textbrewer_kd", "TextBrewer", "textbrewer"),
    "torchdistill": ("torchdistill_kd", "torchdistill", "torchdistill"),
}


@dataclass(frozen=True)
class Missing:
    """A loss that cannot run here, and why."""

    name: str
    why: str


def load(name: str, device: str = "cpu") -> list[Adapter | Missing]:
    """The adapters of a shipped name or of a file, whose module has a tuple ``adapters``.

    Raises:
        ValueError: there is neither such a name nor such a file, or the file has no ``adapters``.
        ImportError: a user's file cannot be imported. A shipped one is returned as ``Missing``.
    """
    if name in SHIPPED:
        module, heading, package = SHIPPED[name]
        try:
            found = _imported(f"fastkd.conformance.adapters.{module}")
        except ModuleNotFoundError as error:
            return [Missing(heading, f"not installed: no module {error.name!r} (pip install {package})")]
        except Exception as error:  # importing another package may raise any error
            return [Missing(heading, f"cannot be imported: {type(error).__name__}: {error}")]
    else:
        found = _of_file(name)
    return [_present(adapter, device) for adapter in found.adapters]


def _present(adapter: Adapter, device: str) -> Adapter | Missing:
    if device == "cpu" and adapter.on_cpu is not None:
        return Missing(adapter.name, adapter.on_cpu)
    return adapter


def _imported(module: str) -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(module)


def _of_file(name: str) -> ModuleType:
    path = Path(name)
    if path.suffix != ".py" or not path.exists():
        near = difflib.get_close_matches(name, SHIPPED, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{name!r} is neither a Python file nor one of {', '.join(SHIPPED)}{hint}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not getattr(module, "adapters", None):
        raise ValueError(f"{name} defines no tuple named 'adapters'")
    return module
