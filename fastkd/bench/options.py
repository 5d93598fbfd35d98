"""The options of a run: its sizes, the routes that can run, the variants; and errors in them."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from fastkd.bench import plain, suite as suites
from fastkd.bench.cases import MAIN
from fastkd.bench.peers import BY_HAND, FAMILIES, PEERS
from fastkd.bench.routes import OURS, Route, default_backends
from fastkd.bench.variants import VARIANTS, Variant
from fastkd.divergences import DIVERGENCES

OPS = ("kd_loss", "linear_kd_loss")
DTYPES = ("bfloat16", "float32", "float16")


@dataclass(frozen=True)
class Sizes:
    """The default sizes. The first entry of each list is the most important and is measured first.

    ``seconds`` is how long one route is timed on one case; after ``budget`` seconds no further case starts.
    """

    vocab: tuple[int, ...]
    tokens: tuple[int, ...]
    heads: tuple[tuple[int, int], ...]
    dtypes: tuple[str, ...] = ("bfloat16", "float32")
    divergences: tuple[str, ...] = ("forward_kl", "jsd", "tvd")
    seconds: float = 0.5
    budget: float | None = None


SIZES = {
    ("cuda", False): Sizes(
        vocab=(128_256, 151_936, 32_000, 50_257, 262_144),
        tokens=(8_192, 2_048, 16_384),
        heads=((2_048, 4_096), (1_024, 2_048)),
    ),
    ("cuda", True): Sizes(
        vocab=(128_256,),
        tokens=(8_192,),
        heads=((2_048, 4_096),),
        dtypes=("bfloat16",),
        seconds=0.2,
    ),
    ("cpu", False): Sizes(vocab=(32_000, 128_256), tokens=(128,), heads=((128, 256),), budget=120),
    ("cpu", True): Sizes(
        vocab=(32_000,),
        tokens=(64,),
        heads=((64, 128),),
        dtypes=("bfloat16",),
        divergences=("forward_kl",),
        seconds=0.2,
        budget=60,
    ),
}


SUITE = {
    quick: Sizes(
        vocab=suites.QUICK_VOCABULARIES if quick else suites.VOCABULARIES,
        tokens=(),
        heads=(suites.WIDE,),
        dtypes=suites.DTYPES,
        divergences=(MAIN,),
        seconds=suites.SECONDS,
    )
    for quick in (False, True)
}


@dataclass(frozen=True)
class Selection:
    """The sizes that one run measures, the routes that can run, and why others cannot (``absent``).

    ``suite`` chooses the suite's cases instead of all combinations of the sizes. ``elements`` is the number
    of logits per tensor of the suite and of ``variants``.
    """

    device: str
    ops: tuple[str, ...]
    sizes: Sizes
    routes: tuple[Route, ...]
    absent: dict[str, str]
    variants: tuple[Variant, ...] = ()
    suite: bool = False
    quick: bool = False
    elements: int = suites.ELEMENTS


def select(
    device: str | None = None,
    ops: Sequence[str] = OPS,
    vocab: Sequence[int] | None = None,
    tokens: Sequence[int] | None = None,
    heads: Sequence[tuple[int, int]] | None = None,
    dtypes: Sequence[str] | None = None,
    divergences: Sequence[str] | None = None,
    backends: Sequence[str] | None = None,
    peers: Sequence[str] | None = None,
    variants: Sequence[str] | None = None,
    elements: int | None = None,
    suite: bool = False,
    quick: bool = False,
) -> Selection:
    """The selection for these arguments; None means the device's default, or the suite's.

    Raises:
        ValueError: an unknown name (with the nearest known one), a size below 1, an option that the suite
            has no use for, or a backend or peer that was requested and cannot run, with the reason.
    """
    import torch

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    _known("device", [device], ("cpu", "cuda"))
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("torch sees no GPU: leave --device out, or pass --device cpu")
    if suite and (tokens or heads or divergences):
        raise ValueError("--suite has its own --tokens, --heads and --divergence: leave them out")
    base = SUITE[quick] if suite else SIZES[device, quick]
    _known("op", ops, OPS)
    _known("dtype", dtypes or (), DTYPES)
    _known("divergence", divergences or (), list(DIVERGENCES))
    _known("variant", variants or (), list(VARIANTS))
    if variants is None:
        variants = list(VARIANTS) if suite and "kd_loss" in ops else []
    sizes = Sizes(
        vocab=_positive("vocab", vocab, base.vocab),
        tokens=_positive("tokens", tokens, base.tokens),
        heads=tuple(heads) if heads else base.heads,
        dtypes=tuple(dict.fromkeys(dtypes)) if dtypes else base.dtypes,
        divergences=tuple(dict.fromkeys(divergences)) if divergences else base.divergences,
        seconds=base.seconds,
        budget=base.budget,
    )
    absent: dict[str, str] = {}
    routes = (*_our_routes(device, backends), *_peer_routes(device, peers, absent))
    for name in sizes.divergences:
        for route in routes:
            if route.family in BY_HAND and name not in plain.FORMULAS:
                absent[f"{route.name} for {name}"] = plain.missing(name)
    default_elements = suites.QUICK_ELEMENTS if quick else suites.ELEMENTS
    (elements,) = _positive("elements", None if elements is None else (elements,), (default_elements,))
    return Selection(
        *(device, tuple(dict.fromkeys(ops)), sizes, routes, absent),
        *(tuple(VARIANTS[name] for name in dict.fromkeys(variants)), suite, quick, elements),
    )


def _our_routes(device: str, backends: Sequence[str] | None) -> list[Route]:
    _known("backend", backends or (), [r.family for r in OURS])
    for route in OURS:
        reason = route.absent(device) if route.family in (backends or ()) else None
        if reason is not None:
            raise ValueError(f"backend {route.family!r} cannot be measured on {device}: {reason}")
    chosen = backends or default_backends(device)
    return [r for r in OURS if r.family in chosen]


def _peer_routes(device: str, peers: Sequence[str] | None, absent: dict[str, str]) -> list[Route]:
    _known("peer", peers or (), FAMILIES)
    found = []
    for route in PEERS:
        if peers is not None and route.family not in peers:
            continue
        reason = route.absent(device)
        if reason is None:
            found.append(route)
        else:
            absent[route.name] = reason
    for family in peers or ():
        if not any(r.family == family for r in found):
            reason = next(absent[r.name] for r in PEERS if r.family == family)
            raise ValueError(f"peer {family!r} cannot be measured on {device}: {reason}")
    return found


def _known(what: str, given: Sequence[str], known: Sequence[str]) -> None:
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
            raise ValueError(
                f"unknown {what} {name!r}: choose from {', '.join(known)} (did you mean {near!r}?)"
            )


def _positive(what: str, given: Sequence[int] | None, default: tuple[int, ...]) -> tuple[int, ...]:
    for number in given or ():
        if number < 1:
            raise ValueError(f"--{what} must be a whole number from 1, not {number}")
    return tuple(dict.fromkeys(given)) if given else default
