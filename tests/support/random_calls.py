"""Random calls of ``kd_loss``: shapes, strides, dtypes, temperatures, masks, options and magnitudes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from support.oracle import INF
from torch import Tensor

from fastkd.divergences import DIVERGENCES

NAN = float("nan")


@dataclass(frozen=True)
class Example:
    seed: int
    leading: tuple[int, ...]
    vocab: int
    divergence: str
    parameters: dict[str, float]
    dtypes: tuple[torch.dtype, torch.dtype]
    layouts: tuple[str, str]
    scale: float
    offsets: tuple[float, float]
    likeness: str  # how near the teacher is to the student
    missing: str  # the side that has logits of -inf
    masked: bool
    weighted: bool
    options: dict[str, object]


EDGES = [1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64, 1008, 1023, 1024, 1025, 1040, 2047, 2048, 2049, 2064]
FLOATS = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def parameters_of(divergence: str) -> st.SearchStrategy[dict[str, float]]:
    """Legal parameters, away from the forbidden ones, near which the divergence itself becomes infinite."""
    share = st.one_of(st.floats(0.001, 0.95), st.just(0.0))
    power = st.floats(-1.5, 2.5).filter(lambda a: abs(a) > 0.05 and abs(a - 1) > 0.05)
    both = st.tuples(st.floats(-1, 2), st.floats(-1, 2)).filter(
        lambda ab: min(abs(ab[0]), abs(ab[1]), abs(ab[0] + ab[1])) > 0.1 and max(ab) > 0
    )
    return {
        "jsd": st.fixed_dictionaries({"beta": st.one_of(share, st.just(1.0))}),
        "skew_forward_kl": st.fixed_dictionaries({"beta": share}),
        "skew_reverse_kl": st.fixed_dictionaries({"beta": share}),
        "alpha": st.fixed_dictionaries({"alpha": power}),
        "renyi": st.fixed_dictionaries({"alpha": power.map(abs).filter(lambda a: abs(a - 1) > 0.05)}),
        "alpha_beta": both.map(lambda ab: {"alpha": ab[0], "beta": ab[1]}),
        "decoupled": st.fixed_dictionaries({"beta": st.floats(0.01, 10)}),
        "kl_tvd": st.fixed_dictionaries({"beta": st.one_of(st.floats(0, 10), st.just(0.0))}),
    }.get(divergence, st.just({}))


@st.composite
def examples(draw: st.DrawFn, divergence: str | None = None) -> Example:
    """A random call, with a random divergence if None is given."""
    divergence = divergence or draw(st.sampled_from(list(DIVERGENCES)))
    parameters = draw(parameters_of(divergence))
    temperature = math.exp(draw(st.floats(math.log(0.05), math.log(20))))
    teacher_temperature = draw(
        st.one_of(
            st.none(), st.floats(math.log(0.05), math.log(20)).map(math.exp), st.sampled_from([1.0, 2.0])
        )
    )
    temperature = draw(st.sampled_from([temperature, temperature, 1.0, 2.0]))
    missing = draw(st.sampled_from(["neither", "neither", "both", "student", "teacher"]))
    kd_ratio = draw(st.sampled_from([1.0, 0.0, 0.5, 0.9]))
    has_labels = DIVERGENCES[divergence].splits_label or kd_ratio < 1 or draw(st.booleans())
    reduction = draw(st.sampled_from(["mean", "sum", "batchmean", "none"]))
    scale = draw(st.one_of(st.sampled_from([0.0, 0.01, 1.0, 5.0]), st.floats(0, 50)))
    powers = [abs(x) for x in parameters.values()] if DIVERGENCES[divergence].cross else []
    powers += [2.0] * (divergence == "pearson_chi2")
    coldest = min(temperature, teacher_temperature or temperature)
    if powers:
        # If the rows are further apart, p^a q^b overflows float32.
        scale = min(scale, 6 * coldest / (1 + 2 * sum(powers)))
    if missing in ("student", "teacher"):
        # If a probability underflowed float32, the backends would miss that the divergence is infinite.
        scale = min(scale, 8 * coldest)
    return Example(
        seed=draw(st.integers(0, 2**31)),
        leading=draw(st.sampled_from([(1,), (2,), (3,), (5,), (6,), (2, 2), (1, 3), (2, 1, 3)])),
        vocab=draw(st.one_of(st.sampled_from(EDGES), st.integers(1, 3000))),
        divergence=divergence,
        parameters=parameters,
        dtypes=draw(st.tuples(st.sampled_from(FLOATS), st.sampled_from(FLOATS))),
        layouts=(
            draw(st.sampled_from(["contiguous", "sliced", "transposed", "every_other"])),
            draw(st.sampled_from(["contiguous", "sliced", "transposed", "every_other", "expanded"])),
        ),
        scale=scale,
        offsets=draw(st.tuples(*[st.sampled_from([0.0, 0.0, 30.0, -200.0])] * 2)),
        likeness=draw(st.sampled_from(["apart", "apart", "near", "same"])),
        missing=missing,
        masked=has_labels and draw(st.booleans()),
        weighted=draw(st.booleans()),
        options={
            "temperature": temperature,
            "teacher_temperature": teacher_temperature,
            "t_squared": draw(st.booleans()),
            "kd_ratio": kd_ratio,
            # Smoothing over a column of -inf is infinite.
            "label_smoothing": draw(st.sampled_from([0.0, 0.1, 1.0])) if missing == "neither" else 0.0,
            "z_loss": draw(st.sampled_from([0.0, 0.0, 1e-3])),
            "reduction": reduction,
            "num_items": draw(st.sampled_from([None, 7])) if reduction == "mean" else None,
            "labels": has_labels,
            "padding": draw(st.sampled_from([0, 0, 1, 13])),
        },
    )


def laid_out(x: Tensor, layout: str) -> Tensor:
    """The same numbers with other strides; elements in between are NaN."""
    columns = x.shape[-1]
    if layout == "sliced":
        wide = x.new_full((*x.shape[:-1], columns + 3), NAN)
        wide[..., 1 : columns + 1] = x
        return wide[..., 1 : columns + 1]
    if layout == "transposed":
        return x.movedim(-1, 0).contiguous().movedim(0, -1)
    if layout == "every_other":
        wide = x.new_full((*x.shape[:-1], 2 * columns), NAN)
        wide[..., ::2] = x
        return wide[..., ::2]
    return x.contiguous()


def tensors(e: Example) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Student, teacher, labels and token weights. Elements that must not be read are NaN."""
    random = torch.Generator().manual_seed(e.seed)
    shape = (*e.leading, e.vocab)
    s = torch.randn(shape, generator=random) * e.scale
    t = torch.randn(shape, generator=random) * e.scale
    if e.layouts[1] == "expanded":
        t = t[(slice(0, 1),) * len(e.leading)].expand(shape)
    s, t = (s + e.offsets[0]).to(e.dtypes[0]), (t + e.offsets[1]).to(e.dtypes[1])
    if e.likeness != "apart" and e.layouts[1] != "expanded":
        noise = torch.randn(shape, generator=random) * (0.01 if e.likeness == "near" else 0.0)
        t = (s.double() + noise).to(e.dtypes[1])
    exists = torch.rand(e.vocab, generator=random) < 0.7
    exists[torch.randint(0, e.vocab, (), generator=random)] = True
    if e.missing in ("both", "student"):
        s = s.masked_fill(~exists, -INF)
    if e.missing in ("both", "teacher"):
        t = t.masked_fill(~exists, -INF)
    labels = weights = None
    if e.options["labels"]:
        allowed = exists.nonzero()[:, 0]
        labels = allowed[torch.randint(0, len(allowed), e.leading, generator=random)]
        if e.masked:
            labels = torch.where(torch.rand(e.leading, generator=random) < 0.4, -100, labels)
            hidden = (labels == -100)[..., None]
            s = s.masked_fill(hidden, NAN)
            t = t if e.layouts[1] == "expanded" else t.masked_fill(hidden, NAN)
    if e.weighted:
        weights = torch.rand(e.leading, generator=random) + 0.1
        if e.missing in ("neither", "both"):  # otherwise the loss may be infinite, and 0 times it NaN
            weights = torch.where(weights < 0.4, 0.0, weights)
    padding = int(e.options["padding"])  # type: ignore[call-overload]
    if padding:
        s = F.pad(s, (0, padding), value=NAN)
        t = t if e.layouts[1] == "expanded" else F.pad(t, (0, padding + 2), value=NAN)
    return (
        laid_out(s, e.layouts[0]),
        t if e.layouts[1] == "expanded" else laid_out(t, e.layouts[1]),
        labels,
        weights,
    )
