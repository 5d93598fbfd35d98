"""``fastkd cache CONFIG.yaml``: the teacher's distributions on disk."""

from __future__ import annotations

from pathlib import Path

from fastkd.cli.fields_read import refuse_entries
from fastkd.cli.settings import help_text, read_settings, renamed

ABOUT = """Run the teacher over train_file, and eval_file if set, and store its distributions in
output_dir/train and output_dir/eval. Then `teacher: cache:output_dir` distils from them without loading it.
Prints the bytes and entries per token, and how much of the teacher's probability they hold.
--kind is short for --cache_kind. A run that was stopped resumes when it is started again.

  --from FILE         log-probabilities in the layout of vLLM, axolotl or DistillKit, or a directory of
                      files, in place of running the teacher
  --write-rows FILE   only write the tokens of all rows, as JSON lines, for vLLM to run the teacher on them"""


def main(argv: list[str]) -> int:
    if not argv or {"-h", "--help"} & set(argv):
        print(help_text("cache", ABOUT))
        return 0 if argv else 2
    argv, path = _taken(argv, "--write-rows")
    args = read_settings(renamed(renamed(argv, "kind", "cache_kind"), "from", "cache_from"))
    refuse_entries(args, argv)
    if path is not None:
        from fastkd.runs.cache import write_rows

        print(f"wrote the tokens of {write_rows(args, Path(path)):,} rows to {path}")
        return 0
    from fastkd.runs.cache import make_caches
    from fastkd.runs.cache_contents import advice_on, contents

    for name, made in make_caches(args).items():
        print(
            f"{made.folder}: {made.rows:,} rows ({name}), {made.tokens:,} tokens with a target, "
            f"{made.bytes / made.tokens:.1f} bytes per token ({made.kind}, {made.bytes / 2**20:,.1f} MiB)"
        )
        if (sentence := contents(made)) is not None:
            print(f"  {sentence}")
        if (advice := advice_on(args, made)) is not None:
            print(f"  warning: {advice.found}\n  -> {advice.remedy}")
    print(f"to distil from it: teacher: cache:{args.output_dir}")
    return 0


def _taken(argv: list[str], option: str) -> tuple[list[str], str | None]:
    """The arguments without an option of this command's own, and the option's value."""
    rest, value = [], None
    remaining = iter(argv)
    for argument in remaining:
        name, equals, given = argument.partition("=")
        if name.replace("_", "-") != option:
            rest.append(argument)
        elif not (value := given if equals else next(remaining, "")):
            raise ValueError(f"{option} needs the name of a file")
    return rest, value
