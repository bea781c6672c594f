"""What the run's models are worth on held-out rows: the table at the end, and the sample answers on the way.

Each model of the run (the base model and every stage's) is read from its files and measured on the same rows: loss
on dialogues, how often it gives the chosen answer the higher log-prob, and where the rows have one right answer, how
often it generates exactly that. Results lie in RUN/held_out.json, a model measured once is not measured again.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from zephyr_jax.generation.responses import generate_responses
from zephyr_jax.model.mistral import Params
from zephyr_jax.records import Message
from zephyr_jax.stages.ddpo import DdpoData, ddpo_options, ordered_batches
from zephyr_jax.stages.dsft import DsftData, dsft_eval_batches, dsft_options
from zephyr_jax.stages.reference import score_all_pairs
from zephyr_jax.stages.start import Run, StartModel, model_settings, say
from zephyr_jax.training.loop import evaluate_batches
from zephyr_jax.training.metrics import keep_lines
from zephyr_jax.training.objectives import sft_objective
from zephyr_jax.whole_files import write_json

GENERATION_BATCH = 32


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """The held-out rows of a run.

    Attributes:
      dialogues: the dSFT stage's data, None where it has no block or no evaluation rows.
      pairs: the dDPO stage's, likewise.
      prompts: what is asked: everything before the last answer of each evaluation dialogue, else each pair's prompt.
      right_answers: the last answer of each of those dialogues; the chosen answers of the pairs.
    """

    dialogues: DsftData | None
    pairs: DdpoData | None
    prompts: tuple[tuple[Message, ...], ...]
    right_answers: tuple[str, ...]


def held_out_rows(dialogues: DsftData | None, pairs: DdpoData | None) -> HeldOut:
    """Collects them."""
    dialogues = dialogues if dialogues is not None and dialogues.eval is not None else None
    pairs = pairs if pairs is not None and pairs.eval is not None else None
    if dialogues is not None:
        prompts = tuple(row.messages[:-1] for row in dialogues.eval_rows)
        answers = tuple(row.messages[-1]["content"] for row in dialogues.eval_rows)
    else:
        prompts = tuple(row.prompt for row in pairs.eval_rows) if pairs else ()
        answers = tuple(row.chosen for row in pairs.eval_rows) if pairs else ()
    return HeldOut(dialogues, pairs, prompts, answers)


def answer_prompts(run: Run, params: Params, model: StartModel, *, prompts: Sequence[Sequence[Message]]) -> list[str]:
    """Greedy answers, in the prompts' order."""
    ids = [run.tokenizer.encode_prompt(prompt) for prompt in prompts]
    responses = generate_responses(
        params,
        ids,
        shape=model.shape,
        settings=model_settings(run.recipe),
        stop_ids=run.tokenizer.stop_ids,
        max_new_tokens=run.recipe.samples.max_new_tokens,
        batch_size=min(GENERATION_BATCH, len(ids)),
        mesh=run.mesh,
    )
    return [run.tokenizer.decode(response.ids, continues=True) for response in responses]


def sample_writer(run: Run, held_out: HeldOut, model: StartModel) -> Callable[[str, Any, int], None]:
    """(stage, params, step) -> None: answers the first few held-out prompts, into STAGE/samples.jsonl and on stderr."""
    prompts = held_out.prompts[: run.recipe.samples.num_prompts]

    def write(stage: str, params: Any, step: int) -> None:
        if not prompts:
            return
        answers = answer_prompts(run, params, model, prompts=prompts)
        if not run.peers.is_first:
            return
        path = run.folder / stage / "samples.jsonl"
        keep_lines(path, lambda record: record["step"] < step)  # an interrupted sitting may have written later ones
        with path.open("a", encoding="utf-8") as file:
            for prompt, answer in zip(prompts, answers, strict=True):
                file.write(
                    json.dumps({"step": step, "messages": prompt, "response": answer}, ensure_ascii=False) + "\n"
                )
                say(f"  {_short(prompt[-1]['content'], 60)} -> {_short(answer, 100)}")

    return write


