"""Defines the options, and makes a test of every case, route and variant of the suite."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import fastkd
from fastkd.bench import device as devices, options, plan, suite
from fastkd.bench.versions import versions


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fastkd benchmarks")
    group.addoption("--device", default="cpu", choices=("cpu", "cuda"))
    help = "logits per tensor, tokens times vocabulary"
    group.addoption("--elements", type=int, default=suite.ELEMENTS, help=help)


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    device = config.getoption("--device")
    machine_info["fastkd"] = {
        "device": devices.of(device).name(),
        "device_type": device,
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "backends": fastkd.available_backends(),
    }


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrize each test with its part of the suite; ``-k`` selects among the names."""
    config, names = metafunc.config, metafunc.fixturenames
    selected = options.select(
        config.getoption("--device"), suite=True, elements=max(1, config.getoption("--elements"))
    )
    if "variant" in names:
        found = plan.variant_cases(selected)
        ids = [f"{variant.name}-{case.dtype}" for variant, case in found]
        metafunc.parametrize(("variant", "case"), found, ids=ids)
        return
    pairs = [(case, route) for case in plan.cases(selected) for route in selected.routes if route.takes(case)]
    if metafunc.function.__name__ == "test_memory":
        pairs = [pair for pair in pairs if plan.measures_memory(selected, *pair)]
        pairs += [(case, r) for case in plan.memory_cases(selected) for r in selected.routes if r.takes(case)]
    ids = [f"{case.id}{'-alone' if case.kd_ratio == 1 else ''}-{route.name}" for case, route in pairs]
    metafunc.parametrize(("case", "route"), pairs, ids=ids)
