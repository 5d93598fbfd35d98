"""``python tests/gpu/workload.py``: make a few calls of every kernel while a tool watches (sanitize.py).

Rows are few and short, since such tools slow kernels down a hundredfold. Each call is compared with the
oracle, so that a report without errors is known to be about kernels that computed the right results.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import nullcontext
from pathlib import Path

import torch

HERE = Path(__file__).resolve()
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parents[2])]

from support.gpu_cases import WAYS, Case  # noqa: E402

from fastkd.backends import native  # noqa: E402
from fastkd.divergences import DIVERGENCES  # noqa: E402

# Columns: a few elements more than whole vectors, several blocks of a row with a rest, and whole vectors.
SIZES = ((torch.float32, 1003), (torch.bfloat16, 4099), (torch.float16, 2048))


def cases(device: str, backend: str) -> list[Case]:
    found = [
        Case(("dense", "logits"), device, backend, 3, vocab, dtype, metrics, divergence=divergence)
        for divergence in DIVERGENCES
        for dtype, vocab in SIZES
        for metrics in (False, *[True] * (vocab == 1003))
    ]
    found += [
        Case(("dense", "sparse"), device, backend, 3, 1003, divergence=divergence)
        for divergence in DIVERGENCES
        if not DIVERGENCES[divergence].splits_label
    ]
    return found + [Case(way, device, backend, 6, 1003, dtype) for way in WAYS for dtype, _ in SIZES]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--backend", choices=("native", "triton"), default="native")
    parser.add_argument(
        "--kernel", choices=("stream", "cluster", "chosen"), default="chosen", help="of native"
    )
    parser.add_argument("--rows", type=int, help="that a cluster takes; default: as many as native chooses")
    arguments = parser.parse_args()
    on_gpu = arguments.device == "cuda" and arguments.backend == "native"
    forced = native.forced_cuda_kernel(arguments.kernel, rows=arguments.rows) if on_gpu else nullcontext()
    done = 0
    with forced:
        for case in cases(arguments.device, arguments.backend):
            case.check(case.run())
            done += 1
    print(f"{done} calls of {arguments.backend}, all right")


if __name__ == "__main__":
    main()
