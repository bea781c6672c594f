"""A model behind an OpenAI-compatible HTTP API: vLLM, TGI, llama.cpp, `transformers serve` or a paid service.

One try is the official client's; everything around it is here: as many requests in flight as the servers' slots allow,
pacing, retries with backoff and jitter, time-outs, and what counts as an answer. The key comes from the environment
variable that the recipe names, goes to the client, and nowhere else.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import time
from collections.abc import Awaitable, Callable
from email.utils import parsedate_to_datetime
from typing import Any

from tqdm import tqdm

from zephyr_jax.judging.protocol import (
    CallFailed,
    ChatRequest,
    Reply,
    Stop,
    Unanswerable,
    estimated_tokens,
    whole_characters,
)
from zephyr_jax.judging.tally import Tally
from zephyr_jax.records import InputError, Unfinished
from zephyr_jax.respondent_options import ModelOptions

LONGEST_WAIT_SECONDS = 300.0
LONGEST_REST_SECONDS = 60.0
# A retry's wait is cut by up to this share at random, so that what failed together does not come back together.
JITTER = 0.5
# Ready beyond what is in flight, so that a slot that becomes free is taken at once, also while some wait to try again.
WINDOW_PER_SLOT = 2
_KEY = "wanted its key in the variable that api_key_env names"
# What a status says of the key, the model or the address, and what was wanted.
_REFUSES_ALL = {
    401: ("the key is refused", _KEY),
    403: ("the key may not do this", _KEY),
    404: ("there is no such model or address", "wanted a model that it serves, and its address up to and with /v1"),
}
_NO_CREDIT = (402, "insufficient_quota")  # a status, and what OpenAI's 429 is for where waiting does not help
_WORTH_RETRYING = (408, 409, 425, 429)
_LIKELY_TOKENS = 20
# A server that refuses this often before anybody reached it is a wrong address: said then, not after all tries.
_TRIES_TO_CONNECT = 3
# What gives only troubles rests from so many in a row on; fewer are an accident, which its own requests alone wait for.
_TROUBLES_TO_REST = 3
# So many requests given up with no answer between them, or all that are ready at a time, are no accident.
_FEWEST_GIVEN_UP = 10
_LATE_SECONDS = 0.05
_NO_CONNECTION = "no connection"


class _Trouble(Exception):
    """One try came to nothing; `may_be_billed` where the server may have written an answer all the same."""

    def __init__(
        self,
        kind: str,
        detail: str = "",
        *,
        retry_after: float = 0.0,
        is_final: bool = False,
        may_be_billed: bool = True,
    ):
        super().__init__(detail or kind)
        self.kind, self.retry_after, self.is_final, self.may_be_billed = kind, retry_after, is_final, may_be_billed


class _Server:
    """One address, its client, and how many requests are at it."""

    def __init__(self, url: str, client: Any):
        self.url, self.client = url, client
        self.in_flight = self.num_troubles = 0  # in a row
        self.rests_until = 0.0
        self.was_reached = self.has_answered = False
        self.refusal: InputError | Unfinished | None = None  # why it is asked no more in this sitting


class OpenAIEndpoint:
    """A Respondent: see protocol.py."""

    def __init__(
        self,
        options: ModelOptions,
        *,
        name: str,
        tally: Tally,
        stop: Stop | None = None,
        on_waste: Callable[[ChatRequest, str], Awaitable[None]] | None = None,
    ):
        """Makes a client for each server; nothing is sent yet.

        Args:
          options: with `base_url`.
          name: the model's name in the recipe, for messages.
          tally: is told of every try.
          stop: what waits to be sent is dropped when it is asked for.
          on_waste: is told the request and what went wrong with every try that came to nothing but may be billed; the
            next try waits for it.

        Raises:
          InputError: the package `openai` is missing, or the variable with the key is not set.
        """
        assert options.base_url is not None
        self.options, self.name, self.tally, self.stop = options, name, tally, stop or Stop()
        self._on_waste = on_waste
        self.identity = options.identity
        self.window = WINDOW_PER_SLOT * options.concurrency * len(options.base_url)
        self._key = _read_key(options, name)
        self._servers = _open_servers(options, name, self._key)
        self._gate = asyncio.Lock()  # one at a time looks for a slot and waits for the limits, in the order of asking
        self._freed = asyncio.Event()
        self.stop.wakes(self._freed)
        self._next_send = 0.0
        self._num_given_up = 0  # since the last answer

    async def reply(self, request: ChatRequest) -> Reply:
        """Answers one request; see Respondent."""
        for number in range(1, self.options.max_tries + 1):
            server = await self._take_slot(request)
            self.tally.begin_try()
            try:
                reply = await self._try(server, request)
                if server.num_troubles >= _TROUBLES_TO_REST:
                    self._say(f"{server.url} answers again")
                server.was_reached = server.has_answered = True
                server.num_troubles = self._num_given_up = 0
                return reply
            except _Trouble as trouble:
                self.tally.trouble(trouble.kind, str(trouble))
                last = trouble
                wait = self._wait(number, trouble)
                self._let_rest(server, trouble)
            finally:
                self.tally.end_try()
                server.in_flight -= 1
                self._freed.set()
            self._check_refusals()
            if last.may_be_billed and self._on_waste is not None:
                await self._on_waste(request, last.kind)
            if last.is_final or number == self.options.max_tries:
                break
            if all(not one.was_reached and one.num_troubles >= _TRIES_TO_CONNECT for one in self._servers):
                break
            await self.stop.sleep(wait)
        if not any(server.was_reached for server in self._servers):
            raise InputError(
                f"models.{self.name}.base_url: nobody answers at {', '.join(self.options.base_url or ())} ({last}); "
                "wanted a running server; start it, or mend the address"
            )
        self.tally.failed += 1
        text = f"{self.name}: {last.kind} after {number} tries ({last})"
        if last.is_final:
            raise Unanswerable(text)
        self._num_given_up += 1
        if self._num_given_up >= max(_FEWEST_GIVEN_UP, self.window):
            raise Unfinished(
                f"models.{self.name}: {self._num_given_up} requests in a row got no answer, the last: {last.kind} "
                f"({last}); start again when its servers are well"
            )
        raise CallFailed(text)

    async def close(self) -> None:
        """Closes the connections."""
        for server in self._servers:
            await server.client.close()

    def _check_refusals(self) -> None:
        """Raises why no server is asked any more, where none is."""
        refusals = [server.refusal for server in self._servers if server.refusal is not None]
        if len(refusals) == len(self._servers):
            raise refusals[-1]

    def _let_rest(self, server: _Server, trouble: _Trouble) -> None:
        """A server that asks for it, is not there or gives nothing but troubles gets nothing for a while.

        Else one that is broken and quick, with never many requests at it, would be given most of them.
        """
        is_there = trouble.kind != _NO_CONNECTION
        server.was_reached |= is_there
        asked_for = min(trouble.retry_after, LONGEST_WAIT_SECONDS)
        now, rest = _now(), 0.0
        # What is on its way together is one trouble; what is final is the request's, not the server's.
        if server.rests_until <= now and not trouble.is_final and server.refusal is None:
            server.num_troubles += 1
            if server.num_troubles == _TROUBLES_TO_REST and server.was_reached:
                self._say(
                    f"{server.url} gives no answer ({trouble.kind}); it rests and is asked again, ever more rarely"
                )
            doublings = server.num_troubles - (_TROUBLES_TO_REST if is_there else 0)
            if doublings >= 0:
                rest = min(LONGEST_REST_SECONDS, self.options.retry_seconds * 2.0 ** min(doublings, 30))
        server.rests_until = max(server.rests_until, now + max(rest, asked_for))

    def _wait(self, number: int, trouble: _Trouble) -> float:
        """Seconds before the next try."""
        backoff = min(LONGEST_WAIT_SECONDS, self.options.retry_seconds * 2.0 ** (number - 1))
        jittered = backoff * (1 - JITTER * random.random())
        return max(jittered, min(trouble.retry_after, LONGEST_WAIT_SECONDS))

    async def _take_slot(self, request: ChatRequest) -> _Server:
        """A server with a slot, when the limits per minute allow another request; raises Stopped."""
        async with self._gate:
            while True:
                self.stop.check()
                self._check_refusals()
                self._freed.clear()
                wait: float | None = max(0.0, self._next_send - _now())
                if not wait:
                    server, wait = self._free_server()
                    if server is not None:
                        server.in_flight += 1
                        self._next_send = self._send_after(request)
                        return server
                try:
                    async with asyncio.timeout(wait):
                        await self._freed.wait()
                except TimeoutError:
                    pass

    def _free_server(self) -> tuple[_Server | None, float | None]:
        """The server with the fewest requests that has a slot and does not rest; else how long the first rests on."""
        now = _now()
        asked = [server for server in self._servers if server.refusal is None]
        awake = [server for server in asked if server.rests_until <= now]
        server = min(awake, key=lambda server: server.in_flight, default=None)
        if server is not None and server.in_flight < self.options.concurrency:
            return server, None
        return None, min((server.rests_until - now for server in asked if server not in awake), default=None)

    def _send_after(self, request: ChatRequest) -> float:
        """When the next request may go out, if this one goes now."""
        gap = 0.0
        if self.options.requests_per_minute is not None:
            gap = 60 / self.options.requests_per_minute
        if self.options.tokens_per_minute is not None:
            tokens = request.estimated_prompt_tokens() + request.max_tokens
            gap = max(gap, 60 * tokens / self.options.tokens_per_minute)
        # A timer that was late does not lower the rate; time in which nothing was to be sent is not made up for.
        is_on_time = _now() - self._next_send < _LATE_SECONDS
        return (self._next_send if is_on_time else _now()) + gap

    async def _try(self, server: _Server, request: ChatRequest) -> Reply:
        """Sends the request once."""
        import openai

        try:
            # The client's own time-out is for each read; a server that drips would never reach it.
            async with asyncio.timeout(self.options.timeout_seconds):
                answer = await server.client.chat.completions.with_raw_response.create(**self._body(request))
                text = answer.http_response.text
        except (TimeoutError, openai.APITimeoutError):
            raise _Trouble("timed out", f"no answer in {self.options.timeout_seconds:g} s") from None
        except openai.APIStatusError as error:
            raise self._status_trouble(server, error) from None
        except openai.APIConnectionError as error:
            cause = type(error.__cause__).__name__
            kind = _NO_CONNECTION if cause in ("ConnectError", "ConnectTimeout") else "connection lost"
            detail = f"{server.url}: {cause}: {self._brief(error.__cause__)}"
            raise _Trouble(kind, detail, may_be_billed=kind != _NO_CONNECTION) from None
        except openai.APIError as error:  # what the client cannot read
            raise _Trouble("unreadable answer", self._brief(error)) from None
        return _read_answer(text, request, self.name)

    def _status_trouble(self, server: _Server, error: Any) -> _Trouble:
        status, detail = error.status_code, f"{server.url}: {self._brief(error)}"
        refusal = self._refusal(server, error)
        if refusal is not None:
            if server.refusal is None and len(self._servers) > 1:
                self._say(f"{server.url} says {status} ({self._brief(error)}); this server is asked no more")
            server.refusal = refusal
        is_final = status < 500 and status not in _WORTH_RETRYING and refusal is None
        retry_after = _retry_after(error.response.headers)
        return _Trouble(str(status), detail, retry_after=retry_after, is_final=is_final, may_be_billed=False)

    def _refusal(self, server: _Server, error: Any) -> InputError | Unfinished | None:
        """Why a server answers nobody, where that is what it says."""
        status = error.status_code
        said = f"models.{self.name}: {server.url} says {status}"
        if status in _NO_CREDIT or error.code in _NO_CREDIT:
            return Unfinished(f"{said}, there is no credit left ({self._brief(error)}); start again when there is")
        # Services also say 403 to one question that they do not like.
        if status not in _REFUSES_ALL or (status == 403 and server.has_answered):
            return None
        reason, wanted = _REFUSES_ALL[status]
        return InputError(f"{said} to model {self.options.model!r}: {reason} ({self._brief(error)}); {wanted}")

    def _say(self, text: str) -> None:
        tqdm.write(f"models.{self.name}: {text}", file=sys.stderr)

    def _brief(self, error: BaseException | None) -> str:
        """An error's text on one line; a server that repeats the key does not bring it into a log."""
        text = " ".join(str(error).split())
        if self.options.api_key_env is not None:
            text = text.replace(self._key, f"${self.options.api_key_env}")
        return text if len(text) <= 200 else f"{text[:200]} ..."

    def _body(self, request: ChatRequest) -> dict[str, Any]:
        options = self.options
        body: dict[str, Any] = {"model": options.model, "messages": list(request.messages)}
        body |= {"temperature": request.temperature, "top_p": request.top_p, "seed": request.seed}
        body[options.max_tokens_field] = request.max_tokens
        if request.choices:
            body |= {"logprobs": True, "top_logprobs": _LIKELY_TOKENS}
        if request.schema is not None and options.response_format != "none":
            schema = {"name": request.schema.name, "strict": True, "schema": request.schema.schema}
            with_schema = {"type": "json_schema", "json_schema": schema}
            body["response_format"] = (
                with_schema if options.response_format == "json_schema" else {"type": "json_object"}
            )
        body = {field: value for field, value in body.items() if options.extra_body.get(field, value) is not None}
        extra = {field: value for field, value in options.extra_body.items() if value is not None}
        return body | ({"extra_body": extra} if extra else {})


