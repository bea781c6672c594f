"""The endpoint: every kind of trouble is met, counted and got over; limits hold; the key is seen nowhere."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from tests.judging.stub_server import StubServer
from zephyr_jax.judging.protocol import AnswerSchema, CallFailed, ChatRequest, Reply, Stop, Stopped, Unanswerable
from zephyr_jax.judging.tally import Tally, tallies_table
from zephyr_jax.records import InputError, Unfinished
from zephyr_jax.respondent_options import ModelOptions

pytest.importorskip("openai", reason="the extra [feedback] is not installed")

from zephyr_jax.judging.openai_endpoint import OpenAIEndpoint

QUICK = {"retry_seconds": 0.01, "timeout_seconds": 30.0, "concurrency": 8}


def _request(number: int = 0, **options: Any) -> ChatRequest:
    return ChatRequest(({"role": "user", "content": f"Question {number}"},), max_tokens=16, seed=number, **options)


def _ask(requests: list[ChatRequest], **options: Any) -> tuple[list[Reply | BaseException], Tally]:
    """All at once through one endpoint: answers or errors in the requests' order, and what happened."""
    tally = Tally()

    async def ask_all() -> list[Reply | BaseException]:
        endpoint = OpenAIEndpoint(ModelOptions(model="m", **{**QUICK, **options}), name="teacher", tally=tally)
        try:
            return await asyncio.gather(*(endpoint.reply(request) for request in requests), return_exceptions=True)
        finally:
            await endpoint.close()

    return asyncio.run(ask_all()), tally


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("429", "429"),
        ("500", "500"),
        ("garbage", "not JSON"),
        ("half", "JSON cut off or broken"),
        ("empty", "empty body"),
        ("no choices", "no answer in the JSON"),
        ("slow", "timed out"),
        ("drop", "connection lost"),
    ],
)
def test_every_trouble_is_counted_and_got_over(fault: str, kind: str) -> None:
    """Every third request comes to nothing at first; all are answered, each with its own answer."""
    with StubServer(faults=lambda number: fault if number < 24 and number % 3 == 0 else None) as server:
        timeout = 0.5 if fault == "slow" else 30.0
        requests = [_request(number) for number in range(24)]
        replies, tally = _ask(requests, base_url=server.url, timeout_seconds=timeout)
        answers = [reply.text for reply in replies if isinstance(reply, Reply)]
    assert len(answers) == 24 and all(f"Question {number}" in text for number, text in enumerate(answers))
    # On a machine that stands still for a while, more than the eight may time out.
    assert set(tally.troubles) == {kind} and tally.troubles[kind] >= 8 and tally.failed == 0
    assert fault == "slow" or tally.tries == 32
    assert kind in tallies_table({"teacher": tally})


@pytest.mark.parametrize(
    "usage", [None, "12", {"prompt_tokens": "many", "completion_tokens": [1]}, {}, {"prompt_tokens": -3}]
)
def test_a_server_that_does_not_count_has_read_and_written_all_the_same(usage: Any) -> None:
    """Prompt 10 // 4 + 4, answer 12 // 4: a budget would otherwise never see them."""
    with StubServer(answer=lambda body: "Twelve signs", more={"usage": usage}) as server:
        (reply,), tally = _ask([_request()], base_url=server.url)
    assert reply == Reply("Twelve signs", "stop", 6, 3) and not tally.troubles


def test_half_a_surrogate_pair_becomes_a_character_that_files_take() -> None:
    with StubServer(answer=lambda body: "Look: \ud83d") as server:
        (reply,), _ = _ask([_request()], base_url=server.url)
    assert isinstance(reply, Reply) and reply.text == "Look: \ufffd"


@pytest.mark.parametrize("logprob", ["x", None, True, 1e9, float("nan")])
def test_what_is_no_log_probability_is_no_answer(logprob: Any) -> None:
    listed = {"token": "3", "logprob": -0.1, "top_logprobs": [{"token": "3", "logprob": logprob}]}
    choice = {"message": {"content": "3"}, "logprobs": {"content": [listed]}}
    with StubServer(more={"choices": [choice]}) as server:
        (reply,), tally = _ask([_request(choices=("1", "3"))], base_url=server.url, max_tries=2)
    assert isinstance(reply, CallFailed) and tally.troubles == {"no answer in the JSON": 2}


def test_a_request_is_given_up_after_its_tries_and_the_others_are_not() -> None:
    with StubServer(faults=lambda number: "500" if number % 2 == 0 else None) as server:
        replies, tally = _ask([_request(1), _request(2)], base_url=server.url, max_tries=1)
    assert {type(reply) for reply in replies} == {Reply, CallFailed}
    assert tally.failed == 1 and tally.tries == 2


