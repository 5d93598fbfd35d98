#!/usr/bin/env bash
# A student learns from a teacher whose tokenizer is another one.
# Usage: bash run.sh [DATA]   DATA holds train.jsonl and validation.jsonl: rows of source, a text.
cd "$(dirname "$0")"
. ../steps.sh
if [ $# -gt 0 ]; then ln -sfn "$(realpath "$1")" data; else once data fastkd demo --docstrings data; fi

made teacher teacher.yaml --architecture llama --hidden-size 96 --layers 2 --vocab-size 4000
trained teacher teacher.yaml
# The student has the first 400 texts alone, and trains its tokenizer on them.
once few eval 'head -n 400 data/train.jsonl > out/few.jsonl'
made student student.yaml --architecture llama --hidden-size 64 --layers 2 --vocab-size 1000

distilled spans student.yaml --control --seeds "$seeds"
distilled hybrid student.yaml --cross_tokenizer hybrid --temperature 1 --seeds "$seeds"
distilled gold student.yaml --cross_tokenizer gold --temperature 1 --seeds "$seeds"
