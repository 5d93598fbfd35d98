"""``python tests/gpu/first.py``: what to measure first on a GPU, in at most twelve minutes.

The steps run in the order of their worth, each in a process of its own, since a kernel that fails may break
its process's context. A step that has ended is not run again. After each step a report is written for
``bench/results``, so that a machine that goes away takes little with it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

HERE = Path(__file__).resolve()
ROOT = HERE.parents[2]
sys.path[:0] = [str(HERE.parents[1]), str(ROOT)]

from support.closeness import assert_gradient, assert_value  # noqa: E402
from support.oracle import reference_gradients  # noqa: E402

import fastkd  # noqa: E402
from fastkd.backends import native  # noqa: E402

BUDGET_S = 12 * 60
DIVERGENCES = ("forward_kl", "tvd", "jsd")
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
VOCABULARIES = (32_000, 128_256, 151_936, 262_144)
BLOCKS = (1, 2, 4, 8, 16)
# Logits of one tensor: several times the L2 cache of an H100 or H200, and many rows for every multiprocessor.
ELEMENTS = 2**28
ROUNDS = 15


def kernels(device: str) -> Iterator[tuple[str, Any]]:
    """The kernels to force, by name; on a CPU, where the script is only tried out, there is one."""
    yield "chosen", nullcontext
    if device == "cuda":
        yield "stream", lambda: native.forced_cuda_kernel("stream")
        for blocks in BLOCKS:
            yield f"cluster of {blocks}", lambda blocks=blocks: native.forced_cuda_kernel("cluster", blocks)
        # Whether it is worth something that a cluster takes rows one after the other.
        yield "cluster for each row", lambda: native.forced_cuda_kernel("cluster", rows=1)
        yield "cluster for 16 rows", lambda: native.forced_cuda_kernel("cluster", rows=16)


def problem(device: str, dtype: torch.dtype, rows: int, vocab: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator(device).manual_seed(0)
    s, t = ((torch.randn(rows, vocab, device=device, generator=generator) * 3).to(dtype) for _ in range(2))
    return s, t, torch.randint(0, vocab, (rows,), device=device, generator=generator)


def correctness(device: str, small: bool) -> list[list[str]]:
    """Every kernel on rows of every size, compared with the oracle."""
    table = [["kernel", "right", "refused", "wrong"]]
    for kernel, forced in kernels(device):
        right, refused, wrong = 0, [], []
        for vocab in (1_003, 8_192) if small else (8_192, 9_001, *VOCABULARIES):
            for name, dtype in DTYPES.items():
                s, t, labels = problem(device, dtype, 3, vocab)
                for divergence in DIVERGENCES:
                    case = f"{divergence} {name} V={vocab}"
                    options = {"divergence": divergence, "kd_ratio": 0.5, "temperature": 2.0}
                    leaf = s.clone().requires_grad_()
                    try:
                        with forced():
                            loss = fastkd.kd_loss(leaf, t, labels, backend="native", **options)
                            loss.backward()
                    except RuntimeError as error:
                        if "configuration" not in str(error):
                            raise
                        refused.append(case)
                        continue
                    expected, by_s, _ = reference_gradients(s, t, labels, **options)
                    try:
                        assert_value(loss.detach(), expected, atol=1e-5)
                        assert_gradient(leaf.grad, by_s, factor=1.5)
                        right += 1
                    except AssertionError:
                        wrong.append(case)
        table.append([kernel, str(right), "; ".join(refused) or "none", "; ".join(wrong) or "none"])
    return table


def seconds_of(device: str, run: Callable[[], object]) -> float:
    """The median time of a call on the device, without the host's."""
    if device == "cpu":
        times = []
        for _ in range(3):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
        return statistics.median(times)
    run()
    events = [tuple(torch.cuda.Event(enable_timing=True) for _ in range(2)) for _ in range(ROUNDS)]
    for before, after in events:
        before.record()
        run()
        after.record()
    torch.cuda.synchronize()
    return statistics.median(before.elapsed_time(after) / 1e3 for before, after in events)


