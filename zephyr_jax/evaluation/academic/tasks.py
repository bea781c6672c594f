"""Tasks: files to what a model is asked, by the rules that each task has, and which score counts. No JAX."""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from zephyr_jax.academic_options import AcademicTaskOptions
from zephyr_jax.evaluation.academic import gsm8k, ifeval, multiple_choice
from zephyr_jax.evaluation.academic.few_shot import Example, ExampleDrawer
from zephyr_jax.evaluation.academic.instruction_checks import can_tell_languages
from zephyr_jax.evaluation.academic.items import ChoiceItem, Generated, Item, Outcome, PromptItem, Scores
from zephyr_jax.evaluation.academic.multiple_choice import Question
from zephyr_jax.evaluation.academic.preamble import read_preamble
from zephyr_jax.evaluation.stored_rows import read_rows
from zephyr_jax.records import InputError

_ReadRow = Callable[[Mapping[str, Any], str], Question]

_READERS: Mapping[str, _ReadRow] = {
    "arc_easy": multiple_choice.read_arc,
    "arc_challenge": multiple_choice.read_arc,
    "hellaswag": multiple_choice.read_hellaswag,
    "mmlu": multiple_choice.read_mmlu,
    "truthfulqa_mc1": functools.partial(multiple_choice.read_truthfulqa, targets="mc1_targets"),
    "truthfulqa_mc2": functools.partial(multiple_choice.read_truthfulqa, targets="mc2_targets"),
}
# The score that stands for the task comes first.
METRICS: Mapping[str, tuple[str, ...]] = {
    "arc_easy": ("acc_norm", "acc"),
    "arc_challenge": ("acc_norm", "acc"),
    "hellaswag": ("acc_norm", "acc"),
    "mmlu": ("acc",),
    "truthfulqa_mc1": ("mc1",),
    "truthfulqa_mc2": ("mc2",),
    "gsm8k": ("strict-match", "flexible-extract"),
    "ifeval": (
        "prompt_level_strict_acc",
        "inst_level_strict_acc",
        "prompt_level_loose_acc",
        "inst_level_loose_acc",
    ),
}


@dataclasses.dataclass(frozen=True)
class Task:
    """A task with its questions.

    Attributes:
      options: as the recipe has them.
      items: what is asked.
      notes: what of it came from where, for people.
    """

    options: AcademicTaskOptions
    items: tuple[Item, ...]
    notes: tuple[str, ...] = ()

    def scores(self, item: Item, outcome: Outcome) -> Scores:
        """The scores of one item by metric."""
        name = self.options.task
        if isinstance(item, ChoiceItem):
            assert not isinstance(outcome, Generated)
            if name == "truthfulqa_mc2":
                return multiple_choice.true_probability(item, outcome)
            if name == "truthfulqa_mc1":
                return multiple_choice.best_is_true(item, outcome)
            found = multiple_choice.accuracy(item, outcome)
            return {metric: found[metric] for metric in METRICS[name]}
        assert isinstance(outcome, Generated)
        return ifeval.instructions_followed(item, outcome) if name == "ifeval" else gsm8k.exact_match(item, outcome)


def read_tasks(options: Sequence[AcademicTaskOptions]) -> list[Task]:
    """Reads all tasks of a recipe; what cannot be scored is said on stderr.

    Raises:
      InputError: as in `read_task`.
    """
    tasks = [read_task(one) for one in options]
    if any(task.options.task == "ifeval" for task in tasks) and not can_tell_languages():
        print(
            "evaluate: ifeval: instructions on the answer's language have no score without langdetect; "
            "pip install 'zephyr-jax[ifeval]'",
            file=sys.stderr,
        )
    return tasks


def read_task(options: AcademicTaskOptions) -> Task:
    """Reads a task's files.

    Raises:
      InputError: a file cannot be used, or has too few examples.
    """
    if options.task == "ifeval":
        task = Task(options, tuple(_ifeval_items(options)))
    elif options.task == "gsm8k":
        task = Task(options, tuple(_gsm8k_items(options)))
    elif options.task.startswith("truthfulqa"):
        preamble, source = read_preamble(options.fewshot)
        items = _choice_items(options, lambda question: preamble)
        task = Task(options, tuple(items), (f"The examples in the prompt of {options.task} are from {source}.",))
    elif options.task == "mmlu":
        drawers = _drawers_by_subject(options)
        items = _choice_items(
            options,
            lambda question: (
                multiple_choice.mmlu_description(question.group) + drawers(question.group).draw(_example(question))
            ),
        )
        task = Task(options, tuple(items))
    else:
        examples = [_example(_READERS[options.task](row, place)) for place, row in _fewshot_rows(options)]
        drawer = _drawer(options, examples)
        task = Task(options, tuple(_choice_items(options, lambda question: drawer.draw(_example(question)))))
    if not task.items:
        raise InputError(f"{options.file}: has no rows, wanted those of {options.task}")
    return task


