"""How DistillKit compresses the log-probabilities of a token, and their decompression.

The sources are ``distillkit/compression`` of https://github.com/arcee-ai/DistillKit. A row's settings are in
``compression_config.yaml`` beside the files, or in the ``teacher`` of a DistillKit run.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from fastkd.corpora.logprobs import bits

CONFIG = "compression_config.yaml"
# By how much the probabilities of an approximation may exceed 1 in sum.
APPROXIMATE = 0.05

_WIDTHS = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}


@dataclass(frozen=True)
class Bin:
    """Residuals that share a scale: ``num_elements`` integers of ``element_bits`` bits."""

    scale_dtype: str
    element_bits: int
    num_elements: int


@dataclass(frozen=True)
class Compression:
    """The settings of ``DistributionQuantizationConfig``.

    Attributes:
        d: the size of the vocabulary, which decides the bits of a token id.
        k: log-probabilities of a token.
        exact_k: how many of them, the largest, are stored as they are.
        exact_dtype: their type.
        polynomial_terms: powers of the rank, ``sqrt`` and ``exp``, whose sum approximates the others.
        term_dtype: the type of the terms' coefficients.
        residual_bins: corrections of the others, in their order; those after the last bin have none.
        delta_encoding: whether each number is the difference from the one before it.
        normalize_t: whether the ranks run from 0 to 1, rather than by 1.
        error_diffusion: how the residuals were rounded, which decompression need not know.
    """

    d: int
    k: int
    exact_k: int
    residual_bins: tuple[Bin, ...]
    exact_dtype: str = "float32"
    polynomial_terms: tuple[int | str, ...] = ()
    term_dtype: str = "float32"
    delta_encoding: bool = True
    error_diffusion: bool = False
    normalize_t: bool = False

    @property
    def index_bits(self) -> int:
        """The bits of a token id: the logarithm is rounded to float32, as when the file was written."""
        return int(np.ceil(np.log2(np.float32(self.d))))

    @property
    def token_bytes(self) -> int:
        """The bytes of a token's log-probabilities."""
        size = (
            self.exact_k * _WIDTHS[self.exact_dtype] + len(self.polynomial_terms) * _WIDTHS[self.term_dtype]
        )
        return size + sum(
            _WIDTHS[one.scale_dtype] + bits.bytes_of(one.element_bits, one.num_elements)
            for one in self.residual_bins
        )

    @property
    def approximate(self) -> bool:
        """Whether the log-probabilities are rounded by more than float32."""
        return self.exact_k < self.k or _WIDTHS[self.exact_dtype] < 4

    def token_ids(self, packed: np.ndarray) -> np.ndarray:
        """``(tokens, bytes)`` uint8 as ``(tokens, k)`` token ids."""
        return bits.from_bytes(packed, self.index_bits, self.k).astype(np.int64)

    def logprobs(self, packed: np.ndarray) -> np.ndarray:
        """``(tokens, token_bytes)`` uint8 as ``(tokens, k)`` float64."""
        rest, exact = _split(packed, self.exact_k, self.exact_dtype)
        rest, coefficients = _split(rest, len(self.polynomial_terms), self.term_dtype)
        others = np.zeros((len(packed), self.k - self.exact_k))
        if self.polynomial_terms:
            others += coefficients @ self._terms().T
        begin = 0
        for one in self.residual_bins:
            rest, scale = _split(rest, 1, one.scale_dtype)
            size = bits.bytes_of(one.element_bits, one.num_elements)
            levels = bits.from_bytes(rest[:, :size], one.element_bits, one.num_elements).astype(np.float64)
            rest = rest[:, size:]
            # One bit is a sign; more are a signed integer, moved to begin at 0.
            signed = 2 * levels - 1 if one.element_bits == 1 else levels - 2.0 ** (one.element_bits - 1)
            others[:, begin : begin + one.num_elements] += signed * scale
            begin += one.num_elements
        found = np.concatenate([exact, others], 1)
        return np.cumsum(found, 1) if self.delta_encoding else found

    def _terms(self) -> np.ndarray:
        """``(k - exact_k, terms)``."""
        count = self.k - self.exact_k
        ranks = np.linspace(0, 1, count) if self.normalize_t else np.arange(count, dtype=np.float64)
        special = {"sqrt": np.sqrt, "exp": np.exp}
        return np.stack(
            [special[one](ranks) if isinstance(one, str) else ranks**one for one in self.polynomial_terms], 1
        )


