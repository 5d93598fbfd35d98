"""Asks a teacher behind a URL: a server that gives log-probabilities for the tokens of a prompt.

``client`` speaks HTTP and waits for a server that is away, ``vllm`` and ``sglang`` know their JSON, ``probe``
compares the server's model with the run before the first step, and ``ahead`` asks for a batch before it is
needed.
"""

from fastkd.served.ahead import Ahead, under_way
from fastkd.served.client import Client, Server, ServerRefused
from fastkd.served.probe import probe
from fastkd.served.sglang import Sglang, model_of
from fastkd.served.vllm import Vllm

__all__ = ["Ahead", "Client", "Server", "ServerRefused", "Sglang", "Vllm", "model_of", "probe", "under_way"]
