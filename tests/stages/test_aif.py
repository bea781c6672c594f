"""AI feedback as a stage: who answers what is drawn once and for all, scores land on the answers they are of."""

from __future__ import annotations

import collections
import json
import random
import re
from pathlib import Path

import pytest

from tests.judging.stub_server import Body, StubServer, plain_answer
from tests.stages.small_feedback import NUM_PROMPTS, write_recipe
from zephyr_jax.feedback_recipe import load_feedback_recipe
from zephyr_jax.judging.rubrics import PRINCIPLES
from zephyr_jax.records import InputError, Unfinished
from zephyr_jax.stages.aif import FILES, describe_feedback, folder_of, run_feedback

pytest.importorskip("openai", reason="the extra [feedback] is not installed")


def _rows(folder: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (folder / "runs/small/aif" / FILES[name]).read_text().splitlines()]


def _files(folder: Path) -> dict[str, bytes]:
    names = [FILES[step] for step in ("completions", "annotation", "binarisation")]
    return {name: (folder / "runs/small/aif" / name).read_bytes() for name in names}


def _run(folder: Path, url: str, *overrides: str) -> dict:
    return run_feedback(load_feedback_recipe(write_recipe(folder, url), overrides))


def _number(answer: str) -> int:
    return int(re.findall(r"Answer (\d+) to", answer)[0])


def _rate_by_content(body: Body) -> str:
    """A teacher whose rating of an answer hangs on its text alone, wherever it is shown."""
    if "response_format" not in body:
        return plain_answer(body)
    shown = re.split(r"### Answer \d+\n", body["messages"][-1]["content"].split("## Reply")[0])[1:]
    ratings = [
        {"answer": place, "rationale": f"{_number(text) % 1000}", "rating": str(1 + _number(text) % 5)}
        for place, text in enumerate(shown, start=1)
    ]
    return json.dumps({"ratings": ratings})


def test_scores_land_on_the_answers_they_are_of_whatever_the_shuffle(tmp_path: Path) -> None:
    with StubServer(answer=_rate_by_content) as server:
        summary = _run(tmp_path, server.url)
        orders = [re.findall(r"Answer (\d+) to", body["messages"][-1]["content"]) for body in server.bodies[24:]]
    rows = _rows(tmp_path, "annotation")
    assert len(rows) == NUM_PROMPTS
    for row in rows:
        for completion in row["completions"]:
            number = _number(completion["response"])
            expected = {"Rating": str(1 + number % 5), "Rationale": str(number % 1000)}
            assert list(completion["annotations"].values()) == [expected] * 4
    given = [tuple(str(_number(c["response"])) for c in row["completions"]) for row in rows]
    kept = sum(tuple(order) in given for order in orders)
    assert 10 <= kept <= 38  # of 48 calls about half show the answers in the row's order
    assert summary["annotation"]["questions"] == 48


def test_each_answer_is_given_under_its_principle_by_its_model(tmp_path: Path) -> None:
    with StubServer() as server:
        _run(tmp_path, server.url, "annotation=null", "binarisation=null")
        asked = collections.Counter(
            (body["model"], body["messages"][0]["content"], body["messages"][-1]["content"]) for body in server.bodies
        )
    told = collections.Counter()
    for row in _rows(tmp_path, "completions"):
        assert row["models"] == [completion["model"] for completion in row["completions"]]
        assert len(set(row["models"])) == 2
        for completion in row["completions"]:
            assert completion["custom_system_prompt"] in PRINCIPLES[completion["principle"]]
            system = completion["custom_system_prompt"]
            system = f"Be brief.\n\n{system}" if "messages" in row else system
            told["model-" + completion["model"], system, row["instruction"]] += 1
    assert told == asked
    students = collections.Counter(model for row in _rows(tmp_path, "completions") for model in row["models"])
    assert set(students) == {"a", "b", "c"}


