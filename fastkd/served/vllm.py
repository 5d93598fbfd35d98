"""The JSON of vLLM's OpenAI-compatible server, as far as a teacher needs it."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Sequence
from typing import Any

from fastkd.corpora.logprobs import Position, positions
from fastkd.served.client import Client, ServerRefused

# A prompt is read at temperature 1 over the whole vocabulary, whatever the server's defaults are. The one
# token that it writes, since it has to write one, is not used.
_PLAIN = {
    "max_tokens": 1,
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": -1,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
}


class Vllm:
    """A model of a vLLM server.

    Args:
        client: the connection to the server.

    Attributes:
        name: the model's name, as the server calls it.
        root: the directory or hub id that the server says it loaded; the name where it does not say.
        longest: the most tokens of a prompt and its answer; None where the server does not say.
        server_name: what the server is.
        has_beams: whether it searches with beams.

    Raises:
        ValueError: the server is not there, has not the model, or has several and none is named.
    """

    server_name = "vLLM"
    has_beams = True

    def __init__(self, client: Client) -> None:
        self.client = client
        wanted = client.server.name
        try:
            found = client.get(f"{client.server.url.rstrip('/')}/models")
        except ServerRefused as error:
            hint = " (its address ends in /v1)" if error.status == 404 else ""
            raise ValueError(f"{error}{hint}") from error
        models = {one["id"]: one for one in found.get("data", []) if isinstance(one, dict) and "id" in one}
        if not models:
            raise ValueError(f"the teacher at {client.server.url} names no model: is it a server of vLLM?")
        names = ", ".join(models)
        if wanted is None and len(models) > 1:
            raise ValueError(
                f"the server at {client.server.url} has several models ({names}): "
                "choose one with teacher_served_name"
            )
        if wanted is not None and wanted not in models:
            raise ValueError(f"the server at {client.server.url} has no model {wanted!r}, only {names}")
        self.name = wanted or next(iter(models))
        self.root = str(models[self.name].get("root") or self.name)
        longest = models[self.name].get("max_model_len")
        self.longest = int(longest) if longest else None

    @property
    def _completions(self) -> str:
        return f"{self.client.server.url.rstrip('/')}/completions"

    def read_later(self, ids: Sequence[int], entries: int, **sampling: Any) -> concurrent.futures.Future[Any]:
        """Ask for the log-probabilities of a prompt's tokens; :meth:`positions_in` reads the answer.

        Args:
            ids: the tokens.
            entries: K, how many log-probabilities of each; 0 for that of the token itself alone.
            sampling: settings of sampling in place of those above.
        """
        content = {"model": self.name, "prompt": list(ids), "prompt_logprobs": entries, **_PLAIN, **sampling}
        return self.client.post_later(self._completions, content)

    def positions_in(self, answer: Any, tokens: int, entries: int) -> list[Position]:
        """The distributions of all tokens of a prompt but the first.

        Args:
            answer: the server's JSON.
            tokens: how many tokens the prompt has.
            entries: K, which :meth:`read_later` asked for.

        Raises:
            ValueError: an answer without them, or with fewer entries.
        """
        where = f"the answer of {self.client.server.url}"
        choices = answer.get("choices") if isinstance(answer, dict) else None
        given = choices[0].get("prompt_logprobs") if choices and isinstance(choices[0], dict) else None
        if not isinstance(given, list):
            raise ValueError(
                f"{where} has no prompt_logprobs: only a server of vLLM gives them, and its model must be a "
                "language model"
            )
        return self.cut(positions(given, tokens, where), entries, where)

    def cut(self, found: list[Position], entries: int, where: str) -> list[Position]:
        """The ``entries`` largest of each position.

        Raises:
            ValueError: a position has fewer.
        """
        fewest = min((len(one.columns) for one in found), default=entries)
        if fewest < entries:
            raise ValueError(
                f"{where} has {fewest} log-probabilities of a token, and {entries} were asked for"
            )
        return [one.cut(max(entries, 1)) for one in found]

    def write_later(
        self, ids: Sequence[int], longest: int, **decoding: Any
    ) -> concurrent.futures.Future[Any]:
        """Ask for the answer to a prompt; :meth:`answers_in` reads it.

        Args:
            ids: the tokens of the prompt.
            longest: the most tokens of the answer.
            decoding: how it is chosen, for example ``temperature`` and ``seed``.
        """
        content = {
            "model": self.name,
            "prompt": list(ids),
            **_PLAIN,
            "max_tokens": longest,
            "return_token_ids": True,
            "skip_special_tokens": False,
            **decoding,
        }
        return self.client.post_later(self._completions, content)

    def answers_in(self, answer: Any) -> list[tuple[list[int], bool]]:
        """The tokens of the answers, the best first, and whether the model ended them itself.

        Raises:
            ValueError: an answer without tokens.
        """
        found = []
        for choice in answer.get("choices") or [] if isinstance(answer, dict) else []:
            if not isinstance(choice.get("token_ids"), list):
                break
            found.append((list(choice["token_ids"]), choice.get("finish_reason") == "stop"))
        if not found:
            raise ValueError(
                f"{self.client.server.url} does not give the tokens of its answers (return_token_ids): "
                "a newer vLLM does"
            )
        return found

    def tokens_of(self, text: str) -> list[int] | None:
        """The server's tokens of a text, without those that begin or end every text; None where the server
        has no ``/tokenize``.
        """
        content = {"model": self.name, "prompt": text, "add_special_tokens": False}
        try:
            found = self.client.post(f"{self.client.root}/tokenize", content)
        except ServerRefused as error:
            if error.status in (404, 405):
                return None
            raise
        return [int(one) for one in found["tokens"]]
