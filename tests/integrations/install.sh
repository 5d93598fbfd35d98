#!/usr/bin/env bash
# Creates an environment with the libraries of the adapters and a fastkd that is this checkout. Complete ones are
# reused. install.sh PYTHON VENV TORCH, where PYTHON has fastkd installed from this checkout.
set -euo pipefail
python=$(cd "$(dirname "$1")" && pwd)/$(basename "$1") venv=$2 torch=$3
root=$(cd "$(dirname "$0")/../.." && pwd)
if [ ! -e "$venv/complete" ]; then
  "$python" -m venv --clear "$venv"
  pip=("$venv/bin/python" -m pip install -qq --disable-pip-version-check --no-input)
  "${pip[@]}" "$torch"
  "${pip[@]}" "$torch" 'trl==1.16.0' 'sentence-transformers==6.2.0' 'liger-kernel==0.8.5' 'nvidia-modelopt==0.47.0' \
    requests 'pytest>=8.2' hypothesis expecttest pytest-benchmark
  # Speculators asks for torchaudio and torchvision, which its losses do not use and which bind torch's version.
  "${pip[@]}" --no-deps 'speculators==0.9.0' 'hs-connectors==0.9.0'
  "${pip[@]}" "$torch" openai loguru pydantic-settings typer
  touch "$venv/complete"
fi
# Links to the sources and to the compiled part, so that both come from one folder and the checkout stays as it is.
site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
compiled=$("$python" -c 'import fastkd._C; print(fastkd._C.__file__)')
rm -rf "$site/fastkd"
mkdir "$site/fastkd"
ln -s "$root"/fastkd/* "$site/fastkd/"
ln -sf "$compiled" "$site/fastkd/"
