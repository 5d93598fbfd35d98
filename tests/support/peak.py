"""Measure the peak of resident memory in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import textwrap

PEAK = """
import torch, fastkd
MB = 2**20

def resident(field):
    for line in open("/proc/self/status"):
        if line.startswith(field):
            return int(line.split()[1]) * 1024

def added(call):
    call()  # libraries load, pools fill
    fastkd.release_memory()
    open("/proc/self/clear_refs", "w").write("5")  # the peak starts again from here
    before = resident("VmRSS")
    call()
    return (resident("VmHWM") - before) / MB
"""


def peak_of(body: str) -> float:
    code = PEAK + textwrap.dedent(body)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    return float(run.stdout)
