"""Sentences that explain the figures of a report, for the page and the terminal alike."""

from __future__ import annotations

from typing import Any

from fastkd.runs.report.tables import parts, writing_rows


def notes(report: dict[str, Any]) -> list[str]:
    """The sentences; none where every figure speaks for itself."""
    found = []
    known = parts(report)
    if (made := report.get("sequence_level")) is not None:
        found.append(
            f"The training data are the teacher's own answers (fastkd generate, {made['mode']}), so the "
            "student learns the narrow distribution of what the teacher writes, not that of the references "
            "(Kim & Rush 2016). Its perplexity on the references can therefore be far worse than that of a "
            "student trained on them while its answers are better: compare the answers, by BLEU or ROUGE."
        )
    if (made := report.get("control_rows")) is not None:
        found.append(
            f"{made['of'] - made['with_label']:,} of the {made['of']:,} training rows have no label: the "
            "student learns from them by its teacher, while the control learns from the other "
            f"{made['with_label']:,}, for as many steps. So the difference between the two is that of the "
            "teacher and of these rows."
        )
    if report.get("answers") and writing_rows(report):
        rows, of = report["answers"]["rows"], report["answers"]["of"]
        which = f"all {of:,} held-out rows" if rows == of else (
            f"{rows:,} of the {of:,} held-out rows, evenly spread (eval_answers)"
        )  # fmt: skip
        size = report["answers"]["batch_size"]
        found.append(f"BLEU, chrF, ROUGE and tokens/s are of the answers to {which}, in batches of {size}.")
    if (lead := report.get("lead")) is not None:
        reached = ", ".join(
            f"{title} {lead['greedy'][key]:.3f}"
            for key, title in (("rouge1", "ROUGE-1"), ("rouge2", "ROUGE-2"), ("rougeL", "ROUGE-L"))
        )
        found.append(
            f"The references are summaries: a model should exceed the first {lead['words']} words of each "
            f"source, which reach {reached} (the lead baseline)."
        )
    if any("perplexity_bound" in (part.get("eval") or {}) for part in known.values()):
        found.append(
            "The cache holds the teacher's likeliest tokens alone, so only a lower bound of its perplexity "
            "is known."
        )
    timed = next((part["latency"] for part in known.values() if part.get("latency")), None)
    if timed is not None:
        found.append(
            f"ms/text (the median) and texts/s are of {timed['rows']} held-out texts, one at a time (batch "
            f"size {timed['batch_size']}), without tokenizing."
        )
    return found
