"""The command that installs a missing package, with the extra of fastkd that brings it."""

from __future__ import annotations

import re

# The extras of fastkd, and the modules that they bring.
EXTRAS = {
    "train": ("transformers", "accelerate", "datasets", "sacrebleu", "rouge_score", "matplotlib", "yaml"),
    "peft": ("peft",),
    "vllm": ("vllm",),
    "triton": ("triton",),
    "bench": ("pytest_benchmark", "cpuinfo", "liger_kernel", "trl", "orda_kernel"),
}
# Modules whose package has another name.
PACKAGES = {
    "PIL": "pillow",
    "attr": "attrs",
    "cv2": "opencv-python",
    "google": "protobuf",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}


def missing_package(error: ModuleNotFoundError) -> str | None:
    """The module or package that an error says is missing; None if it names none, or a part of fastkd."""
    name = str(error.name or "")
    required = re.match(r"The '([\w.-]+)[^']*' distribution was not found", name)  # says transformers
    if required:
        return required[1]
    whole = all(part.isidentifier() for part in name.split("."))
    return name if whole and name.partition(".")[0] != "fastkd" else None


def remedy(module: str) -> str:
    """``pip install ...`` for a module that cannot be imported."""
    name = module.partition(".")[0]
    for extra, modules in EXTRAS.items():
        if name in modules:
            return f"pip install 'fastkd[{extra}]'"
    return f"pip install {PACKAGES.get(name, name)}"
