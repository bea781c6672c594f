"""The whole chain against a server: models answer, a judge judges, files and results; what went wrong is said."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.evaluation.fastchat_rows import a_grading, a_question, write
from tests.generation.tiny_chat_model import write_chat_model
from tests.judging.stub_server import Body, StubServer, digest
from zephyr_jax import evaluate
from zephyr_jax.evaluation.fastchat_files import read_answers, read_judgments
from zephyr_jax.evaluation.mt_bench import CATEGORIES
from zephyr_jax.evaluation_recipe import load_evaluation_recipe
from zephyr_jax.records import InputError

pytest.importorskip("openai", reason="the extra [feedback] is not installed")

PROMPT = (
    "<|im_start|>system\nJudge.<|im_end|>\n<|im_start|>user\nRANK {instruction} 1 {output_1} 2 {output_2}<|im_end|>"
)


def answer_or_judgment(body: Body) -> str:
    """A model's answer names the turn that it was asked; the judge rates it, or ranks two, by the content."""
    text, number = body["messages"][-1]["content"], digest(body)
    if text.startswith("GRADE"):
        return f"Fine. Rating: [[{1 + number % 10}]]"
    if text.startswith("RANK"):
        first, second = (1, 2) if number % 2 else (2, 1)
        return f"[{{'model': 'model_1', 'rank': {first}}}, {{'model': 'model_2', 'rank': {second}}}]"
    return f"{body['model']} says {number} to {text}"


def write_recipe(folder: Path, models: dict[str, str], *, num_questions: int = 16) -> Path:
    """A recipe of both benchmarks; the models are YAML blocks, of which `judge` judges and all others answer."""
    questions = [
        a_question(number, CATEGORIES[number % 8]) | {"turns": [f"First {number}?", f"Second {number}?"]}
        for number in range(num_questions)
    ]
    prompts = [
        {"name": f"single{math}-v1{turn}", "system_prompt": "", "prompt_template": f"GRADE{math}{turn} {place}"}
        for math in ("", "-math")
        for turn, place in (("", "{answer}"), ("-multi-turn", "{answer_2}"))
    ]
    instructions = [{"instruction": f"Do {number}.", "dataset": "set"} for number in range(6)]
    baseline = [row | {"output": "base", "generator": "base"} for row in instructions]
    (folder / "prompt.txt").write_text(PROMPT)
    answering = ", ".join(name for name in models if name != "judge")
    path = folder / "recipe.yaml"
    path.write_text(f"""
name: chain
output_dir: {folder / "runs"}
report: false
statistics: {{resamples: 100}}
models:
{"".join(f"  {name}: {options}" + chr(10) for name, options in models.items())}
mt_bench:
  questions: {write(folder / "question.jsonl", questions)}
  published: false
  answering: {{models: [{answering}], max_new_tokens: 8}}
  judging: {{prompts: {write(folder / "prompts.jsonl", prompts)}, judge: judge}}
alpaca_eval:
  answering: {{models: [{answering}], max_new_tokens: 8, instructions: {write(folder / "set.jsonl", instructions)}}}
  judging:
    baseline: {write(folder / "base.jsonl", baseline)}
    prompt: {folder / "prompt.txt"}
    reading: ranking
    judge: judge
""")
    return path


def served(url: str, model: str) -> str:
    return f"{{base_url: {url}, model: {model}, retry_seconds: 0.01, max_tries: 2, concurrency: 4}}"


