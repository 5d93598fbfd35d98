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

# name -> (module, one line of help)
COMMANDS = {
    "demo": (
        "fastkd.cli.demo",
        "the whole story in minutes on a CPU: teacher, student, control, table, picture",
    ),
    "train": ("fastkd.cli.train", "step one: plain supervised training, of a teacher for example"),
    "distill": ("fastkd.cli.distill", "step two: train a student on a teacher's distributions"),
    "generate": ("fastkd.cli.generate", "sequence-level: the teacher decodes the training inputs"),
    "cache": ("fastkd.cli.cache", "store the teacher's distributions, to distil without loading it"),
    "evaluate": ("fastkd.cli.evaluate", "perplexity, agreement, accuracy, BLEU, ROUGE; greedy and beam"),
    "doctor": ("fastkd.cli.doctor", "what would go wrong, before it does"),
    "estimate": ("fastkd.cli.estimate", "memory, time per step and cache size, before loading anything"),
    "bench": (
        "fastkd.cli.bench",
        "speed and memory here, beside the floor and the losses of other libraries",
    ),
    "env": ("fastkd.cli.env", "versions, backends, and why one is missing"),
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
        code: int = importlib.import_module(COMMANDS[name][0]).main(rest)
        _leave_process_group()
        return code
    except KeyboardInterrupt:
        print(f"fastkd {name}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of the output, such as head, has exited
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if debug:
            traceback.print_exc()
        else:
            print(f"fastkd {name}: {_sentence(error)}", file=sys.stderr)
        return 1


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
    if isinstance(error, ModuleNotFoundError) and not str(error.name).startswith("fastkd"):
        return f"the package {error.name!r} is missing: pip install 'fastkd[train]'"
    text = " ".join(str(error).split())
    return (
        text
        if text and isinstance(error, (ValueError, RuntimeError, OSError))
        else f"{type(error).__name__}: {text}"
    )
