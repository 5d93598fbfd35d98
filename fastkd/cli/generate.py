"""``fastkd generate CONFIG.yaml``: the teacher decodes the training inputs."""

from __future__ import annotations

from typing import Any

from fastkd.cli.settings import help_text, read_settings, renamed

ABOUT = """Write the teacher's answers to the prompts (or sources) of train_file into output_dir, as a data
set: `train_file: output_dir` then trains on them, with the data's own answers kept in the column reference.
A classifier labels the texts: those with a label keep it, all others get the teacher's.
--mode is short for --generation_mode. A run that was stopped resumes when it is started again."""


def main(argv: list[str]) -> int:
    if not argv or {"-h", "--help"} & set(argv):
        print(help_text("generate", ABOUT))
        return 0 if argv else 2
    args = read_settings(renamed(argv, "mode", "generation_mode"))
    from fastkd.runs.generate import generate

    made = generate(args)
    if args.task == "classification":
        print(f"{made.folder}: {made.rows:,} texts ({_labels(made.notes)})")
        print(f"to train on it: train_file: {args.output_dir}")
        return 0
    print(f"{made.folder}: {made.rows:,} rows, {made.tokens:,} tokens ({made.made_from['generation_mode']})")
    print(f"to train on it: train_file: {args.output_dir}")
    return 0


def _labels(counts: dict[str, Any]) -> str:
    """Where the labels of a set come from, as a phrase."""
    found = [f"{counts['labelled']:,} labelled by the teacher"]
    if counts["unsure"]:
        found.append(f"{counts['unsure']:,} left without a label, which was less likely than min_probability")
    if kept := counts["kept"]:
        share = 100 * counts["agreed"] / kept
        found.append(f"{kept:,} with their own label, of which the teacher would give {share:.1f} %")
    return "; ".join(found)
