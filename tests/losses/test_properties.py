"""Compare random calls with the oracle, within the bounds that rounding allows (``support/bounds.py``)."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from support.bounds import bounds, last_rounding, row_scale
from support.closeness import during
from support.oracle import INF, reference_gradients
from support.random_calls import Example, examples, tensors

import fastkd
from fastkd.backends.native import cpu_isas, forced_isa
from fastkd.divergences import DIVERGENCES

RUNS = [("reference", None), *(("native", isa) for isa in cpu_isas())]


def check(e: Example) -> None:
    s, t, labels, weights = tensors(e)
    options = {k: v for k, v in e.options.items() if k not in ("labels", "padding")}
    options |= {"divergence": e.divergence, "token_weights": weights, **e.parameters}
    if s.shape[-1] != e.vocab or t.shape[-1] != e.vocab:
        options["vocab_size"] = e.vocab
    expected, *exact = reference_gradients(s, t, labels, **options)
    unit = 2**-53 if torch.float64 in e.dtypes else 2**-24
    scale = row_scale(e, labels, weights)
    value, *by = bounds(e, s, t, labels, scale, unit)
    # The oracle itself has float64's error, and a sum over rows is rounded once more.
    value = (value if e.options["reduction"] == "none" else value.sum()) + 2 * unit * expected.abs()

    for backend, isa in RUNS:
        a, b = s.detach().requires_grad_(), t.detach().requires_grad_()
        with forced_isa(isa) if isa else nullcontext():
            loss = fastkd.kd_loss(a, b, labels, backend=backend, **options)  # type: ignore[arg-type]
            loss.sum().backward()
        with during(backend=backend, isa=isa):
            infinite = expected == INF
            assert (loss == INF)[infinite].all(), f"{loss} for an infinite {expected}"
            error = torch.where(infinite, 0.0, loss.detach().double() - expected).abs()
            allowed = torch.where(infinite, 0.0, value)
            assert (error <= allowed).all(), f"value {loss}, exact {expected}, error {error} > {allowed}"
            rows = infinite if e.options["reduction"] == "none" else infinite.expand(e.leading)
            for side, x, grad, bound in zip(("student", "teacher"), (a, b), exact, by, strict=True):
                assert x.grad is not None and x.grad.dtype == x.dtype and x.grad.shape == x.shape
                found = x.grad.double()
                assert (found[..., e.vocab :] == 0).all(), f"a gradient in the padding of the {side}"
                if labels is not None:
                    assert (found[labels == -100] == 0).all(), f"a gradient in the {side}'s masked rows"
                dtype = x.dtype
                error = (found - grad)[..., : e.vocab].abs()
                allowed = bound + last_rounding(e, dtype, grad[..., : e.vocab].abs() + bound, scale)
                wrong = ~(error <= allowed) & ~rows[..., None]
                if wrong.any():
                    worst = torch.where(wrong, error / allowed, 0.0).nan_to_num(INF).argmax().item()
                    got, want, may = (
                        z[..., : e.vocab].flatten()[worst].item() for z in (found, grad, allowed)
                    )
                    raise AssertionError(
                        f"gradient of the {side} at {worst}: {got}, exact {want}, off by more than {may}"
                    )


CHECKS = {
    "deadline": None,
    "derandomize": True,
    "database": None,
    "suppress_health_check": list(HealthCheck),
}


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_random_calls(divergence: str) -> None:
    settings(max_examples=4, **CHECKS)(given(examples(divergence))(check))()


@pytest.mark.slow
@settings(max_examples=1_000, **CHECKS)
@given(examples())
def test_more_random_calls(e: Example) -> None:
    check(e)


@pytest.mark.long
@settings(max_examples=10_000, **CHECKS)
@given(examples())
def test_many_random_calls(e: Example) -> None:
    check(e)
