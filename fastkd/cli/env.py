"""``fastkd env``: versions, backends, instruction set, and why a backend is missing."""

from __future__ import annotations

import argparse
import json
import platform
from importlib import metadata
from typing import Any

PACKAGES = ("torch", "triton", "transformers", "accelerate", "datasets", "tokenizers", "numpy", "matplotlib")


def collect() -> dict[str, Any]:
    """Everything that a bug report should state about the machine and the installation."""
    import torch

    import fastkd
    from fastkd.backends import native

    isas = native.cpu_isas()
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "fastkd": fastkd.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "cpu": {
            "instruction set": native.cpu_isa() if isas else None,
            "available": isas,
            "threads": torch.get_num_threads(),
        },
        "gpus": gpus,
        "built with CUDA": native.built_with_cuda(),
        "torch's CUDA": torch.version.cuda,
        "backends": fastkd.available_backends(),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _text(report: dict[str, Any]) -> str:
    cpu, cuda = report["cpu"], report["built with CUDA"]
    machine = {
        "CPU kernels": f"{cpu['instruction set'] or 'not built'} of {', '.join(cpu['available']) or 'none'}",
        "threads": cpu["threads"],
        "GPU": ", ".join(report["gpus"]) or "none that torch sees",
        "CUDA kernels": f"built with {cuda}" if cuda else "not built",
    }
    packages = {name: version or "not installed" for name, version in report["packages"].items()}
    sections = {"packages": packages, "machine": machine, "backends": report["backends"]}
    width = max(len(name) for section in sections.values() for name in section)
    lines = [f"fastkd {report['fastkd']}, Python {report['python']}, {report['platform']}"]
    for title, section in sections.items():
        lines += ["", title, *(f"  {name:<{width}}  {value}" for name, value in section.items())]
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="fastkd env", description=__doc__)
    parser.add_argument("--json", action="store_true", help="machine-readable (default: text)")
    options = parser.parse_args(argv)
    report = collect()
    print(json.dumps(report, indent=2) if options.json else _text(report))
    return 0