def test_what_the_server_will_never_take_is_not_sent_again() -> None:
    with StubServer(faults=lambda number: "400") as server:
        (error,), tally = _ask([_request()], base_url=server.url)
    assert isinstance(error, Unanswerable) and "too long for the model" in str(error) and tally.tries == 1


def test_retry_after_is_honoured() -> None:
    """The stub's 429 asks for 0.2 s, far longer than the first wait of 0.01 s."""
    with StubServer(faults=lambda number: "429" if number == 0 else None) as server:
        started = time.monotonic()
        (reply,), _ = _ask([_request()], base_url=server.url)
    assert isinstance(reply, Reply) and time.monotonic() - started >= 0.2


def test_a_refused_key_is_the_users_to_mend_and_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "sk-secret")
    with StubServer(faults=lambda number: "401") as server:
        (error,), tally = _ask([_request()], base_url=server.url, api_key_env="SOME_KEY")
        assert server.headers[0]["authorization"] == "Bearer sk-secret"
    assert isinstance(error, InputError) and "api_key_env" in str(error)
    assert "sk-secret" not in str(error) + tallies_table({"teacher": tally})


def test_a_key_that_is_not_set_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOME_KEY", raising=False)
    with pytest.raises(InputError, match=r"models\.teacher\.api_key_env: .* SOME_KEY is not set"):
        _ask([_request()], base_url="http://127.0.0.1:9", api_key_env="SOME_KEY")


