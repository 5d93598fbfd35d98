"""``fastkd distill CONFIG.yaml``: step two, training on a teacher's distributions."""

from __future__ import annotations

from fastkd.cli.settings import help_text, read_settings

ABOUT = """Train a student on a teacher's distributions and on the labels.
Runs under torchrun and accelerate launch too, for example
torchrun --nproc_per_node 2 -m fastkd.cli distill CONFIG.yaml
--seeds 3 repeats the run with three seeds, each in a directory of its own below output_dir; the report
has the mean and the spread of every metric. The same command goes on where it was stopped."""


def main(argv: list[str]) -> int:
    if not argv or {"-h", "--help"} & set(argv):
        print(help_text("distill", ABOUT))
        return 0 if argv else 2
    args = read_settings(argv)
    from fastkd.runs.seeds import run

    run(args, "distill")
    return 0
