"""Asks a teacher behind a URL: a server of vLLM that gives log-probabilities for the tokens of a prompt.

``client`` speaks HTTP and waits for a server that is away, ``vllm`` knows the server's JSON, ``probe``
compares the server's model with the run before the first step, and ``ahead`` asks for a batch before it is
needed.
"""

from fastkd.served.ahead import Ahead
from fastkd.served.client import Client, Server, ServerRefused
from fastkd.served.probe import probe
from fastkd.served.vllm import Vllm

__all__ = ["Ahead", "Client", "Server", "ServerRefused", "Vllm", "probe"]