def times(device: str, small: bool) -> list[list[str]]:
    """The time of each kernel alone, as a share of the byte floor at the speed of a copy in the same run."""
    table = [["divergence", "dtype", "V", "copy, TB/s", *(name for name, _ in kernels(device))]]
    for vocab in (1_003,) if small else VOCABULARIES:
        for name, dtype in DTYPES.items():
            rows = 4 if small else max(ELEMENTS // vocab, 264)
            s, t, labels = problem(device, dtype, rows, vocab)
            gradient, bytes_of_one = torch.empty_like(s), s.numel() * s.element_size()
            for divergence in DIVERGENCES:
                # Before each divergence, as a GPU's clock changes with its temperature.
                copy = 2 * bytes_of_one / seconds_of(device, lambda out=gradient, x=s: out.copy_(x))
                cells = []
                for _, forced in kernels(device):
                    run = launch_of(s, t, labels, gradient, divergence)
                    try:
                        with forced():
                            cells.append(f"{3 * bytes_of_one / copy / seconds_of(device, run):.3f}")
                    except RuntimeError:
                        cells.append("refused")
                table.append([divergence, name, f"{vocab:,}", f"{copy / 1e12:.2f}", *cells])
            del s, t, gradient
    return table


def launch_of(
    s: Tensor, t: Tensor, labels: Tensor, gradient: Tensor, divergence: str
) -> Callable[[], object]:
    """A function that launches the loss's kernel alone, without the small ones around it."""
    from fastkd.backends.base import Call
    from fastkd.spec import LossSpec

    alpha, beta = (fastkd.divergences.DIVERGENCES[divergence].default(name) for name in ("alpha", "beta"))
    fields = {"temperature": 2.0, "teacher_temperature": 2.0, "kd_weight": 2.0, "kd_metric": 1.0}
    fields |= {"ce_weight": 0.5, "label_smoothing": 0.0, "z_loss": 0.0}
    spec = LossSpec(divergence, alpha, beta, **fields, ignore_index=-100, vocab_size=s.shape[1])
    weights = torch.full((s.shape[0],), 1 / s.shape[0], device=s.device)
    row_loss = torch.empty_like(weights)
    call = Call(s[None], t[None], labels, weights, weights, spec, row_loss, gradient[None])
    backend = native.NativeBackend()
    return lambda: backend.launch(call)


def profile(device: str, small: bool) -> list[list[str]]:
    """The kernels of one call and its backward, with the time of each on the device."""
    s, t, labels = problem(device, torch.bfloat16, 4 if small else 2_048, 1_003 if small else 32_000)
    s.requires_grad_()

    def step() -> None:
        s.grad = None
        fastkd.kd_loss(s, t, labels, kd_ratio=0.5, temperature=2.0).backward()

    step()
    kinds = torch.profiler.ProfilerActivity
    with torch.profiler.profile(activities=[kinds.CUDA if device == "cuda" else kinds.CPU]) as found:
        step()
        if device == "cuda":
            torch.cuda.synchronize()
    table = [["kernel", "calls", "microseconds"]]
    for event in found.key_averages():
        spent = event.self_device_time_total if device == "cuda" else event.self_cpu_time_total
        if spent:
            table.append([event.key[:90].replace("|", "/"), str(event.count), f"{spent:.1f}"])
    return table


def command_output(*command: str) -> list[list[str]]:
    """The last lines of a command's output."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    lines = (done.stdout + done.stderr).strip().splitlines()[-25:]
    return [[f"exit status {done.returncode}"], *([line.replace("|", "/")] for line in lines)]


def suite(device: str, small: bool) -> list[list[str]]:
    """The tests of the native backend on the device, without the huge ones."""
    chosen = "clusters" if device == "cuda" else "nothing"
    files = [str(HERE.parent / "test_gpu.py")]
    return command_output(sys.executable, "-m", "pytest", *files, "-q", "-x", "-k", chosen, "-m", "not huge")


def benchmark(device: str, small: bool) -> list[list[str]]:
    """The benchmark beside the peers, in what is left of the time."""
    left = os.environ.get("FASTKD_FIRST_LEFT_S", "60")
    options = ["--quick"] if small else ["--budget", left]
    return command_output(sys.executable, "-m", "fastkd.cli", "bench", "--device", device, *options)


# By worth: each with the least time in seconds that it is worth starting with.
STEPS: dict[str, tuple[Callable[[str, bool], list[list[str]]], int]] = {
    "correctness": (correctness, 10),
    "times": (times, 20),
    "profile": (profile, 10),
    "suite": (suite, 60),
    "benchmark": (benchmark, 60),
}


def device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else "cpu"


def report(folder: Path, device: str) -> str:
    """Markdown of the steps that have ended."""
    versions = f"torch {torch.__version__}, fastkd {fastkd.__version__}"
    lines = [f"# First run on {device_name(device)}, {date.today()}", "", versions]
    for name, (function, _) in STEPS.items():
        file = folder / f"{name}.json"
        if not file.exists():
            lines += ["", f"## {name}", "", "Not run."]
            continue
        rows = json.loads(file.read_text())
        lines += ["", f"## {name}", "", str(function.__doc__).strip(), ""]
        lines += [f"| {' | '.join(rows[0])} |", "|---" * len(rows[0]) + "|"]
        lines += [f"| {' | '.join(row)} |" for row in rows[1:]]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu-logs" / "first")
    parser.add_argument("--results", type=Path, default=ROOT / "bench" / "results")
    parser.add_argument("--budget", type=float, default=BUDGET_S, help="seconds for all steps together")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to try the script out")
    parser.add_argument("--step", choices=STEPS, help="run this step alone, in this process")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.step is not None:
        rows = STEPS[arguments.step][0](arguments.device, arguments.small)
        (arguments.out / f"{arguments.step}.json").write_text(json.dumps(rows, indent=1))
        return 0

    end, failed = time.monotonic() + arguments.budget, False
    for step in arguments.steps:
        left = end - time.monotonic()
        if (arguments.out / f"{step}.json").exists():
            print(f"{step}: done before", flush=True)
            continue
        if left < STEPS[step][1]:
            print(f"{step}: {left:.0f} s are left, run this again to go on", flush=True)
            continue
        print(f"{step}: at most {left:.0f} s", flush=True)
        command = [sys.executable, str(HERE), "--step", step, "--device", arguments.device]
        command += ["--out", str(arguments.out), *["--small"] * arguments.small]
        environment = {**os.environ, "FASTKD_FIRST_LEFT_S": f"{max(left - 30, 30):.0f}"}
        try:
            failed |= subprocess.run(command, timeout=left, env=environment).returncode != 0
        except subprocess.TimeoutExpired:
            print(f"{step}: stopped at the end of the time", flush=True)
        where = device_name(arguments.device).lower().replace(" ", "-")
        file = arguments.results / f"gpu-first-{where}-{date.today()}.md"
        file.write_text(report(arguments.out, arguments.device))
        print(f"{step}: wrote {file}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
