"""Test the progress bar of a run."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from fastkd.runs import progress


def test_time_before_the_first_step_of_a_resumed_run_does_not_count() -> None:
    """A resumed run reads past the batches it has seen before its first step, which may take minutes."""
    now = [1000.0]
    bar = progress.Progress("student")
    state = SimpleNamespace(is_world_process_zero=True, max_steps=1000, global_step=500)
    bar.on_train_begin(None, state, None)
    bar.bar._time = lambda: now[0]
    bar.bar.start_t = bar.bar.last_print_t = now[0]
    now[0] += 600.0  # the batches that were seen
    bar.on_step_begin(None, state, None)
    for _ in range(2):
        now[0] += 1.0
        state.global_step += 1
        bar.on_step_end(None, state, None)
    shown = bar.bar.format_dict
    assert shown["elapsed"] == pytest.approx(2.0)
    assert shown["initial"] == 500 and shown["n"] == 502
    bar.on_train_end(None, state, None)