def _rows(options: AcademicTaskOptions) -> Iterator[tuple[int, str, Mapping[str, Any]]]:
    """Number, place and content of the file's rows."""
    for number, (place, row) in enumerate(read_rows(options.file)):
        yield number, place, row


def _fewshot_rows(options: AcademicTaskOptions) -> Iterator[tuple[str, Mapping[str, Any]]]:
    return read_rows(options.fewshot) if options.fewshot is not None else iter(())


def _example(question: Question) -> Example:
    return Example(question.text, question.choices[question.correct.index(True)])


def _drawer(options: AcademicTaskOptions, pool: Sequence[Example], *, first_ones: bool = False) -> ExampleDrawer:
    # The harness always looks for the question among HellaSwag's examples, since that has no test split.
    own = options.fewshot is not None and (options.task == "hellaswag" or _is_same_file(options.fewshot, options.file))
    if options.num_shots and len(pool) < options.num_shots + own:
        raise InputError(
            f"{options.fewshot}: has {len(pool)} examples, and {options.num_shots} are wanted before each question"
            + (" that are not the question itself" if own else "")
            + f"; lower shots of {options.task}, or give a larger file"
        )
    return ExampleDrawer(pool, options.num_shots, first_ones=first_ones, holds_questions=own)


def _is_same_file(first: str, second: str) -> bool:
    return first == second or (Path(first).exists() and Path(second).exists() and Path(first).samefile(second))


def _drawers_by_subject(options: AcademicTaskOptions) -> Callable[[str], ExampleDrawer]:
    pools: dict[str, list[Example]] = {}
    for place, row in _fewshot_rows(options):
        question = multiple_choice.read_mmlu(row, place)
        pools.setdefault(question.group, []).append(_example(question))

    @functools.cache
    def drawer(subject: str) -> ExampleDrawer:
        if options.num_shots and subject not in pools:
            raise InputError(f"{options.fewshot}: has no examples of {subject}, which {options.file} asks about")
        return _drawer(options, pools.get(subject, []), first_ones=True)

    return drawer


def _choice_items(options: AcademicTaskOptions, before: Callable[[Question], str]) -> Iterator[ChoiceItem]:
    asked: dict[str, int] = {}
    for number, place, row in _rows(options):
        question = _READERS[options.task](row, place)
        asked[question.group] = asked.get(question.group, 0) + 1
        if options.limit is not None and asked[question.group] > options.limit:
            if options.task == "mmlu":
                continue
            return
        yield ChoiceItem(
            number=number,
            group=question.group,
            question=question.text,
            context=before(question) + question.text,
            choices=question.choices,
            correct=question.correct,
        )


def _gsm8k_items(options: AcademicTaskOptions) -> Iterator[PromptItem]:
    drawer = _drawer(options, [gsm8k.read_gsm8k(row, place) for place, row in _fewshot_rows(options)])
    for number, place, row in _rows(options):
        if number == options.limit:
            return
        example = gsm8k.read_gsm8k(row, place)
        yield PromptItem(
            number=number,
            group="",
            question=example.question,
            prompt=drawer.draw(example) + example.question,
            until=gsm8k.UNTIL,
            max_new_tokens=options.max_new_tokens or gsm8k.MAX_NEW_TOKENS,
            in_chat=options.chat_template,
            row={"answer": example.answer},
        )


def _ifeval_items(options: AcademicTaskOptions) -> Iterator[PromptItem]:
    for number, place, row in _rows(options):
        if number == options.limit:
            return
        prompt, needed = ifeval.read_ifeval(row, place)
        yield PromptItem(
            number=number,
            group="",
            question=prompt,
            prompt=prompt,
            until=(),
            max_new_tokens=options.max_new_tokens or ifeval.MAX_NEW_TOKENS,
            in_chat=options.chat_template,
            row=needed,
        )
