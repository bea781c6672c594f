"""The models of a recipe, opened when they are first asked: respondents, their journals, and the run's purse."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from zephyr_jax.judging.budget import Purse
from zephyr_jax.judging.calls import Caller
from zephyr_jax.judging.journal import Journal
from zephyr_jax.judging.protocol import ChatRequest, Respondent, Stop
from zephyr_jax.judging.tally import Tally
from zephyr_jax.respondent_options import Budget, ModelOptions

if TYPE_CHECKING:
    from zephyr_jax.judging.local_model import LocalModel


class Respondents:
    """Who a run may ask.

    Attributes:
      tallies: the model's name in the recipe -> what happened.
      purse: the run's budget.
    """

    def __init__(
        self,
        models: Mapping[str, ModelOptions],
        *,
        run: str,
        folder: Path,
        budget: Budget,
        stop: Stop,
        command: str,
    ):
        """Args are those of session.Session; `stop` is the sitting's."""
        self.models, self.run, self.command, self.stop = models, run, command, stop
        self.tallies: dict[str, Tally] = {name: Tally() for name in models}
        self.purse = Purse(budget)
        self._folder = folder
        self._callers: dict[str, Caller] = {}
        self._respondents: dict[str, Respondent] = {}
        self._in_process: list[LocalModel] = []
        self._journals: dict[Path, Journal] = {}

    def caller(self, name: str) -> Caller:
        """The model of this name; models that are the same to the letter are opened once.

        Raises:
          InputError: it cannot be opened.
        """
        if name in self._callers:
            return self._callers[name]
        options = self.models[name]
        content = options.model_dump_json()
        if content not in self._respondents:
            self._respondents[content] = self._open(name)
        respondent = self._respondents[content]
        path = self._folder / _journal_name(respondent)
        is_new = path not in self._journals
        if is_new:
            self._journals[path] = Journal(path)
        caller = Caller(
            respondent,
            self._journals[path],
            run=self.run,
            price=options.price,
            purse=self.purse,
            tally=self.tallies[name],
            stop=self.stop,
        )
        if is_new:
            caller.pay_for_earlier_sessions()
        self._callers[name] = caller
        return caller

    def _open(self, name: str) -> Respondent:
        options = self.models[name]
        if options.base_url is not None:
            from zephyr_jax.judging.openai_endpoint import OpenAIEndpoint

            async def on_waste(request: ChatRequest, kind: str) -> None:
                await self._callers[name].pay_for_waste(request, kind)

            return OpenAIEndpoint(options, name=name, tally=self.tallies[name], stop=self.stop, on_waste=on_waste)
        from zephyr_jax.judging.local_model import LocalModel

        model = LocalModel(options, name=name, tally=self.tallies[name], stop=self.stop, command=self.command)
        self._in_process.append(model)
        return model

    def make_room(self, *, busy: Collection[Respondent]) -> None:
        """Has models in this process let go of their weights, all but the busy ones: there may be no room for both."""
        for model in self._in_process:
            if model not in busy:
                model.unload()

    def num_in_flight(self) -> int:
        """Calls that are with a model now."""
        return sum(tally.in_flight for tally in self.tallies.values())

    def progress_text(self) -> str:
        """For a progress bar: `32 in flight, 412 tokens/s, cost 0.31`."""
        rate = sum(tally.tokens_per_second() for tally in self.tallies.values())
        cost = f", cost {self.purse.spent.cost:.2f}" if self.purse.spent.cost else ""
        return f"{self.num_in_flight()} in flight, {rate:,.0f} tokens/s{cost}"

    async def close(self) -> None:
        """Lets connections and files go."""
        for respondent in self._respondents.values():
            await respondent.close()
        for journal in self._journals.values():
            journal.close()


def _journal_name(respondent: Respondent) -> str:
    """`gpt-4-1a2b3c4d.jsonl`: for people the model's name, and what tells it from all others."""
    content = json.dumps(dict(respondent.identity), sort_keys=True)
    name = re.sub(r"[^\w.-]+", "-", str(respondent.identity.get("model", "in-process")).split("/")[-1])
    return f"{name}-{hashlib.sha256(content.encode()).hexdigest()[:8]}.jsonl"
