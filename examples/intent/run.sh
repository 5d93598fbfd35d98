#!/usr/bin/env bash
# What a user wants of an assistant: few labelled rows, many without a label.
# Usage: bash run.sh [DATA]   DATA holds train.jsonl and validation.jsonl: rows of text and label.
cd "$(dirname "$0")"
. ../steps.sh
[ $# -eq 0 ] || ln -sfn "$(realpath "$1")" data

encoder
made student --task classification --teacher out/encoder --layers 2
mkdir -p out/data
for rows in 50 200 1000; do
  head -n "$rows" data/train.jsonl > "out/data/$rows.jsonl"
  # The other rows lose their labels.
  tail -n "+$((rows + 1))" data/train.jsonl | sed -E 's/, *"label": *[^,}]*//' > "out/data/without-$rows.jsonl"
  few="out/data/$rows.jsonl"

  # Teacher, student and control see the same few labels. The teacher also reads the other rows to the student.
  trained "teacher-$rows" teacher.yaml --train-file "$few"
  distilled "few-$rows" student.yaml --teacher "out/teacher-$rows" --train-file "$few" --control --seeds "$seeds"
  distilled "unlabelled-$rows" student.yaml --teacher "out/teacher-$rows" \
    --train-file "[$few, out/data/without-$rows.jsonl]" --seeds "$seeds"
done
trained teacher-all teacher.yaml
distilled all student.yaml --teacher out/teacher-all --control --seeds "$seeds"