def measure_held_out(run: Run, model: StartModel, *, label: str, held_out: HeldOut) -> None:
    """Measures one model, unless RUN/held_out.json has it already.

    Args:
      run: the run.
      model: the model, in its files.
      label: its column: base, dsft or ddpo.
      held_out: the rows.
    """
    results = run.peers.first_says("what is measured", lambda: read_held_out(run))
    if label in results or not held_out.prompts:
        return
    say(f"held out: measuring {label}")
    params = model.load_on(run.mesh)
    result: dict[str, Any] = {}
    if held_out.dialogues is not None:
        assert held_out.dialogues.eval is not None
        batches = dsft_eval_batches(run, held_out.dialogues.eval)
        settings = model_settings(run.recipe, rows=dsft_options(run).row_layout)
        objective = sft_objective(shape=model.shape, settings=settings)
        result["loss"] = evaluate_batches(objective, batches, complete=lambda batch: batch, mesh=run.mesh)(params)[
            "loss"
        ]
    if held_out.pairs is not None:
        result["preference_accuracy"] = _preference_accuracy(run, params, model, held_out.pairs)
        result["num_pairs"] = len(held_out.pairs.eval) if held_out.pairs.eval is not None else 0
    num_exact = min(run.recipe.samples.num_exact, len(held_out.prompts))
    num_shown = min(run.recipe.samples.num_prompts, len(held_out.prompts))
    prompts = held_out.prompts[: max(num_exact, num_shown)]
    answers = answer_prompts(run, params, model, prompts=prompts) if prompts else []
    if num_exact:
        right = [a.strip() == r.strip() for a, r in zip(answers, held_out.right_answers, strict=False)]
        result["exact_answers"] = float(np.mean(right[:num_exact]))
        result["num_exact"] = num_exact
    result["answers"] = answers[:num_shown]
    if run.peers.is_first:
        write_json(run.folder / "held_out.json", results | {label: result})


def _preference_accuracy(run: Run, params: Params, model: StartModel, pairs: DdpoData) -> float:
    assert pairs.eval is not None
    batches = ordered_batches(run, pairs.eval)
    settings = model_settings(run.recipe, rows=ddpo_options(run).row_layout)
    scored = score_all_pairs(params, batches, shape=model.shape, settings=settings, mesh=run.mesh, name="held out")
    return float(np.mean(np.concatenate([values["chosen"] > values["rejected"] for _, values in scored])))


def read_held_out(run: Run) -> dict[str, Any]:
    """What is measured already: label -> results."""
    path = run.folder / "held_out.json"
    results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return results


def held_out_table(run: Run, held_out: HeldOut) -> str:
    """The figures of all models side by side, then some of their answers."""
    results = read_held_out(run)
    if not results:
        return ""
    names = {"base": "before dSFT" if "dsft" in run.recipe.stages else "before dDPO"}
    names |= {"dsft": "after dSFT", "ddpo": "after dDPO"}
    rows = {
        "loss": ("loss on held-out dialogues (nats a token)", "{:.4f}"),
        "preference_accuracy": ("pairs with the chosen answer more probable", "{:.1%}"),
        "exact_answers": ("answers exactly right, greedy", "{:.1%}"),
    }
    lines = [f"{'held out':44}" + "".join(f"{names[label]:>14}" for label in results)]
    for key, (title, form) in rows.items():
        if any(key in result for result in results.values()):
            cells = [form.format(result[key]) if key in result else "-" for result in results.values()]
            lines.append(f"{title:44}" + "".join(f"{cell:>14}" for cell in cells))
    for index, prompt in enumerate(held_out.prompts[: run.recipe.samples.num_prompts]):
        lines.append("")
        lines.append(f"prompt: {_short(prompt[-1]['content'], 100)}")
        for label, result in results.items():
            lines.append(f"  {names[label]:12} {_short(result['answers'][index], 160)}")
        lines.append(f"  {'wanted':12} {_short(held_out.right_answers[index], 160)}")
    return "\n".join(lines)


def _short(text: str, length: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 3] + "..."
