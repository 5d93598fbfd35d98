"""Test rows that were padded and masked elsewhere."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fastkd.corpora.store.fingerprints import places
from fastkd.corpora.tasks import TASKS
from fastkd.corpora.tasks.base import Collator


def collated(task: str, *rows: dict[str, Any]) -> dict[str, Any]:
    return Collator(TASKS[task], 0)(rows)


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


BARE = ({"input_ids": [5, 6, 7]}, {"input_ids": [8, 9, 4, 3]})


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("labelled", [True, False])
def test_padding_is_removed(side: str, labelled: bool) -> None:
    """A row that was padded on either side gives the batch of the bare row."""

    def padded(values: list[int], fill: int) -> list[int]:
        gap = [fill] * (6 - len(values))
        return [*gap, *values] if side == "left" else [*values, *gap]

    rows = []
    for row in BARE:
        ids = row["input_ids"]
        made = {"input_ids": padded(ids, 0), "attention_mask": padded([1] * len(ids), 0)}
        rows.append({**made, "labels": padded(ids, -100)} if labelled else made)
    assert same(collated("causal_lm", *rows), collated("causal_lm", *BARE))


def test_padding_of_sources_and_texts() -> None:
    bare = {"input_ids": [5, 6], "labels": [7, 8, 9]}
    padded = {"input_ids": [0, 5, 6], "attention_mask": [0, 1, 1], "labels": [7, 8, 9]}
    assert same(collated("seq2seq", padded), collated("seq2seq", bare))
    text = {"input_ids": [5, 6, 0], "attention_mask": torch.tensor([1, 1, 0]), "label": 2}
    assert same(
        collated("classification", text), collated("classification", {"input_ids": [5, 6], "labels": 2})
    )


def test_a_mask_with_gaps_is_kept() -> None:
    """Tokens that are masked between others stay masked, and are not learned."""
    gap = {"input_ids": [0, 5, 6, 7, 8], "attention_mask": [0, 1, 0, 1, 1]}
    batch = collated("causal_lm", gap, {"input_ids": [9, 9]})
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8], [9, 9, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 0, 1, 1], [1, 1, 0, 0]]
    assert batch["labels"].tolist() == [[5, -100, 7, 8], [9, 9, -100, -100]]
    with pytest.raises(ValueError, match="position_ids and an attention_mask with gaps"):
        collated("causal_lm", {**gap, "position_ids": [0, 0, 1, 2, 3]})


@pytest.mark.parametrize(
    ("mask", "message"), [([1, 1], "3 input_ids and an attention_mask of 2"), ([0, 0, 0], "leaves out all")]
)
def test_masks_that_do_not_fit(mask: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        collated("causal_lm", {"input_ids": [5, 6, 7], "attention_mask": mask})


def test_rows_are_found_by_their_hashes() -> None:
    """Equal rows are told apart by their order, and unknown rows are found."""
    generator = torch.Generator().manual_seed(0)
    hashes = torch.randint(0, 256, (6, 16), generator=generator, dtype=torch.uint8).numpy()
    hashes[4] = hashes[1]
    hashes[2, -1] = hashes[3, -1] = 0
    wanted = hashes[[3, 1, 1, 2, 1, 0]]
    assert places(wanted, hashes).tolist() == [3, 1, 4, 2, 1, 0]
    wanted[0, 0] ^= 1
    assert places(wanted, hashes).tolist() == [-1, 1, 4, 2, 1, 0]
    assert places(hashes, hashes).tolist() == [0, 1, 2, 3, 4, 5]
