#!/usr/bin/env bash
# Summaries of Python functions, from the text that every Python brings along.
# Usage: bash run.sh [DATA]   DATA holds train.jsonl and validation.jsonl: rows of source and target.
cd "$(dirname "$0")"
. ../steps.sh
if [ $# -gt 0 ]; then ln -sfn "$(realpath "$1")" data; else once data fastkd demo --docstrings data; fi

made teacher teacher.yaml --architecture bart --hidden-size 192 --layers 2 --vocab-size 3000
trained teacher teacher.yaml
made student student.yaml --layers 1

distilled token student.yaml --control --seeds "$seeds"
once answers fastkd generate student.yaml --mode beam --output-dir out/answers
distilled sequence student.yaml --train-file out/answers --kd-ratio 0 --seeds "$seeds"
# The distilled student goes on: it writes summaries itself, and the teacher judges every token of them.
distilled on-policy student.yaml --model out/token/seed-42 --lmbda 1 --divergence reverse_kl --max-steps 75 \
  --learning-rate 2e-4 --warmup-steps 10 --seeds "$seeds"
