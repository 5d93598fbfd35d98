"""A real server of vLLM, in the environment that FASTKD_VLLM names."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SERVE = Path(__file__).parents[1] / "served" / "serve.sh"
# Seconds in which a server has to start.
PATIENCE = 600


@dataclass
class Vllm:
    """A server that tests may stop and start again at the same address.

    Attributes:
        model: the model that it serves, in this process.
        folder: its directory.
        port: of the server.
    """

    model: Any
    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def start(self) -> None:
        """Start the server and wait until it answers."""
        command = ["bash", str(SERVE), os.environ["FASTKD_VLLM"], str(self.folder), str(self.port)]
        options = ["--served-model-name", "teacher", "--max-logprobs", "20"]
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*command, *options], stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.url}/models", timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(1)
        raise RuntimeError(f"the server did not start:\n{(self.folder / 'server.log').read_text()[-4000:]}")

    def stop(self) -> None:
        """Kill the server and all of its processes."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None
