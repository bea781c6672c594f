"""What a run may spend in all its sessions together: requests, tokens, money. It stops before it would spend more.

Before a request its worst case is set aside (the prompt's tokens by estimate, the answer at its full length), and what
it did not need is given back with its answer. A request that does not fit waits for others' leftovers; when none is in
flight any more and it still does not fit, the budget is spent. What tokens and cost can pass it by is what the estimate
of the prompts in flight is too low by. A try that came to nothing counts at its worst case where an answer may have
been written for it (timed out, connection lost, half a JSON ...), and not at all where the server says that it refused.
"""

from __future__ import annotations

import asyncio
import dataclasses

from zephyr_jax.judging.protocol import Reply
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
        self._num_held = 0  # of what is set aside: for tries that are not sent before there is more
        self._changed = asyncio.Condition()

    def pay_before(self, prompt_tokens: int, completion_tokens: int, price: Price) -> None:
        """Counts an answer of an earlier session."""
        self.spent.add(spent_on(prompt_tokens, completion_tokens, price))

    async def set_aside(self, prompt_tokens: int, completion_tokens: int, price: Price) -> Spent:
        """Sets the worst case of a request aside.

        Args:
          prompt_tokens: by estimate.
          completion_tokens: at most.
          price: per million.

        Returns:
          What was set aside, for `settle`.

        Raises:
          BudgetSpent: it does not fit, and nothing in flight could give anything back.
        """
        worst = spent_on(prompt_tokens, max(1, completion_tokens), price)
        async with self._changed:
            while over := self._limit_passed(worst):
                if self._set_aside.requests <= self._num_held:
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

    async def pay_for_waste(self, prompt_tokens: int, completion_tokens: int, price: Price) -> None:
        """Counts a try that came to nothing, and waits until the next one, which is set aside for already, still fits.

        Raises:
          BudgetSpent: it does not, and nothing in flight could give anything back.
        """
        async with self._changed:
            self.spent.add(spent_on(prompt_tokens, completion_tokens, price))
            self._num_held += 1
            self._changed.notify_all()
            try:
                while over := self._limit_passed(Spent()):
                    if self._set_aside.requests <= self._num_held:
                        raise BudgetSpent(over)
                    await self._changed.wait()
            finally:
                self._num_held -= 1

    def _limit_passed(self, worst: Spent) -> str:
        """Which limit a request would pass beside all that is set aside, in words; empty for none."""
        for name in ("requests", "tokens", "cost"):
            limit = getattr(self.limits, name)
            spent, aside, more = (getattr(part, name) for part in (self.spent, self._set_aside, worst))
            if limit is not None and spent + aside + more > limit:
                left = f"{spent:g} are spent and what is to be asked next may take {more or aside:g}"
                return f"budget.{name} is {limit:g}, {left}"
        return ""
