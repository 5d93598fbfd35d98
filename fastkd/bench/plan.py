"""Plans which cases are measured, and in which order: the most important first, as time may run out."""

from __future__ import annotations

from fastkd.bench import device as devices, suite
from fastkd.bench.cases import KD_RATIO, MAIN, Case
from fastkd.bench.options import Selection
from fastkd.bench.peers import BY_HAND
from fastkd.bench.routes import Route
from fastkd.bench.variants import Variant


def cases(selection: Selection) -> list[Case]:
    """All cases, the most important first: the first dtype and number of tokens before all others."""
    sizes = selection.sizes
    if selection.suite:
        return suite.cases(
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
    return suite.memory_cases(
        *(selection.device, selection.ops, sizes.vocab, sizes.dtypes, selection.elements)
    )


def measures_memory(selection: Selection, case: Case, route: Route) -> bool:
    """Whether the memory of a route is measured beside its time.

    On a CPU each measurement of memory starts a process, so outside the suite only ``forward_kl`` at the
    largest vocabulary, with cross-entropy and alone, gets one.
    """
    if selection.device != "cpu":
        return True
    if selection.suite:
        return suite.measures_memory(case, route.ours, selection.sizes.vocab)
    distilled = case.divergence == MAIN and case.kd_ratio > 0
    return distilled and case.backward and case.vocab == max(selection.sizes.vocab)


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
