"""The package ``kernels`` loads the build, accepts its layers, and runs the example of its card.

``make test-hub`` installs that package; without it these tests are skipped.
"""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastkd

kernels = pytest.importorskip("kernels", reason="`make test-hub` installs the package kernels")


@pytest.fixture(scope="module")
def loaded(built: Path) -> ModuleType:
    module: ModuleType = kernels.get_local_kernel(built)
    return module


def both(library: Any, **options: Any) -> tuple[Tensor, Tensor]:
    """A loss of ``library`` and the gradient of the student's logits."""
    torch.manual_seed(0)
    student, teacher = torch.randn(4, 37, requires_grad=True), torch.randn(4, 37)
    loss = library.kd_loss(student, teacher, torch.tensor([0, -100, 5, 36]), kd_ratio=0.5, **options)
    return loss.detach(), torch.autograd.grad(loss, student)[0]


@pytest.mark.parametrize("backend", ["reference", pytest.param("triton", marks=pytest.mark.triton_interpret)])
@pytest.mark.parametrize("divergence", ["forward_kl", "jsd"])
def test_a_loaded_kernel_equals_fastkd(loaded: ModuleType, backend: str, divergence: str) -> None:
    found = both(loaded, divergence=divergence, backend=backend)
    expected = both(fastkd, divergence=divergence, backend=backend)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))


def test_metadata(built: Path, loaded: ModuleType) -> None:
    """The package reads each variant's metadata, and finds the digests that they state."""
    (kernel,) = [each for each in kernels.get_loaded_kernels() if each.module is loaded]
    assert (str(kernel.metadata.name), kernel.metadata.version) == ("fastkd", 0)
    assert kernel.metadata.python_depends == []
    rust = pytest.importorskip("kernels._rust")
    variants = sorted((built / "build").iterdir())
    assert [path.name for path in variants] == [f"torch-{x}" for x in ("cpu", "cuda", "metal", "rocm", "xpu")]
    for path in variants:
        metadata = rust.Metadata.read_from_file(path / "metadata.json")
        actual = rust.Digest.hash_variant(rust.DigestAlgorithm.SHA256, path)
        metadata.digest.validate(actual)
        assert f"torch-{str(metadata.backend.backend_type).lower()}" == path.name


def kernelized(layer: nn.Module, name: str, built: Path) -> nn.Module:
    """The layer with the forward of the hub's layer of this name, for training under torch.compile."""
    kernels.replace_kernel_forward_from_hub(type(layer), name)
    source = kernels.LocalLayerRepository(built, layer_name=name)
    mode = kernels.Mode.TRAINING | kernels.Mode.TORCH_COMPILE
    with kernels.use_kernel_mapping({name: {"cpu": {mode: source}}}, inherit_mapping=False):
        fallback = kernels.KernelizeFallback.NONE
        found: nn.Module = kernels.kernelize(layer, mode=mode, device="cpu", use_fallback=fallback)
    return found


def test_a_layer_in_plain_torch_adopts_the_kernel(built: Path, loaded: ModuleType) -> None:
    class PlainLoss(nn.Module):
        def __init__(self, **options: Any) -> None:
            super().__init__()
            self.options = options

        def forward(
            self, student_logits: Tensor, teacher: Tensor, labels: Tensor | None = None, **options: Any
        ) -> Tensor:
            raise AssertionError("the layer's own forward was called")

    layer = kernelized(PlainLoss(divergence="jsd", beta=0.3), "KDLoss", built)
    student, teacher = torch.randn(3, 11, requires_grad=True), torch.randn(3, 11)
    expected = loaded.kd_loss(student, teacher, divergence="jsd", beta=0.3, temperature=2.0)
    for call in (layer, torch.compile(layer, fullgraph=True, backend="aot_eager")):
        found = call(student, teacher, temperature=2.0)
        torch.testing.assert_close(found, expected)
        assert torch.autograd.grad(found, student)[0].any()


def test_the_layer_over_hidden_states(built: Path, loaded: ModuleType) -> None:
    class Loss(fastkd.LinearKDLoss):
        """A class of its own, since kernels marks the class whose layers it may replace."""

    layer = kernelized(Loss(divergence="tvd"), "LinearKDLoss", built)
    hidden, weight, teacher = torch.randn(3, 4), torch.randn(11, 4), torch.randn(3, 11)
    expected = loaded.linear_kd_loss(hidden, weight, teacher, divergence="tvd")
    assert torch.equal(layer(hidden, weight, teacher), expected)
    assert layer.forward.__func__ is loaded.layers.LinearKDLoss.forward


def test_the_example_of_the_card(built: Path, loaded: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Users see it on the hub. Here the name in it stands for the local build, without a connection."""
    (example,) = re.findall(r"```python\n(.*?)```", (built / "README.md").read_text(), re.DOTALL)
    monkeypatch.setenv("LOCAL_KERNELS", f"fastkd/fastkd={built}")
    variables: dict[str, Any] = {}
    exec(example, variables)
    assert variables["fastkd"] is loaded
    assert variables["loss"] > 0 and variables["student"].grad.any()
