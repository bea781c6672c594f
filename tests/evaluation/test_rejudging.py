"""A model that is asked what GPT-4 was asked is set beside it, and the figure goes where the model's scores go."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.evaluation.fastchat_rows import a_grading, a_pair, write
from tests.evaluation.live import write_live_recipe
from tests.judging.stub_server import StubServer
from zephyr_jax import evaluate, judge_agreement
from zephyr_jax.records import InputError

pytest.importorskip("openai", reason="the extra [feedback] is not installed")

NUM = 6  # of questions and outputs in the recipe
RANKING = "[{{'model': 'model_1', 'rank': {}}}]"


def _measured(folder: Path, capsys, *arguments: str, status: int = 0) -> tuple[dict[str, Any], str]:
    """The JSON on stdout, and what was said."""
    command = ["--judge-model", "judge", "--config", str(folder / "recipe.yaml"), *arguments]
    assert judge_agreement.main(command) == status
    printed = capsys.readouterr()
    return json.loads(printed.out or "{}"), printed.err


def test_gradings_are_judged_again_from_what_was_shown(tmp_path: Path, capsys) -> None:
    """The judge reads the reference's rating in the prompt, and is one off on even ones. 8 of 20 are drawn."""
    rows = [
        a_grading(number, 1 + number % 9, user_prompt=f"the answer is worth {1 + number % 9}") for number in range(20)
    ]
    reference = write(tmp_path / "gpt-4.jsonl", [*rows, a_grading(99, -1)])

    def answer(body) -> str:
        assert body["messages"][0] == {"role": "system", "content": "You judge."}
        worth = int(body["messages"][1]["content"].split()[-1])
        return f"[[{worth + (worth % 2 == 0)}]]"

    with StubServer(answer=answer) as server:
        write_live_recipe(tmp_path, server.url, NUM)
        arguments = ["--reference", reference, "--prompts", str(tmp_path / "judge_prompts.jsonl"), "--items", "8"]
        out = tmp_path / "measured.json"
        found, said = _measured(tmp_path, capsys, *arguments, "--out", str(out))
        assert server.num_requests == 8
        again, _ = _measured(tmp_path, capsys, *arguments)
        assert server.num_requests == 8 and again == found == json.loads(out.read_text())
    (kind,) = found["agreements"]
    assert (kind["kind"], kind["num_common"], kind["within_one"]["share"]) == ("gradings", 8, 1)
    assert 0 < kind["exact"]["count"] < 8
    assert (found["judge_names"], found["reference_names"], found["judge_model"]) == (
        ["judge"],
        ["gpt-4"],
        "judge-model",
    )
    assert "judge (by judge_prompts.jsonl) " in said and "beside gpt-4.jsonl: within one point on 100.0%" in said
    stored = [json.loads(line) for line in (tmp_path / "measured.judgments.jsonl").read_text().splitlines()]
    assert {row["judge"][0] for row in stored} == {"judge"} and len(stored) == 8
    assert judge_agreement.main(["--judge", str(tmp_path / "measured.judgments.jsonl"), "--reference", reference]) == 0
    assert json.loads(capsys.readouterr().out)["agreements"] == found["agreements"]


def test_pairs_and_reviews_are_judged_again_in_both_orders(tmp_path: Path, capsys) -> None:
    """The judge always takes the first: a tie for every item, which decides nothing, and the bias is the finding."""
    pairs = [a_pair(number, "model_1", "model_1") for number in range(3)]
    review = {"question": "Q?", "answer_1": "x", "answer_2": "y", "model_1": "a", "model_2": "b", "score": [8, 9]}
    reviews = [review | {"question_id": number} for number in range(10, 13)]
    reference = write(tmp_path / "gpt-4.jsonl", [*pairs, *reviews, reviews[0] | {"question_id": 1, "score": [-1, -1]}])
    with StubServer(answer=lambda body: "[[A]]") as server:
        write_live_recipe(tmp_path, server.url, NUM)
        prompts = str(tmp_path / "judge_prompts.jsonl")
        found, said = _measured(tmp_path, capsys, "--reference", reference, "--prompts", prompts)
        assert server.num_requests == 12
        shown = [body["messages"][-1]["content"] for body in server.bodies]
        assert {"p1", "p2", "Q Q? A: x B: y", "Q Q? A: y B: x"} == set(shown)
    assert found["position"]["follows_position"] == 1 and found["position"]["went_to_the_first"] == 6
    assert found["agreements"][0]["agreement"]["total"] == 0 and found["agreements"][0]["weak"]
    assert found["agreements"][0]["agreement"]["share"] is None
    assert "judge favours the answer shown first" in said and "a WEAK judge: it decides none of the 6 items" in said


