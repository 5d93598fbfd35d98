"""A divergence as the kernels receive it: one object whose functions they call.

All numbers are float32 and in nats unless stated otherwise; ``p`` is the teacher, ``q`` the student, ``a``
and ``b`` are those of ``Scales``. The formulas, and their sources, are those of ``csrc/divergences``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import triton
import triton.language as tl  # noqa: F401  # the interpreter looks for it among the globals

from fastkd.backends.triton import sources
from fastkd.backends.triton.compile_time import require
from fastkd.backends.triton.divergences.streams import NO_STREAMS, Streams
from fastkd.divergences import Divergence

require()
DISTANT_ROWS = "distant"


class Scales(NamedTuple):
    """The call's numbers that the formulas need."""

    log2_scale_s: Any  # log2(e) over the temperature
    log2_scale_t: Any
    to_nats: Any  # 1 / T
    temperatures: Any  # T / T_t
    a: Any  # cross: the power of the teacher; mixtures: 1 - beta
    b: Any  # cross: the power of the student; else beta


class Entry(NamedTuple):
    """A tile of vocabulary entries. Sweep 1 has only the fields down to ``relative``."""

    xs: Any  # exponents of 2, relative to the shifts
    xt: Any
    es: Any  # 2**xs, 2**xt
    et: Any
    relative: Any  # t T / T_t - s
    p: Any
    q: Any
    gap: Any  # (q - p) Row.z_t, with one rounding; exactly 0 for equal entries of equal rows
    total: Any  # (q + p) Row.z_t
    log_ratio: Any  # log p - log q


class Row(NamedTuple):
    """The constants of a row in all sweeps but the first. Exponentials are those of ``Entry``."""

    shifts: Any
    z_s: Any  # sum of the student's exponentials
    inverse_s: Any  # 1 / sum of exponentials
    inverse_t: Any
    ratio: Any  # the teacher's sum of exponentials over the student's
    least_s: Any  # the least exponential whose product with the ratio is a normal number
    log_const: Any  # log(z_s / z_t), relative to the shifts
    log_ratio_offset: Any  # log_ratio minus Entry.relative / T
    cross_shift: Any  # the cross terms are divided by 2 to this power
    scale_cross: Any  # factors that normalise one term of a cross sum and of the powers' sums
    scale_p: Any
    scale_q: Any


class Distant(NamedTuple):
    """The sweep over rows whose sums are so large that their difference from the largest has lost digits.

    - ``is_distant(sum_0)``: whether a row needs this sweep;
    - ``exponent(e, row)``: the exponent of 2 of each term;
    - ``add_sums(sum_0, sum_1, e, row, top)``: two sums over ``2**top``, with those of a tile added. Their
      logarithms to base 2, which are negative, replace the row's sums;
    - ``formulas``: the object whose gradients are those in these rows, of the variant ``DISTANT_ROWS``.
    """

    is_distant: Any
    exponent: Any
    add_sums: Any
    formulas: Formulas


@triton.jit
def _no_units(row):
    return 1.0, 1.0


@triton.jit
def _over_probabilities(sum_0, sum_1, row):
    return sum_0, sum_1


@dataclass(frozen=True, eq=False, repr=False)
class Formulas:
    """The functions of a divergence, in the form of a compile-time constant.

    Triton's cache identifies a constant by its ``cache_key``, or else by its ``repr``. The ``repr`` of a
    tuple of functions would name them but not change with their sources, so the cache would return kernels
    of an older formula. An object of this class therefore contains a hash of all sources of the kernels.

    No attribute can be called ``value``: Triton's own constants have an attribute of that name.

    Attributes:
        divergence: its properties, which select the sweeps. None if the kernels read no teacher.
        variant: distinguishes it from the divergence's other objects.
        streams: the sums of sweep 1.
        add_sums: ``(sum_0, sum_1, e, row, scales)``: the two sums of sweep 2, with those of a tile added.
        normalised_sums: ``(sum_0, sum_1, row)``: the results of ``add_sums``, for the whole row, as sums over
            probabilities.
        distant: one more sweep, for rows that share little probability.
        evaluate: ``(statistics, label, sum_0, sum_1, row, scales)``: ``D``, and a tuple of at least three
            constants for the gradients. In ``statistics`` the sums of powers are relative to the row's
            shifts; ``label`` is the label's two-way split. If the divergence splits the label off, the first
            two constants are the gradients at the label.
        gradients: ``(e, constants, row, scales)``: ``dD/d(s/T)`` and ``dD/d(t/T_t)`` over
            ``gradient_units``. One that the caller ignores is never computed. None without a divergence.
        gradient_units: ``(row)``: the factors that ``gradients`` leaves to its caller.
        weight: ``"light"`` if an element needs few registers; logarithms and powers make it ``"heavy"``.
        at_beta: objects with cheaper formulas for single values of ``beta``.
    """

    divergence: Divergence | None
    variant: str = ""
    streams: Streams = NO_STREAMS
    add_sums: Any = None
    normalised_sums: Any = _over_probabilities
    distant: Distant | None = None
    evaluate: Any = None
    gradients: Any = None
    gradient_units: Any = _no_units
    weight: Literal["light", "heavy"] = "heavy"
    at_beta: Mapping[float, Formulas] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check that the functions are those that the divergence's properties promise.

        Raises:
            TypeError: a function is missing, or one would never be called.
        """
        given = {
            "evaluate": self.evaluate is not None,
            "gradients": self.gradients is not None,
            "add_sums": self.add_sums is not None,
            "streams.normalised": self.streams.normalised is not None,
            "distant": self.distant is not None,
        }
        if self.divergence is None:
            expected = dict.fromkeys(given, False) | {"gradients": given["gradients"]}
        else:
            expected = {
                "evaluate": True,
                "gradients": True,
                "add_sums": self.divergence.sums,
                "streams.normalised": self.divergence.cross,
                "distant": self.divergence.distant and self.variant != DISTANT_ROWS,
            }
            count = len(self.divergence.streams(0.5, 0.5))
            if self.streams.number != count:
                raise TypeError(f"{self.name}: {self.streams.number} streams in Triton, {count} elsewhere")
        for name, wanted in expected.items():
            if given[name] != wanted:
                raise TypeError(f"{self.name}: {name} is {'missing' if wanted else 'given but never called'}")

    @property
    def name(self) -> str:
        if self.divergence is None:
            return self.variant
        return f"{self.variant}_{self.divergence.name}" if self.variant else self.divergence.name

    @property
    def reads_teacher(self) -> bool:
        return self.divergence is not None

    @property
    def has_sums(self) -> bool:
        """Whether it needs a sweep between the first and the last."""
        return self.divergence is not None and self.divergence.sums

    @property
    def has_cross(self) -> bool:
        """Whether its stream 0 is the sum of ``p**a q**b``."""
        return self.divergence is not None and self.divergence.cross

    @property
    def has_distant(self) -> bool:
        """Whether rows that share little probability need one more sweep."""
        return self.divergence is not None and self.divergence.distant

    @property
    def splits_label(self) -> bool:
        """Whether the label is left out of all sums and treated separately."""
        return self.divergence is not None and self.divergence.splits_label

    def __repr__(self) -> str:
        return f"{self.name}_{sources.digest()}"

    @property
    def cache_key(self) -> str:
        """The key by which Triton's cache on disk identifies a constant."""
        return repr(self)
