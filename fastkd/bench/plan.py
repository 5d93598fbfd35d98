"""Plans which cases are measured, and in which order: the most important first, as time may run out."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from fastkd.bench import device as devices, plain, suite as suites
from fastkd.bench.cases import KD_RATIO, MAIN, Case
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


def cases(selection: Selection) -> list[Case]:
    """All cases, the most important first: the first dtype and number of tokens before all others."""
    sizes = selection.sizes
    if selection.suite:
        return suites.cases(
            *(selection.device, selection.ops, sizes.vocab, sizes.dtypes, selection.elements, selection.quick)
        )
    found: list[tuple[tuple[int, ...], Case]] = []
    for rank, (op, divergence, kd_ratio, backward) in enumerate(_quantities(selection)):
        main = divergence == MAIN and kd_ratio == KD_RATIO
        # Matrix products take seconds, so behind heads only the main quantity is measured at more than one
        # vocabulary size and number of tokens. The forward alone is measured at one number of tokens.
        one_vocab = op == "linear_kd_loss" and not main
        one_tokens = one_vocab or not backward
        for d, dtype in enumerate(sizes.dtypes):
            for n, tokens in enumerate(sizes.tokens[: 1 if one_tokens else None]):
                for h, (student, teacher) in enumerate(sizes.heads if op == "linear_kd_loss" else ((0, 0),)):
                    for v, vocab in enumerate(sizes.vocab[: 1 if one_vocab else None]):
                        case = Case(
                            *(vocab, tokens, dtype, selection.device, student, teacher),
                            *(divergence, kd_ratio, backward),
                        )
                        found.append(((d, n, rank, h, v), case))
    return [case for _, case in sorted(found, key=lambda item: item[0])]


def variant_cases(selection: Selection) -> list[tuple[Variant, Case]]:
    """Each variant with its case in each dtype."""
    return [
        (variant, variant.case(dtype, selection.device, selection.elements))
        for variant in selection.variants
        for dtype in selection.sizes.dtypes
    ]


def memory_cases(selection: Selection) -> list[Case]:
    """The cases whose memory alone is measured."""
    sizes = selection.sizes
    if not selection.suite:
        return []
    return suites.memory_cases(
        *(selection.device, selection.ops, sizes.vocab, sizes.dtypes, selection.elements)
    )


def measures_memory(selection: Selection, case: Case, route: Route) -> bool:
    """Whether the memory of a route is measured beside its time.

    On a CPU each measurement of memory starts a process, so outside the suite only the main quantity at the
    largest vocabulary gets one.
    """
    if selection.device != "cpu":
        return True
    if selection.suite:
        return suites.measures_memory(case, route.ours, selection.sizes.vocab)
    return case.kd_ratio == KD_RATIO and case.backward and case.vocab == max(selection.sizes.vocab)


def _quantities(selection: Selection) -> list[tuple[str, str, float, bool]]:
    """(op, divergence, ``kd_ratio``, whether with backward), in the order of measurement.

    ``forward_kl`` is measured with cross-entropy, the other divergences alone. Then follow ``forward_kl``
    alone, if a peer other than the loss by hand computes it; over logits, the forward of the main quantity;
    behind heads, the cross-entropy alone, if torch's fused one is available.
    """
    by_op: dict[str, list[tuple[str, str, float, bool]]] = {op: [] for op in selection.ops}
    for op in selection.ops:
        head, rest = [], []
        for divergence in selection.sizes.divergences:
            if divergence == MAIN:
                head.append((op, divergence, KD_RATIO, True))
                if _only_peers_take(selection, op, divergence, 1.0):
                    rest.append((op, divergence, 1.0, True))
            else:
                head.append((op, divergence, 1.0, True))
        if op == "kd_loss" and MAIN in selection.sizes.divergences:
            rest.append((op, MAIN, KD_RATIO, False))
        if op == "linear_kd_loss" and _only_peers_take(selection, op, MAIN, 0.0):
            rest.append((op, MAIN, 0.0, True))
        by_op[op] = head + rest
    # The first quantity of each op comes before any op's other quantities.
    firsts = [found[0] for found in by_op.values()]
    return [*firsts, *(q for found in by_op.values() for q in found[1:])]


def _only_peers_take(selection: Selection, op: str, divergence: str, kd_ratio: float) -> bool:
    """Whether a peer other than the loss by hand, eager or compiled, computes the quantity."""
    width = 1 if op == "linear_kd_loss" else 0
    case = Case(1, 1, "float32", selection.device, width, width, divergence, kd_ratio)
    return any(r.takes(case) for r in selection.routes if not r.ours and r.family not in BY_HAND)


def too_large(case: Case, device: devices.Device, sets: int) -> str | None:
    """Why a case does not fit in memory, judged by its inputs and every route's needs; None if it fits."""
    scratch = 2 * case.logits_bytes if not case.linear else case.logits_bytes  # the floor's copies
    needed = sets * case.input_bytes + max(case.gradient_bytes, scratch)
    if device.kind == "cpu":
        # The plain peers hold about ten tensors of logits, and the oracle a few blocks in float64. On a CPU
        # the system ends a process that exceeds the memory before any error could be caught.
        needed += 12 * case.logits_bytes
    free = device.free_bytes()
    if needed <= free:
        return None
    return f"needs {needed / 2**30:.1f} GiB of memory, {free / 2**30:.1f} are free"


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
