"""A new model before it is written, and the table that describes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fastkd.runs.new.layers import stacks
from fastkd.runs.new.weights import parameters

_COUNTED = ("parameters", "  of these embeddings")


@dataclass(frozen=True)
class Made:
    """A new model.

    Attributes:
        model: the model.
        tokenizer: its tokenizer; None if the teacher has none.
        teacher: the teacher without data; None without one.
        copied: for each stack of layers its part (``encoder``, ``decoder`` or empty), the teacher's layers
            that were copied, and the number of layers that the teacher has. Empty if all weights are drawn.
        remarks: sentences about how it was made.
    """

    model: Any
    tokenizer: Any
    teacher: Any = None
    copied: Sequence[tuple[str, list[int], int]] = ()
    remarks: list[str] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """The numbers of the table, for the record of the directory."""
        total, embeddings = parameters(self.model)
        return {
            "model_type": self.model.config.model_type,
            "parameters": total,
            "embedding_parameters": embeddings,
            "copied_layers": {part or "layers": layers for part, layers, _ in self.copied},
        }

    def table(self) -> str:
        """Parameters, layers and widths, beside the teacher's, and the remarks."""
        ours: dict[str, int] = dict(zip(_COUNTED, parameters(self.model), strict=True)) | _sizes(self.model)
        theirs: dict[str, int] = {}
        if self.teacher is not None:
            theirs = dict(zip(_COUNTED, parameters(self.teacher), strict=True)) | _sizes(self.teacher)
        rows = [("", "student", "teacher", "share") if theirs else ("", "student", "", "")]
        for name, value in ours.items():
            other = theirs.get(name)
            share = f"{value / other:.1%}" if other and name in _COUNTED else ""
            rows.append((name, f"{value:,}", "" if other is None else f"{other:,}", share))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = []
        for title, *cells in rows:
            aligned = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
            lines.append("  ".join([title.ljust(widths[0]), *aligned]).rstrip())
        return "\n".join([*lines, *self._origin(), *self.remarks])

    def _origin(self) -> list[str]:
        if not self.copied:
            return ["all weights are drawn at random"]
        said = []
        for part, layers, there in self.copied:
            which = f"{part} layers".strip()
            said.append(f"{which} {', '.join(map(str, layers))} of the teacher's {there} were copied")
        return [*said, "all weights outside of layers were copied with them"]


def _sizes(model: Any) -> dict[str, int]:
    """Layers and widths by what the table calls them."""
    config = model.config
    found = {f"{stack.part} layers".strip(): stack.length for stack in stacks(model)}
    for name, title in (
        ("hidden_size", "width"),
        ("num_attention_heads", "heads"),
        ("vocab_size", "vocabulary"),
    ):
        if isinstance(value := getattr(config, name, None), int):
            found[title] = value
    return found
