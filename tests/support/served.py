"""A server that answers as vLLM does, from a model in this process, with the faults that tests ask for."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch


@dataclass
class Stub:
    """The server's behaviour; tests change it while it runs.

    Attributes:
        model: the teacher.
        tokenizer: that of the teacher.
        name, root: the model's name, and where it was loaded from.
        max_logprobs, max_model_len: the limits of a server that is started without options.
        delay: seconds before each answer.
        fails: how many of the next requests fail with the status ``failure``; -1 closes the connection.
        mode: ``raw`` (temperature 1, whole vocabulary), or a fault: ``renormalised``, ``top_p``,
            ``tempered``, ``short`` (an entry is missing), ``fewer`` (a log-probability is missing) or
            ``plain`` (none at all).
        key: what requests must send; None for nothing.
        has_tokenize: whether there is ``/tokenize``.
        prompts: those that were asked for, in order.
        is_sglang: whether it answers as SGLang does.
    """

    model: Any
    tokenizer: Any
    name: str = "teacher"
    root: str = "org/teacher"
    max_logprobs: int = 20
    max_model_len: int = 256
    delay: float = 0.0
    fails: int = 0
    failure: int = 503
    mode: str = "raw"
    key: str | None = None
    has_tokenize: bool = True
    prompts: list[list[int]] = field(default_factory=list)
    is_sglang: bool = False
    url: str = ""

    def answer(self, method: str, path: str, content: dict[str, Any]) -> tuple[int, Any]:
        """The status and the JSON of an answer."""
        if path == "/v1/models":
            model = {"id": self.name, "root": self.root, "max_model_len": self.max_model_len}
            return 200, {"object": "list", "data": [{**model, "object": "model"}]}
        if path == "/tokenize" and self.has_tokenize:
            ids = self.tokenizer(content["prompt"], add_special_tokens=content["add_special_tokens"])
            tokens = ids["input_ids"]
            return 200, {"count": len(tokens), "max_model_len": self.max_model_len, "tokens": tokens}
        if self.is_sglang:
            return self._native(path, content)
        if path != "/v1/completions":
            return 404, {"detail": "Not Found"}
        if content["model"] != self.name:
            return 404, _error(f"The model `{content['model']}` does not exist.", 404)
        if "prompt_logprobs" not in content:
            return 200, {"id": "cmpl-1", "object": "text_completion", "choices": self._answers(content)}
        ids, most = content["prompt"], content["prompt_logprobs"]
        if most > self.max_logprobs:
            message = (
                f"Requested prompt logprobs of {most}, which is greater than max allowed: {self.max_logprobs}"
            )
            return 400, _error(message, 400)
        if max(ids) >= self.model.config.vocab_size:
            return 400, _error(f"Token id {max(ids)} is out of vocabulary", 400)
        if len(ids) + content["max_tokens"] > self.max_model_len:
            return 400, _error(f"This model's maximum context length is {self.max_model_len} tokens.", 400)
        self.prompts.append(ids)
        choice = {"index": 0, "text": "?", "prompt_logprobs": self._logprobs(ids, most, content)}
        if self.mode == "plain":
            choice["prompt_logprobs"] = None
        return 200, {"id": "cmpl-1", "object": "text_completion", "choices": [choice]}

    def _native(self, path: str, content: dict[str, Any]) -> tuple[int, Any]:
        """SGLang's ``/get_model_info`` and ``/generate``, in the form of its documentation."""
        if path == "/get_model_info":
            return 200, {"model_path": self.root, "tokenizer_path": self.root, "is_generation": True}
        if path != "/generate":
            return 404, {"detail": "Not Found"}
        ids, params = content["input_ids"], content["sampling_params"]
        if max(ids) >= self.model.config.vocab_size:
            return 400, {"error": {"message": f"token id {max(ids)} is out of vocabulary"}}
        if not content.get("return_logprob"):
            asked = {"prompt": ids, "max_tokens": params["max_new_tokens"], "seed": 0, **params}
            choice = self._answers(asked)[0]
            meta = {"finish_reason": {"type": choice["finish_reason"]}}
            return 200, {"text": "?", "output_ids": choice["token_ids"], "meta_info": meta}
        self.prompts.append(ids)
        most = content["top_logprobs_num"]
        found = self._logprobs(ids, most, {"temperature": params["temperature"]})
        own = [[None, ids[0], None]]
        own += [
            [one[str(token)]["logprob"], token, None] for one, token in zip(found[1:], ids[1:], strict=False)
        ]
        top: list[Any] = [None]
        for one in found[1:]:
            largest = sorted(((entry["logprob"], int(token)) for token, entry in one.items()), reverse=True)
            top.append([[logprob, token, None] for logprob, token in largest[:most]])
        meta = {"input_token_logprobs": own, "input_top_logprobs": top if most else None}
        return 200, {"text": "?", "output_ids": [0], "meta_info": meta}

    def _answers(self, content: dict[str, Any]) -> list[dict[str, Any]]:
        """The choices of an answer: greedy, sampled or with beams."""
        beams = content.get("n", 1) if content.get("use_beam_search") else 1
        sampled = content["temperature"] > 0
        options: dict[str, Any] = {"do_sample": sampled, "num_beams": beams, "num_return_sequences": beams}
        if sampled:
            options |= {"temperature": content["temperature"], "top_k": 0}
            torch.manual_seed(content["seed"])
        ids = torch.tensor([content["prompt"]])
        end = self.tokenizer.eos_token_id
        found = self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=content["max_tokens"],
            pad_token_id=end,
            **options,
        )
        choices = []
        for i, row in enumerate(found[:, ids.shape[1] :].tolist()):
            ended = end in row
            tokens = row[: row.index(end) + 1] if ended else row
            reason = "stop" if ended else "length"
            choices.append({"index": i, "text": "?", "token_ids": tokens, "finish_reason": reason})
        return choices

    def _logprobs(self, ids: list[int], most: int, content: dict[str, Any]) -> list[Any]:
        with torch.no_grad():
            logits = self.model(torch.tensor([ids])).logits[0].float()
        if self.mode == "tempered":
            logits = logits / content["temperature"] / 2
        logprobs = logits.log_softmax(-1)
        found: list[Any] = [None]
        for row, token in zip(logprobs[:-1], ids[1:], strict=True):
            values, columns = row.topk(min(most, len(row)))  # most is 0 for the token alone
            if self.mode == "renormalised":
                values = values.log_softmax(-1)
            if self.mode == "top_p":
                values[1:] = -9999.0
            entry = {
                str(column): _entry(value, rank)
                for rank, (column, value) in enumerate(zip(columns.tolist(), values.tolist(), strict=True), 1)
            }
            if self.mode == "fewer":
                entry.popitem()
            # The token itself comes first, also where it is not among the largest.
            rank = int((row > row[token]).sum()) + 1
            own = -9999.0 if self.mode == "renormalised" else float(row[token])
            found.append({str(token): entry.pop(str(token), _entry(own, rank)), **entry})
        return found[:-1] if self.mode == "short" else found


def _entry(value: float, rank: int) -> dict[str, Any]:
    return {"logprob": value, "rank": rank, "decoded_token": "?"}


def _error(message: str, code: int) -> dict[str, Any]:
    return {"error": {"message": message, "type": "BadRequestError", "param": None, "code": code}}


@contextmanager
def serving(stub: Stub, port: int = 0) -> Iterator[Stub]:
    """Answers at ``stub.url`` until the context ends."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._reply()

        def do_POST(self) -> None:
            self._reply()

        def log_message(self, *_: Any) -> None: ...

        def _reply(self) -> None:
            given = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            time.sleep(stub.delay)
            if stub.fails:
                stub.fails -= 1
                if stub.failure < 0:
                    self.close_connection = True
                    return
                status, found = stub.failure, {"detail": "not now"}
            elif stub.key is not None and self.headers.get("Authorization") != f"Bearer {stub.key}":
                status, found = 401, {"error": "Unauthorized"}
            else:
                try:
                    status, found = stub.answer(self.command, self.path, json.loads(given or "{}"))
                except Exception as error:  # a fault of the stub, which must not look like one that passes
                    status, found = 400, _error(f"the stub failed: {error!r}", 400)
            said = json.dumps(found).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    stub.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield stub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
