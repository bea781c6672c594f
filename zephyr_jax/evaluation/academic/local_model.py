"""A model of ours in this process, as academic tasks ask it: plain texts, or a user's turn in its chat template."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from zephyr_jax.academic_options import AcademicOptions
from zephyr_jax.evaluation.academic.items import Generated, Likelihood, PromptItem
from zephyr_jax.evaluation.academic.samples import folder_name
from zephyr_jax.evaluation.text_model import open_text_model
from zephyr_jax.records import InputError, Message
from zephyr_jax.respondent_options import ModelOptions


class LocalModel:
    """An AcademicModel: see items.py.

    Attributes:
      name: as the recipe has it.
      batch_size: rows that are answered together.
      text_model: the model itself.
    """

    def __init__(self, name: str, options: AcademicOptions, models: Mapping[str, ModelOptions]):
        """Opens a model; its weights are read when it is first asked.

        Args:
          name: of `models`, or weights as open_weights takes them.
          options: of the tasks.
          models: those of the recipe.

        Raises:
          InputError: there is no such model, or it is not one in this process.
        """
        given = models.get(name)
        if given is not None and given.base_url is not None:
            raise InputError(
                f"academic.model {name}: is behind an API, which does not say how likely a text is; wanted a model in "
                "this process"
            )
        self.name, self.batch_size = name, options.batch_size
        self.text_model = open_text_model(
            given.model if given else name,
            chat_template=given.chat_template if given else "tokenizer",
            dtype=options.dtype or (given.dtype if given else None),
        )

    def fingerprint(self) -> Mapping[str, Any]:
        """Everything of the model that decides its answers."""
        model = self.text_model
        return {
            "weights": model.source.fingerprint(),
            **{f"shape.{key}": value for key, value in model.shape.model_dump().items()},
            **model.tokenizer.fingerprint(),
            "stop_ids": list(model.source.stop_ids),
            "dtype": model.settings.compute_dtype,
            "max_length": model.max_length,
        }

    def load(self) -> None:
        """See AcademicModel."""
        if self.text_model.params is None:
            devices = self.text_model.mesh.devices.ravel()
            settings = f"{self.text_model.settings.compute_dtype} on {devices.size} x {devices[0].device_kind}"
            print(f"evaluate: loading {self.name}, {settings}", file=sys.stderr)
            self.text_model = self.text_model.load()

    def unload(self) -> None:
        """Lets the weights go: the next model may need their room. `load` reads them again."""
        self.text_model = dataclasses.replace(self.text_model, params=None)

    def loglikelihoods(self, requests: Sequence[tuple[str, str]]) -> Iterator[tuple[int, Likelihood]]:
        """See AcademicModel."""
        encoded = [self.text_model.encode_pair(context, continuation) for context, continuation in requests]
        for found in self.text_model.iterate_loglikelihoods(encoded, name="evaluate"):
            for index, result in found.items():
                yield index, Likelihood(*result)

    def generate(self, items: Sequence[PromptItem]) -> Iterator[tuple[int, Generated]]:
        """See AcademicModel."""
        first, tokenizer = items[0], self.text_model.tokenizer
        for ended in self.text_model.iterate_until(
            [self._prompt(item) for item in items],
            until=first.until,
            max_new_tokens=first.max_new_tokens,
            batch_size=min(self.batch_size, len(items)),
            stop_ids=tokenizer.stop_ids if first.in_chat else (),
            name="evaluate",
        ):
            for index, answer in ended.items():
                yield index, Generated(*answer)

    def _prompt(self, item: PromptItem) -> np.ndarray:
        """Token ids [P]."""
        if not item.in_chat:
            return np.array(self.text_model.encode(item.prompt), np.int32)
        turn: Message = {"role": "user", "content": item.prompt}
        return self.text_model.tokenizer.encode_prompt([turn])


def open_models(options: AcademicOptions, models: Mapping[str, ModelOptions]) -> list[LocalModel]:
    """All models that academic tasks are put to; no weights are read yet.

    Args:
      options: of the tasks.
      models: those of the recipe.

    Raises:
      InputError: as in LocalModel; or what two of them do would be kept in one folder.
    """
    by_folder: dict[str, str] = {}
    for name in options.model:
        other = by_folder.setdefault(folder_name(name), name)
        if other != name:
            raise InputError(
                f"academic.model: {other} and {name} would both be kept in {folder_name(name)}; give one of them a "
                "name in models"
            )
    return [LocalModel(name, options, models) for name in options.model]
