"""A judge that is asked over HTTP or in this process: nothing twice, nothing lost, and files that others read."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.evaluation.fastchat_rows import a_question, write
from tests.evaluation.live import write_live_recipe
from tests.generation.tiny_chat_model import write_chat_model
from tests.judging.stub_server import Body, StubServer, digest
from zephyr_jax import evaluate
from zephyr_jax.evaluation.alpaca_judging import is_turned
from zephyr_jax.evaluation.fastchat_files import read_judgments

pytest.importorskip("openai", reason="the extra [feedback] is not installed")

NUM_QUESTIONS = 6
CONCURRENCY = 4


def _grade(body: Body) -> str:
    """A rating from the content; the answer `dunno` gets none ever, and `late` one at the second try."""
    shown = body["messages"][-1]["content"]
    if "dunno" in shown or ("late" in shown and body["temperature"] == 0):
        return "I would rather not say."
    return f"Good. Rating: [[{1 + digest(body) % 10}]]"


def _results(folder: Path, name: str = "live") -> dict:
    return json.loads((folder / f"runs/{name}/evaluation/results.json").read_text(encoding="utf-8"))


def test_answers_are_graded_over_http_and_asked_for_once(tmp_path: Path, capsys) -> None:
    """2 models x 6 questions x 2 turns x 2 rounds: 48 judgments; of 4 with `dunno`, each 2 tries are in vain; `late`
    costs a second try in 4 more."""
    with StubServer(answer=_grade) as server:
        recipe = str(write_live_recipe(tmp_path, server.url, NUM_QUESTIONS))
        assert evaluate.main(["--config", recipe, "mt_bench.judging.repetitions=2"]) == 0
        assert server.num_requests == 48 + 4 + 4 and {body["model"] for body in server.bodies} == {"judge-model"}
        assert {body["temperature"] for body in server.bodies} == {0.0, 0.7}
        assert all(body["max_tokens"] == 64 for body in server.bodies)
        first = _results(tmp_path)
        assert evaluate.main(["--config", recipe, "mt_bench.judging.repetitions=2", "name=again"]) == 0
        assert server.num_requests == 56 and _results(tmp_path, "again")["mt_bench"] == first["mt_bench"]
    printed = capsys.readouterr()
    ours = first["mt_bench"]["models"][0]
    assert (ours["model"], ours["judge"], ours["num_items"], ours["num_unparsed"]) == ("ours", "judge", 20, 4)
    assert len(ours["rounds"]) == 2 and ours["judge_spread"] is not None
    assert "judge gave no rating for 4 of 24 answers of ours" in printed.out
    assert "mt_bench judging: 100%" in printed.err and "judge" in printed.err and "in flight" in printed.err
    folder = tmp_path / "runs/live/evaluation"
    gradings, _ = read_judgments([str(folder / "mt_bench/model_judgment/judge_single.jsonl")])
    assert len(gradings) == 48 and [row.score for row in gradings].count(-1) == 4
    calls = [json.loads(line) for path in (tmp_path / "runs/calls").iterdir() for line in path.open()]
    assert {"mt_bench:ours:1:2:0:0", "mt_bench:theirs:5:1:1:0"} <= {line["call"] for line in calls}
    session = json.loads((folder / "sessions.jsonl").read_text())
    assert session["models"]["judge"]["answered"] == 56


def test_pairs_are_compared_in_both_orders_over_http(tmp_path: Path) -> None:
    def longer(body: Body) -> str:
        shown = body["messages"][-1]["content"]
        first, second = shown.split(" A: ")[1].split(" B: ")
        return "[[A]]" if len(first) > len(second) else "[[B]]"

    with StubServer(answer=longer) as server:
        recipe = str(write_live_recipe(tmp_path, server.url, NUM_QUESTIONS))
        assert evaluate.main(["--config", recipe, "mt_bench.judging.mode=pair"]) == 0
        assert server.num_requests == 2 * 2 * NUM_QUESTIONS
    (pair,) = _results(tmp_path)["mt_bench"]["pairs"]
    assert (pair["model_1"], pair["win"], pair["loss"], pair["tie"]) == ("ours", 0, 12, 0)
    assert pair["position"]["same_verdict"] == 1


def test_outputs_are_ranked_and_weighed_over_http(tmp_path: Path) -> None:
    """The judge likes what it is shown first, 3 to 1: the model where the coin turns the order, else the baseline."""

    def likely(body: Body) -> dict[str, float]:
        return {"m": math.log(0.6), "M": math.log(0.2), "x": math.log(0.2)}

    ranking = "[{'model': 'model_1', 'rank': 1}, {'model': 'model_2', 'rank': 2}]"
    with StubServer(answer=lambda body: ranking, likely=likely) as server:
        recipe = str(write_live_recipe(tmp_path, server.url, NUM_QUESTIONS, block="alpaca_eval"))
        turned = sum(is_turned(f"Instruction {number}?") for number in range(NUM_QUESTIONS))
        for reading, gain in (("ranking", 1), ("logprobs", 0.75)):
            overrides = [f"alpaca_eval.judging.reading={reading}", f"name={reading}"]
            assert evaluate.main(["--config", recipe, *overrides]) == 0
            (model,) = _results(tmp_path, reading)["alpaca_eval"]["models"]
            wanted = (gain * turned + (1 - gain) * (NUM_QUESTIONS - turned)) / NUM_QUESTIONS
            assert model["win_rate"] == pytest.approx(100 * wanted) and model["annotator"] == "judge"
        assert server.bodies[-1]["top_logprobs"] == 20 and server.bodies[-1]["max_tokens"] == 1
        assert all(body["temperature"] == 0 for body in server.bodies)
    file = tmp_path / "runs/logprobs/evaluation/alpaca_eval/ours/judge/annotations.json"
    rows = json.loads(file.read_text(encoding="utf-8"))
    (content,) = rows[0]["raw_completion"]["logprobs"]["content"]  # where alpaca_eval's parser looks
    assert len(rows) == NUM_QUESTIONS and [entry["token"] for entry in content["top_logprobs"]] == ["m", "M"]
    again = ["alpaca_eval.judging.judge=null", f"alpaca_eval.judging.replay=[{file}]", "name=again"]
    assert evaluate.main(["--config", recipe, "alpaca_eval.judging.reading=logprobs", *again]) == 0
    assert _results(tmp_path, "again")["alpaca_eval"] == _results(tmp_path, "logprobs")["alpaca_eval"]


def test_a_server_without_log_probabilities_is_said_to_be_one(tmp_path: Path, capsys) -> None:
    with StubServer() as server:
        recipe = str(write_live_recipe(tmp_path, server.url, NUM_QUESTIONS, block="alpaca_eval"))
        assert evaluate.main(["--config", recipe, "alpaca_eval.judging.reading=logprobs"]) == 2
    said = capsys.readouterr().err
    assert (
        "models.judge: log-probabilities are wanted, but the server gives none" in said and "reading: ranking" in said
    )
    assert not (tmp_path / "runs/live/evaluation/results.json").exists()


def test_a_spent_budget_stops_and_a_larger_one_goes_on(tmp_path: Path, capsys) -> None:
    with StubServer(answer=lambda body: "[[7]]") as server:
        recipe = str(write_live_recipe(tmp_path, server.url, NUM_QUESTIONS))
        assert evaluate.main(["--config", recipe, "budget.requests=10"]) == 1
        said = capsys.readouterr().err
        assert "stopped: budget.requests is 10" in said and "start again" in said and "Traceback" not in said
        assert server.num_requests == 10 and not (tmp_path / "runs/live/evaluation/results.json").exists()
        assert evaluate.main(["--config", recipe, "budget.requests=11"]) == 1 and server.num_requests == 11
        assert evaluate.main(["--config", recipe]) == 0 and server.num_requests == 24


def test_a_judge_that_answers_nothing_is_no_result(tmp_path: Path, capsys) -> None:
    with StubServer(faults=lambda number: "400") as server:
        recipe = str(write_live_recipe(tmp_path, server.url, NUM_QUESTIONS))
        assert evaluate.main(["--config", recipe]) == 1
    said = capsys.readouterr().err
    assert "judge gave no answer on any of 24 items" in said and "too long for the model" in said


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_was_stopped_repeats_at_most_what_was_in_flight(
    tmp_path: Path, repository: Path, end: signal.Signals
) -> None:
    with StubServer(latency=0.05, answer=lambda body: "[[7]]") as server:
        recipe = write_live_recipe(tmp_path, server.url, NUM_QUESTIONS)
        command = [sys.executable, "-m", "zephyr_jax.evaluate", "--config", str(recipe)]
        process = subprocess.Popen(command, cwd=repository, stderr=subprocess.PIPE)
        while server.num_answers < 6 and process.poll() is None:
            time.sleep(0.002)
        process.send_signal(end)
        said = process.communicate()[1].decode()
        assert process.returncode == (130 if end == signal.SIGINT else -end), said
        assert "Traceback" not in said
        assert evaluate.main(["--config", str(recipe)]) == 0
        repeated = sum(server.calls.values()) - len(server.calls)
        assert len(server.calls) == 24 and repeated <= (CONCURRENCY if end == signal.SIGKILL else 0)
    assert _results(tmp_path)["mt_bench"]["models"][0]["score"] == 7


NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turns here') }}{% endif %}"
    "{% for message in messages %}[{{ message['role'] }}]{{ message['content'] }}{% endfor %}[assistant]"
)


def test_a_model_in_this_process_judges_by_its_own_chat_template(tmp_path: Path, capsys) -> None:
    """Its template knows no system turn: the prompt's goes before the user's text. Rated by probabilities, and with an
    answer to be read, which random bytes are not."""
    model = write_chat_model(tmp_path / "model", context=1024)
    (tmp_path / "template.jinja").write_text(NO_SYSTEM)
    recipe = str(write_live_recipe(tmp_path, "http://127.0.0.1:9/v1", 2, block="alpaca_eval"))
    local = f"models={{judge: {{model: {model}, chat_template: {tmp_path / 'template.jinja'}, batch_size: 4}}}}"
    options = ["--config", recipe, local, "alpaca_eval.judging.reading=logprobs"]
    assert evaluate.main(options) == 1
    assert "no system turns here" in capsys.readouterr().err
    assert evaluate.main([*options, "alpaca_eval.judging.system_as=user"]) == 0
    (rate,) = _results(tmp_path)["alpaca_eval"]["models"]
    assert rate["n_total"] == 2 and 0 < rate["win_rate"] < 100
    assert "evaluate: loading judge" in capsys.readouterr().err
    recipe = str(write_live_recipe(tmp_path, "http://127.0.0.1:9/v1", 2))
    overrides = [local, "name=graded", "mt_bench.judging.system_as=user", "mt_bench.judging.max_tokens=4"]
    assert evaluate.main(["--config", recipe, *overrides]) == 0
    printed = capsys.readouterr().out
    assert "judge gave no rating for any of 4 answers of ours: it has no score by it." in printed
    assert _results(tmp_path, "graded")["mt_bench"]["models"] == []


def test_each_question_costs_at_most_its_tries(tmp_path: Path) -> None:
    """One model alone, four questions of one file: nothing beside what the recipe says is asked."""
    questions = write(tmp_path / "few.jsonl", [a_question(number, "writing") for number in range(4)])
    with StubServer(answer=lambda body: "no rating") as server:
        recipe = str(write_live_recipe(tmp_path, server.url, NUM_QUESTIONS))
        overrides = [f"mt_bench.questions={questions}", "mt_bench.judging.max_tries=3"]
        overrides += [f"mt_bench.judging.answers=[{tmp_path / 'ours.jsonl'}]"]
        assert evaluate.main(["--config", recipe, *overrides]) == 0
        assert server.num_requests == 4 * 2 * 3


def test_outputs_in_both_orders_show_the_bias_and_are_replayed(tmp_path: Path, capsys) -> None:
    """The judge takes the first, whoever's it is: no win for anybody, and the bias is in results, table and rows."""
    ranking = "[{'model': 'model_1', 'rank': 1}, {'model': 'model_2', 'rank': 2}]"
    with StubServer(answer=lambda body: ranking) as server:
        recipe = str(write_live_recipe(tmp_path, server.url, NUM_QUESTIONS, block="alpaca_eval"))
        overrides = ["--config", recipe, "alpaca_eval.judging.both_orders=true"]
        assert evaluate.main(overrides) == 0
        assert server.num_requests == 2 * NUM_QUESTIONS
    (model,) = _results(tmp_path)["alpaca_eval"]["models"]
    assert model["win_rate"] == 50 and model["n_draws"] == NUM_QUESTIONS
    assert model["position"]["follows_position"] == 1 and model["position"]["went_to_the_first"] == NUM_QUESTIONS
    printed = capsys.readouterr().out
    assert "| 100.0 % (" in printed and "judge favours the answer shown first: 100.0% of its verdicts" in printed
    rows = tmp_path / "runs/live/evaluation/alpaca_eval/ours/judge/annotations.json"
    assert json.loads(rows.read_text(encoding="utf-8"))[0]["preference_by_order"] == [1, 2]
    again = ["alpaca_eval.judging.judge=null", f"alpaca_eval.judging.replay=[{rows}]", "name=again"]
    assert evaluate.main([*overrides, *again]) == 0
    assert _results(tmp_path, "again")["alpaca_eval"] == _results(tmp_path)["alpaca_eval"]
    assert evaluate.main(["--config", recipe, f"alpaca_eval={{annotations: [{rows}]}}", "name=stored"]) == 0
    assert _results(tmp_path, "stored")["alpaca_eval"]["models"] == [model]
