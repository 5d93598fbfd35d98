"""Test the readers of other programs' log-probabilities against a packer in plain Python."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from support import packed_logprobs as pack

from fastkd.corpora.logprobs import bits
from fastkd.corpora.logprobs.block import checked
from fastkd.corpora.logprobs.compression import Compression, LegacyCompression, parsed_config
from fastkd.corpora.tasks.given_tokens import segments


@pytest.mark.parametrize("width", [1, 3, 7, 8, 11, 17, 18, 33, 64])
@pytest.mark.parametrize("count", [1, 5, 8])
def test_integers_of_any_width(width: int, count: int) -> None:
    numbers = random.Random(width * count)
    values = [[numbers.getrandbits(width) for _ in range(count)] for _ in range(3)]
    packed = np.array([pack.bits(row, width) for row in values], np.uint8)
    assert packed.shape[1] == bits.bytes_of(width, count)
    assert bits.from_bytes(packed, width, count).tolist() == values
    if width < 64:
        held = np.array([pack.words(row, width) for row in values], np.uint64)
        assert bits.from_words(held, width, count).tolist() == values


def ordered(count: int, seed: int = 0) -> list[float]:
    """Log-probabilities in descending order, whose probabilities sum to less than 1."""
    numbers = random.Random(seed)
    weights = sorted((numbers.expovariate(1) ** 3 + 1e-4 for _ in range(count)), reverse=True)
    return [float(np.log(0.9 * weight / sum(weights))) for weight in weights]


def bin_of(width: int, count: int, dtype: str = "float16") -> dict[str, Any]:
    return {"scale_dtype": dtype, "element_bits": width, "num_elements": count}


CONFIGS: dict[str, dict[str, Any]] = {
    "exact": {"k": 7, "exact_k": 7, "delta_encoding": False, "residual_bins": []},
    "delta": {"k": 7, "exact_k": 7, "exact_dtype": "float64", "residual_bins": []},
    "half": {"k": 7, "exact_k": 7, "exact_dtype": "float16", "delta_encoding": False, "residual_bins": []},
    "recommended": {"k": 21, "exact_k": 5, "exact_dtype": "bfloat16", "delta_encoding": False,
                    "polynomial_terms": [0, 1, 2, "sqrt"], "residual_bins": []},
    "budget": {"k": 12, "exact_k": 1, "exact_dtype": "bfloat16", "delta_encoding": True,
               "polynomial_terms": [0, 1, "sqrt"], "term_dtype": "float64", "residual_bins": []},
    "scaled": {"k": 12, "exact_k": 2, "delta_encoding": False, "polynomial_terms": [0, "exp", 3],
               "normalize_t": True, "residual_bins": [bin_of(5, 4)]},
    "bins": {"k": 16, "exact_k": 3, "delta_encoding": False,
             "residual_bins": [bin_of(8, 5), bin_of(3, 4, "bfloat16"), bin_of(1, 2, "float32")]},
    "no exact": {"k": 5, "exact_k": 0, "delta_encoding": True, "residual_bins": [bin_of(11, 5)]},
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("vocabulary", [50, 151_937])
def test_decompression(name: str, vocabulary: int) -> None:
    """Bytes of the packer give its numbers, and token ids of any width come back."""
    given = {"d": vocabulary, **CONFIGS[name]}
    config = parsed_config(given)
    assert isinstance(config, Compression)
    k = given["k"]
    rows = [pack.compressed(ordered(k, seed), given) for seed in range(4)]
    packed = np.array([row for row, _ in rows], np.uint8)
    assert packed.shape[1] == config.token_bytes
    np.testing.assert_allclose(config.logprobs(packed), [back for _, back in rows], rtol=1e-12, atol=1e-12)
    ids = [random.Random(seed).sample(range(vocabulary), k) for seed in range(4)]
    width = (vocabulary - 1).bit_length()
    assert config.token_ids(np.array([pack.bits(row, width) for row in ids], np.uint8)).tolist() == ids


@pytest.mark.parametrize("inverted", [True, False])
@pytest.mark.parametrize("root", [True, False])
def test_legacy_decompression(inverted: bool, root: bool) -> None:
    given = {"vocab_size": 129_280, "k": 9, "exact_k": 4, "polynomial_degree": 2,
             "invert_polynomial": inverted, "with_sqrt_term": root}  # fmt: skip
    config = parsed_config({"teacher": {"kind": "dataset", "legacy_logit_compression": given}})
    assert isinstance(config, LegacyCompression)
    exact, numbers = ordered(4), [-2.0, -0.5, 0.25, -0.125][: config.terms]
    found = config.logprobs(np.array([exact]), np.array([numbers]))[0]
    for rank in range(1, 6):
        powers = [float(rank) ** (-i if inverted else i) for i in range(3)] + [rank**0.5] * root
        assert found[3 + rank] == pytest.approx(sum(a * b for a, b in zip(numbers, powers, strict=True)))
    assert found[:4].tolist() == exact
    ids = random.Random(1).sample(range(129_280), 9)
    assert config.token_ids(np.array([pack.words(ids, 17)], np.uint64)).tolist() == [ids]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"temperature": 2}, "temperature is 2, and a cache holds distributions at temperature 1"),
        ({"exact_dtype": "int8"}, "the type 'int8' is not one of float16"),
        ({"colour": 1}, "colour is not known: the settings are d, k"),
        ({"k": None}, "k is not set"),
        ({"exact_k": 9}, "exact_k is 9, k 7"),
        ({"k": 9, "residual_bins": [bin_of(4, 3)]}, "residual_bins have 3 elements for 2 numbers"),
        ({"residual_bins": [bin_of(65, 0)]}, "element_bits is 65, not a number from 1 to 64"),
        ({"polynomial_terms": ["cube"]}, "polynomial_terms has 'cube'"),
        ({"d": 0}, "the size of the vocabulary is 0"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_right(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parsed_config({"d": 50, **CONFIGS["exact"], **change})


def test_entries_are_ordered_and_absent_ones_dropped() -> None:
    columns = np.array([[4, 9, 2], [7, 7, 1]])
    logprobs = np.array([[-2.0, -0.5, -3.0], [-0.1, -np.inf, -4.0]])
    block = checked(columns, logprobs, "rows", 2)
    assert [one.columns.tolist() for one in block.positions()] == [[9, 4, 2], [7, 1]]
    assert block.positions()[1].logprobs.tolist() == [-0.1, -4.0]
    assert block.largest() == 9
    np.testing.assert_allclose(block.probability(np.array([2, 7])), np.exp([-3.0, -0.1]))
    over = checked(columns[:1], np.log([[0.6, 0.3, 0.13]]), "rows", 2, 0.05)
    assert np.exp(over.positions()[0].logprobs).sum() == pytest.approx(1)


@pytest.mark.parametrize(
    ("columns", "logprobs", "said"),
    [
        ([3, 4], [-1.0, float("nan")], "NaN is no log-probability"),
        ([3, 4], [-0.1, -0.1], "the probabilities sum to 1.810, more than 1"),
        ([3, 4], [5000.0, -0.1], "the probabilities sum to inf"),
        ([3, 3], [-1.0, -2.0], "a token id is there twice"),
        ([-3, 4], [-1.0, -2.0], "a token id is negative"),
        ([3, 4], [-np.inf, -np.inf], "there is no log-probability"),
    ],
)
def test_entries_that_cannot_be_right(columns: list[int], logprobs: list[float], said: str) -> None:
    with pytest.raises(ValueError, match=f"file, row 3, token 8: {said}"):
        checked(np.array([[1, 2], columns]), np.array([[-1.0, -2.0], logprobs]), "file, row 3", 7)


def test_documents_of_given_tokens() -> None:
    """A packed row becomes one row for each document; padding and masked labels are left out."""
    row: dict[str, Any] = {"input_ids": [5, 6, 7, 8, 9, 0, 0], "attention_mask": [1, 1, 2, 2, 2, 0, 0]}
    assert list(segments(row)) == [([5, 6], [True] * 2), ([7, 8, 9], [True] * 3)]
    labelled = {"input_ids": [5, 6, 7], "labels": [-100, 6, -100]}
    assert list(segments(labelled)) == [([5, 6, 7], [False, True, False])]
    assert not list(segments({"input_ids": []}))
    for wrong, said in [
        ({"input_ids": [5, 6], "labels": [6, 7]}, "labels must be the tokens"),
        ({"input_ids": [5, 6], "labels": [6]}, "2 input_ids and labels of 1"),
        ({"input_ids": [5, 6, 7], "attention_mask": [1, 0, 1]}, "has gaps"),
        ({"input_ids": [5, 6], "attention_mask": [1]}, "attention_mask of 1"),
        ({"input_ids": ["a"]}, "input_ids must be a list of whole numbers"),
        ({"input_ids": [[1], [2, 3]]}, "input_ids must be a list of whole numbers"),
    ]:
        with pytest.raises(ValueError, match=said):
            list(segments(wrong))
