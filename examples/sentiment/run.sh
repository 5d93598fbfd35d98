#!/usr/bin/env bash
# Sentiment of sentences: a pretrained encoder of six layers, distilled into two.
# Usage: bash run.sh [DATA]   DATA holds train.jsonl and validation.jsonl: rows of text and label.
cd "$(dirname "$0")"
. ../steps.sh
[ $# -eq 0 ] || ln -sfn "$(realpath "$1")" data

encoder
trained teacher teacher.yaml
# The student starts from the encoder as it was before the teacher was trained, so that the control knows
# nothing of the teacher.
made student --task classification --teacher out/encoder --layers 2
distilled student student.yaml --control --seeds "$seeds"
distilled features features.yaml --seeds "$seeds"

# The same shape with random weights, from a cache. Two classes fit into it, so it is as good as the teacher.
once cache fastkd cache student.yaml --kind topk --output-dir out/cache
made scratch --task classification --teacher out/encoder --layers 2 --init scratch
distilled scratch student.yaml --teacher cache:out/cache --model out/start/scratch --control --seeds "$seeds"

# 500 rows keep their labels. The teacher, too, knows only these.
mkdir -p out/data
head -n 500 data/train.jsonl > out/data/500.jsonl
tail -n +501 data/train.jsonl | sed -E 's/, *"label": *[^,}]*//' > out/data/without-500.jsonl
trained teacher-500 teacher.yaml --train-file out/data/500.jsonl --max-steps 150
distilled few student.yaml --teacher out/teacher-500 --train-file "[out/data/500.jsonl, out/data/without-500.jsonl]" \
  --control --seeds "$seeds"
