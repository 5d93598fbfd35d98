"""A server of vLLM with a tiny model, for tests that run where FASTKD_VLLM names its environment."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest
from support import stored
from support.tiny import llama
from support.vllm_server import Vllm


@pytest.fixture(scope="session")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vllm]:
    if "FASTKD_VLLM" not in os.environ:
        pytest.skip("FASTKD_VLLM names no environment of vLLM: make test-served")
    folder = tmp_path_factory.mktemp("served") / "teacher"
    model = llama(1, hidden=64, tied=False, positions=128)
    model.save_pretrained(folder)
    stored.tokenizer().save_pretrained(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = Vllm(model, folder, port)
    server.start()
    yield server
    server.stop()