def test_order_and_concurrency_change_nothing(tmp_path: Path) -> None:
    files = []
    for number, overrides in enumerate([[], ["models.a.concurrency=1", "models.judge.concurrency=16"]]):
        folder = tmp_path / str(number)
        folder.mkdir()
        shaky = random.Random(number)
        with StubServer(faults=lambda number: "500" if shaky.random() < 0.2 else None) as server:
            server.latency = shaky.random() / 50
            _run(folder, server.url, *overrides)
        files.append(_files(folder))
    assert files[0] == files[1]


def test_another_run_finds_the_answers_that_it_shares(tmp_path: Path) -> None:
    """Another name, a further prompt source limit: only what is new is asked, and steps that are done ask nothing."""
    with StubServer() as server:
        _run(tmp_path, server.url, f"prompts=[{{source: {tmp_path}/prompts.jsonl, limit: 8}}]")
        assert server.num_requests == 8 * 6
        _run(tmp_path, server.url, f"prompts=[{{source: {tmp_path}/prompts.jsonl, limit: 8}}]")
        assert server.num_requests == 8 * 6
        _run(tmp_path, server.url, "name=larger")
        assert server.num_requests == NUM_PROMPTS * 6


def test_repeated_prompts_are_asked_once(tmp_path: Path) -> None:
    with StubServer() as server:
        path = write_recipe(tmp_path, server.url)
        prompts = tmp_path / "prompts.jsonl"
        prompts.write_text(prompts.read_text() * 2)
        summary = run_feedback(load_feedback_recipe(path))
    assert summary["completions"]["prompts"] == NUM_PROMPTS == summary["completions"]["repeated_prompts"]


