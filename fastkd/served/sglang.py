"""The native JSON of SGLang's server (``/generate``), as far as a teacher needs it."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Sequence
from typing import Any

from fastkd.corpora.logprobs import Position, positions
from fastkd.served.client import Client, ServerRefused
from fastkd.served.vllm import Vllm

_PLAIN = {"temperature": 1.0, "top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}


class Sglang(Vllm):
    """A model of an SGLang server: its names and its tokens as those of vLLM, its log-probabilities and
    answers from ``/generate``.
    """

    server_name = "SGLang"
    has_beams = False

    def read_later(self, ids: Sequence[int], entries: int, **sampling: Any) -> concurrent.futures.Future[Any]:
        """Ask for the log-probabilities of a prompt's tokens; see :meth:`Vllm.read_later`."""
        content = {
            "input_ids": list(ids),
            "sampling_params": {**_PLAIN, "max_new_tokens": 1, **sampling},
            "return_logprob": True,
            "logprob_start_len": 0,
            "top_logprobs_num": entries,
        }
        return self.client.post_later(f"{self.client.root}/generate", content)

    def positions_in(self, answer: Any, tokens: int, entries: int) -> list[Position]:
        """The distributions of all tokens of a prompt but the first; see :meth:`Vllm.positions_in`."""
        where = f"the answer of {self.client.server.url}"
        meta = answer.get("meta_info") if isinstance(answer, dict) else None
        own = meta.get("input_token_logprobs") if isinstance(meta, dict) else None
        if not isinstance(meta, dict) or not isinstance(own, list):
            raise ValueError(f"{where} has no input_token_logprobs: is it a language model of SGLang?")
        top = meta.get("input_top_logprobs") or [None] * len(own)
        if len(top) != len(own):
            raise ValueError(f"{where}: {len(own)} tokens have {len(top)} entries in input_top_logprobs")
        given: list[Any] = [None]
        for one, most in zip(own[1:], top[1:], strict=True):
            found = {str(token): logprob for logprob, token, *_ in [*(most or []), one]}
            given.append(found)
        return self.cut(positions(given, tokens, where), entries, where)

    def write_later(
        self, ids: Sequence[int], longest: int, **decoding: Any
    ) -> concurrent.futures.Future[Any]:
        """Ask for the answer to a prompt; see :meth:`Vllm.write_later`. The server keeps no seed."""
        decoding.pop("seed", None)
        params = {**_PLAIN, "max_new_tokens": longest, "skip_special_tokens": False, **decoding}
        content = {"input_ids": list(ids), "sampling_params": params}
        return self.client.post_later(f"{self.client.root}/generate", content)

    def answers_in(self, answer: Any) -> list[tuple[list[int], bool]]:
        """The tokens of the answer, and whether the model ended it itself."""
        tokens = answer.get("output_ids") if isinstance(answer, dict) else None
        if not isinstance(tokens, list):
            raise ValueError(
                f"{self.client.server.url} does not give the tokens of its answers (output_ids): a newer "
                "SGLang does"
            )
        reason = (answer.get("meta_info") or {}).get("finish_reason") or {}
        return [(list(tokens), isinstance(reason, dict) and reason.get("type") == "stop")]


def model_of(client: Client) -> Vllm:
    """The model behind a client's URL, by the kind of its server."""
    try:
        client.get(f"{client.root}/get_model_info")  # which only SGLang has
    except ServerRefused:
        return Vllm(client)
    except ValueError as error:
        if "does not answer with JSON" not in str(error):
            raise
        return Vllm(client)
    return Sglang(client)
