"""Run any distillation loss through the cases that this field gets wrong, against a float64 oracle.

``python -m fastkd.conformance ADAPTER.py`` prints a table: which cases a loss passes, which it gets wrong and
by how much, which it refuses, and which its interface cannot express. An adapter (``adapter``) says how the
loss is called and what it claims to compute, ``oracle`` has the right answers, and ``expected`` takes from it
the answer to the adapter's own definition. ``cases`` lists the cases, whose tensors come from ``inputs``;
``measures`` runs one call and compares, and ``runner`` makes verdicts of it. ``table`` prints them and
``page`` writes ``docs/conformance.md``. ``adapters`` has one file per library, found by ``loading``.
"""

from fastkd.conformance.adapter import Adapter, Call
from fastkd.conformance.oracle import Sparse
from fastkd.conformance.runner import Report, Status, Verdict, run

__all__ = ["Adapter", "Call", "Report", "Sparse", "Status", "Verdict", "run"]
