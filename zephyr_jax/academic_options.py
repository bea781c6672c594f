"""Options of academic tasks, a block of an evaluation (evaluation_recipe.py). No JAX.

Not here: what they do (evaluation/academic/).

academic:
  model: runs/zephyr/ddpo
  tasks:
    - {task: arc_challenge, file: arc_challenge_test.jsonl, shots: 25, fewshot: arc_challenge_train.jsonl}
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import model_validator

from zephyr_jax import recipe_file
from zephyr_jax.recipe import Count, CountOrZero, Flag, OneOrSeveral, Options, Text

GENERATED = ("gsm8k", "ifeval")
WITHOUT_SHOTS = ("truthfulqa_mc1", "truthfulqa_mc2", "ifeval")


class AcademicTaskOptions(Options):
    """One task on one file.

    Attributes:
      task: by whose rules.
      file: its rows, in the hub's columns; of ARC and HellaSwag also query, choices, gold.
      shots: worked examples before each question; null: as the harness has it, 5 for gsm8k, else 0.
      fewshot: the file that they are drawn from, in the same columns; of truthfulqa: the questions and answers of the
        prompt's own six examples, which without it are read from an installed lm_eval.
      limit: only so many rows, the first ones; of mmlu so many of each subject, as the harness counts.
      chat_template: gsm8k and ifeval: the prompt is a user's turn in the model's chat template, not plain text.
      max_new_tokens: gsm8k and ifeval: null: as the harness has it, 256 and 1280.
    """

    task: Literal[
        "arc_easy", "arc_challenge", "hellaswag", "mmlu", "truthfulqa_mc1", "truthfulqa_mc2", "gsm8k", "ifeval"
    ]
    file: Text
    shots: CountOrZero | None = None
    fewshot: Text | None = None
    limit: Count | None = None
    chat_template: Flag = False
    max_new_tokens: Count | None = None

    @property
    def num_shots(self) -> int:
        """How many examples stand before a question."""
        return (5 if self.task == "gsm8k" else 0) if self.shots is None else self.shots

    @property
    def label(self) -> str:
        """What tells the task from the others of a recipe."""
        return f"{self.task}-{self.num_shots}shot" + ("-chat" if self.chat_template else "")

    @model_validator(mode="after")
    def _check(self) -> AcademicTaskOptions:
        problems = []
        if self.task in WITHOUT_SHOTS and self.num_shots:
            own = "its prompt's own examples are not counted" if self.task != "ifeval" else "it is asked without any"
            problems.append(("shots", f"got {self.num_shots}, wanted 0 for {self.task}: {own}"))
        elif self.num_shots and self.fewshot is None:
            problems.append(("fewshot", f"got none, wanted the file that the {self.num_shots} examples are drawn from"))
        elif self.fewshot is not None and not self.num_shots and not self.task.startswith("truthfulqa"):
            problems.append(("fewshot", f"got a value, but {self.task} has no shots here; give shots, or leave it out"))
        if self.task not in GENERATED:
            reason = f"got a value, but {self.task} has nothing generated; leave it out"
            problems += [
                (key, reason)
                for key, given in (("chat_template", self.chat_template), ("max_new_tokens", self.max_new_tokens))
                if given
            ]
        recipe_file.raise_problems(problems)
        return self


class HarnessOptions(Options):
    """Tasks that lm-evaluation-harness runs itself, from the hub or from files of the user's (extra [harness]).

    Attributes:
      tasks: the harness's name of a task, or of a group of them -> worked examples before each question; null: as the
        task has it.
      limit: only so many questions of each task, the first ones.
      include_path: a folder with more tasks, in the harness's YAML.
      chat_template: prompts are turns of the model's chat template, not plain text.
    """

    tasks: dict[Text, CountOrZero | None]
    limit: Count | None = None
    include_path: Text | None = None
    chat_template: Flag = False

    @model_validator(mode="after")
    def _check(self) -> HarnessOptions:
        recipe_file.raise_problems([] if self.tasks else [("tasks", "got none, wanted at least one")])
        return self


class AcademicOptions(Options):
    """Academic tasks, each put to each model.

    Attributes:
      model: one or several, compared on the same items: names of `models`, or weights as `--model` takes them.
      dtype: compute dtype; null: that of `models`, else float32 on a CPU and bfloat16 elsewhere.
      batch_size: rows that are answered together.
      tasks: what is asked from local files.
      harness: what lm-evaluation-harness asks.
    """

    model: Annotated[tuple[Text, ...], OneOrSeveral]
    dtype: Literal["float32", "bfloat16"] | None = None
    batch_size: Count = 16
    tasks: tuple[AcademicTaskOptions, ...] = ()
    harness: HarnessOptions | None = None

    @model_validator(mode="after")
    def _check(self) -> AcademicOptions:
        problems = []
        for key, names in (("model", self.model), ("tasks", tuple(task.label for task in self.tasks))):
            twice = sorted({name for name in names if names.count(name) > 1})
            problems += [(key, f"got {name} more than once, wanted each once") for name in twice]
        if not self.model:
            problems.append(("model", "got none, wanted at least one"))
        if not self.tasks and self.harness is None:
            problems.append(("tasks", "got none, wanted at least one, here or in a block harness"))
        recipe_file.raise_problems(problems)
        return self
