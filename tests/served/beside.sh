#!/usr/bin/env bash
# Makes fastkd importable in the environment of vLLM that serve.sh has installed, for the tests of an engine in the same
# process. beside.sh VENV
# The sources are read from this checkout, and the compiled part is left out: it belongs to another environment, and the
# tests compare runs with each other, for which the reference backend is enough.
set -euo pipefail
venv=$1
root=$(cd "$(dirname "$0")/../.." && pwd)
site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
echo "$root" >"$site/fastkd.pth"
[ -e "$venv/beside" ] && exit 0
"$venv/bin/pip" -q install accelerate datasets filelock sacrebleu rouge-score matplotlib pyyaml peft httpx \
  pytest pytest-benchmark hypothesis expecttest
touch "$venv/beside"
