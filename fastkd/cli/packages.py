"""The command that installs a missing package, with the extra of fastkd that brings it."""

from __future__ import annotations

# The extras of fastkd, and the modules that they bring.
EXTRAS = {
    "train": ("transformers", "accelerate", "datasets", "sacrebleu", "rouge_score", "matplotlib", "yaml"),
    "peft": ("peft",),
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


def remedy(module: str) -> str:
    """``pip install ...`` for a module that cannot be imported."""
    name = module.partition(".")[0]
    for extra, modules in EXTRAS.items():
        if name in modules:
            return f"pip install 'fastkd[{extra}]'"
    return f"pip install {PACKAGES.get(name, name)}"