def test_models_answer_and_their_answers_are_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with StubServer(answer=answer_or_judgment, finish_reason=lambda body: "length") as server:
        models = {name: served(server.url, name) for name in ("judge", "ours", "theirs")}
        recipe = write_recipe(tmp_path, models)
        assert evaluate.main(["--config", str(recipe), "mt_bench.limit=8", "alpaca_eval.answering.limit=4"]) == 0
        num_requests = server.num_requests
        assert num_requests == 2 * (8 * 2 * 2 + 4 * 2)
        asked = [body for body in server.bodies if body["model"] == "ours"]
        printed = capsys.readouterr()
        assert evaluate.main(["--config", str(recipe), "mt_bench.limit=8", "alpaca_eval.answering.limit=4"]) == 0
        assert server.num_requests == num_requests and capsys.readouterr().out == printed.out
    folder = tmp_path / "runs/chain/evaluation"
    answers = read_answers([str(folder / "mt_bench/model_answer/ours.jsonl")])
    assert [answer.question_id for answer in answers] == list(range(8))
    gradings, _ = read_judgments([str(folder / "mt_bench/model_judgment/judge_single.jsonl")])
    shown = {(row.model, row.question_id, row.turn): row.user_prompt for row in gradings}
    assert len(shown) == 32 and {row.tstamp for row in gradings} == {0}
    for answer in answers:
        for turn, text in enumerate(answer.choices[0], start=1):
            assert text.startswith("ours says") and shown["ours", answer.question_id, turn].endswith(text)
    followed = [body["messages"] for body in asked if len(body["messages"]) == 3]
    assert {messages[1]["content"] for messages in followed} == {answer.choices[0][0] for answer in answers}
    assert {body["temperature"] for body in asked} == {0.0, 0.1, 0.7} and {body["max_tokens"] for body in asked} == {8}
    outputs = json.loads((folder / "alpaca_eval/ours/model_outputs.json").read_text())
    assert [row["instruction"] for row in outputs] == [f"Do {number}." for number in range(4)]
    annotations = json.loads((folder / "alpaca_eval/theirs/judge/annotations.json").read_text())
    assert {row["generator_2"] for row in annotations} == {"theirs"} and len(annotations) == 4
    results = json.loads((folder / "results.json").read_text())
    counts = results["mt_bench"]["answering"]
    assert [(row["model"], row["num_answers"], row["num_cut"]) for row in counts] == [
        ("ours", 16, 16),
        ("theirs", 16, 16),
    ]
    assert {row["model"] for row in results["mt_bench"]["models"]} == {"ours", "theirs"}
    assert results["alpaca_eval"]["answering"][0]["num_answers"] == 4
    assert "ours: 16 answers of 5 tokens on average, 16 cut by the limit of new tokens." in printed.out
    assert "mt_bench answers of ours, theirs: 100%" in printed.err and "mt_bench/, alpaca_eval/ in" in printed.err


def test_a_judge_that_cannot_be_read_gives_no_score_and_no_error(tmp_path: Path, capsys) -> None:
    with StubServer(answer=lambda body: "I am not sure.") as server:
        recipe = write_recipe(tmp_path, {name: served(server.url, name) for name in ("judge", "ours")})
        assert evaluate.main(["--config", str(recipe), "mt_bench.limit=2", "alpaca_eval.answering.limit=2"]) == 0
    printed = capsys.readouterr().out
    assert "judge gave no rating for any of 4 answers of ours" in printed
    assert "Nothing that judge said of 2 outputs of ours could be read" in printed


def test_the_judges_agreement_is_measured_on_what_it_says_in_this_run_whatever_its_name(tmp_path: Path, capsys) -> None:
    """A reference alone: of stored answers GPT-4 has graded. A judge that cannot be read costs no result."""
    stored = [{"question_id": 0, "model_id": "stored", "choices": [{"turns": ["a", "b"]}]}]
    reference = [a_grading(0, 5, turn=turn, model="stored") for turn in (1, 2)]
    overrides = [
        f"mt_bench.judging.answers={write(tmp_path / 'stored.jsonl', stored)}",
        f"agreement=[{{reference: {write(tmp_path / 'gpt-4.jsonl', reference)}}}]",
        "mt_bench.limit=1",
        "alpaca_eval=null",
    ]
    for name, answer, status in (("read", answer_or_judgment, "measured"), ("not", lambda body: "?", "not measured")):
        with StubServer(answer=answer) as server:
            recipe = write_recipe(tmp_path, {name: served(server.url, name) for name in ("judge", "ours")})
            overrides += [f"name={name}", f"calls.path={tmp_path / name}"]
            assert evaluate.main(["--config", str(recipe), *overrides]) == 0
        results = json.loads((tmp_path / f"runs/{name}/evaluation/results.json").read_text(encoding="utf-8"))
        assert [model["judge_agreement"]["status"] for model in results["mt_bench"]["models"]][:1] in ([status], [])
        assert results["agreement"][0]["judge_names"] == ["judge"]
    assert "judge beside gpt-4.jsonl: no item has a judgment by both that could be read" in capsys.readouterr().out


def test_answers_alone_are_written_for_a_judge_elsewhere(tmp_path: Path) -> None:
    with StubServer(answer=answer_or_judgment) as server:
        recipe = write_recipe(tmp_path, {"ours": served(server.url, "ours")})
        overrides = ["mt_bench.judging=null", "alpaca_eval=null", "mt_bench.question_ids=[3, 5]"]
        assert evaluate.main(["--config", str(recipe), *overrides]) == 0
    answers = read_answers([str(tmp_path / "runs/chain/evaluation/mt_bench/model_answer/ours.jsonl")])
    assert [answer.question_id for answer in answers] == [3, 5]


