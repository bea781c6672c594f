"""Every option of an evaluation, typed and frozen; the file is read as a training recipe's is (recipe_file.py).

Not here: what the options do (evaluation/). No JAX.

    recipe = load_evaluation_recipe("configs/evaluation/published.yaml", ["statistics.resamples=1000"])
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from zephyr_jax import recipe_file, yaml_nodes
from zephyr_jax.recipe import Count, Flag, FolderName, Options, Seed, Text
from zephyr_jax.respondent_options import Budget, Calls, ModelOptions, Temperature, models_as_tree


def _several(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


Files = Annotated[tuple[Text, ...], BeforeValidator(_several), Field(min_length=1)]


# FastChat's, by MT-Bench's categories.
BENCH_TEMPERATURES = {
    "writing": 0.7,
    "roleplay": 0.7,
    "extraction": 0.0,
    "math": 0.0,
    "coding": 0.0,
    "reasoning": 0.0,
    "stem": 0.1,
    "humanities": 0.1,
}


class StatisticsOptions(Options):
    """How intervals and p-values are drawn.

    Attributes:
      level: of the intervals; a difference with p > 1 - level is called noise.
      resamples: of the bootstrap, and changes of sign of the paired test.
    """

    level: Annotated[float, Field(strict=True, gt=0.5, lt=1)] = 0.95
    resamples: Annotated[int, Field(strict=True, ge=100)] = 10_000


class LengthControlOptions(Options):
    """The length-controlled win rate; needs scikit-learn (extra [evaluate]).

    Attributes:
      glm: AlpacaEval's published model; noreg: without the gamed baselines; minimal: without the difficulties too.
      file: AlpacaEval's df_gamed.csv (v1; noreg takes it as well) or instruction_difficulty.csv (noreg).
    """

    glm: Literal["length_controlled_v1", "length_controlled_noreg", "length_controlled_minimal"] = (
        "length_controlled_v1"
    )
    file: Text | None = None

    @model_validator(mode="after")
    def _check(self) -> LengthControlOptions:
        problems = []
        if self.glm != "length_controlled_minimal" and self.file is None:
            problems.append(
                (
                    "file",
                    f"got none, wanted AlpacaEval's df_gamed.csv for {self.glm} (length_controlled_minimal needs none)",
                )
            )
        if self.glm == "length_controlled_minimal" and self.file is not None:
            problems.append(("file", "got a value, but length_controlled_minimal reads none; leave it out"))
        recipe_file.raise_problems(problems)
        return self


def _one_judge(options: Any) -> list[tuple[str, str]]:
    """The problem of a judging block that does not name one judge."""
    given = [key for key in ("judge", "replay") if getattr(options, key) is not None]
    if len(given) == 1:
        return []
    got = " and ".join(given) or "neither judge nor replay"
    return [("", f"got {got}, wanted one of judge (a name of models) and replay (files of a judge's stored judgments)")]


class AlpacaJudgingOptions(Options):
    """Judging outputs, by a model or by a judge that says again what is stored of it.

    Attributes:
      outputs: a file a model, in AlpacaEval's format.
      baseline: the file of whom they are judged against.
      prompt: the judge's prompt, in ChatML with {instruction}, {output_1} and {output_2}.
      reading: ranking (AlpacaEval 1) or logprobs (AlpacaEval 2).
      judge: the model of `models` that judges.
      replay: instead, files of one judge's annotations with their raw_completion; a pair that is not in them stays
        unjudged.
      system_as: user: the prompt's system message goes before the user's text, for chat templates that know none.
      temperature: of the judge's first try.
      max_tries: rankings asked for until one can be read.
    """

    outputs: Files
    baseline: Text
    prompt: Text
    reading: Literal["ranking", "logprobs"]
    judge: Text | None = None
    replay: Files | None = None
    system_as: Literal["system", "user"] = "system"
    temperature: Temperature = 0.0
    max_tries: Count = 2

    @model_validator(mode="after")
    def _check(self) -> AlpacaJudgingOptions:
        recipe_file.raise_problems(_one_judge(self))
        return self


class AlpacaEvalOptions(Options):
    """AlpacaEval from annotations, stored ones or those of a judge, or both.

    Attributes:
      annotations: files of annotations, in AlpacaEval's format.
      judging: has outputs judged; the annotations are written beside the results.
      length_control: null: plain win rates only.
    """

    annotations: Files | None = None
    judging: AlpacaJudgingOptions | None = None
    length_control: LengthControlOptions | None = None

    @model_validator(mode="after")
    def _check(self) -> AlpacaEvalOptions:
        if self.annotations is None and self.judging is None:
            recipe_file.raise_problems([("", "has neither annotations nor judging; wanted at least one")])
        return self


class BenchJudgingOptions(Options):
    """Judging answers, by a model or by a judge that says again what is stored of it.

    Attributes:
      answers: files of answers, in FastChat's format.
      prompts: FastChat's judge_prompts.jsonl.
      references: answers that math, reasoning and coding are judged beside, in FastChat's format.
      judge: the model of `models` that judges.
      replay: instead, files of one judge's judgments; an answer whose very prompt is not in them stays without one.
      mode: single: each answer is graded; pair: two models' answers are compared in both orders.
      system_as: user: the prompt's system message goes before the user's text, for chat templates that know none.
      temperature: of the judge's first try, as FastChat has it; at 0 a model in this process repeats itself.
      max_tokens: of a judgment.
      max_tries: judgments asked for until one can be parsed.
      repetitions: how often each answer is graded, to see the judge's spread; pairs are judged once.
    """

    answers: Files
    prompts: Text
    references: Text | None = None
    judge: Text | None = None
    replay: Files | None = None
    mode: Literal["single", "pair"] = "single"
    system_as: Literal["system", "user"] = "system"
    temperature: Temperature = 0.0
    max_tokens: Count = 2048
    max_tries: Count = 2
    repetitions: Count = 1

    @model_validator(mode="after")
    def _check(self) -> BenchJudgingOptions:
        problems = _one_judge(self)
        if self.mode == "pair" and self.repetitions > 1:
            problems.append(("repetitions", f"got {self.repetitions}, wanted 1 with mode pair"))
        recipe_file.raise_problems(problems)
        return self


class MtBenchOptions(Options):
    """MT-Bench from judgments, stored ones or those of a judge, or both.

    Attributes:
      questions: FastChat's question.jsonl: the categories.
      judgments: files of gradings and pairs, in FastChat's format.
      judging: has answers judged; they and the judgments are written beside the results.
      published: show published models beside ours.
    """

    questions: Text
    judgments: Files | None = None
    judging: BenchJudgingOptions | None = None
    published: Flag = True

    @model_validator(mode="after")
    def _check(self) -> MtBenchOptions:
        if self.judgments is None and self.judging is None:
            recipe_file.raise_problems([("", "has neither judgments nor judging; wanted at least one")])
        return self


class AgreementOptions(Options):
    """How a judge's stored judgments agree with a reference's on the items that both judged.

    Attributes:
      judge: its files.
      reference: files of a judge that is trusted more, such as GPT-4.
    """

    judge: Files
    reference: Files


class EvaluationRecipe(Options):
    """One evaluation; its results are in output_dir/name/evaluation.

    Attributes:
      seed: of intervals and p-values, and of what is drawn in asking models.
      report: write report.html too, which needs matplotlib (extra [report]).
      models: name -> model; who judges. The name stands in the rows.
    """

    name: FolderName
    output_dir: Text = "runs"
    seed: Seed = 42
    report: Flag = True
    statistics: StatisticsOptions = StatisticsOptions()
    alpaca_eval: AlpacaEvalOptions | None = None
    mt_bench: MtBenchOptions | None = None
    agreement: tuple[AgreementOptions, ...] = ()
    models: dict[str, ModelOptions] = Field(default_factory=dict)
    budget: Budget = Budget()
    calls: Calls = Calls()

    @model_validator(mode="after")
    def _check(self) -> EvaluationRecipe:
        known = ", ".join(self.models) or "none"
        recipe_file.raise_problems(
            [
                (key, f"got {name!r}, wanted one of models ({known})")
                for key, name in self._named_models().items()
                if name not in self.models
            ]
        )
        if self.alpaca_eval is None and self.mt_bench is None and not self.agreement:
            recipe_file.raise_problems(
                [("", "has none of the blocks alpaca_eval, mt_bench, agreement; wanted at least one")]
            )
        return self

    def _named_models(self) -> dict[str, str]:
        """Key -> the model that it names."""
        found = {}
        for block in ("alpaca_eval", "mt_bench"):
            options = getattr(self, block)
            if options and options.judging and options.judging.judge is not None:
                found[f"{block}.judging.judge"] = options.judging.judge
        return found

    def asked_models(self) -> set[str]:
        """The names of those models that are asked anything."""
        return set(self._named_models().values())


def load_evaluation_recipe(path: str | Path, overrides: Sequence[str] = ()) -> EvaluationRecipe:
    """Reads a recipe and applies overrides; see `load_recipe`."""
    return recipe_file.read_options(EvaluationRecipe, path, overrides=overrides)


def evaluation_recipe_to_yaml(recipe: EvaluationRecipe) -> str:
    """The recipe as a YAML text with every key, which `load_evaluation_recipe` reads back as an equal recipe."""
    tree = recipe.model_dump(mode="json", exclude_none=True)
    tree["models"] = models_as_tree(recipe.models)
    return yaml_nodes.to_yaml(tree)
