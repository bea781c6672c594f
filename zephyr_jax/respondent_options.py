"""Options of whoever is asked: models behind an API or in this process, what a run may spend, where answers are kept.

Blocks of several recipes (feedback_recipe.py, evaluation_recipe.py). Not here: what the options do (judging/). No JAX.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from zephyr_jax import recipe_file
from zephyr_jax.recipe import Count, NonNegative, OneOrSeveral, Options, Positive, Text

Temperature = NonNegative


def _server(url: str) -> str:
    if not url.startswith(("http://", "https://")):
        raise ValueError(
            f"got {url!r}, wanted the address of an OpenAI-compatible API, such as http://localhost:8000/v1"
        )
    if "@" in url:
        # The recipe is written beside the results.
        raise ValueError("got an address with a name or key in it, wanted the key in the variable api_key_env names")
    return url.rstrip("/")


Servers = Annotated[tuple[Annotated[Text, AfterValidator(_server)], ...], OneOrSeveral]


class Price(Options):
    """What a million tokens cost, in any one currency; `cost` of the budget is in the same."""

    input: NonNegative = 0.0
    output: NonNegative = 0.0


class ModelOptions(Options):
    """Who answers: a model behind an OpenAI-compatible API where `base_url` is given, else ours in this process.

    Attributes:
      model: the name that the servers know it by, under which its answers are kept: where servers answer to any name
        (TGI, llama.cpp), one that no other model has; or a Hugging Face folder, a run's stage folder, builtin:NAME.
      base_url: the servers, one or a list, all with the same model; a request goes to the one with the fewest.
      api_key_env: environment variable with the key; it is never written or logged. Null: the servers want none.
      concurrency: requests in flight at each server.
      timeout_seconds: after which a request has failed.
      max_tries: how often a request is sent before it is given up.
      retry_seconds: the first wait before a retry, doubled each time; `Retry-After` is honoured where it is longer.
      requests_per_minute: most requests sent, over all servers; null: as many as the concurrency allows.
      tokens_per_minute: most tokens asked for (the prompt's by estimate, the answer's at full length); null: no limit.
      response_format: how servers are told that JSON is wanted: by its schema, by its kind, or in the prompt alone.
      max_tokens_field: what the API calls the limit of an answer.
      extra_body: further fields of every request, as the servers know them; null leaves a field out, such as seed or
        top_p where a service refuses it. Servers put no BOS before a dialogue but the chat template's own; vLLM does
        with {add_special_tokens: true}, which a model of ours wants that was trained with one (saving it says so).
      price: per million tokens.
      chat_template: in this process: tokenizer, zephyr or a jinja file.
      dtype: in this process: compute dtype; null: float32 on a CPU, else bfloat16.
      batch_size: in this process: rows answered together.
    """

    model: Text
    base_url: Servers | None = None
    api_key_env: Text | None = None
    concurrency: Count = 32
    timeout_seconds: Positive = 600.0
    max_tries: Count = 8
    retry_seconds: Positive = 1.0
    requests_per_minute: Count | None = None
    tokens_per_minute: Count | None = None
    response_format: Literal["json_schema", "json_object", "none"] = "json_schema"
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    extra_body: dict[str, Any] = Field(default_factory=dict)
    price: Price = Price()
    chat_template: Text = "tokenizer"
    dtype: Literal["float32", "bfloat16"] | None = None
    batch_size: Count = 16

    @property
    def identity(self) -> dict[str, Any]:
        """What decides a server's answers beside the request; another number of servers gives the same answers."""
        return {"model": self.model, "response_format": self.response_format, "extra_body": self.extra_body}

    @model_validator(mode="after")
    def _check(self) -> ModelOptions:
        local = ("chat_template", "dtype", "batch_size")
        if self.base_url is None:
            foreign = [key for key in self.model_fields_set if key not in ("model", "base_url", *local)]
            reason = "got a value, but without base_url the model runs in this process; give base_url, or leave it out"
        else:
            foreign = [key for key in self.model_fields_set if key in local]
            reason = "got a value, but with base_url the servers see to that; leave it out"
        recipe_file.raise_problems([(key, reason) for key in sorted(foreign)])
        if self.base_url == ():
            recipe_file.raise_problems([("base_url", "got an empty list, wanted the address of a server")])
        if len(set(self.base_url or ())) < len(self.base_url or ()):
            recipe_file.raise_problems(
                [("base_url", "names a server twice; wanted each once (concurrency is at each)")]
            )
        return self


def name_clashes(models: Mapping[str, ModelOptions]) -> list[tuple[str, str]]:
    """Models whose answers would be kept as those of another one with other servers or another price, as problems."""
    first: dict[str, str] = {}
    problems = []
    for name, model in models.items():
        if model.base_url is None:
            continue
        other = first.setdefault(json.dumps(model.identity, sort_keys=True), name)
        problems += [
            (
                f"models.{name}.{key}",
                f"differs from that of {other}, but both are {model.model!r}, under which answers are kept; wanted one "
                "of the two alone (base_url takes several servers), or another name for one of them",
            )
            for key in ("base_url", "price")
            if getattr(model, key) != getattr(models[other], key)
        ]
    return problems


class Budget(Options):
    """Limits of the run, all its sessions together; null: none. A run that reaches one stops, and can go on later."""

    requests: Count | None = None
    tokens: Count | None = None
    cost: Positive | None = None


class Calls(Options):
    """Where answers are kept; null: output_dir/calls, shared by all runs there."""

    path: Text | None = None

    def folder(self, output_dir: str) -> Path:
        """The folder of a run whose `output_dir` this is."""
        return Path(self.path or Path(output_dir) / "calls")


def models_as_tree(models: Mapping[str, ModelOptions]) -> dict[str, Any]:
    """A recipe's `models` with the keys that were given: others do not go with `base_url`, or without it."""
    return {name: model.model_dump(mode="json", exclude_unset=True) for name, model in models.items()}


# What may change between two sittings of a run: it decides when and by whom calls are made, not what they say.
_FREE_MODEL_KEYS = (
    "base_url", "api_key_env", "concurrency", "timeout_seconds", "max_tries", "retry_seconds", "requests_per_minute",
    "tokens_per_minute", "price", "batch_size",
)  # fmt: skip


def deciding_of_models(models: Mapping[str, ModelOptions]) -> dict[str, dict[str, Any]]:
    """Of a recipe's `models` what decides the answers: name -> key -> value."""
    return {
        # Whether there is a server at all does decide.
        name: model.model_dump(mode="json", exclude_defaults=True, exclude=set(_FREE_MODEL_KEYS))
        | {"base_url": model.base_url is not None}
        for name, model in models.items()
    }
