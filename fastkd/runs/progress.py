"""One progress bar per training run, with the metrics that matter beside it."""

from __future__ import annotations

import sys
from typing import Any

from tqdm.auto import tqdm
from transformers import TrainerCallback
from transformers.trainer_utils import has_length

SHOWN = {
    "loss": "loss",
    "kd": "kd",
    "ce": "ce",
    "mse": "squared error",
    "accuracy": "accuracy",
    "agreement": "agreement",
    "eval_perplexity": "held-out perplexity",
    "eval_accuracy": "held-out accuracy",
    "eval_mse": "held-out squared error",
}


class Progress(TrainerCallback):
    """A bar over the optimizer steps, and one over the batches of each evaluation that takes more than a
    second. If the output is a file or a pipe, a bar is printed at most every 10 seconds.

    Args:
        title: label in front of the bar.
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self.bar: Any = None
        self.evaluation: Any = None
        self.shown: dict[str, str] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self.bar = tqdm(
                total=state.max_steps,
                initial=state.global_step,
                desc=self.title,
                unit="step",
                mininterval=_interval(),
            )

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # A resumed run first passes over the batches that it has seen. That time is not a step's, and would
        # make the bar promise days.
        if self.bar is not None and self.bar.n == self.bar.initial:
            self.bar.start_t = self.bar.last_print_t = self.bar._time()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any
    ) -> None:
        if self.bar is None or logs is None:
            return
        self.shown.update({SHOWN[key]: _short(key, value) for key, value in logs.items() if key in SHOWN})
        self.bar.set_postfix(self.shown, refresh=False)

    def on_prediction_step(
        self, args: Any, state: Any, control: Any, eval_dataloader: Any = None, **kwargs: Any
    ) -> None:
        if not state.is_world_process_zero:
            return
        if self.evaluation is None:
            self.evaluation = tqdm(
                total=len(eval_dataloader) if has_length(eval_dataloader) else None,
                desc=f"{self.title}, held-out",
                unit="batch",
                leave=self.bar is None,
                mininterval=_interval(),
                delay=1.0,
            )
        self.evaluation.update()

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._close_evaluation()

    def on_predict(self, args: Any, state: Any, control: Any, *rest: Any, **kwargs: Any) -> None:
        self._close_evaluation()

    def _close_evaluation(self) -> None:
        if self.evaluation is not None:
            self.evaluation.close()
            self.evaluation = None

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def _interval() -> float:
    return 0.2 if sys.stderr.isatty() else 10.0


def _short(key: str, value: float) -> str:
    return f"{value:.1%}" if key.endswith(("accuracy", "agreement")) else f"{value:.4g}"
