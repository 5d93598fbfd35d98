"""The ``fastkd`` command.

A command is a module with ``main(argv: list[str]) -> int``, which returns the exit code. The module is
imported only if the command is called, since ``fastkd --help`` must not wait for torch. A command reports an
error by raising; this module prints the message.
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
import traceback

from fastkd.cli import packages
from fastkd.cli.fields_read import refuse_foreign

# name -> (module, one line of help)
COMMANDS = {
    "demo": (
        "fastkd.cli.demo",
        "a whole distillation in minutes on a CPU: teacher, student, control, table, picture",
    ),
    "new": ("fastkd.cli.new", "a model to start from: a smaller teacher, or a fresh one with a tokenizer"),
    "train": ("fastkd.cli.train", "step one: plain supervised training, of a teacher for example"),
    "distill": ("fastkd.cli.distill", "step two: train a student on a teacher's distributions"),
    "generate": ("fastkd.cli.generate", "sequence-level: the teacher decodes the training inputs"),
    "cache": ("fastkd.cli.cache", "store the teacher's distributions, to distil without loading it"),
    "evaluate": ("fastkd.cli.evaluate", "perplexity, agreement, accuracy, BLEU, ROUGE; greedy and beam"),
    "doctor": ("fastkd.cli.doctor", "find what would go wrong in a run before it starts"),
    "estimate": ("fastkd.cli.estimate", "memory, time per step and cache size, before loading anything"),
    "bench": ("fastkd.cli.bench", "speed and memory of the losses on this machine, beside other libraries"),
    "env": ("fastkd.cli.env", "versions, backends, and why one is missing"),
}
# The message about an interrupted command ends with this.
_AGAIN = "; the same command goes on from its last"
RESUMED = {
    "train": f"{_AGAIN} checkpoint, if it has saved one",
    "distill": f"{_AGAIN} checkpoint, if it has saved one",
    "generate": f"{_AGAIN} shard",
    "cache": f"{_AGAIN} shard",
}


def main(argv: list[str] | None = None) -> int:
    """Run ``argv`` (``sys.argv[1:]`` if None) and return the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv
    argv = [argument for argument in argv if argument != "--debug"]
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0 if argv else 2
    name, rest = argv[0], argv[1:]
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.0)[0]
        print(
            f"fastkd: there is no command {name!r}; did you mean {near!r}? (fastkd --help lists all)",
            file=sys.stderr,
        )
        return 2
    try:
        refuse_foreign(name, rest)
        code: int = importlib.import_module(COMMANDS[name][0]).main(rest)
        _leave_process_group()
        return code
    except KeyboardInterrupt:
        print(f"\nfastkd {name}: interrupted{RESUMED.get(name, '')}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of the output, such as head, has exited
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        sentence = f"fastkd {name}: {_sentence(error)}"
        if debug:
            traceback.print_exc()
        else:
            print(sentence, file=sys.stderr)
        _tell_torchrun(sentence)
        return 1


def _tell_torchrun(sentence: str) -> None:
    """Leave the sentence to torchrun, whose own report, which is long and printed last, then ends with it."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_torchelastic_launched():
        return
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    # The report shows the error's traceback. That of an error without a cause has nothing but the sentence.
    try:
        raise RuntimeError(sentence) from None
    except RuntimeError as error:
        get_error_handler().record_exception(error)


def _leave_process_group() -> None:
    """Leave the process group of torchrun: otherwise its threads may abort the process at its end."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def _usage() -> str:
    lines = [f"  {name:<10}{text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: fastkd COMMAND [...] [--debug]",
            "",
            *lines,
            "",
            "fastkd COMMAND --help shows a command's settings and their defaults; --debug shows tracebacks.",
        ]
    )


def _sentence(error: Exception) -> str:
    """The message of an exception on one line."""
    if isinstance(error, ModuleNotFoundError) and (missing := packages.missing_package(error)) is not None:
        return f"the package {missing!r} is missing: {packages.remedy(missing)}"
    text = " ".join(str(error).split())
    if text and isinstance(error, (ValueError, RuntimeError, OSError, ImportError)):
        return text
    return f"{type(error).__name__}{f': {text}' if text else ''} (--debug shows where)"
