"""A new model before it is written, and the table that describes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fastkd.runs.new.layers import stacks
from fastkd.runs.new.weights import parameters


@dataclass(frozen=True)
class Made:
    """A new model.

    Attributes:
        model: the model.
        tokenizer: its tokenizer; None if the teacher has none.
        teacher_parameters: the teacher's number of parameters, and of those in embeddings and head; None
            without a teacher.
        teacher: the teacher without data; None without one.
        copied: for each stack of layers its part (``encoder``, ``decoder`` or empty), the teacher's layers
            that were copied, and the number of layers that the teacher has. Empty if all weights are drawn.
        remarks: sentences about how it was made.
    """

    model: Any
    tokenizer: Any
    teacher_parameters: tuple[int, int] | None = None
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
        rows = [["", "student", *(["teacher", "share"] if self.teacher is not None else [])]]
        ours = {"parameters": parameters(self.model)[0], "  of these embeddings": parameters(self.model)[1]}
        theirs: dict[str, int] = {}
        if self.teacher_parameters is not None:
            theirs = dict(zip(ours, self.teacher_parameters, strict=True))
        ours |= _sizes(self.model)
        if self.teacher is not None:
            theirs |= _sizes(self.teacher)
        for name, value in ours.items():
            beside = []
            if name in theirs:
                beside = [f"{theirs[name]:,}", f"{value / theirs[name]:.1%}" if "param" in name or "of" in name else ""]
            rows.append([name, f"{value:,}", *beside])
        widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(len(rows[0]))]
        lines = [
            "  ".join(
                cell.ljust(width) if i == 0 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=False))
            ).rstrip()
            for row in rows
        ]
        return "\n".join([*lines, *self._origin(), *self.remarks])

    def _origin(self) -> list[str]:
        if not self.copied:
            return ["all weights are drawn at random"]
        return [
            f"{part + ' ' if part else ''}layers {', '.join(map(str, layers))} of the teacher's {there} were copied"
            for part, layers, there in self.copied
        ] + ["embeddings, final norm and head were copied with them"]


def _sizes(model: Any) -> dict[str, int]:
    """Layers and widths by what the table calls them."""
    config = model.config
    found = {f"{stack.part} layers".strip(): stack.length for stack in stacks(model)}
    for name, title in (("hidden_size", "width"), ("num_attention_heads", "heads"), ("vocab_size", "vocabulary")):
        if isinstance(value := getattr(config, name, None), int):
            found[title] = value
    return found
