"""How far a judge agrees with one that is trusted more, such as GPT-4: by stored judgments, or by asking it now.

Takes AlpacaEval's annotations, FastChat's pairs and gradings, and reviews of the Vicuna blog; compared are the items
that both judged. Beside the agreement stands what always choosing the better model, or the longer answer, would reach.
What --out writes is what a recipe of `evaluate` shows beside the judge's scores (agreement: [{measured: FILE}]).

    python -m zephyr_jax.judge_agreement --judge mine.jsonl --reference gpt-4.jsonl
    python -m zephyr_jax.judge_agreement --judge-model builtin:smollm2-135m-instruct --items 40 \
        --reference gpt-4_single.jsonl --prompts judge_prompts.jsonl --out smollm2.json
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from zephyr_jax.cli import open_output, run_command
from zephyr_jax.records import InputError

if TYPE_CHECKING:
    from zephyr_jax.evaluation.rejudging import Rejudging
    from zephyr_jax.evaluation.statistics import Sampling
    from zephyr_jax.evaluation.trust import AgreementResult
    from zephyr_jax.judging.session import Session

_FOR_A_MODEL = (
    "config", "items", "prompts", "prompt", "reading", "outputs", "both_orders", "system_as", "max_tokens",
)  # fmt: skip


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m zephyr_jax.judge_agreement",
        # One line for what is needed: argparse's own takes ten.
        usage="%(prog)s (--judge FILE ... | --judge-model MODEL) --reference FILE ... [options]",
        description="Agreement of a judge with a reference on the items that both judged, as a sentence on stderr and "
        "as one JSON object on stdout; a judge that is not surely better than looking at nothing is called weak. "
        "With --judge-model some of the reference's items are judged now; stopped, it goes on where it was.",
        epilog="example: python -m zephyr_jax.judge_agreement --judge mine.jsonl --reference gpt-4.jsonl",
    )
    who = parser.add_mutually_exclusive_group(required=True)
    who.add_argument("--judge", nargs="+", metavar="FILE", help="the judge's judgments")
    who.add_argument("--judge-model", metavar="MODEL", help="instead, who is asked now: a model here, or of --config")
    parser.add_argument("--reference", required=True, nargs="+", metavar="FILE", help="those of the trusted judge")
    parser.add_argument("--out", metavar="FILE", help="write the JSON there too, and new judgments beside it")
    parser.add_argument("--seed", type=int, default=42, help="draws intervals and items (%(default)s)")
    asked = parser.add_argument_group("with --judge-model")
    asked.add_argument("--config", metavar="FILE", help="an evaluation recipe: its models, budget and calls")
    asked.add_argument("overrides", nargs="*", metavar="key.path=value", help="changes to that recipe, after its name")
    asked.add_argument("--items", type=int, default=100, help="judgments to judge again (%(default)s)")
    asked.add_argument("--prompts", metavar="FILE", help="FastChat's judge_prompts.jsonl, for its judgments, reviews")
    asked.add_argument("--prompt", metavar="FILE", help="AlpacaEval's prompt, for its annotations")
    asked.add_argument(
        "--reading", choices=("ranking", "logprobs"), default="ranking", help="of answers; logprobs: gradings too"
    )
    asked.add_argument("--outputs", nargs="+", default=[], metavar="FILE", help="outputs that annotations are about")
    asked.add_argument("--both-orders", action="store_true", help="show outputs in both orders")
    asked.add_argument("--system-as", choices=("system", "user"), default="system", help="where system texts go")
    asked.add_argument("--max-tokens", type=int, default=2048, help="of a judgment (%(default)s)")
    return parser


def _run(arguments: argparse.Namespace) -> None:
    from zephyr_jax.evaluation.statistics import Sampling
    from zephyr_jax.evaluation.trust import agreement_results
    from zephyr_jax.evaluation_recipe import AgreementOptions

    sampling = Sampling(seed=arguments.seed)
    if arguments.out is not None and not Path(arguments.out).parent.is_dir():
        raise InputError(f"--out {arguments.out}: there is no folder {Path(arguments.out).parent}; wanted one that is")
    if arguments.overrides and arguments.config is None:
        raise InputError(f"got {arguments.overrides[0]}, which changes a recipe; wanted --config FILE before it")
    rows: list[Any] = []
    if arguments.judge_model is None:
        parser = build_parser()
        idle = [name for name in _FOR_A_MODEL if getattr(arguments, name) != parser.get_default(name)]
        if idle:
            given = ", ".join(f"--{name.replace('_', '-')}" for name in idle)
            raise InputError(f"{given}: for a model that is asked now; wanted --judge-model, or without")
        options = AgreementOptions(judge=tuple(arguments.judge), reference=tuple(arguments.reference))
        (result,) = agreement_results(options, sampling=sampling)
    else:
        result, rows = _ask(arguments, sampling)
    if arguments.out is not None:
        _write(Path(arguments.out), result.as_dict(), rows)
    print(result.sentence(), file=sys.stderr)
    if result.position is not None:
        print(result.position["sentence"], file=sys.stderr)
    print(json.dumps(result.as_dict(), ensure_ascii=False))


def _ask(arguments: argparse.Namespace, sampling: Sampling) -> tuple[AgreementResult, list[Any]]:
    """Has the model judge."""
    from zephyr_jax.evaluation.rejudging import Rejudging
    from zephyr_jax.evaluation_recipe import load_evaluation_recipe
    from zephyr_jax.judging.session import Session
    from zephyr_jax.respondent_options import Budget, Calls, ModelOptions

    for name in ("items", "max_tokens"):
        if getattr(arguments, name) < 1:
            raise InputError(f"--{name.replace('_', '-')}: got {getattr(arguments, name)}, wanted at least 1")
    options = Rejudging(
        reference=tuple(arguments.reference),
        num_items=arguments.items,
        prompts=arguments.prompts,
        prompt=arguments.prompt,
        reading=arguments.reading,
        outputs=tuple(arguments.outputs),
        both_orders=arguments.both_orders,
        max_tokens=arguments.max_tokens,
        seed=arguments.seed,
    )
    name = arguments.judge_model
    if arguments.config is None:
        model = ModelOptions(model=name)  # whose rows are computed also where nobody fills them
        session = Session(
            {name: model.model_copy(update={"batch_size": min(model.batch_size, arguments.items)})},
            command="judge_agreement",
            run="judge_agreement",
            folder=Calls().folder("runs"),
            budget=Budget(),
        )
    else:
        recipe = load_evaluation_recipe(arguments.config, arguments.overrides)
        if name not in recipe.models:
            known = ", ".join(recipe.models) or "none"
            raise InputError(f"--judge-model: got {name!r}, wanted one of the models of {arguments.config} ({known})")
        session = Session(
            recipe.models,
            command="judge_agreement",
            run=recipe.name,
            folder=recipe.calls.folder(recipe.output_dir),
            budget=recipe.budget,
        )
    return asyncio.run(_rejudge(options, session, name, arguments.system_as, sampling))


async def _rejudge(
    options: Rejudging, session: Session, name: str, system_as: Literal["system", "user"], sampling: Sampling
) -> tuple[AgreementResult, list[Any]]:
    from zephyr_jax.evaluation.judges import LiveJudge
    from zephyr_jax.evaluation.rejudging import rejudge

    async with session:
        judge = LiveJudge(session, name, system_as=system_as)
        return await rejudge(options, judge, model=session.respondents.models[name].model, sampling=sampling)


def _write(file: Path, content: dict[str, Any], rows: Sequence[Any]) -> None:
    """The result, and beside it the judgments that were made for it."""
    if rows:
        with open_output(file.with_suffix(".judgments.jsonl")) as stream:
            stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    with open_output(file) as stream:
        stream.write(json.dumps(content, ensure_ascii=False, indent=1) + "\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    return run_command(build_parser(), _run, argv)


if __name__ == "__main__":
    sys.exit(main())