def test_a_broken_server_loses_nothing_and_the_table_says_what_happened(tmp_path: Path, capsys) -> None:
    """Half of the first hundred tries come to nothing, in all ways; the files are those of a good server."""
    kinds = ["429", "500", "garbage", "half", "empty", "no choices", "drop", "slow"]
    with StubServer() as server:
        (tmp_path / "good").mkdir()
        _run(tmp_path / "good", server.url)
    with StubServer(faults=lambda number: kinds[number // 2 % 8] if number < 100 and number % 2 else None) as server:
        (tmp_path / "bad").mkdir()
        short = [f"models.{name}.timeout_seconds=1" for name in ("judge", "a", "b", "c")]
        _run(tmp_path / "bad", server.url, *short)
    assert _files(tmp_path / "bad") == _files(tmp_path / "good")
    said = capsys.readouterr().err
    for kind in (
        "429",
        "500",
        "not JSON",
        "JSON cut off or broken",
        "empty body",
        "no answer in the JSON",
        "connection lost",
        "timed out",
    ):
        assert f"\n  {kind} " in said
    session = json.loads((tmp_path / "bad/runs/small/aif/sessions.jsonl").read_text())
    troubles = sum(sum(model["troubles"].values()) for model in session["models"].values())
    assert troubles >= 50 and sum(model["failed"] for model in session["models"].values()) == 0


def test_unusable_answers_are_asked_again_then_counted_and_never_guessed(tmp_path: Path, capsys) -> None:
    """The teacher never rates honesty, and rates truthfulness at the second try, hotter and with another seed."""

    def answer(body: Body) -> str:
        text = body["messages"][-1]["content"]
        if "as it has a right to be" in text:
            return "I would say 4."
        if "Is what the answer says true" in text and body["temperature"] == 0:
            return plain_answer(body)[:-3]
        return plain_answer(body)

    with StubServer(answer=answer) as server:
        with pytest.raises(Unfinished, match=r"annotation: 3 of 48 questions have no usable answer .*max_failed"):
            _run(tmp_path, server.url)
        # Three of 48 are more than 5 %, whatever follows: no more is asked than what was ready then.
        assert server.num_requests <= 24 + 3 * 3 * 4 + 8
        assert re.search(r"\n  unusable answer +\d+  \(stop\) I would say 4\.", capsys.readouterr().err)
        summary = _run(tmp_path, server.url, "max_failed=0.25")
        # What was unusable was an answer: it is kept, not asked for anew.
        assert max(server.calls.values()) == 1 and server.num_requests == 24 + 48 + 2 * 12 + 12
    assert summary["annotation"]["unusable"] == {
        "annotation: given up": 12,
        "annotation: unusable answer, asked again": 24 + 12,
    }
    for row in _rows(tmp_path, "annotation"):
        for completion in row["completions"]:
            rated = {aspect: annotation is not None for aspect, annotation in completion["annotations"].items()}
            assert rated == {aspect: aspect != "honesty" for aspect in rated} and len(rated) == 4


def test_odd_characters_in_answers_and_reasons_come_through(tmp_path: Path) -> None:
    """Line separators, NUL, emoji, and half of one, as a server cuts it off at max_tokens."""
    odd = "\u2028 \x85 \x00 \U0001f600 \ud83d"

    def answer(body: Body) -> str:
        text = plain_answer(body)
        return text.replace("Reason", json.dumps(odd)[1:-1]) if "response_format" in body else f"{text} {odd}"

    with StubServer(answer=answer) as server:
        _run(tmp_path, server.url)
    wanted = odd.replace("\ud83d", "\ufffd")
    pairs = (tmp_path / "runs/small/aif/preferences.jsonl").read_text().split("\n")[:-1]
    assert all(wanted in json.loads(pair)["chosen"][-1]["content"] for pair in pairs) and pairs


def test_where_no_pair_can_be_made_the_run_says_why_and_leaves_no_empty_file(tmp_path: Path) -> None:
    """All answers get the same scores. These are kept, and another rule may find some."""
    same = json.dumps({"ratings": [{"answer": place, "rationale": "So.", "rating": "3"} for place in (1, 2)]})
    with StubServer(answer=lambda body: same if "response_format" in body else plain_answer(body)) as server:
        with pytest.raises(Unfinished, match=r"binarisation: no pair of 12 prompts .*rejected tie .*--new-run"):
            _run(tmp_path, server.url)
    assert not (tmp_path / "runs/small/aif/preferences.jsonl").exists()
    assert (tmp_path / "runs/small/aif/feedback.jsonl").exists()


def test_answers_of_which_no_pair_could_be_made_are_not_rated(tmp_path: Path) -> None:
    """Question 1 gets the same answer twice, question 2 one answer and one without text: no call, no score."""

    def answer(body: Body) -> str:
        text = body["messages"][-1]["content"]
        return {"Question 1?": "Same.", "Question 2?": " " if body["model"] == "model-a" else "One."}.get(
            text, plain_answer(body)
        )

    with StubServer(answer=answer) as server:
        summary = _run(tmp_path, server.url, "max_failed=0.1", "completions.students=[a, b]")
        rated = [body for body in server.bodies if body["model"] == "judge-model"]
    assert len(rated) == 4 * (NUM_PROMPTS - 2) == summary["annotation"]["questions"]
    assert summary["annotation"]["prompts_with_nothing_to_compare"] == 2
    assert summary["binarisation"]["rows"] == NUM_PROMPTS
    assert not any(
        completion["annotations"]["honesty"] for completion in _rows(tmp_path, "annotation")[1]["completions"]
    )


def test_a_model_that_cannot_be_asked_costs_no_answer_of_another(tmp_path: Path) -> None:
    """While `a` is refused, the others' calls are in flight: they are waited for and kept."""
    with StubServer(faults=lambda number: "401") as refusing, StubServer(latency=0.5) as server:
        with pytest.raises(InputError, match=r"models\.a: .* says 401"):
            _run(tmp_path, server.url, f"models.a.base_url={refusing.url}")
    kept = sum(len(path.read_text().splitlines()) for path in (tmp_path / "runs/calls").iterdir())
    assert kept == server.num_requests > 0


def test_a_key_that_is_not_set_is_said_before_anybody_has_answered(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv("SOME_KEY", raising=False)
    with StubServer() as server:
        with pytest.raises(InputError, match=r"models\.judge\.api_key_env"):
            _run(tmp_path, server.url, "models.judge.api_key_env=SOME_KEY")
        assert server.num_requests == 0


def test_a_row_of_seeds_that_is_none_is_named(tmp_path: Path) -> None:
    seeds = tmp_path / "seeds.jsonl"
    seeds.write_text('{"task": "Do this.", "topic": "x"}\n{"task": "Do\n')
    with (
        StubServer() as server,
        pytest.raises(InputError, match=r"instructions\.seeds: .*seeds\.jsonl:2: invalid JSON"),
    ):
        _run(tmp_path, server.url, f"instructions={{num_drafts: 4, seeds: {seeds}}}")


def test_a_spent_budget_stops_the_run_and_a_larger_one_goes_on(tmp_path: Path) -> None:
    with StubServer() as server:
        with pytest.raises(Unfinished, match=r"budget.requests is 30, 30 are spent"):
            _run(tmp_path, server.url, "budget.requests=30")
        assert server.num_requests == 30
        with pytest.raises(Unfinished, match=r"budget.requests is 30, 30 are spent"):
            _run(tmp_path, server.url, "budget.requests=30")
        assert server.num_requests == 30
        _run(tmp_path, server.url, "budget.requests=72")
        assert server.num_requests == 72


def test_tries_that_came_to_nothing_but_may_be_billed_count_also_for_the_next_session(tmp_path: Path) -> None:
    """A server that sends garbage gets as many requests as the budget has, not eight times as many; a 500 is free."""
    only_answers = ["annotation=null", "binarisation=null"]
    with StubServer(faults=lambda number: "garbage") as server:
        for limit in (10, 10, 13):
            with pytest.raises(Unfinished, match=f"budget.requests is {limit}, {limit} are spent"):
                _run(tmp_path, server.url, f"budget.requests={limit}", *only_answers)
            assert server.num_requests == limit
        server.faults = lambda number: "500" if number % 2 else None
        _run(tmp_path, server.url, "budget.requests=37", *only_answers)
        assert server.num_requests > 13 + 24


def test_a_budget_of_tokens_holds_in_scripts_with_a_token_to_a_character(tmp_path: Path) -> None:
    """And where a token is half a character, once the first answers have shown it."""
    path = write_recipe(tmp_path, "http://x/v1")
    (tmp_path / "prompts.jsonl").write_text(
        "".join(json.dumps({"prompt": f"{n} 你好世界" * 50}) + "\n" for n in range(40))
    )
    usage = {"prompt_tokens": 600, "completion_tokens": 5}
    with StubServer(more={"usage": usage}) as server:
        text = path.read_text().replace("http://x/v1", server.url).replace("concurrency: 4", "concurrency: 1")
        path.write_text(text.replace("students: [a, b, c]", "students: [a]"))
        with pytest.raises(Unfinished, match="budget.tokens is 10000"):
            run_feedback(load_feedback_recipe(path, ["budget.tokens=10000", "annotation=null", "binarisation=null"]))
        assert 9000 <= 605 * server.num_answers <= 10_000


def test_the_key_is_written_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setenv("SOME_KEY", "sk-very-secret")
    with StubServer() as server:
        _run(tmp_path, server.url, "models.judge.api_key_env=SOME_KEY")
        assert {"Bearer sk-very-secret", "Bearer none"} == {headers["authorization"] for headers in server.headers}
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"sk-very-secret" not in written and "sk-very-secret" not in "".join(capsys.readouterr())


def test_the_estimate_counts_calls_tokens_and_cost(tmp_path: Path) -> None:
    """12 prompts x 2 answers, 4 aspects each: 24 and 48 calls; the answers are 20 tokens by assumption."""
    overrides = ["completions.expected_tokens=20", "annotation.expected_tokens=50", "models.judge.price={output: 1000}"]
    table = describe_feedback(load_feedback_recipe(write_recipe(tmp_path, "http://127.0.0.1:9/v1"), overrides))
    judge = next(line for line in table.splitlines() if "judge" in line).split()
    assert judge[2] == "48" and judge[4] == "2,400" and judge[5] == "2.40"
    total = next(line for line in table.splitlines() if line.startswith("all")).split()
    assert total[1] == "72" and total[3] == "2,880"  # 24 x 20 + 48 x 50
    assert not folder_of(load_feedback_recipe(tmp_path / "recipe.yaml")).exists()


def test_a_server_that_is_not_there_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nobody answers at http://127.0.0.1:9/v1"):
        _run(tmp_path, "http://127.0.0.1:9/v1")
