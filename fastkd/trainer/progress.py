"""One quiet bar per training run, with the numbers that matter beside it."""

from __future__ import annotations

import sys
from typing import Any

from tqdm.auto import tqdm
from transformers import TrainerCallback


class Progress(TrainerCallback):
    """A bar over the optimizer steps; in a file or a pipe, a line now and then.

    Args:
        title: what stands before the bar.
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self.bar: Any = None
        self.shown: dict[str, str] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            interval = 0.2 if sys.stderr.isatty() else 10.0
            self.bar = tqdm(
                total=state.max_steps,
                initial=state.global_step,
                desc=self.title,
                unit="step",
                mininterval=interval,
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any
    ) -> None:
        if self.bar is None or logs is None:
            return
        wanted = {"loss": "loss", "kd": "kd", "ce": "ce", "eval_perplexity": "held-out perplexity"}
        self.shown.update({wanted[key]: f"{value:.4g}" for key, value in logs.items() if key in wanted})
        self.bar.set_postfix(self.shown, refresh=False)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None
