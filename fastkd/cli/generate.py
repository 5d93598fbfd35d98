"""``fastkd generate CONFIG.yaml``: the teacher decodes the training inputs."""

from __future__ import annotations

from fastkd.cli.settings import help_text, read_settings, renamed

ABOUT = """Write the teacher's answers to the prompts (or sources) of train_file into output_dir, as a data
set: `train_file: output_dir` then trains on them, with the data's own answers kept in the column reference.
--mode is short for --generation_mode. A run that was stopped resumes when it is started again."""


def main(argv: list[str]) -> int:
    if not argv or {"-h", "--help"} & set(argv):
        print(help_text("generate", ABOUT))
        return 0 if argv else 2
    args = read_settings(renamed(argv, "mode", "generation_mode"))
    from fastkd.runs.generate import generate

    made = generate(args)
    print(f"{made.folder}: {made.rows:,} rows, {made.tokens:,} tokens ({made.made_from['generation_mode']})")
    print(f"to train on it: train_file: {args.output_dir}")
    return 0
