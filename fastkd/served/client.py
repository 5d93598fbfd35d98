"""HTTP requests to a server, many side by side, repeated until the server answers."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import threading
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastkd._settings import named_variable

logger = logging.getLogger(__name__)

# Seconds before a request is repeated: they double up to the last number.
_FIRST_PAUSE, _LAST_PAUSE = 0.25, 15.0
# Answers that may be different a moment later: too many requests, and faults of the server or its proxy.
_PASSING = frozenset({408, 425, 429, *range(500, 600)})
# Characters of a server's own message that an error repeats.
_QUOTED = 300


class ServerRefused(ValueError):
    """The server answered, and will give the same answer again: the request or the settings are wrong.

    Attributes:
        status: the HTTP status.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Server:
    """Where a server is and how it is asked.

    Attributes:
        url: of its OpenAI-compatible interface, for example ``http://localhost:8000/v1``.
        name: of the model, as the server calls it; None for the only one there.
        key: sent as a bearer token; None for none. It appears in no message.
        requests: the most requests at a time.
        timeout: seconds after which a request counts as lost.
        patience: seconds for which a request is repeated before the run gives up.
    """

    url: str
    name: str | None = None
    key: str | None = None
    requests: int = 16
    timeout: float = 120.0
    patience: float = 600.0

    def __repr__(self) -> str:
        return f"Server({self.url!r}, {self.name!r})"


def read_key(variable: str | None, file: str | None) -> str | None:
    """The key of a server, from an environment variable or a file; None if neither is named.

    Raises:
        ValueError: a variable that is unset or empty, or a file that cannot be read or is empty.
    """
    if variable is not None:
        if (given := named_variable(variable)) is None:
            raise ValueError(f"teacher_key_variable names {variable}, which is unset or empty: export it")
        return given
    if file is not None:
        try:
            found = Path(file).expanduser().read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"teacher_key_file {file!r} cannot be read: {error}") from error
        if not found:
            raise ValueError(f"teacher_key_file {file!r} is empty")
        return found
    return None


class Client:
    """Sends requests from a thread of its own.

    The thread is a daemon: a run that ends, by an error too, does not wait for open requests.

    Args:
        server: the server.

    Raises:
        ValueError: the package httpx is missing.
    """

    def __init__(self, server: Server) -> None:
        try:
            import httpx
        except ImportError as error:
            raise ValueError(
                "a served teacher needs the package httpx: pip install 'fastkd[served]'"
            ) from error
        self.server = server
        self._httpx = httpx
        self._loop = asyncio.new_event_loop()
        # A server that is away is missed by all open requests, and named once.
        self._away_since: float | None = None
        headers = {} if server.key is None else {"Authorization": f"Bearer {server.key}"}
        self._http = httpx.AsyncClient(
            headers=headers,
            timeout=server.timeout,
            limits=httpx.Limits(max_connections=server.requests, max_keepalive_connections=server.requests),
        )
        self._gate = asyncio.Semaphore(server.requests)
        threading.Thread(target=self._loop.run_forever, name="fastkd-served", daemon=True).start()

    @property
    def root(self) -> str:
        """The server's address without ``/v1``, below which it keeps what OpenAI's interface lacks."""
        return self.server.url.rstrip("/").removesuffix("/v1")

    def get(self, url: str) -> Any:
        """The JSON at a URL."""
        return self._submit(self._repeated("GET", url, None)).result()

    def post(self, url: str, content: dict[str, Any]) -> Any:
        """The JSON with which the server answers to a JSON object."""
        return self.post_later(url, content).result()

    def post_later(self, url: str, content: dict[str, Any]) -> concurrent.futures.Future[Any]:
        """As :meth:`post`, without waiting for the answer.

        The future raises ``ServerRefused`` where the server refuses the request, and ``ValueError`` where it
        has not answered for ``patience`` seconds.
        """
        return self._submit(self._repeated("POST", url, content))

    def _submit(self, work: Coroutine[Any, Any, Any]) -> concurrent.futures.Future[Any]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _repeated(self, method: str, url: str, content: dict[str, Any] | None) -> Any:
        async with self._gate:
            # The time in which other requests were answered first is not the server's.
            began, pause = time.monotonic(), _FIRST_PAUSE
            while True:
                trouble = await self._tried(method, url, content)
                if not isinstance(trouble, str):
                    self._is_back()
                    return trouble.json
                waited = time.monotonic() - began
                if waited > self.server.patience:
                    raise ValueError(
                        f"the teacher at {self.server.url} has not answered for {waited:.0f} seconds "
                        f"({trouble}): start its server, or raise teacher_patience"
                    )
                self._is_away(trouble)
                await asyncio.sleep(min(pause, max(0.0, self.server.patience - waited)))
                pause = min(2 * pause, _LAST_PAUSE)

    async def _tried(self, method: str, url: str, content: dict[str, Any] | None) -> _Answer | str:
        """The answer, or in words why there is none now and may be one later."""
        try:
            given = await self._http.request(method, url, json=content)
        except (self._httpx.InvalidURL, self._httpx.UnsupportedProtocol) as error:
            raise ValueError(f"teacher {self.server.url!r} is no URL: {error}") from error
        except self._httpx.TimeoutException:
            return f"no answer within {self.server.timeout:g} seconds"
        except self._httpx.TransportError as error:
            return str(error) or type(error).__name__
        if given.status_code in _PASSING:
            return f"HTTP {given.status_code}"
        if given.is_error:
            said = " ".join(_message(given).split())[:_QUOTED]
            raise ServerRefused(
                f"the teacher at {self.server.url} refuses a request (HTTP {given.status_code}): {said}",
                given.status_code,
            )
        try:
            return _Answer(given.json())
        except ValueError as error:
            raise ValueError(f"{url} does not answer with JSON: is it a server of vLLM?") from error

    def _is_away(self, trouble: str) -> None:
        if self._away_since is None:
            self._away_since = time.monotonic()
            logger.warning("the teacher at %s does not answer (%s): waiting for it", self.server.url, trouble)

    def _is_back(self) -> None:
        if self._away_since is not None:
            away, self._away_since = time.monotonic() - self._away_since, None
            logger.warning("the teacher at %s answers again, after %.0f seconds", self.server.url, away)


@dataclass(frozen=True)
class _Answer:
    json: Any


def _message(given: Any) -> str:
    """The server's own words about an error."""
    try:
        content = given.json()
    except ValueError:
        return str(given.text)
    error = content.get("error", content) if isinstance(content, dict) else content
    if isinstance(error, dict):
        return str(error.get("message") or error.get("detail") or error)
    return str(error)