@dataclass(frozen=True)
class LegacyCompression:
    """The settings of ``LegacyLogitCompressionConfig``: exact values, and a polynomial of the rank from 1.

    Attributes:
        vocab_size: decides the bits of a token id.
        k, exact_k: log-probabilities of a token, and how many of them are stored as they are.
        polynomial_degree: the highest power of the rank.
        invert_polynomial: whether the powers are negative.
        with_sqrt_term: whether a square root is added.
        term_dtype: the type in which the coefficients were rounded.
    """

    k: int
    exact_k: int
    polynomial_degree: int
    vocab_size: int
    invert_polynomial: bool = True
    with_sqrt_term: bool = False
    term_dtype: str = "float32"

    @property
    def terms(self) -> int:
        """The number of coefficients of a token."""
        return self.polynomial_degree + 1 + self.with_sqrt_term

    def token_ids(self, packed: np.ndarray) -> np.ndarray:
        """``(tokens, words)`` uint64 as ``(tokens, k)`` token ids."""
        width = int(np.ceil(np.log2(np.float32(self.vocab_size))))
        return bits.from_words(packed, width, self.k).astype(np.int64)

    def logprobs(self, exact: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
        """``(tokens, exact_k)`` and ``(tokens, terms)`` as ``(tokens, k)`` float64."""
        ranks = np.arange(1, self.k - self.exact_k + 1, dtype=np.float64)
        sign = -1 if self.invert_polynomial else 1
        terms = [ranks ** (sign * i) for i in range(self.polynomial_degree + 1)]
        terms += [np.sqrt(ranks)] if self.with_sqrt_term else []
        others = coefficients @ np.stack(terms) if len(ranks) else np.empty((len(exact), 0))
        return np.concatenate([exact, others], 1)


def read_config(folder: Path) -> Compression | LegacyCompression:
    """The settings in a directory's ``compression_config.yaml``.

    Raises:
        ValueError: there is none, or it cannot be right.
    """
    path = folder / CONFIG
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeError) as error:
        raise ValueError(
            f"{path} cannot be read, and says how the log-probabilities beside it are compressed: write the "
            "logprob_compressor or legacy_logit_compression of their data set's page into it"
        ) from error
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {error}") from error
    try:
        return parsed_config(given)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def parsed_config(given: Any) -> Compression | LegacyCompression:
    """The settings as a dictionary, at its top or under the keys of a DistillKit run.

    Raises:
        ValueError: settings that cannot be right.
    """
    for key in ("teacher", "logprob_compressor", "legacy_logit_compression"):
        if isinstance(given, dict) and isinstance(given.get(key), dict):
            given = given[key]
    if not isinstance(given, dict):
        raise ValueError("must hold the settings of the compression by name")
    given = {name: value for name, value in given.items() if value is not None}
    for name in ("temperature", "preapplied_temperature"):
        if (value := given.pop(name, 1)) != 1:
            raise ValueError(
                f"{name} is {value}, and a cache holds distributions at temperature 1: run the teacher again "
                "at 1, and set temperature in the run that distils"
            )
    kind: Any = LegacyCompression if "vocab_size" in given else Compression
    known = [one.name for one in fields(kind)]
    if unknown := [name for name in given if name not in known]:
        raise ValueError(f"{unknown[0]} is not known: the settings are {', '.join(known)}")
    if missing := [one.name for one in fields(kind) if one.name not in given and _needed(one.name)]:
        raise ValueError(f"{missing[0]} is not set")
    if kind is Compression:
        given["residual_bins"] = tuple(Bin(**one) for one in given.get("residual_bins", ()))
        given["polynomial_terms"] = tuple(given.get("polynomial_terms", ()))
    found = kind(**given)
    _check(found)
    return found


def _needed(name: str) -> bool:
    return name in ("d", "k", "exact_k", "polynomial_degree", "vocab_size")


def _check(found: Compression | LegacyCompression) -> None:
    vocabulary = found.vocab_size if isinstance(found, LegacyCompression) else found.d
    whole = {"k": found.k, "exact_k": found.exact_k, "the size of the vocabulary": vocabulary}
    types = [found.term_dtype]
    if isinstance(found, Compression):
        types += [found.exact_dtype, *(one.scale_dtype for one in found.residual_bins)]
        for one in found.residual_bins:
            whole |= {"element_bits": one.element_bits, "num_elements": one.num_elements}
            if not isinstance(one.element_bits, int) or not 1 <= one.element_bits <= 64:
                raise ValueError(f"element_bits is {one.element_bits}, not a number from 1 to 64")
        for term in found.polynomial_terms:
            if term not in ("sqrt", "exp") and not isinstance(term, int):
                raise ValueError(f"polynomial_terms has {term!r}: powers, sqrt and exp are known")
    for name, value in whole.items():
        if not isinstance(value, int) or value < (0 if name == "exact_k" else 1):
            raise ValueError(f"{name} is {value!r}, not a number from {0 if name == 'exact_k' else 1} on")
    if unknown := [name for name in types if name not in _WIDTHS]:
        raise ValueError(f"the type {unknown[0]!r} is not one of {', '.join(_WIDTHS)}")
    if found.exact_k > found.k or vocabulary < 2:
        raise ValueError(f"exact_k is {found.exact_k}, k {found.k} and the vocabulary {vocabulary}")
    if isinstance(found, Compression):
        corrected = sum(one.num_elements for one in found.residual_bins)
        if corrected > found.k - found.exact_k:
            raise ValueError(f"residual_bins have {corrected} elements for {found.k - found.exact_k} numbers")


def _split(packed: np.ndarray, count: int, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """The bytes after ``count`` numbers of a type, and the numbers as float64."""
    size = count * _WIDTHS[dtype]
    raw = np.ascontiguousarray(packed[:, :size])
    if dtype == "bfloat16":  # the upper half of a float32
        found = (raw.view("<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)
    else:
        found = raw.view(f"<f{_WIDTHS[dtype]}")
    return packed[:, size:], found.reshape(len(packed), count).astype(np.float64)
