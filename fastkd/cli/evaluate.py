"""``fastkd evaluate CONFIG.yaml``: a model on held-out data."""

from __future__ import annotations

from pathlib import Path

from fastkd.cli.settings import help_text, read_settings

ABOUT = """Measure a model on eval_file (or on eval_split of dataset), beside `teacher` where it is set and
the control of its run where there is one: perplexity, agreement, kd and entropies; accuracy and F1 of
classifiers; BLEU, chrF and ROUGE of what seq2seq models, and causal_lm models on data with prompts, write
greedily and with num_beams beams.
The model is --model DIR where that is given; else what the run left in output_dir; else `model`.
Writes evaluate.json and evaluate.html to output_dir, or to DIR where output_dir is unset."""


def main(argv: list[str]) -> int:
    if not argv or {"-h", "--help"} & set(argv):
        print(help_text("evaluate", ABOUT))
        return 0 if argv else 2
    args = read_settings(argv)
    from fastkd.runs import report
    from fastkd.runs.evaluate import evaluate, has_model
    from fastkd.trainer.seeds import named_seeds, seed_folder, seeds_in

    named = any(argument.partition("=")[0] == "--model" for argument in argv)
    output_dir = str(args.output_dir)
    unset = report.untouched(type(args))["output_dir"] == args.output_dir
    aside = ""
    if not named and has_model(Path(output_dir)):
        # The configuration names the student before training; the trained one is in output_dir.
        args.model = output_dir
    elif not named and not unset:
        if seeds := seeds_in(Path(output_dir)):
            raise ValueError(
                f"output_dir {output_dir!r} holds the runs of {named_seeds(seeds)}: give the model of one of "
                f"them, such as --model {seed_folder(output_dir, seeds[0])}"
            )
        if args.model_init == "scratch":
            raise ValueError(
                f"output_dir {output_dir!r} holds no trained model, and model_init: scratch means that "
                f"{args.model!r} has no weights: run fastkd train or distill first, or give --model DIR"
            )
        aside = f" as it is before training, since {output_dir} holds no trained model"
    if unset and args.model is not None and Path(args.model).is_dir():
        args.output_dir = args.model
    print(f"evaluating {args.model}{aside}")
    evaluate(args)
    return 0
