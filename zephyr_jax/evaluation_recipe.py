"""Every option of an evaluation, typed and frozen; the file is read as a training recipe's is (recipe_file.py).

Not here: what the options do (evaluation/). No JAX.

    recipe = load_evaluation_recipe("configs/evaluation/published.yaml", ["statistics.resamples=1000"])
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from zephyr_jax import recipe_file, yaml_nodes
from zephyr_jax.academic_options import AcademicOptions
from zephyr_jax.recipe import Count, Flag, FolderName, OneOrSeveral, Options, Seed, Share, Text
from zephyr_jax.respondent_options import (
    Budget,
    Calls,
    ModelOptions,
    Temperature,
    deciding_of_models,
    models_as_tree,
    name_clashes,
)


def _each_once(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) < len(names):
        raise ValueError(f"got {', '.join(names)}, wanted each once")
    return names


Files = Annotated[tuple[Text, ...], OneOrSeveral, Field(min_length=1)]
Names = Annotated[tuple[Text, ...], OneOrSeveral, Field(min_length=1), AfterValidator(_each_once)]
_NOTHING_TO_JUDGE = "got none, wanted files, or the block answering, whose answers are then judged"

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


def _one_judge(options: Any, *needs: str) -> list[tuple[str, str]]:
    """The problems of a judging block that does not name one judge, or lacks what a judge of words `needs`."""
    given = [key for key in ("judge", "replay", "rules") if getattr(options, key) is not None]
    if len(given) != 1:
        wanted = "judge (a name of models), replay (files of a judge's stored judgments) and rules (a file of checks)"
        return [("", f"got {' and '.join(given) or 'no judge'}, wanted one of {wanted}")]
    if given == ["rules"]:
        foreign = [key for key in ("system_as", "temperature", "max_tries", *needs) if key in options.model_fields_set]
        return [(key, "got a value, but rules are no model and are asked nothing; leave it out") for key in foreign]
    return [(key, f"got none, wanted one for {given[0]}") for key in needs if getattr(options, key) is None]


class AlpacaAnsweringOptions(Options):
    """Having models answer instructions; the defaults are those of Zephyr's published outputs.

    Attributes:
      models: names of `models`, which stand in the rows.
      instructions: rows with `instruction` and `dataset`, as alpaca_eval's set has them.
      limit: the first so many of them; null: all.
      max_new_tokens: of an output; a longer one is cut there and counted.
      temperature: 0 is greedy.
    """

    models: Names
    instructions: Text
    limit: Count | None = None
    max_new_tokens: Count = 2048
    temperature: Temperature = 0.7
    top_p: Share = 1.0


class AlpacaJudgingOptions(Options):
    """Judging outputs, by a model, by rules, or by a judge that says again what is stored of it.

    Attributes:
      outputs: a file a model, in AlpacaEval's format; beside those that were just given, where models answer.
      baseline: the file of whom they are judged against.
      prompt: the judge's prompt, in ChatML with {instruction}, {output_1} and {output_2}.
      reading: ranking (AlpacaEval 1) or logprobs (AlpacaEval 2).
      judge: the model of `models` that judges.
      replay: instead, files of one judge's annotations with their raw_completion; a pair that is not in them stays
        unjudged.
      rules: instead, a file of rules (see evaluation/rule_judging.py); an instruction without one stays unjudged.
      system_as: user: the prompt's system message goes before the user's text, for chat templates that know none.
      temperature: of the judge's first try.
      max_tries: rankings asked for until one can be read.
      both_orders: each pair is judged in either order; the preference is the mean, and the position bias is shown.
    """

    outputs: Files | None = None
    baseline: Text
    prompt: Text | None = None
    reading: Literal["ranking", "logprobs"] | None = None
    judge: Text | None = None
    replay: Files | None = None
    rules: Text | None = None
    system_as: Literal["system", "user"] = "system"
    temperature: Temperature = 0.0
    max_tries: Count = 2
    both_orders: Flag = False

    @model_validator(mode="after")
    def _check(self) -> AlpacaJudgingOptions:
        problems = _one_judge(self, "prompt", "reading")
        if self.rules is not None and self.both_orders:
            problems.append(("both_orders", "got true, but rules look at no order; leave it out"))
        recipe_file.raise_problems(problems)
        return self


class AlpacaEvalOptions(Options):
    """AlpacaEval from annotations, stored ones or those of a judge, or both.

    Attributes:
      annotations: files of annotations, in AlpacaEval's format.
      answering: has models answer; the outputs are written beside the results.
      judging: has outputs judged; the annotations are written beside the results.
      length_control: null: plain win rates only.
    """

    annotations: Files | None = None
    answering: AlpacaAnsweringOptions | None = None
    judging: AlpacaJudgingOptions | None = None
    length_control: LengthControlOptions | None = None

    @model_validator(mode="after")
    def _check(self) -> AlpacaEvalOptions:
        if self.annotations is None and self.judging is None and self.answering is None:
            recipe_file.raise_problems([("", "has neither annotations nor judging nor answering; wanted at least one")])
        if self.judging is not None and self.judging.outputs is None and self.answering is None:
            recipe_file.raise_problems([("judging.outputs", _NOTHING_TO_JUDGE)])
        return self


class BenchAnsweringOptions(Options):
    """Having models answer MT-Bench's questions, each later turn after their own answers.

    Attributes:
      models: names of `models`, which stand in the rows.
      max_new_tokens: of an answer; a longer one is cut there and counted.
      choices: answers to every question; the first is judged, as in FastChat.
      temperatures: by category; FastChat's. A question's own goes first, and a category that is not here has 0.7.
    """

    models: Names
    max_new_tokens: Count = 1024
    choices: Count = 1
    temperatures: dict[str, Temperature] = Field(default_factory=lambda: dict(BENCH_TEMPERATURES))


class BenchJudgingOptions(Options):
    """Judging answers, by a model, by rules, or by a judge that says again what is stored of it.

    Attributes:
      answers: files of answers, in FastChat's format; beside those that were just given, where models answer.
      prompts: FastChat's judge_prompts.jsonl.
      references: answers that math, reasoning and coding are judged beside, in FastChat's format; null: those that
        stand in the questions' own rows.
      judge: the model of `models` that judges.
      replay: instead, files of one judge's judgments; an answer whose very prompt is not in them stays without one.
      rules: instead, a file of rules (see evaluation/rule_judging.py); a turn without one stays unjudged.
      mode: single: each answer is graded; pair: two models' answers are compared in both orders.
      reading: text: the rating in the judge's words, as FastChat. logprobs: the mean of the digits 1 to 9 under their
        probabilities as the next token; no reasons, never unparsable, for judges too weak to write a rating.
      system_as: user: the prompt's system message goes before the user's text, for chat templates that know none.
      temperature: of the judge's first try, as FastChat has it; at 0 a model in this process repeats itself.
      max_tokens: of a judgment.
      max_tries: judgments asked for until one can be parsed.
      repetitions: how often each answer is graded, to see the judge's spread; pairs are judged once.
    """

    answers: Files | None = None
    prompts: Text | None = None
    references: Text | None = None
    judge: Text | None = None
    replay: Files | None = None
    rules: Text | None = None
    mode: Literal["single", "pair"] = "single"
    reading: Literal["text", "logprobs"] = "text"
    system_as: Literal["system", "user"] = "system"
    temperature: Temperature = 0.0
    max_tokens: Count = 2048
    max_tries: Count = 2
    repetitions: Count = 1

    @model_validator(mode="after")
    def _check(self) -> BenchJudgingOptions:
        problems = _one_judge(self, "prompts")
        if self.rules is not None and self.repetitions > 1:
            problems.append(("repetitions", f"got {self.repetitions}, but rules say the same each time; wanted 1"))
        if self.reading == "logprobs" and (self.judge is None or self.mode == "pair" or self.repetitions > 1):
            problems.append(("reading", "got logprobs, which is for a judge that is asked, mode single, 1 repetition"))
        if self.mode == "pair" and self.repetitions > 1:
            problems.append(("repetitions", f"got {self.repetitions}, wanted 1 with mode pair"))
        recipe_file.raise_problems(problems)
        return self


class MtBenchOptions(Options):
    """MT-Bench from judgments, stored ones or those of a judge, or both.

    Attributes:
      questions: FastChat's question.jsonl, or another source of such rows: hf:HuggingFaceH4/mt_bench_prompts:train.
      limit: so many of them are answered and judged, the first of every category, then the second ...; null: all.
      question_ids: instead, these are.
      judgments: files of gradings and pairs, in FastChat's format.
      answering: has models answer; the answers are written beside the results.
      judging: has answers judged; they and the judgments are written beside the results.
      published: show published models beside ours.
    """

    questions: Text
    limit: Count | None = None
    question_ids: Annotated[tuple[int, ...], Field(min_length=1)] | None = None
    judgments: Files | None = None
    answering: BenchAnsweringOptions | None = None
    judging: BenchJudgingOptions | None = None
    published: Flag = True

    @model_validator(mode="after")
    def _check(self) -> MtBenchOptions:
        problems = []
        if self.judgments is None and self.judging is None and self.answering is None:
            problems.append(("", "has neither judgments nor judging nor answering; wanted at least one"))
        if self.judging is not None and self.judging.answers is None and self.answering is None:
            problems.append(("judging.answers", _NOTHING_TO_JUDGE))
        if self.limit is not None and self.question_ids is not None:
            problems.append(("limit", f"got {self.limit} beside question_ids; wanted one of them"))
        recipe_file.raise_problems(problems)
        return self


class AgreementOptions(Options):
    """How a judge agrees with a reference on the items that both judged; it stands beside every score of the judge.

    Attributes:
      judge: files of its judgments; null: what the recipe's own judges say, or one that replays, or rules.
      reference: files of a judge that is trusted more, such as GPT-4.
      measured: instead of both, what `judge_agreement --out` wrote.
    """

    judge: Files | None = None
    reference: Files | None = None
    measured: Text | None = None

    @model_validator(mode="after")
    def _check(self) -> AgreementOptions:
        given = [key for key in ("judge", "reference", "measured") if getattr(self, key) is not None]
        if given not in (["judge", "reference"], ["reference"], ["measured"]):
            got = " and ".join(given) or "nothing"
            wanted = "reference (of the recipe's own judges), judge and reference, or measured alone"
            recipe_file.raise_problems([("", f"got {got}, wanted {wanted}")])
        return self


class EvaluationRecipe(Options):
    """One evaluation; its results are in output_dir/name/evaluation.

    Attributes:
      seed: of intervals and p-values, and of what is drawn in asking models.
      report: write report.html too, which needs matplotlib (extra [report]).
      models: name -> model; who answers and who judges. The name stands in the rows.
    """

    name: FolderName
    output_dir: Text = "runs"
    seed: Seed = 42
    report: Flag = True
    statistics: StatisticsOptions = StatisticsOptions()
    alpaca_eval: AlpacaEvalOptions | None = None
    mt_bench: MtBenchOptions | None = None
    agreement: tuple[AgreementOptions, ...] = ()
    academic: AcademicOptions | None = None
    models: dict[str, ModelOptions] = Field(default_factory=dict)
    budget: Budget = Budget()
    calls: Calls = Calls()

    @model_validator(mode="after")
    def _check(self) -> EvaluationRecipe:
        known = ", ".join(self.models) or "none"
        recipe_file.raise_problems(
            [
                *name_clashes(self.models),
                *(
                    (key, f"got {name!r}, wanted one of models ({known})")
                    for key, name in self._named_models()
                    if name not in self.models
                ),
            ]
        )
        judged = any(block and block.judging for block in (self.alpaca_eval, self.mt_bench))
        own = [place for place, options in enumerate(self.agreement) if not options.judge and not options.measured]
        if own and not judged:
            missing = "got a reference alone, but nothing is judged here; wanted the files of a judge too, or judging"
            recipe_file.raise_problems([(f"agreement.{place}", missing) for place in own])
        if self.alpaca_eval is None and self.mt_bench is None and self.academic is None and not self.agreement:
            recipe_file.raise_problems(
                [("", "has none of the blocks alpaca_eval, mt_bench, academic, agreement; wanted at least one")]
            )
        return self

    def _named_models(self) -> list[tuple[str, str]]:
        """Key, and the model that it names."""
        found = []
        for block in ("alpaca_eval", "mt_bench"):
            options = getattr(self, block)
            if options and options.answering:
                found += [(f"{block}.answering.models", name) for name in options.answering.models]
            if options and options.judging and options.judging.judge is not None:
                found.append((f"{block}.judging.judge", options.judging.judge))
        return found

    def asked_models(self) -> set[str]:
        """The names of those models that are asked anything."""
        return {name for _, name in self._named_models()}


def load_evaluation_recipe(path: str | Path, overrides: Sequence[str] = ()) -> EvaluationRecipe:
    """Reads a recipe and applies overrides; see `load_recipe`."""
    return recipe_file.read_options(EvaluationRecipe, path, overrides=overrides)


def result_differences(old: EvaluationRecipe, new: EvaluationRecipe) -> list[str]:
    """What changed of all that decides the results, a line per dotted key; [] when nothing did."""

    def deciding(recipe: EvaluationRecipe) -> dict[str, Any]:
        tree: dict[str, Any] = recipe.model_dump(mode="json", exclude={"output_dir", "report", "budget", "calls"})
        return tree | {"models": deciding_of_models(recipe.models)}

    return recipe_file.differences(deciding(old), deciding(new))


def evaluation_recipe_to_yaml(recipe: EvaluationRecipe) -> str:
    """The recipe as a YAML text with every key, which `load_evaluation_recipe` reads back as an equal recipe."""
    tree = recipe.model_dump(mode="json", exclude_none=True)
    tree["models"] = models_as_tree(recipe.models)
    return yaml_nodes.to_yaml(tree)
