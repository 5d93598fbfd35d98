"""The report of a run that is still running."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from fastkd.runs.report.files import write


class Live(TrainerCallback):
    """Writes the report at every evaluation and checkpoint, so that a run that is stopped leaves one too.

    Args:
        folder: directory of the report.
        report: the report's content so far; this callback never changes it.
        name: the report's name for the model that trains now.
    """

    def __init__(self, folder: Path, report: dict[str, Any], name: str) -> None:
        self.folder, self.report, self.name = folder, report, name
        self.state: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.state = state

    def failed(self, reason: str) -> None:
        """Write the report of a run that ended with an error."""
        if self.state is not None and self.state.is_world_process_zero:
            self._put(self.state, {"failed": {"title": self.name, "reason": reason}})

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._write(state)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._write(state)

    def _write(self, state: Any) -> None:
        if not state.is_world_process_zero or state.global_step >= state.max_steps:
            return  # one process writes, and at the end the caller writes the whole report
        where = {"title": self.name, "step": state.global_step, "of": state.max_steps}
        self._put(state, {"unfinished": where})

    def _put(self, state: Any, ending: dict[str, Any]) -> None:
        part = {"steps": state.global_step, "eval": {}, "history": state.log_history}
        write(self.folder, {**self.report, self.name: part, **ending})
