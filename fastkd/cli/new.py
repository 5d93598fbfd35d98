"""``fastkd new [DIR] [CONFIG.yaml]``: the directory of a model that a run starts from."""

from __future__ import annotations

import dataclasses
import difflib
from pathlib import Path
from typing import Any

from fastkd.cli.settings import read_values, settings_of, split_options

ABOUT = """Make the directory of a model to start from, with its tokenizer. `model: DIR` then trains it.

  fastkd new DIR --teacher NAME --layers 3            layers 0, 3 and 5 of the teacher's 6
  fastkd new DIR --teacher NAME --hidden-size 256     narrower, with new weights
  fastkd new DIR --architecture llama --train-file FILE

CONFIG.yaml is the configuration of the run that will train the model: its teacher, task and data need not
be given again, and its `model` is DIR. A directory that is not empty is refused, unless this command made it
and nothing in it has changed."""
# The fields of a run's configuration that this command reads.
READ = (
    "teacher", "cross_tokenizer", "task", "seed", "train_file", "dataset", "train_split", "column_mapping",
    "packing", "max_length", "max_target_length", "teacher_model_init_kwargs", "trust_remote_code",
)  # fmt: skip


def main(argv: list[str]) -> int:
    if not argv or {"-h", "--help"} & set(argv):
        print(_help())
        return 0 if argv else 2
    places, options = split_options(argv)
    files = [place for place in places if place.endswith((".yaml", ".yml"))]
    folders = [place for place in places if place not in files]
    if len(files) > 1 or len(folders) > 1:
        raise ValueError(f"give one directory and one configuration file at most, not {' '.join(places)}")
    given = _fields(files, options)
    from fastkd.runs.new.request import Request
    from fastkd.trainer.config import DistillationConfig

    own = {field.name for field in dataclasses.fields(Request)}
    for name in options.keys() - own - {field.name for field in dataclasses.fields(DistillationConfig)}:
        if near := difflib.get_close_matches(name, own, n=1, cutoff=0.8):
            raise ValueError(f"there is no option --{name}; did you mean --{near[0]}?")
    request = Request(**{name: given.pop(name) for name in own & options.keys()})
    args = settings_of(given)
    if not folders and args.model is None:
        raise ValueError("give the directory to make, or a configuration file whose field model names it")
    from fastkd.runs.new import make

    folder = Path(folders[0] if folders else str(args.model))
    made = make(folder, request, args, given)
    print(made.table())
    print(f"to train it: model: {folder}")
    return 0


def _fields(files: list[str], options: dict[str, str]) -> dict[str, Any]:
    from fastkd.cli.yaml_text import read_file

    return {**(read_file(Path(files[0])) if files else {}), **read_values(options)}


def _help() -> str:
    from fastkd.runs.new.request import Request
    from fastkd.trainer.config import DistillationConfig

    lines = [
        "usage: fastkd new [DIR] [CONFIG.yaml] [--option value ...]",
        "",
        ABOUT,
        "",
        "Options (default):",
    ]
    for field in dataclasses.fields(Request):
        lines += [f"  {field.name} (unset)", f"      {field.metadata['help']}"]
    known = {field.name: field for field in dataclasses.fields(DistillationConfig)}
    lines += ["", "Fields of the configuration that are read, here or there:"]
    for name in READ:
        lines += [f"  {name}", *([f"      {text}"] if (text := known[name].metadata.get("help")) else [])]
    return "\n".join(lines)
