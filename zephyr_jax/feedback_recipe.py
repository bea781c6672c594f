"""Every option of an AI feedback run, typed and frozen; the file is read as a training recipe's is (recipe_file.py).

Not here: what the options do (stages/aif.py). No JAX.

    recipe = load_feedback_recipe("configs/feedback/smollm2.yaml", ["budget.requests=100"])
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from zephyr_jax import recipe_file, yaml_nodes
from zephyr_jax.recipe import (
    Count,
    CountOrZero,
    Flag,
    FolderName,
    NonNegative,
    Options,
    Ratio,
    Seed,
    Share,
    Source,
    Text,
)
from zephyr_jax.respondent_options import (
    Budget,
    Calls,
    ModelOptions,
    Temperature,
    deciding_of_models,
    models_as_tree,
    name_clashes,
)


class InstructionOptions(Options):
    """Self-instruct: the teacher writes tasks after seed tasks and topics, refines them, and answers in several turns.

    Attributes:
      num_drafts: tasks written; what the filters leave becomes dialogues.
      seeds: a source of rows with `task`, `topic` or both; builtin: the package's own.
      num_examples: seed tasks that the teacher is shown for each draft.
      refinements: how often each task is rewritten to ask for more.
      max_turns: user turns of a dialogue at most; each dialogue draws its number from 1 to this.
      max_task_tokens: of a task, or of what the person says next.
      max_tokens: of an answer; one that is cut off there is left out.
      expected_tokens: of an answer, on average; for the estimate before the first call alone.
      max_tries: a text that is empty or a task that is cut off is asked for again, with another seed.
      near_duplicate: a task this similar to an earlier one (Jaccard similarity of word triples) is left out.
      min_words: a task with fewer words is left out; an answer is with fewer than `min_answer_words`.
    """

    num_drafts: Count
    seeds: Text = "builtin"
    num_examples: CountOrZero = 3
    refinements: CountOrZero = 1
    max_turns: Count = 3
    temperature: Temperature = 1.0
    top_p: Share = 1.0
    max_task_tokens: Count = 256
    max_tokens: Count = 1024
    expected_tokens: Count = 300
    max_tries: Count = 2
    near_duplicate: Share = 0.7
    min_words: Count = 3
    min_answer_words: Count = 2


class CompletionOptions(Options):
    """Answers of several models to every prompt.

    Attributes:
      students: names of `models`; a prompt draws `per_prompt` of them, and where there are fewer, some answer again.
      principles: each answer is given under a principle drawn from these as its system message; empty: under none.
      principle_as: system; user: before the prompt's own text, for models without system messages.
      expected_tokens: of an answer, on average; for the estimate before the first call alone.
      max_tries: an empty answer is asked for again, with another seed.
    """

    students: Annotated[tuple[Text, ...], Field(min_length=1)]
    per_prompt: Annotated[int, Field(strict=True, ge=2)] = 4
    principles: tuple[Literal["helpfulness", "truthfulness", "honesty", "calibration"], ...] = (
        "helpfulness",
        "truthfulness",
        "honesty",
        "calibration",
    )
    principle_as: Literal["system", "user"] = "system"
    temperature: Temperature = 1.0
    top_p: Share = 1.0
    max_tokens: Count = 1024
    expected_tokens: Count = 300
    max_tries: Count = 2


Aspect = Literal["instruction_following", "honesty", "truthfulness", "helpfulness"]


class AnnotationOptions(Options):
    """The teacher's scores, 1 to 5 per aspect.

    Attributes:
      rating: json: all answers to a prompt, shuffled, in one call per aspect, each with a rationale. logprobs: each
        answer in a call of its own, its score the expected value over the probabilities of the digits 1 to 5 as the
        next token (as G-Eval does, arXiv:2303.16634); no rationale, never unparsable; the teacher must give them.
      max_tries: an answer that cannot be read is asked for again, with another seed and `retry_temperature`.
      expected_tokens: as in completions.
    """

    aspects: Annotated[tuple[Aspect, ...], Field(min_length=1)] = (
        "instruction_following",
        "honesty",
        "truthfulness",
        "helpfulness",
    )
    rating: Literal["json", "logprobs"] = "json"
    temperature: Temperature = 0.0
    retry_temperature: Temperature = 0.7
    max_tokens: Count = 1024
    expected_tokens: Count = 300
    max_tries: Count = 3


class PairOptions(Options):
    """One preference pair of the answers to each prompt; see data/binarisation.py for the rules.

    Attributes:
      margin: least difference of the two scores.
      keep_ties: keep pairs whose scores are equal.
    """

    rule: Literal["best_vs_random", "best_vs_worst", "argilla"] = "best_vs_random"
    margin: NonNegative = 0.0
    keep_ties: Flag = False

    @model_validator(mode="after")
    def _check(self) -> PairOptions:
        if self.keep_ties and self.margin:
            recipe_file.raise_problems([("keep_ties", f"got true beside margin {self.margin:g}; wanted one of them")])
        return self


class FeedbackRecipe(Options):
    """One AI feedback run: who answers, who judges, and about what.

    Attributes:
      models: name -> model; the names are the run's own.
      teacher: the model that writes dialogues and judges.
      prompts: sources of rows with `messages`, `prompt` or `instruction`; none: the tasks of `instructions`.
      max_bad_rows: share of the prompts' rows that may be unreadable.
      max_failed: share of a step's calls that may stay without a usable answer before the run is stopped.
    """

    name: FolderName
    output_dir: Text = "runs"
    seed: Seed = 42
    models: dict[str, ModelOptions]
    teacher: Text
    prompts: tuple[Source, ...] = ()
    max_bad_rows: Ratio = 0.01
    max_failed: Ratio = 0.05
    instructions: InstructionOptions | None = None
    completions: CompletionOptions | None = None
    annotation: AnnotationOptions | None = None
    binarisation: PairOptions | None = None
    budget: Budget = Budget()
    calls: Calls = Calls()

    @model_validator(mode="after")
    def _check(self) -> FeedbackRecipe:
        problems = name_clashes(self.models)
        known = ", ".join(self.models) or "none"
        if self.teacher not in self.models:
            problems.append(("teacher", f"got {self.teacher!r}, wanted one of models ({known})"))
        if self.completions is not None:
            problems += [
                ("completions.students", f"got {name!r}, wanted names of models ({known})")
                for name in self.completions.students
                if name not in self.models
            ]
            if not self.prompts and self.instructions is None:
                problems.append(("prompts", "got none; wanted sources, or the block instructions, which writes some"))
            if len(set(self.completions.students)) < len(self.completions.students):
                problems.append(("completions.students", "names a model twice; wanted each once"))
        if self.annotation is not None and self.completions is None:
            problems.append(("annotation", "needs the block completions, whose answers it scores"))
        if self.binarisation is not None and self.annotation is None:
            problems.append(("binarisation", "needs the block annotation, by whose scores it chooses"))
        if self.instructions is None and self.completions is None:
            problems.append(("", "has neither instructions nor completions; wanted at least one of these blocks"))
        recipe_file.raise_problems(problems)
        return self


def load_feedback_recipe(path: str | Path, overrides: Sequence[str] = ()) -> FeedbackRecipe:
    """Reads a recipe and applies overrides; see `load_recipe`."""
    return recipe_file.read_options(FeedbackRecipe, path, overrides=overrides)


# What may change between two sessions of a run: it decides when and by whom calls are made, not what they say.
_FREE_KEYS = ("budget", "calls", "max_failed")


def result_differences(old: FeedbackRecipe, new: FeedbackRecipe) -> list[str]:
    """What changed of all that decides the results, a line per dotted key; [] when nothing did."""

    def deciding(recipe: FeedbackRecipe) -> dict[str, Any]:
        tree: dict[str, Any] = recipe.model_dump(mode="json", exclude=set(_FREE_KEYS))
        tree["models"] = deciding_of_models(recipe.models)
        for step in ("instructions", "completions", "annotation"):
            if tree[step] is not None:
                tree[step].pop("expected_tokens")
        return tree

    return recipe_file.differences(deciding(old), deciding(new))


def feedback_recipe_to_yaml(recipe: FeedbackRecipe) -> str:
    """The recipe as a YAML text with every key, which `load_feedback_recipe` reads back as an equal recipe."""
    tree = recipe.model_dump(mode="json", exclude_none=True)
    tree["models"] = models_as_tree(recipe.models)
    return yaml_nodes.to_yaml(tree)
