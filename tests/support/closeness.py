"""Tolerances of the suite, per dtype, and the assertions that use them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

# Relative error allowed for a gradient of each dtype; it is computed in float32 and rounded once.
ROUNDING = {torch.float64: 1e-11, torch.float32: 3e-6, torch.bfloat16: 2.5e-3, torch.float16: 6e-4}


def assert_value(actual: Tensor, expected: Tensor, *, rtol: float | None = None, atol: float = 1e-6) -> None:
    """Assert that two values are close. What exceeds the dtype of ``actual`` is expected to be infinite."""
    expected = expected.to(actual.dtype)
    wide = actual.dtype == torch.float64
    rtol = rtol if rtol is not None else (1e-11 if wide else 3e-6)
    torch.testing.assert_close(actual.double(), expected.double(), rtol=rtol, atol=1e-11 if wide else atol)


def assert_gradient(actual: Tensor, expected: Tensor, *, factor: float = 1.0) -> None:
    """Assert that the gradient's relative error is small as a whole, and that no element is far off."""
    assert actual.shape == expected.shape
    a, e = actual.double().cpu(), expected.double().cpu()
    assert not a.isnan().any(), "NaN in the gradient"
    bound = ROUNDING[actual.dtype] * factor
    # A gradient that is 0 in exact arithmetic may come out as rounding noise.
    noise = 1e-12 if actual.dtype == torch.float64 else 3e-6 / max(1, a.shape[-1]) ** 0.5
    info = torch.finfo(actual.dtype)
    subnormal = 0.5 * info.tiny * info.eps  # the rounding of an element below the dtype's normal numbers
    error, lost = (a - e).norm(), subnormal * a.numel() ** 0.5
    assert error <= bound * e.norm() + noise + lost, (
        f"relative error {error / e.norm():.3g}, allowed {bound:.3g}"
    )
    largest = (a - e).abs().max() if a.numel() else torch.zeros(())
    assert largest <= 4 * bound * (e.abs().max() if e.numel() else 0) + noise + subnormal


def enlargement(options: Mapping[str, object]) -> float:
    """The factor by which ``alpha`` and ``alpha_beta`` enlarge the rounding of their sums; at least 1."""
    a, b = (float(options.get(name, 0.5)) for name in ("alpha", "beta"))  # type: ignore[arg-type]
    if options.get("divergence") == "alpha_beta":
        return max(1.0, 1 / abs(a * b))
    return max(1.0, 1 / abs(a * (1 - a))) if options.get("divergence") == "alpha" else 1.0


def value_rounding(temperature: float, options: Mapping[str, object]) -> float:
    """The absolute error that float32 arithmetic leaves in a divergence.

    Its sums, near 1, are right to two units of roundoff, and the loss multiplies them by T^2. (A single
    exponential may have a systematic error of one unit, as NumPy's for AVX-512 has.)
    """
    return 1e-7 * temperature**2 * enlargement(options)


@contextmanager
def during(**what: object) -> Iterator[None]:
    """Add the current loop values to the message of an assertion that fails in the block."""
    try:
        yield
    except AssertionError as error:
        raise AssertionError(f"{', '.join(f'{k}={v}' for k, v in what.items())}: {error}") from error