def _read_key(options: ModelOptions, name: str) -> str:
    if options.api_key_env is None:
        return "none"  # the client wants some text; servers without keys do not look at it
    key = os.environ.get(options.api_key_env, "").strip()  # keys read from files often end in a line break
    if not key:
        raise InputError(
            f"models.{name}.api_key_env: the environment variable {options.api_key_env} is not set; wanted the "
            "servers' key in it, or api_key_env: null for servers without keys"
        )
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise InputError(
            f"models.{name}.api_key_env: the environment variable {options.api_key_env} holds {len(key)} characters, "
            "not all of which can stand in a key; wanted letters, digits and signs of ASCII without white space"
        )
    return key


def _open_servers(options: ModelOptions, name: str, key: str) -> list[_Server]:
    try:
        import openai
    except ImportError as error:
        raise InputError(
            f"models.{name}: an endpoint needs the package openai, which is missing; the way out: "
            "pip install 'zephyr-jax[feedback]'"
        ) from error
    # The default keeps 100 connections and would open the others anew for every request.
    limits = type(openai.DEFAULT_CONNECTION_LIMITS)(
        max_connections=options.concurrency, max_keepalive_connections=options.concurrency
    )
    return [
        _Server(
            url,
            openai.AsyncOpenAI(
                api_key=key,
                base_url=url,
                max_retries=0,
                timeout=options.timeout_seconds,
                http_client=openai.DefaultAsyncHttpxClient(limits=limits, base_url=url),
            ),
        )
        for url in options.base_url or ()
    ]


