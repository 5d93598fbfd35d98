"""Test the losses for Speculators, against their definitions and against the package itself."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from support.same_loss import assert_alike
from torch import Tensor

from fastkd.errors import Unsupported
from fastkd.integrations import speculators as adapter


def plain(name: str, logits: Tensor, targets: Tensor) -> Tensor:
    q, p = F.log_softmax(logits.float(), -1), F.log_softmax(targets.detach().float(), -1)
    kl = (p.exp() * (p - q)).sum(-1)
    overlap = torch.minimum(p.exp(), q.exp()).sum(-1)
    if name == "kl_div":
        return kl
    if name == "rkl":
        return (q.exp() * (q - p)).sum(-1)
    if name == "jsd":
        m = torch.logaddexp(p, q) - math.log(2)
        return 0.5 * (p.exp() * (p - m) + q.exp() * (q - m)).sum(-1)
    if name == "ce":
        return F.cross_entropy(logits.flatten(0, 1), targets.argmax(-1).flatten(), reduction="none").view(
            logits.shape[:2]
        )
    if name == "tv":
        return 1 - overlap
    if name == "nla":
        return -overlap.clamp_min(1e-5).log()
    weight = torch.exp(-3 * overlap.detach())
    return weight * kl + (1 - weight) * (1 - overlap)


def inputs() -> list[Tensor]:
    return [2 * torch.randn(1, 6, 40), 2 * torch.randn(1, 6, 40)]


UPSTREAM = torch.tensor([[1.0, 0.5, 0.0, 2.0, 1.5, 0.25]])


@pytest.mark.parametrize("name", adapter.LOSSES)
def test_definition(name: str) -> None:
    theirs = lambda s, t: plain(name, s, t)  # noqa: E731
    assert_alike(adapter.LOSSES[name], theirs, inputs(), upstream=UPSTREAM, factor=4)


def test_an_acceptance_below_the_least_has_no_gradient() -> None:
    logits = torch.tensor([[[60.0, 0.0, 0.0]]], requires_grad=True)
    loss = adapter.neg_log_acceptance_loss(logits, torch.tensor([[[0.0, 60.0, 0.0]]]))
    loss.sum().backward()
    torch.testing.assert_close(loss.detach(), torch.full((1, 1), -math.log(1e-5)))
    assert logits.grad is not None and not logits.grad.any()


@pytest.mark.parametrize("name", adapter.LOSSES)
def test_equals_the_package(name: str) -> None:
    losses = pytest.importorskip("speculators.losses")
    theirs = losses.resolve_loss_config(name, "eager")[name][0]
    detached = lambda s, t: theirs(s, t.detach())  # noqa: E731 (their fused losses do so)
    assert_alike(adapter.LOSSES[name], detached, inputs(), upstream=UPSTREAM, factor=4)


def test_a_compound_loss_equals_the_package() -> None:
    """Speculators reduces the losses, with its mask and its decay of positions."""
    losses = pytest.importorskip("speculators.losses")
    spec = '{"ce": 0.1, "tv": 0.9}'
    mask, positions = torch.tensor([[1, 1, 0, 1, 0, 1]]), torch.arange(6)[None]

    def total(config: object, logits: Tensor, targets: Tensor) -> Tensor:
        decay = lambda pos, **_: losses.exp_loss_decay(pos, 0.8)  # noqa: E731
        return losses.compound_loss(logits, targets, mask, positions, config, decay)[0]

    ours, theirs = adapter.resolve_loss_config(spec), losses.resolve_loss_config(spec, "eager")
    assert_alike(
        lambda s, t: total(ours, s, t), lambda s, t: total(theirs, s, t.detach()), inputs(), factor=4
    )


def test_in_place_of_the_fused_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    utils = pytest.importorskip("speculators.losses.utils")
    for name, loss in dict(utils._FUSED_LOSS_FN_MAP).items():
        monkeypatch.setitem(utils._FUSED_LOSS_FN_MAP, name, loss)  # restored afterwards
    adapter.use_fastkd()
    logits, targets = inputs()
    for name in adapter.LOSSES:
        (fused, weight) = utils.resolve_loss_config(name)[name]
        assert fused is adapter.LOSSES[name] and weight == 1
        torch.testing.assert_close(
            fused(logits, targets), utils.resolve_loss_config(name, "eager")[name][0](logits, targets)
        )


def test_losses_of_another_version_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    utils = pytest.importorskip("speculators.losses.utils")
    monkeypatch.setitem(utils._FUSED_LOSS_FN_MAP, "another", lambda s, t: s)
    with pytest.raises(Unsupported, match=r"fastkd\.integrations\.speculators does not take the losses"):
        adapter.use_fastkd()
    monkeypatch.setitem(utils._EAGER_LOSS_FN_MAP, "another", lambda s, t: s)
    with pytest.raises(Unsupported, match="does not take the loss 'another'"):
        adapter.resolve_loss_config("another")
