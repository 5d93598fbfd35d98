"""Test the counts of what a cache's entries hold, against numpy in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastkd.corpora.store.encoding import drawn, top
from fastkd.corpora.store.held import BINS, LOW, Held, masses_at_1

WIDTH, TOKENS = 300, 400


def logits_of(scale: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(TOKENS, WIDTH, generator=generator) * scale * torch.linspace(0.2, 2, TOKENS)[:, None]


def probabilities(logits: torch.Tensor, temperature: float) -> np.ndarray:
    softened = logits.double().numpy() / temperature
    exponentials = np.exp(softened - softened.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


@pytest.mark.parametrize("scale", [0.3, 3.0])
def test_the_largest_entries(scale: float) -> None:
    logits, held = logits_of(scale), Held([1.0, 2.0])
    parts = [(logits[:150], top(logits[:150], 20)), (logits[150:], top(logits[150:], 20))]
    for some, entries in parts:
        held.add(some, entries)
    assert held.distinct == 20 and held.mass(4.0) is None
    for temperature in (1.0, 2.0):
        expected = np.sort(probabilities(logits, temperature), -1)[:, -20:].sum(-1)
        low = np.percentile(expected, LOW, method="inverted_cdf")
        found = held.mass(temperature)
        assert found is not None
        assert found.mean == pytest.approx(expected.mean(), abs=1e-6)
        assert found.low == pytest.approx(low, abs=1.1 / BINS)
    stored = np.concatenate([masses_at_1(entries) for _, entries in parts])
    np.testing.assert_allclose(stored, np.sort(probabilities(logits, 1.0), -1)[:, -20:].sum(-1), rtol=2e-3)


@pytest.mark.parametrize("scale", [0.3, 3.0])
def test_drawn_entries(scale: float) -> None:
    """Distinct columns and what they hold are those of the same draws."""
    logits, held = logits_of(scale), Held([1.0])
    held.add(logits, drawn(logits, 50, torch.Generator().manual_seed(1)))
    draws = torch.multinomial(
        logits.double().softmax(-1), 50, replacement=True, generator=torch.Generator().manual_seed(1)
    ).numpy()
    columns = [np.unique(row) for row in draws]
    assert held.distinct == pytest.approx(np.mean([len(row) for row in columns]), abs=1e-12)
    expected = [row[some].sum() for row, some in zip(probabilities(logits, 1.0), columns, strict=True)]
    assert held.mass(1.0).mean == pytest.approx(np.mean(expected), abs=1e-6)  # type: ignore[union-attr]


def test_counts_are_added_up_and_read_again() -> None:
    logits = logits_of(1.0)
    whole, one, two = Held([1.0, 2.0]), Held([1.0, 2.0]), Held([1.0])
    whole.add(logits, top(logits, 9))
    one.add(logits[:100], top(logits[:100], 9))
    two.add(logits[100:], top(logits[100:], 9))
    total = Held.total([Held.from_json(part.to_json()) for part in (one, two)])
    assert total.mass(2.0) is None and total.distinct == 9
    assert total.mass(1.0) == pytest.approx(whole.mass(1.0))
