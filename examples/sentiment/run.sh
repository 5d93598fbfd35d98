#!/usr/bin/env bash
# Sentiment of sentences: a pretrained encoder of six layers, distilled into two.
# Usage: bash run.sh [DATA]   DATA holds train.jsonl and validation.jsonl: rows of text and label.
cd "$(dirname "$0")"
. ../steps.sh
[ $# -eq 0 ] || ln -sfn "$(realpath "$1")" data

encoder
trained teacher teacher.yaml
# The teacher runs once. A cache of the likeliest classes holds all of them, so it is as good as the teacher.
once out/cache/train/manifest.json fastkd cache student.yaml --teacher out/teacher --kind topk --output-dir out/cache
# The student starts from the encoder as it was before the teacher was trained, so that the control knows
# nothing of the teacher.
made student --task classification --teacher out/encoder --layers 2
distilled student student.yaml --control --seeds "$seeds"
# Losses between layers need the teacher itself.
distilled features features.yaml --seeds "$seeds"

# The same shape with random weights.
made scratch --task classification --teacher out/encoder --layers 2 --init scratch
distilled scratch student.yaml --model out/start/scratch --control --seeds "$seeds"
