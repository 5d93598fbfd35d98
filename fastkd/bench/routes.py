"""Defines a route: one way to compute the quantity of a case, fastkd's or a peer's."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import fastkd
from fastkd.backends.registry import REGISTRY
from fastkd.bench.cases import TEMPERATURE, Case, Loss, Problem
from fastkd.divergences import DIVERGENCES


@dataclass(frozen=True)
class Route:
    """One way to compute a loss: fastkd with one backend, or a peer.

    Args:
        name: name in the table.
        family: name by which ``--peer`` selects the route; for fastkd's routes, the backend.
        about: the function that is called, in a few words.
        loss: computes the quantity of every case that the route accepts.
        takes: whether the route computes the quantity of a case.
        absent: for a device type, why the route cannot run there at all, or None.
        ours: whether the route is fastkd's, so that a wrong result is an error and not a finding.
    """

    name: str
    family: str
    about: str
    loss: Loss
    takes: Callable[[Case], bool]
    absent: Callable[[str], str | None]
    ours: bool = False


def fastkd_loss(problem: Problem, backend: str | None = None) -> Tensor:
    """fastkd's loss for the problem's quantity."""
    case = problem.case
    needs_labels = case.kd_ratio < 1 or DIVERGENCES[case.divergence].splits_label
    labels = problem.labels if needs_labels else None
    temperature = TEMPERATURE if case.kd_ratio > 0 else 1.0
    if case.linear:
        hidden, weight = problem.student
        return fastkd.linear_kd_loss(
            *(hidden, weight, fastkd.HiddenTeacher(problem.teacher[0], problem.teacher[1]), labels),
            kd_ratio=case.kd_ratio,
            divergence=case.divergence,
            temperature=temperature,
            t_squared=case.t_squared,
            backend=backend,
        )
    return fastkd.kd_loss(
        *(problem.student[0], problem.teacher[0], labels),
        kd_ratio=case.kd_ratio,
        divergence=case.divergence,
        temperature=temperature,
        t_squared=case.t_squared,
        backend=backend,
    )


def _backend_absent(name: str) -> Callable[[str], str | None]:
    def absent(device: str) -> str | None:
        if name == "triton" and device == "cpu":
            return "on a CPU Triton can only be interpreted, which does not show its speed"
        return REGISTRY[name].missing(torch.device(device))

    return absent


def _ours(name: str) -> Route:
    def loss(problem: Problem) -> Tensor:
        return fastkd_loss(problem, name)

    return Route(
        f"fastkd {name}",
        family=name,
        about=f"backend={name!r}",
        loss=loss,
        takes=lambda case: True,
        absent=_backend_absent(name),
        ours=True,
    )


OURS = [_ours(name) for name in REGISTRY]


def default_backends(device: str) -> list[str]:
    """The compiled backends that can run on ``device``; the reference if there is none."""
    found = [r.family for r in OURS if r.family != "reference" and r.absent(device) is None]
    return found or ["reference"]


def never(device: str) -> str | None:
    return None


def needs(package: str, module: str, gpu: bool = False) -> Callable[[str], str | None]:
    """An ``absent`` function for a route that needs ``package`` and, with ``gpu``, a GPU."""

    def absent(device: str) -> str | None:
        if importlib.util.find_spec(package) is None:
            return f"{package.replace('_', '-')} is not installed: pip install 'fastkd[bench]'"
        if gpu and device == "cpu":
            return "its kernels are Triton's and need a GPU"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                importlib.import_module(module)
        except Exception as error:  # importing another package may raise any error
            said = " ".join(str(error).split())
            return f"{module} cannot be imported: {type(error).__name__}: {said[:200]}"
        return None

    return absent
