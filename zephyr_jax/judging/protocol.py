"""What is asked of a model and what comes back: the one protocol for endpoints and for models in this process.

Not here: who answers (openai_endpoint.py, local_model.py), and keeping, counting and paying for answers (calls.py).
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from zephyr_jax.records import Message

# Rough, for estimates before a call only: English text has about four characters to a token, other scripts about one.
CHARACTERS_PER_TOKEN = 4
TOKENS_PER_MESSAGE = 4


@dataclasses.dataclass(frozen=True, slots=True)
class AnswerSchema:
    """The JSON that an answer must be: a name for the server, and a JSON schema."""

    name: str
    schema: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class ChatRequest:
    """One question; its content is its identity.

    Attributes:
      messages: the dialogue so far, ending with a user's turn.
      max_tokens: most tokens of the answer.
      temperature: 0 is greedy.
      top_p: share of the probability sampled from.
      seed: of the sampling, 0 to 2^31 - 1; another seed is another question.
      schema: given: the answer must be such JSON, and a server that can is told so.
      choices: given: not an answer is asked for, but how likely each of these texts is as its beginning.
    """

    messages: tuple[Message, ...]
    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    schema: AnswerSchema | None = None
    choices: tuple[str, ...] = ()

    def key(self, identity: Mapping[str, Any]) -> str:
        """sha256 (hex) of the request and of who is asked: the key that its answer is kept under."""
        content = {"identity": dict(identity), "request": dataclasses.asdict(self)}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def estimated_prompt_tokens(self) -> int:
        """About how many tokens the server reads; the real number comes with the answer."""
        contents = "".join(message["content"] for message in self.messages)
        return estimated_tokens(contents) + TOKENS_PER_MESSAGE * len(self.messages)


@dataclasses.dataclass(frozen=True, slots=True)
class Reply:
    """One answer.

    Attributes:
      text: what was said; may be empty.
      finish_reason: stop, length, or what else the server says.
      prompt_tokens: tokens read, by the server's own count.
      completion_tokens: tokens written.
      choice_logprobs: for a request with choices: natural log-probability of each, in their order; None: the server
        did not list it among the likely ones.
    """

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    choice_logprobs: tuple[float | None, ...] = ()


class CallFailed(Exception):
    """This request got no answer, however often it was tried; others may. The text says what happened last."""


class Unanswerable(CallFailed):
    """It never gets one from this model: it does not fit the model's context, or the server refuses it for good."""


class Stopped(Exception):
    """The run is being stopped: this call was not made."""


class Stop:
    """Says that no new call is to begin, and why; those in flight are waited for, and nobody waits to begin one."""

    def __init__(self, on_ask: Callable[[BaseException], object] = lambda reason: None) -> None:
        """Args:
        on_ask: told the reason.
        """
        self.reason: BaseException | None = None
        self._on_ask = on_ask
        self._asked = asyncio.Event()
        self._to_wake: list[asyncio.Event] = []

    def ask(self, reason: BaseException) -> None:
        """Stops; the first reason counts. To be called where the event loop runs."""
        if self.reason is not None:
            return
        self.reason = reason
        self._on_ask(reason)
        for event in (self._asked, *self._to_wake):
            event.set()

    def wakes(self, event: asyncio.Event) -> None:
        """Has an event set too when a stop is asked for, for whoever waits for something else."""
        self._to_wake.append(event)

    async def sleep(self, seconds: float) -> None:
        """Waits; raises Stopped as soon as a stop is asked for."""
        try:
            async with asyncio.timeout(seconds):
                await self._asked.wait()
        except TimeoutError:
            return
        raise Stopped

    def check(self) -> None:
        """Raises Stopped where a stop was asked for."""
        if self.reason is not None:
            raise Stopped


class Respondent(Protocol):
    """Whoever answers.

    Attributes:
      identity: what decides the answers beside the request, as JSON values; part of every answer's key.
      window: requests worth having ready at any time, so that none of its capacity stands idle.
    """

    @property
    def identity(self) -> Mapping[str, Any]: ...
    @property
    def window(self) -> int: ...

    async def reply(self, request: ChatRequest) -> Reply:
        """Answers one request.

        Raises:
          CallFailed: this one cannot be answered.
          Stopped: a stop was asked for before it was begun.
          InputError: none can, for a reason that the user can mend (no such server, key refused ...).
          Unfinished: none can at present (no credit, no answer to anybody ...).
        """
        ...

    async def close(self) -> None:
        """Lets connections and memory go."""
        ...


def estimated_tokens(text: str) -> int:
    """About how many tokens a text is.

    >>> estimated_tokens("Why is that so?"), estimated_tokens("\u4e3a\u4ec0\u4e48?")
    (3, 3)
    """
    num_ascii = len(text) if text.isascii() else len(text.encode("ascii", "ignore"))
    return num_ascii // CHARACTERS_PER_TOKEN + len(text) - num_ascii


def whole_characters(text: str) -> str:
    """A text with U+FFFD for every half of a surrogate pair, which JSON can spell and UTF-8 cannot.

    >>> whole_characters("a\\ud83d")
    'a\ufffd'
    """
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def derived_seed(*parts: object) -> int:
    """A seed, 0 to 2^31 - 1, from whatever names a random decision: the run's seed, the prompt, the attempt ..."""
    return int.from_bytes(_digest(parts)[:4], "big") >> 1


def draw_order(names: list[str], *parts: object) -> list[str]:
    """Names in a random order that depends on `parts` and on each name alone, so that a further name moves no other."""
    return sorted(names, key=lambda name: (_digest((*parts, name)), name))


def _digest(parts: tuple[object, ...]) -> bytes:
    return hashlib.sha256(json.dumps([str(part) for part in parts]).encode()).digest()