def _read_answer(text: str, request: ChatRequest, name: str) -> Reply:
    """The answer in a response's body."""
    if not text.strip():
        raise _Trouble("empty body")
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        is_cut = text.lstrip().startswith("{")
        raise _Trouble("JSON cut off or broken" if is_cut else "not JSON", text[:200]) from None
    try:
        choice = body["choices"][0]
        message = choice["message"]
        answer = message.get("content") or message.get("refusal") or ""
        logprobs = _choice_logprobs(choice, request.choices, name) if request.choices else ()
        if not isinstance(answer, str):
            raise TypeError
    except (KeyError, IndexError, TypeError, AttributeError):
        raise _Trouble("no answer in the JSON", text[:200]) from None
    return Reply(
        text=whole_characters(answer),
        finish_reason=whole_characters(str(choice.get("finish_reason") or "unknown")),
        # A server that does not count has read and written all the same.
        prompt_tokens=_count(body, "prompt_tokens") or request.estimated_prompt_tokens(),
        completion_tokens=_count(body, "completion_tokens") or estimated_tokens(answer),
        choice_logprobs=logprobs,
    )


def _count(body: dict[str, Any], name: str) -> int:
    """A count that the server gives; 0 where it is none."""
    usage = body.get("usage")
    count = usage.get(name) if isinstance(usage, dict) else None
    return count if type(count) is int and count > 0 else 0


