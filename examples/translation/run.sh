#!/usr/bin/env bash
# Translation, distilled token by token and by the teacher's own translations.
# Usage: bash run.sh [DATA]   DATA holds train.jsonl and validation.jsonl: rows of source and target.
cd "$(dirname "$0")"
. ../steps.sh
[ $# -eq 0 ] || ln -sfn "$(realpath "$1")" data

made teacher teacher.yaml --architecture bart --hidden-size 256 --layers 2 --vocab-size 6000
trained begun teacher.yaml
# Three more epochs: a student of its layers would overtake a teacher that has seen the data three times.
trained teacher teacher.yaml --model out/begun --warmup-steps 100
made student student.yaml --layers 1

distilled token student.yaml --control --seeds "$seeds"
once answers fastkd generate student.yaml --mode beam --max-completion-length 64 --output-dir out/answers
distilled sequence student.yaml --train-file out/answers --kd-ratio 0 --seeds "$seeds"
# Where pairs are few: the references of 5,000 of the pairs, beside the teacher's translations of all sources.
once some eval 'head -n 5000 data/train.jsonl > out/few.jsonl'
distilled few student.yaml --train-file out/few.jsonl --kd-ratio 0 --seeds "$seeds"