def _annotations(folder: Path) -> str:
    """The reference prefers theirs, the baseline, but for the last output."""
    rows = [
        {"generator_1": "theirs", "generator_2": "ours", "annotator": "gpt-4", "index": number,
         "preference": 2 if number == NUM - 1 else 1}
        for number in range(NUM)
    ]  # fmt: skip
    return write(folder / "annotations.jsonl", rows)


def _longer(body) -> str:
    first, second = (line.split(": ", 1)[1] for line in body["messages"][-1]["content"].splitlines()[1:])
    return RANKING.format(1 if len(first) > len(second) else 2)


def test_annotations_are_judged_again_and_the_figure_stands_beside_the_scores(tmp_path: Path, capsys) -> None:
    """It takes the longer, theirs: agrees on 5 of 6, as always choosing theirs would. The same model under another name
    is the same judge; another model of the same name is not."""
    with StubServer(answer=_longer) as server:
        recipe = str(write_live_recipe(tmp_path, server.url, NUM, block="alpaca_eval"))
        outputs = [str(tmp_path / f"{name}_outputs.jsonl") for name in ("ours", "theirs")]
        arguments = ["--reference", _annotations(tmp_path), "--prompt", str(tmp_path / "prompt.txt"), "--both-orders"]
        out = tmp_path / "measured.json"
        found, said = _measured(tmp_path, capsys, *arguments, "--outputs", *outputs, "--out", str(out))
        assert found["agreements"][0]["agreement"]["count"] == 5 and found["agreements"][0]["weak"]
        assert found["position"]["follows_position"] == 0 and "does not surely favour" in said
        assert "ranking in both orders" in found["asked"]
        beside = ["--config", recipe, f"agreement=[{{measured: {out}}}]"]
        assert evaluate.main(beside) == 0
        printed = capsys.readouterr().out
        assert "| 83.3 % of 6, WEAK |" in printed and "Agreement of judge (ranking in both orders" in printed
        results = tmp_path / "runs/live/evaluation/results.json"
        (model,) = json.loads(results.read_text(encoding="utf-8"))["alpaca_eval"]["models"]
        assert model["judge_agreement"]["share"] == pytest.approx(5 / 6) and model["judge_agreement"]["weak"]
        server_options = f"base_url: {server.url}, timeout_seconds: 30"
        renamed = f"models={{nick: {{model: judge-model, {server_options}}}}}"
        assert evaluate.main([*beside, "name=nick", renamed, "alpaca_eval.judging.judge=nick"]) == 0
        assert "| 83.3 % of 6, WEAK |" in capsys.readouterr().out
        assert evaluate.main([*beside, "name=other", f"models={{judge: {{model: other, {server_options}}}}}"]) == 0
        printed = capsys.readouterr().out
        assert "| not measured " in printed and "Agreement of judge with a trusted judge: not measured." in printed


