"""What a run may spend in all its sessions together: requests, tokens, money. It stops before it would spend more.

Before a request its worst case is set aside (the prompt's tokens by estimate, the answer at its full length), and what
it did not need is given back with its answer. A request that does not fit waits for others' leftovers; when none is in
flight any more and it still does not fit, the budget is spent. Requests count as answers; a try that came to nothing
is not billed anywhere known, and is not counted.
"""

from __future__ import annotations

import asyncio
import dataclasses

from zephyr_jax.judging.protocol import ChatRequest, Reply
from zephyr_jax.judging.tally import TOKENS_PER_PRICE
from zephyr_jax.respondent_options import Budget, Price


class BudgetSpent(Exception):
    """The next request would go over a limit; the text names it."""


@dataclasses.dataclass
class Spent:
    """Requests, tokens and cost, of answers that are here or set aside for those in flight."""

    requests: int = 0
    tokens: int = 0
    cost: float = 0.0

    def add(self, other: Spent, *, sign: int = 1) -> None:
        """Adds what another holds, or takes it away."""
        self.requests += sign * other.requests
        self.tokens += sign * other.tokens
        self.cost += sign * other.cost


def spent_on(prompt_tokens: int, completion_tokens: int, price: Price) -> Spent:
    """What one answer costs; prices are per million tokens."""
    cost = (prompt_tokens * price.input + completion_tokens * price.output) / TOKENS_PER_PRICE
    return Spent(1, prompt_tokens + completion_tokens, cost)


class Purse:
    """A run's budget, shared by all its models."""

    def __init__(self, limits: Budget):
        self.limits, self.spent = limits, Spent()
        self._set_aside = Spent()
        self._changed = asyncio.Condition()

    def pay_before(self, prompt_tokens: int, completion_tokens: int, price: Price) -> None:
        """Counts an answer of an earlier session."""
        self.spent.add(spent_on(prompt_tokens, completion_tokens, price))

    async def set_aside(self, request: ChatRequest, price: Price) -> Spent:
        """Sets the worst case of a request aside.

        Returns:
          What was set aside, for `settle`.

        Raises:
          BudgetSpent: it does not fit, and nothing in flight could give anything back.
        """
        worst = spent_on(request.estimated_prompt_tokens(), max(1, request.max_tokens), price)
        async with self._changed:
            while over := self._limit_passed(worst):
                if not self._set_aside.requests:
                    raise BudgetSpent(over)
                await self._changed.wait()
            self._set_aside.add(worst)
        return worst

    async def settle(self, worst: Spent, reply: Reply | None, price: Price) -> None:
        """Gives back what was set aside, and pays for the answer if one came."""
        async with self._changed:
            self._set_aside.add(worst, sign=-1)
            if reply is not None:
                self.spent.add(spent_on(reply.prompt_tokens, reply.completion_tokens, price))
            self._changed.notify_all()

    def _limit_passed(self, worst: Spent) -> str:
        """Which limit the request would pass, in words; empty for none."""
        for name in ("requests", "tokens", "cost"):
            limit = getattr(self.limits, name)
            spent, aside, more = (getattr(part, name) for part in (self.spent, self._set_aside, worst))
            if limit is not None and spent + aside + more > limit:
                return f"budget.{name} is {limit:g}, {spent:g} are spent and the next request may take {more:g}"
        return ""
