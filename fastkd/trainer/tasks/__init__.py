"""The tasks of the models: one module per task, all with the interface of :class:`Task`."""

from fastkd.trainer.tasks.base import IGNORE_INDEX, Task
from fastkd.trainer.tasks.causal_lm import CausalLM
from fastkd.trainer.tasks.classification import Classification
from fastkd.trainer.tasks.seq2seq import Seq2Seq

TASKS: dict[str, Task] = {task.name: task for task in (CausalLM(), Seq2Seq(), Classification())}

__all__ = ["IGNORE_INDEX", "TASKS", "Task"]
