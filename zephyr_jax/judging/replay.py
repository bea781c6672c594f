"""A judge that says again what is stored of it: whoever was shown the same question answers as it did then.

Not here: the files that judgments are stored in (evaluation/fastchat_files.py).
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Mapping
from typing import Any

from zephyr_jax.judging.protocol import CallFailed, ChatRequest, Reply


class ReplayJudge:
    """Answers by the text of the last user turn alone; several answers stored to one text come one after another.

    respondent = ReplayJudge("gpt-4", [(user_prompt, reply), ...])
    """

    window = 1

    def __init__(self, name: str, stored: Iterable[tuple[str, Reply]]):
        """Args:
        name: whose answers they are.
        stored: (text of the question's last turn, reply), in the order in which they were given.
        """
        self.identity: Mapping[str, Any] = {"model": name, "replayed": True}
        self._left: dict[str, collections.deque[Reply]] = {}
        for text, answer in stored:
            self._left.setdefault(text, collections.deque()).append(answer)

    async def reply(self, request: ChatRequest) -> Reply:
        """The next answer that is stored to the request's last turn; see Respondent.

        Raises:
          CallFailed: there is none, or none any more.
        """
        text = request.messages[-1]["content"]
        answers = self._left.get(text)
        if answers is None:
            raise CallFailed(f"nothing is stored to the question that begins {text[:80]!r}")
        if not answers:
            raise CallFailed(f"no further answer is stored to the question that begins {text[:80]!r}")
        return answers.popleft()

    async def close(self) -> None:
        """Nothing to let go."""