def _choice_logprobs(choice: dict[str, Any], choices: tuple[str, ...], name: str) -> tuple[float | None, ...]:
    """The log-probability of each choice as the first token; None for those not among the likely ones listed."""
    content = (choice.get("logprobs") or {}).get("content")
    if not content:
        raise InputError(
            f"models.{name}: log-probabilities are wanted, but the server gives none; wanted a server that has them, a "
            "model in this process (no base_url), or answers that are read (annotation.rating: json, reading: ranking)"
        )
    listed: dict[str, float] = {}
    for token in content[0]["top_logprobs"]:
        logprob = token["logprob"]
        if isinstance(logprob, bool) or not isinstance(logprob, int | float) or not logprob < 1:  # NaN is not either
            raise TypeError
        listed.setdefault(token["token"].strip(), logprob)  # the likeliest comes first
    return tuple(listed.get(text) for text in choices)


def _retry_after(headers: Any) -> float:
    """Seconds that a `Retry-After` asks for (RFC 9110, section 10.2.3); 0 where there is none to be read."""
    value = headers.get("retry-after", "")
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        date = parsedate_to_datetime(value)
        return max(0.0, date.timestamp() - time.time())
    except (TypeError, ValueError):
        return 0.0


def _now() -> float:
    return asyncio.get_running_loop().time()