def test_an_answer_that_did_not_come_stops_before_the_judge_and_is_asked_for_again(tmp_path: Path, capsys) -> None:
    with StubServer(answer=answer_or_judgment) as server:
        recipe = write_recipe(tmp_path, {name: served(server.url, name) for name in ("judge", "ours")})
        server.faults = lambda number: "500" if server.bodies[number]["messages"][-1]["content"] == "First 3?" else None
        command = ["--config", str(recipe), "alpaca_eval=null", "mt_bench.limit=8"]
        assert evaluate.main(command) == 1
        error = capsys.readouterr().err
        assert re.search(r"ours gave no answer to 1 questions .*500.* start again", error)
        assert not {body["model"] for body in server.bodies} & {"judge"}
        server.faults = lambda number: None
        assert evaluate.main(command) == 0
        # Eight questions of two turns, and two tries in vain of the one, whose second turn was not asked then.
        assert sum(body["model"] == "ours" for body in server.bodies) == 16 + 2


def test_what_does_not_fit_a_models_context_is_said_and_counted(tmp_path: Path, capsys) -> None:
    """Of 80 tokens, of which a byte is one, a first turn and its answer take about 50, both turns about 100."""
    model = write_chat_model(tmp_path / "model", context=80)
    recipe = write_recipe(tmp_path, {"ours": f"{{model: {model}, batch_size: 2}}"})
    overrides = ["mt_bench.judging=null", "alpaca_eval=null", "mt_bench.question_ids=[2, 3]"]
    assert evaluate.main(["--config", str(recipe), *overrides]) == 0
    answers = read_answers([str(tmp_path / "runs/chain/evaluation/mt_bench/model_answer/ours.jsonl")])
    assert all(answer.choices[0][0] and not answer.choices[0][1] for answer in answers)
    assert re.search(r"ours: 2 answers .*; 2 could not be asked .*more than the 80 that", capsys.readouterr().out)


def test_a_model_that_can_be_asked_nothing_is_the_users_error(tmp_path: Path, capsys) -> None:
    with StubServer(faults=lambda number: "400") as server:
        recipe = write_recipe(tmp_path, {name: served(server.url, name) for name in ("judge", "ours")})
        assert evaluate.main(["--config", str(recipe), "alpaca_eval=null"]) == 2
    assert "mt_bench.answering: ours cannot be asked any of the questions" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("mt_bench.answering.models=[gpt]", r"mt_bench.answering.models: got 'gpt', wanted one of models \(ours\)"),
        ("mt_bench.answering.models=[ours, ours]", "mt_bench.answering.models: got ours, ours, wanted each once"),
        ("mt_bench.answering=null", "mt_bench.judging.answers: got none, wanted files, or the block answering"),
        ("alpaca_eval.answering=null", "alpaca_eval.judging.outputs: got none, wanted files, or the block answering"),
        ("mt_bench={questions: q}", "mt_bench: has neither judgments nor judging nor answering"),
        ("mt_bench.question_ids=[1]", "mt_bench.limit: got 3 beside question_ids"),
        (
            "mt_bench.judging={prompts: p, judge: ours, mode: pair, reading: logprobs}",
            "mt_bench.judging.reading: got logprobs, which is for a judge that is asked, mode single, 1 repetition",
        ),
    ],
)
def test_a_mistake_in_the_recipe_is_named(tmp_path: Path, override: str, message: str) -> None:
    path = write_recipe(tmp_path, {"ours": "{model: m}"})
    judges = ["mt_bench.judging.judge=ours", "alpaca_eval.judging.judge=ours"]
    with pytest.raises(InputError, match=message):
        load_evaluation_recipe(path, [*judges, "mt_bench.limit=3", override])


def test_a_name_that_stored_answers_have_is_refused(tmp_path: Path, capsys) -> None:
    stored = write(
        tmp_path / "stored.jsonl",
        [{"question_id": 0, "model_id": "ours", "choices": [{"turns": ["a", "b"]}]}],
    )
    with StubServer(answer=answer_or_judgment) as server:
        recipe = write_recipe(tmp_path, {name: served(server.url, name) for name in ("judge", "ours")})
        command = [
            "--config",
            str(recipe),
            "alpaca_eval=null",
            "mt_bench.limit=1",
            f"mt_bench.judging.answers={stored}",
        ]
        assert evaluate.main(command) == 2
    assert "has answers of ours, which is also a model that answers" in capsys.readouterr().err