def test_a_key_is_taken_without_white_space_around_it_and_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys from files end in line breaks; one within it would make the client quote the key in its error."""
    monkeypatch.setenv("SOME_KEY", " sk-secret\n")
    with StubServer() as server:
        _ask([_request()], base_url=server.url, api_key_env="SOME_KEY")
        assert server.headers[0]["authorization"] == "Bearer sk-secret"
    for key in ("sk-se\ncret", "sk-s\u00e9cret", "sk-se\x07cret", "two words"):
        monkeypatch.setenv("SOME_KEY", key)
        with pytest.raises(InputError, match="SOME_KEY holds [0-9]+ characters") as error:
            _ask([_request()], base_url="http://127.0.0.1:9/v1", api_key_env="SOME_KEY")
        assert "cret" not in str(error.value) and "words" not in str(error.value)


def test_an_address_where_nobody_answers_is_the_users_to_mend() -> None:
    (error,), tally = _ask([_request()], base_url="http://127.0.0.1:9/v1")
    assert isinstance(error, InputError) and "nobody answers at http://127.0.0.1:9/v1" in str(error)
    assert tally.tries == 3


def test_that_nobody_answers_is_said_after_three_refusals_however_many_ask() -> None:
    """What is refused together is one refusal: 3 times the 8 in flight, not 3 times each of 40, ever slower."""
    tally = Tally()

    async def ask_until_one_fails() -> set[type[BaseException]]:
        options = ModelOptions(model="m", base_url="http://127.0.0.1:9/v1", **QUICK)
        endpoint = OpenAIEndpoint(options, name="teacher", tally=tally)
        asked = [asyncio.create_task(endpoint.reply(_request(number))) for number in range(40)]
        done, waiting = await asyncio.wait(asked, return_when=asyncio.FIRST_EXCEPTION)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        await endpoint.close()
        return {type(task.exception()) for task in done}

    assert asyncio.run(ask_until_one_fails()) == {InputError}
    assert tally.tries <= 24


def test_requests_in_flight_stay_at_the_limit() -> None:
    with StubServer(latency=0.1) as server:
        replies, tally = _ask([_request(number) for number in range(80)], base_url=server.url)
    assert all(isinstance(reply, Reply) for reply in replies)
    assert server.most_in_flight == 8 == tally.most_in_flight
    assert tally.mean_in_flight() > 4  # on a busy machine, opening the connections included


def test_requests_spread_over_servers_and_a_dead_one_is_passed_by() -> None:
    with StubServer(latency=0.01) as first, StubServer(latency=0.01) as second:
        servers = [first.url, second.url, "http://127.0.0.1:9/v1"]
        replies, tally = _ask([_request(number) for number in range(60)], base_url=servers, concurrency=4, max_tries=20)
        assert all(isinstance(reply, Reply) for reply in replies)
        assert first.num_requests + second.num_requests == 60
        assert min(first.num_requests, second.num_requests) >= 20
    assert set(tally.troubles) == {"no connection"}


@pytest.mark.parametrize("fault", ["500", "429", "garbage", "drop"])
def test_a_broken_server_that_is_quick_does_not_draw_the_requests_to_itself(fault: str) -> None:
    """It has the fewest in flight at any time; of two, one like this made half of all requests fail."""
    with StubServer(latency=0.05) as good, StubServer(faults=lambda number: fault) as bad:
        bad.retry_after = 0
        requests = [_request(number) for number in range(200)]
        replies, _ = _ask(requests, base_url=[bad.url, good.url], retry_seconds=0.05)
    assert all(isinstance(reply, Reply) for reply in replies) and good.num_requests == 200
    assert bad.num_requests < 100  # it is tried ever more rarely, by 8 at a time


def test_a_server_that_goes_and_comes_is_said_once_each_time(capsys) -> None:
    """Nothing moves meanwhile: whoever looks at the progress bar has to know why."""
    with StubServer(faults=lambda number: "500" if 4 <= number < 10 else None) as server:
        _ask([_request(number) for number in range(8)], base_url=server.url, concurrency=1, max_tries=20)
    said = capsys.readouterr().err.splitlines()
    assert [line.split("/v1 ")[1] for line in said] == [
        "gives no answer (500); it rests and is asked again, ever more rarely",
        "answers again",
    ]


def test_a_server_that_is_well_does_not_rest_for_a_single_refusal() -> None:
    """One in 20 is told to wait, for 0.5 s at least: the other 190, 8 at a time, take 24 x 0.02 s beside them."""
    with StubServer(latency=0.02, faults=lambda number: "429" if number % 20 == 10 else None) as server:
        server.retry_after = 0
        started = time.monotonic()
        replies, tally = _ask([_request(number) for number in range(200)], base_url=server.url, retry_seconds=1.0)
    assert all(isinstance(reply, Reply) for reply in replies) and 9 <= tally.troubles["429"] <= 12
    assert time.monotonic() - started < 4.5  # resting for each would take 10 x 0.75 s


@pytest.mark.parametrize("fault", ["401", "404", "402"])
def test_a_server_of_several_that_refuses_everybody_is_left_out_and_named(fault: str, capsys) -> None:
    """One of two nodes serves another model, say: the other one answers all, and each address is asked 4 at most."""
    with StubServer(latency=0.01) as good, StubServer(faults=lambda number: fault) as bad:
        requests = [_request(number) for number in range(40)]
        replies, tally = _ask(requests, base_url=[bad.url, good.url], concurrency=4)
    assert all(isinstance(reply, Reply) for reply in replies)
    assert good.num_requests == 40 and bad.num_requests == tally.troubles[fault] <= 4
    said = capsys.readouterr().err
    assert said.count(f"{bad.url} says {fault}") == 1 and "this server is asked no more" in said and "rests" not in said


def test_an_address_without_its_version_is_the_users_to_mend() -> None:
    """`http://host:8000` for `http://host:8000/v1`: servers say 404, as they do to a model that they do not serve."""
    with StubServer(faults=lambda number: "404") as server:
        (error,), _ = _ask([_request()], base_url=server.url.removesuffix("/v1"))
    assert isinstance(error, InputError) and "up to and with /v1" in str(error) and "to model 'm'" in str(error)


@pytest.mark.parametrize("num_servers", [1, 2])
@pytest.mark.parametrize(("fault", "error"), [("404", InputError), ("402", Unfinished), ("quota", Unfinished)])
def test_where_all_servers_refuse_everybody_nobody_waits_for_more(
    fault: str, error: type[Exception], num_servers: int
) -> None:
    with StubServer(faults=lambda number: fault) as first, StubServer(faults=lambda number: fault) as second:
        servers = [first.url, second.url][:num_servers]
        replies, tally = _ask([_request(number) for number in range(40)], base_url=servers, concurrency=4)
    assert {type(reply) for reply in replies} == {error} and tally.tries <= 8
    assert ("no credit left" in str(replies[0])) == (error is Unfinished)


def test_one_question_that_is_forbidden_ends_nothing() -> None:
    """Services say 403 to a text that their moderation does not like."""
    with StubServer(faults=lambda number: "403" if number == 1 else None) as server:
        replies, _ = _ask([_request(number) for number in range(6)], base_url=server.url, concurrency=1)
    assert [type(reply) for reply in replies] == [Reply, Unanswerable, Reply, Reply, Reply, Reply]
    assert "your input was flagged" in str(replies[1])


def test_servers_that_answer_nobody_any_more_end_the_asking_with_what_they_said() -> None:
    """16 requests are ready at a time (2 x 8): when so many are given up in a row, the run is not to go on in vain."""
    with StubServer(faults=lambda number: "500" if number >= 8 else None) as server:
        requests = [_request(number) for number in range(24)]
        replies, _ = _ask(requests, base_url=server.url, max_tries=2)
    kinds = [type(reply) for reply in replies]
    assert kinds.count(Reply) == 8 and kinds.count(CallFailed) == 15 and kinds.count(Unfinished) == 1
    last = next(reply for reply in replies if isinstance(reply, Unfinished))
    assert "models.teacher: 16 requests in a row got no answer, the last: 500" in str(last) and "oops" in str(last)


def test_a_field_that_a_service_refuses_can_be_left_out() -> None:
    with StubServer() as server:
        _ask([_request()], base_url=server.url, extra_body={"seed": None, "top_p": None, "top_k": 7})
        assert set(server.bodies[0]) == {"model", "messages", "temperature", "max_tokens", "top_k"}


def test_limits_per_minute_space_the_requests() -> None:
    """600 a minute is one in 0.1 s: the fifth goes out 0.4 s after the first."""
    with StubServer() as server:
        started = time.monotonic()
        _ask([_request(number) for number in range(5)], base_url=server.url, requests_per_minute=600)
        assert time.monotonic() - started >= 0.4
        started = time.monotonic()  # 16 tokens of the answer and 6 of the prompt, at 6600 a minute: 0.2 s
        _ask([_request(number) for number in range(3)], base_url=server.url, tokens_per_minute=6600)
        assert time.monotonic() - started >= 0.35


def test_limits_per_minute_hold_after_a_server_has_rested() -> None:
    """One is told to wait 1 s, and all with it; behind it they go out one in 0.05 s, not at once."""
    times: list[float] = []

    def fault(number: int) -> str | None:
        times.append(time.monotonic())
        return "429" if number == 0 else None

    with StubServer(faults=fault) as server:
        server.retry_after = 1.0
        _ask([_request(number) for number in range(16)], base_url=server.url, requests_per_minute=1200)
    assert times[1] - times[0] >= 0.95
    assert times[16] - times[1] >= 15 * 0.05 - 0.1 and len(times) == 17


@pytest.mark.parametrize(
    ("fault", "options"),
    [("500", {"retry_seconds": 60.0}), ("429", {}), (None, {"requests_per_minute": 1}), (None, {"concurrency": 1})],
    ids=["waits to try again", "waits for the server", "waits for the limit", "waits for a slot"],
)
def test_nobody_waits_to_begin_a_call_once_a_stop_is_asked_for(fault: str | None, options: dict[str, Any]) -> None:
    async def ask() -> float:
        tally, stop = Tally(), Stop()
        choices = ModelOptions(model="m", base_url=server.url, **{**QUICK, **options})
        endpoint = OpenAIEndpoint(choices, name="teacher", tally=tally, stop=stop)
        calls = [asyncio.create_task(endpoint.reply(_request(number))) for number in range(4)]
        while not tally.troubles and not (fault is None and tally.in_flight):
            await asyncio.sleep(0.01)
        started = time.monotonic()
        stop.ask(KeyboardInterrupt())
        replies = await asyncio.gather(*calls, return_exceptions=True)
        assert sum(isinstance(reply, Stopped) for reply in replies) >= 3, replies
        await endpoint.close()
        return time.monotonic() - started

    with StubServer(faults=lambda number: fault, latency=0.2) as server:
        server.retry_after = 30.0
        assert asyncio.run(ask()) < 5


def test_what_is_asked_is_what_was_meant() -> None:
    schema = AnswerSchema("ratings", {"type": "object"})
    with StubServer(answer=lambda body: "{}") as server:
        _ask([_request(3, schema=schema, temperature=0.5, top_p=0.9)], base_url=server.url, extra_body={"top_k": 7})
        _ask([_request(schema=schema)], base_url=server.url, response_format="json_object")
        _ask([_request(schema=schema)], base_url=server.url, response_format="none")
        _ask([_request()], base_url=server.url, max_tokens_field="max_completion_tokens")
        bodies = server.bodies
    assert bodies[0] == {
        "model": "m",
        "messages": [{"role": "user", "content": "Question 3"}],
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 3,
        "max_tokens": 16,
        "top_k": 7,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "ratings", "strict": True, "schema": {"type": "object"}},
        },
    }
    assert bodies[1]["response_format"] == {"type": "json_object"} and "response_format" not in bodies[2]
    assert "max_tokens" not in bodies[3] and bodies[3]["max_completion_tokens"] == 16
