#!/usr/bin/env bash
# A language model, distilled from a live teacher and from caches.
# Usage: bash run.sh [DATA]   DATA holds train.txt and validation.txt.
cd "$(dirname "$0")"
. ../steps.sh
[ $# -eq 0 ] || ln -sfn "$(realpath "$1")" data

made teacher teacher.yaml --architecture llama --hidden-size 256 --layers 4 --vocab-size 4000
trained teacher teacher.yaml
made student student.yaml --hidden-size 96 --layers 2

distilled live student.yaml --control --seeds "$seeds"
for divergence in reverse_kl jsd; do
  distilled "$divergence" student.yaml --divergence "$divergence" --seeds "$seeds"
done
# Two caches of equal size: 23 entries of 4 bytes are what 50 draws take with this teacher (fastkd estimate).
once caches-topk fastkd cache student.yaml --kind topk --cache-top-k 23 --output-dir out/caches/topk
once caches-sampled fastkd cache student.yaml --kind sampled --output-dir out/caches/sampled
for kind in topk sampled; do
  distilled "cache-$kind" student.yaml --teacher "cache:out/caches/$kind" --seeds "$seeds"
done

# As wide as the teacher, with two layers of four: copied from it, or drawn at random.
made layers student.yaml --layers 2
made scratch student.yaml --layers 2 --init scratch
for start in layers scratch; do
  distilled "$start" student.yaml --model "out/start/$start" --seeds "$seeds"
done
