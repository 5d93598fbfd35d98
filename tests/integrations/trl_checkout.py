"""Run the loss tests of a checkout of TRL as they are, and then with fastkd in place of TRL's losses.

    python tests/integrations/trl_checkout.py CHECKOUT [arguments for pytest]

The interpreter needs fastkd, TRL and pytest. The loss tests are those of the classes with ``Loss`` in their
name, among the tests of ``GKDTrainer`` and ``DistillationTrainer``. Those that TRL leaves out on a CPU run on
any device. Other tests load models from the hub, and are left out. This file is also the plugin of pytest
that does so.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FILES = ("tests/test_distillation_trainer.py", "tests/experimental/test_gkd_trainer.py")
ACCELERATOR = "test requires accelerator"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fastkd", action="store_true", help="put fastkd in place of TRL's losses")


def pytest_configure(config: pytest.Config) -> None:
    if not config.getoption("--fastkd"):
        return
    from trl import DistillationTrainer
    from trl.experimental.gkd.gkd_trainer import GKDTrainer
    from trl.trainer import distillation_trainer

    from fastkd.integrations import trl as adapter

    for trainer in (GKDTrainer, DistillationTrainer):
        adapter.use_fastkd(trainer)
    # The tests call the function itself, not the trainer.
    distillation_trainer._chunked_divergence_loss = adapter.chunked_divergence_loss


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    kept = [item for item in items if "Loss" in getattr(item.getparent(pytest.Class), "name", "")]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept
    for node in {node for item in items for node in item.listchain()}:
        node.own_markers = [m for m in node.own_markers if m.kwargs.get("reason") != ACCELERATOR]


def main(checkout: Path, *arguments: str) -> int:
    files = [name for name in FILES if (checkout / name).exists()]
    if not files:
        print(f"{checkout} has none of {', '.join(FILES)}: pass a checkout of huggingface/trl")
        return 2
    command = [sys.executable, "-m", "pytest", "-p", Path(__file__).stem, "-q", *files, *arguments]
    path = f"PYTHONPATH={Path(__file__).parent}:{':'.join(filter(None, sys.path[1:]))}"
    failed = 0
    for title, option in (("TRL's own losses", []), ("fastkd in their place", ["--fastkd"])):
        print(f"--- {title}", flush=True)
        failed |= subprocess.run(["env", path, *command, *option], cwd=checkout).returncode
    return failed


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve(), *sys.argv[2:]))
