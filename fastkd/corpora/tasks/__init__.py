"""The tasks of the models: one module per task, all with the interface of :class:`Task`."""

from fastkd.corpora.tasks.base import IGNORE_INDEX, Batch, Task
from fastkd.corpora.tasks.causal_lm import CausalLM
from fastkd.corpora.tasks.classification import Classification
from fastkd.corpora.tasks.seq2seq import Seq2Seq

TASKS: dict[str, Task] = {task.name: task for task in (CausalLM(), Seq2Seq(), Classification())}

__all__ = ["IGNORE_INDEX", "TASKS", "Batch", "Task"]