def test_the_page_says_how_far_the_judge_is_trusted(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pictures need matplotlib (extra [report])")
    with StubServer(answer=lambda body: "[[7]]") as server:
        recipe = str(write_live_recipe(tmp_path, server.url, NUM))
        assert evaluate.main(["--config", recipe, "report=true"]) == 0
    page = (tmp_path / "runs/live/evaluation/report.html").read_text(encoding="utf-8")
    assert "by judge (agreement not measured)" in page and "with a trusted judge: not measured" in page


def test_what_the_items_need_is_asked_for(tmp_path: Path, capsys) -> None:
    gradings = write(tmp_path / "g.jsonl", [a_grading(1, 5)])
    with StubServer(answer=lambda body: "no rating") as server:
        write_live_recipe(tmp_path, server.url, NUM)
        prompts = ["--prompts", str(tmp_path / "judge_prompts.jsonl")]
        ours, prompt = str(tmp_path / "ours_outputs.jsonl"), str(tmp_path / "prompt.txt")
        annotations = ["--reference", _annotations(tmp_path)]
        for arguments, message in (
            (["--reference", gradings], "needs the prompt 'single-v1', but none was given"),
            (annotations, "--prompt: got none, but"),
            ([*annotations, "--prompt", prompt, "--outputs", ours], "of theirs, of which 0 were given"),
            (["--reference", gradings, *prompts, "--items", "0"], "--items: got 0, wanted at least 1"),
            (["budget.request=1", "--reference", gradings, *prompts], "did you mean 'budget.requests'?"),
            (["--reference", write(tmp_path / "n.jsonl", [a_grading(1, -1)]), *prompts], "no judgment that could be"),
        ):
            assert message in _measured(tmp_path, capsys, *arguments, status=2)[1]
        assert server.num_requests == 0
        _, said = _measured(tmp_path, capsys, "--reference", gradings, *prompts, status=1)
        assert "nothing that judge said of 1 items can be read" in said
    command = ["--judge-model", "nobody", "--config", str(tmp_path / "recipe.yaml"), "--reference", gradings]
    assert judge_agreement.main(command) == 2
    assert "--judge-model: got 'nobody', wanted one of the models of" in capsys.readouterr().err
    assert judge_agreement.main(["budget.requests=1", "--judge-model", "x", "--reference", gradings]) == 2
    assert "wanted --config FILE before it" in capsys.readouterr().err
    assert evaluate.main(["--config", str(tmp_path / "recipe.yaml"), f"agreement=[{{measured: {gradings}}}]"]) == 2
    assert "wanted what judge_agreement --out wrote" in capsys.readouterr().err


def test_gradings_are_read_by_probabilities_as_in_a_recipe(tmp_path: Path, capsys) -> None:
    """Of a judge too weak to write a rating: 3 and 5 alike are 4. Two answers it would have to compare in words."""
    rows = [a_grading(number, 1 + number % 9, user_prompt=f"shown {number}") for number in range(6)]
    reference = write(tmp_path / "gpt-4.jsonl", rows)
    with StubServer(answer=lambda body: "Well.", likely=lambda body: {"3": -1.0, "5": -1.0}) as server:
        write_live_recipe(tmp_path, server.url, NUM)
        prompts = ["--prompts", str(tmp_path / "judge_prompts.jsonl"), "--reading", "logprobs"]
        found, said = _measured(tmp_path, capsys, "--reference", reference, *prompts)
        assert found["agreements"][0]["difference"]["mean"] == pytest.approx(4 - 3.5) and "logprobs, by judge_" in said
        assert all("one digit" in body["messages"][-1]["content"] for body in server.bodies)
        pairs = write(tmp_path / "pairs.jsonl", [a_pair(0, "model_1", "model_1", judge=["gpt-4", "pair-v2"])])
        _, said = _measured(tmp_path, capsys, "--reference", pairs, *prompts, status=2)
    assert "--reading: got logprobs, but" in said


def test_a_few_items_are_not_asked_in_a_larger_batch(tmp_path: Path, monkeypatch) -> None:
    """On a CPU the rows that nobody fills take as long as the others."""
    asked: dict[str, Any] = {}

    def session(models: dict[str, Any], **options: Any) -> None:
        asked.update(models)
        raise InputError("seen")

    monkeypatch.setattr("zephyr_jax.judging.session.Session", session)
    arguments = ["--judge-model", "m", "--reference", _annotations(tmp_path), "--items"]
    for items, batch_size in ((4, 4), (100, 16)):
        assert judge_agreement.main([*arguments, str(items)]) == 2 and asked["m"].batch_size == batch_size
