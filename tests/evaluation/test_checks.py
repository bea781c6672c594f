"""What a recipe's files lack is said before any model is asked, under its key."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from tests.evaluation.fastchat_rows import write
from tests.evaluation.test_answer_run import answer_or_judgment, served, write_recipe
from tests.judging.stub_server import StubServer
from zephyr_jax import evaluate


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("mt_bench.questions=/nowhere.jsonl", "mt_bench.questions: source '/nowhere.jsonl'"),
        ("mt_bench.judgments=[/nowhere.jsonl]", "mt_bench.judgments: source '/nowhere.jsonl'"),
        ("mt_bench.judging.prompts=/nowhere.jsonl", "mt_bench.judging.prompts: source '/nowhere.jsonl'"),
        ("mt_bench.judging.references=/nowhere.jsonl", "mt_bench.judging.references: source '/nowhere.jsonl'"),
        ("mt_bench.judging.answers=[/nowhere.jsonl]", "mt_bench.judging.answers: source '/nowhere.jsonl'"),
        ("mt_bench.judging.mode=pair", "mt_bench.judging.answers: has answers of ours alone; mode pair wants two"),
        ("mt_bench.answering.temperatures={wrting: 0.7}", "mt_bench.answering.temperatures: no question is of wrting"),
        ("alpaca_eval.annotations=[/nowhere.jsonl]", "alpaca_eval.annotations: source '/nowhere.jsonl'"),
        ("alpaca_eval.answering.instructions=/nowhere.jsonl", "alpaca_eval.answering.instructions: source"),
        ("alpaca_eval.judging.baseline=/nowhere.jsonl", "alpaca_eval.judging.baseline: source '/nowhere.jsonl'"),
        ("alpaca_eval.judging.prompt=/nowhere.txt", "alpaca_eval.judging.prompt /nowhere.txt: cannot be read"),
        (
            "alpaca_eval.length_control={glm: length_controlled_v1, file: /nowhere.csv}",
            "length_control.file /nowhere.csv: cannot be read",
        ),
        (
            "alpaca_eval.length_control={glm: length_controlled_minimal}",
            "alpaca_eval.length_control: ours has 6 outputs to be judged; wanted at least 10",
        ),
        ("agreement=[{judge: [/a.jsonl], reference: [/b.jsonl]}]", "agreement.0: source '/b.jsonl'"),
        ("agreement=[{measured: /nowhere.json}]", "agreement.measured /nowhere.json: cannot be read"),
        ("models.judge.api_key_env=NO_SUCH_KEY", "NO_SUCH_KEY"),
        (
            "academic={model: /nowhere, harness: {tasks: {arc_easy: 0}}}",
            "academic.harness: lm-evaluation-harness cannot be imported"
            if importlib.util.find_spec("lm_eval") is None
            else "academic.model: /nowhere: there is no such folder",
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_said_before_anybody_is_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], override: str, message: str
) -> None:
    with StubServer(answer=answer_or_judgment) as server:
        recipe = write_recipe(tmp_path, {name: served(server.url, name) for name in ("judge", "ours")})
        assert evaluate.main(["--config", str(recipe), override]) == 2
        assert server.num_requests == 0
    assert message in capsys.readouterr().err


def test_what_the_files_together_lack_is_said_before_anybody_is_asked(tmp_path: Path, capsys) -> None:
    """A reference for a question of math, a place for the answer, an instruction of the baseline, a contest twice."""
    prompts = [
        {"name": name, "system_prompt": "", "prompt_template": f"{text} {{answer_2}} {{answer}}"}
        for name, text in {
            "single-v1": "", "single-v1-multi-turn": "", "single-math-v1": "{ref_answer_1}",
            "single-math-v1-multi-turn": "",
        }.items()
    ]  # fmt: skip
    blind = [row | {"prompt_template": "Rate it."} for row in prompts]
    other = [{"instruction": "Another.", "output": "base", "generator": "base"}]
    stored = [{"generator_1": "base", "generator_2": "ours", "annotator": "judge", "preference": 1}]
    for override, message in (
        (f"mt_bench.judging.prompts={write(tmp_path / 'math.jsonl', prompts[2:])}", "has no prompt 'single-v1'"),
        (f"mt_bench.judging.prompts={write(tmp_path / 'blind.jsonl', blind)}", "has no place {answer}"),
        (f"alpaca_eval.judging.baseline={write(tmp_path / 'other.jsonl', other)}", "base has no output to 6 of ours"),
        (
            f"alpaca_eval.annotations=[{write(tmp_path / 'stored.jsonl', stored)}]",
            "has ours against base by judge, which is to be judged too",
        ),
    ):
        with StubServer(answer=answer_or_judgment) as server:
            recipe = write_recipe(tmp_path, {name: served(server.url, name) for name in ("judge", "ours")})
            assert evaluate.main(["--config", str(recipe), override]) == 2
            assert server.num_requests == 0
        assert message in capsys.readouterr().err


def test_judgments_that_the_run_itself_will_write_may_be_missing(tmp_path: Path) -> None:
    with StubServer(answer=answer_or_judgment) as server:
        recipe = write_recipe(tmp_path, {name: served(server.url, name) for name in ("judge", "ours")})
        written = tmp_path / "runs/chain/evaluation/mt_bench/model_judgment/judge_single.jsonl"
        row = {
            "question_id": 0,
            "model": "ours",
            "judge": ["gpt-4", "single-v1"],
            "judgment": "",
            "score": 5,
            "turn": 1,
        }
        reference = write(tmp_path / "reference.jsonl", [row])
        agreement = f"agreement=[{{judge: [{written}], reference: [{reference}]}}]"
        assert evaluate.main(["--config", str(recipe), "alpaca_eval=null", agreement]) == 0
    results = json.loads((tmp_path / "runs/chain/evaluation/results.json").read_text(encoding="utf-8"))
    assert results["mt_bench"]["models"][0]["judge_agreement"]["status"] == "measured"
