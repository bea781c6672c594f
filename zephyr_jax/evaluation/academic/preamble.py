"""The six worked examples that stand in every prompt of TruthfulQA, which are part of the task's definition.

They are no text of ours: they come from a file that the user gives, or from an installed lm_eval, which is read and not
imported.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from zephyr_jax.evaluation.stored_rows import field, read_rows
from zephyr_jax.records import InputError
from zephyr_jax.yaml_nodes import YamlProblem, parse_yaml

NUM_EXAMPLES = 6
_WANTED = "a row of the preamble: question, answer"
_PLACE = Path("tasks", "truthfulqa", "truthfulqa_mc1.yaml")


def read_preamble(file: str | None) -> tuple[str, str]:
    """The examples as text, an empty line after each, and where they come from.

    Args:
      file: rows with question and answer; None: lm_eval's.

    Raises:
      InputError: there is no such file and no lm_eval, or either has something else.
    """
    if file is not None:
        examples = [
            "Q: {}\nA: {}\n\n".format(*(field(row, key, str, place, wanted=_WANTED) for key in ("question", "answer")))
            for place, row in read_rows(file)
        ]
        if len(examples) != NUM_EXAMPLES:
            raise InputError(f"{file}: has {len(examples)} rows, wanted the {NUM_EXAMPLES} examples of TruthfulQA")
        return "".join(examples), file
    spec = importlib.util.find_spec("lm_eval")
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            f"truthfulqa: the {NUM_EXAMPLES} examples of its prompt are neither in a file (fewshot: rows with question "
            "and answer) nor in an installed lm_eval; give the file, or pip install lm_eval"
        )
    path = Path(next(iter(spec.submodule_search_locations))) / _PLACE
    try:
        task = parse_yaml(path.read_text(encoding="utf-8"), str(path)).content
        template = task["doc_to_text"].content if isinstance(task, dict) else ""
    except (OSError, KeyError, YamlProblem) as error:
        raise InputError(f"{path}: cannot be read ({error}); give the {NUM_EXAMPLES} examples as fewshot") from error
    found = re.search(r"set prompt_qa = '(.*?)'\s*%\}", template, re.DOTALL) if isinstance(template, str) else None
    if found is None or found[1].count("Q: ") != NUM_EXAMPLES:
        raise InputError(f"{path}: has no {NUM_EXAMPLES} examples where they are looked for; give them as fewshot")
    return f"{found[1].strip()}\n\n", str(path)
