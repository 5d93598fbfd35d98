"""``fastkd train CONFIG.yaml``: step one, plain supervised training."""

from __future__ import annotations

from fastkd.cli.settings import help_text, read_settings

ABOUT = """Train a model on the labels alone: plain supervised training, of a teacher for example.
`teacher`, `kd_ratio` and `control` do not apply: the loss is the cross-entropy with the labels.
--seeds 3 repeats the run with three seeds, each in a directory of its own below output_dir."""


def main(argv: list[str]) -> int:
    if not argv or {"-h", "--help"} & set(argv):
        print(help_text("train", ABOUT))
        return 0 if argv else 2
    args = read_settings(argv, fixed={"kd_ratio": 0.0, "teacher": None, "control": False})
    from fastkd.runs.seeds import run

    run(args, "train")
    return 0
