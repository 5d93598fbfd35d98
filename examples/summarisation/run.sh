#!/usr/bin/env bash
# Summaries of Python functions, from the text that every Python brings along and the packages of the trainer.
# Usage: bash run.sh [DATA]   DATA holds train.jsonl and validation.jsonl, rows of source and target, and
# text.train.jsonl and text.validation.jsonl, rows of text for the language model.
cd "$(dirname "$0")"
. ../steps.sh
if [ $# -gt 0 ]; then
  ln -sfn "$(realpath "$1")" data
else
  once data fastkd demo --docstrings data --packages
fi

made model language_model.yaml --architecture llama --hidden-size 256 --layers 4 --vocab-size 4000
trained language_model language_model.yaml
trained teacher teacher.yaml
made student student.yaml --layers 2

distilled token student.yaml --control --seeds "$seeds"
# The teacher summarises a third of what a student sees in its steps: a beam takes as long as training.
once some eval 'shuf -n 6400 --random-source=data/train.jsonl data/train.jsonl > out/some.jsonl'
once answers fastkd generate student.yaml --train-file out/some.jsonl --mode beam --output-dir out/answers
distilled sequence student.yaml --train-file out/answers --kd-ratio 0 --seeds "$seeds"
# The distilled student goes on: it writes summaries itself, and the teacher judges every token of them.
distilled on-policy student.yaml --model out/token/seed-42 --lmbda 1 --divergence reverse_kl --max-steps 75 \
  --learning-rate 2e-4 --warmup-steps 10 --seeds "$seeds"
