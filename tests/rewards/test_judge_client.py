"""The client of a judge's server, against a real HTTP server that fails in every way it was asked to."""

import json
import re
import socket
import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from unittest.mock import patch

import pytest

from metatune.rewards import judge_client, own_loop, retries
from metatune.rewards.chat_replies import requested_wait
from metatune.rewards.judge_client import JudgeClient, JudgeError

from .fake_judge_server import FakeJudgeServer, completion, drip


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(judge_client, "LONGEST_PAUSE", 0.02)


def chat(text):
    return [{"role": "user", "content": str(text)}]


def echo(body):
    return body["messages"][-1]["content"]


def client(server, **options):
    return JudgeClient(server if isinstance(server, str) else server.url, **{"timeout": 5.0, **options})


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_answers_in_order_and_no_more_at_a_time_than_allowed():
    with FakeJudgeServer(echo, lambda number, body: ("late", 0.02)) as server:
        replies = client(server, max_concurrency=3).complete([chat(i) for i in range(20)])
        assert [reply.text for reply in replies] == [str(i) for i in range(20)]
        assert all(
            reply.failure is None and (reply.prompt_tokens, reply.completion_tokens) == (7, 3) for reply in replies
        )
        assert server.most_running == 3
        assert client(server).complete([]) == []


def test_what_a_request_says(monkeypatch):
    monkeypatch.setenv("KEY_OF_THE_JUDGE", "secret")
    schema = {"type": "object", "properties": {}}
    with FakeJudgeServer(echo) as server:
        options = {"temperature": 0.3, "max_tokens": 9, "extra_body": {"top_k": 5}}
        client(server, api_key_variable="KEY_OF_THE_JUDGE", **options).complete([chat("a")], schema=schema)
        client(server, structured="none").complete([chat("a")], schema=schema, temperature=0.7)
    first, second = server.bodies
    assert (first["model"], first["temperature"], first["max_tokens"], first["top_k"]) == ("fake", 0.3, 9, 5)
    assert first["response_format"]["json_schema"]["schema"] == schema
    assert server.headers[0]["authorization"] == "Bearer secret"
    assert "response_format" not in second and second["temperature"] == 0.7
    assert "secret" not in repr(vars(client(server, api_key_variable="KEY_OF_THE_JUDGE")))


@pytest.mark.parametrize(
    ("fault", "failure", "detail", "tries"),
    [
        (("status", 500), "server_error", "told to answer 500", 3),
        (("busy", 0), "rate_limit", "too many", 3),
        (("status", 400), "refused", "told to answer 400", 1),
        (("body", "<html>Bad gateway</html>"), "bad_reply", "", 3),
        (("body", json.dumps(completion("yes"))[:60]), "bad_reply", "", 3),
        (("body", "[]"), "bad_reply", "", 3),
        (("body", '{"choices": null}'), "bad_reply", "not a chat completion", 3),
        (("body", '{"choices": []}'), "empty", "without text", 1),
        (("body", json.dumps(completion(None))), "empty", "without text", 1),
        (("text", " \n"), "empty", "without text", 1),
        (("cut", "half a"), "truncated", "raise max_tokens", 1),
        (("late", 1.0), "timeout", "", 3),
        (("hang up", None), "connection", "", 3),
    ],
)
def test_every_fault_is_told_by_its_cause(fault, failure, detail, tries):
    with FakeJudgeServer(echo, lambda number, body: fault) as server:
        (reply,) = client(server, retries=2, timeout=0.3).complete([chat("a")])
    assert reply.failure == failure and detail in reply.detail
    assert reply.text == ("half a" if failure == "truncated" else None)
    assert len(server.bodies) == tries


def test_what_passes_is_tried_again():
    faults = [("status", 503), ("body", "{"), ("hang up", None)]
    with FakeJudgeServer(echo, lambda number, body: faults[number] if number < 3 else None) as server:
        (reply,) = client(server).complete([chat("a")])
    assert (reply.text, reply.failure) == ("a", None)


def test_a_busy_server_is_left_alone_for_as_long_as_it_asks():
    with FakeJudgeServer(echo, lambda number, body: ("busy", 0.4) if number == 0 else None) as server:
        started = time.monotonic()
        assert client(server).complete([chat("a")])[0].text == "a"
        assert time.monotonic() - started >= 0.4
        (reply,) = client(server, deadline=0.2).complete([chat("b")])
        assert reply.text == "b"
    with FakeJudgeServer(echo, lambda number, body: ("busy", 100)) as server:
        assert client(server, deadline=1.0).complete([chat("a")])[0].failure == "rate_limit", "no use in waiting"


def test_a_deadline_ends_the_retries():
    with FakeJudgeServer(echo, lambda number, body: ("late", 10.0)) as server:
        started = time.monotonic()
        (reply,) = client(server, timeout=0.2, deadline=0.5, retries=100).complete([chat("a")])
        assert reply.failure == "timeout" and time.monotonic() - started < 2


def test_a_request_that_fails_touches_no_other():
    def fault(number, body):
        return {"1": ("status", 400), "3": ("cut", "x"), "5": ("status", 500)}.get(echo(body))

    with FakeJudgeServer(echo, fault) as server:
        replies = client(server, retries=1).complete([chat(i) for i in range(8)])
    assert [reply.failure for reply in replies] == [
        None,
        "refused",
        None,
        "truncated",
        None,
        "server_error",
        None,
        None,
    ]
    assert [reply.text for reply in replies if reply.failure is None] == ["0", "2", "4", "6", "7"]


def test_a_request_that_fails_touches_no_other_where_they_run_one_by_one():
    with FakeJudgeServer(echo, lambda number, body: ("status", 500) if echo(body) in "13" else None) as server:
        replies = client(server, retries=1, max_concurrency=1).complete([chat(i) for i in range(5)])
    assert [reply.text for reply in replies] == ["0", None, "2", None, "4"]


def test_a_dead_server_costs_a_few_deadlines_and_not_all():
    dead = client(f"http://127.0.0.1:{free_port()}/v1", model="fake", max_concurrency=4, retries=1)
    with patch.object(JudgeClient, "_persist", autospec=True, side_effect=JudgeClient._persist) as persist:
        replies = dead.complete([chat(i) for i in range(1000)])
    assert {reply.failure for reply in replies} == {"connection"} and len(replies) == 1000
    assert persist.call_count <= 8


def test_a_server_that_dies_in_mid_batch_and_returns_loses_nothing():
    port = free_port()
    dead = threading.Event()

    def fault(number, body):
        if number == 30:
            dead.set()
        return ("hang up", None) if dead.is_set() else None

    asked = client(f"http://127.0.0.1:{port}/v1", model="fake", max_concurrency=4, retries=50)
    found = []
    with FakeJudgeServer(echo, fault, port):
        thread = threading.Thread(target=lambda: found.extend(asked.complete([chat(i) for i in range(100)])))
        thread.start()
        dead.wait(10)
    with FakeJudgeServer(echo, None, port):
        thread.join(20)
    assert [reply.text for reply in found] == [str(i) for i in range(100)]


def test_an_interrupt_leaves_no_request_behind():
    with FakeJudgeServer(echo, lambda number, body: ("late", 0.5)) as server:
        asked = client(server, model="fake")
        interrupted = patch.object(judge_client.asyncio, "run_coroutine_threadsafe", side_effect=_interrupted())
        with interrupted, pytest.raises(KeyboardInterrupt):
            asked.complete([chat("a")])
        assert not [thread for thread in threading.enumerate() if thread.name == own_loop.NAME]
        assert asked.complete([chat("b")])[0].text == "b"


def _interrupted():
    """Make the wait for the first result end as Ctrl-C ends it."""
    real, calls = judge_client.asyncio.run_coroutine_threadsafe, []

    def run(coroutine, loop):
        future = real(coroutine, loop)
        calls.append(future)
        if len(calls) == 1:
            time.sleep(0.1)
            future.result = lambda: (_ for _ in ()).throw(KeyboardInterrupt)
        return future

    return run


def test_inside_of_another_loop():
    import asyncio

    async def notebook(asked):
        return asked.complete([chat("a")])

    with FakeJudgeServer(echo) as server:
        assert asyncio.run(notebook(client(server)))[0].text == "a"


def test_what_is_served():
    with FakeJudgeServer(echo) as server:
        asked = client(server)
        asked.check()
        assert asked.model == "fake"
        with pytest.raises(JudgeError, match="serves fake, not other"):
            client(server, model="other").check()
    with pytest.raises(
        JudgeError, match=r"cannot use the judge's server at .* \(connection: .*start it with `vllm serve"
    ):
        client(server).check()


@pytest.mark.timeout(20)
@pytest.mark.parametrize("method", ["do_GET", "do_POST"])
def test_a_server_that_never_ends_its_answer(method):
    with FakeJudgeServer(echo) as server:
        setattr(server._server.RequestHandlerClass, method, drip)
        asked = client(server, timeout=0.3, retries=0)
        if method == "do_POST":
            assert asked.complete([chat("a")])[0].failure == "timeout"
        else:
            with pytest.raises(JudgeError, match=r"cannot use the judge's server at .* \(timeout"):
                asked.check()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timeout": 0}, "timeout must be above 0"),
        ({"max_concurrency": 0}, "max_concurrency must be above 0"),
        ({"retries": -1}, "retries must be a number of at least 0, not -1"),
        ({"temperature": float("nan")}, "temperature must be a number of at least 0, not nan"),
        ({"structured": "yes"}, "structured is one of json_schema, none"),
        ({"api_key_variable": "NOT_SET_ANYWHERE"}, "NOT_SET_ANYWHERE, which holds the judge's key, is not set"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        JudgeClient("http://127.0.0.1:1/v1", **options)


@pytest.mark.parametrize(
    ("message", "text", "failure"),
    [
        ({"content": [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]}, "a b", None),
        ({"content": [{"type": "thinking", "thinking": "no"}, {"type": "text", "text": "b"}]}, "b", None),
        ({"content": [{"type": "reasoning", "text": "no"}]}, None, "empty"),
        ({"content": None, "reasoning_content": "all of it"}, "all of it", None),
        ({"content": "", "reasoning": "all of it"}, "all of it", None),
        ({"content": "b", "reasoning_content": "thoughts"}, "b", None),
        ({"content": None, "refusal": "I cannot help with that."}, None, "refusal"),
        ({"content": [{"type": "refusal", "refusal": "I cannot help with that."}]}, None, "refusal"),
    ],
)
def test_forms_of_a_message(message, text, failure):
    body = completion("x")
    body["choices"][0]["message"] = {"role": "assistant", **message}
    with FakeJudgeServer(echo, lambda number, request: ("body", json.dumps(body))) as server:
        (reply,) = client(server).complete([chat("a")])
    assert (reply.text, reply.failure) == (text, failure)
    assert failure != "refusal" or "I cannot help with that." in reply.detail


def test_an_answer_that_a_content_filter_holds_back_is_a_refusal():
    body = json.dumps(completion(None, "content_filter"))
    with FakeJudgeServer(echo, lambda number, request: ("body", body)) as server:
        (reply,) = client(server).complete([chat("a")])
    assert (reply.failure, reply.tries) == ("refusal", 1)


def test_fields_that_hosted_models_rename_or_refuse():
    with FakeJudgeServer(echo) as server:
        options = {"max_tokens": 50, "max_tokens_field": "max_completion_tokens", "temperature": None}
        client(server, **options).complete([chat("a")], temperature=0.7)
    (body,) = server.bodies
    assert body["max_completion_tokens"] == 50 and not {"max_tokens", "temperature"} & set(body)


@pytest.mark.parametrize(
    ("words", "options", "advice"),
    [
        ("Unsupported parameter: 'max_tokens'", {}, "set `max_tokens_field: max_completion_tokens`"),
        (
            "Unrecognized request argument: max_completion_tokens",
            {"max_tokens_field": "max_completion_tokens"},
            "set `max_tokens_field: max_tokens`",
        ),
        ("'temperature' does not support 0.0 with this model", {}, "set `temperature: null`"),
        ("This response_format type is unavailable now", {}, "set `structured: none`"),
        ("Unrecognized request argument supplied: top_k", {"extra_body": {"top_k": 1}}, "`top_k` in `extra_body`"),
        ("This model's maximum context length is 4096 tokens", {}, "lower `max_prompt_characters`"),
    ],
)
def test_a_refused_field_names_the_option_that_fixes_it(words, options, advice):
    with FakeJudgeServer(echo, lambda number, body: ("error", (400, words))) as server:
        problem = client(server, **options).probe()
    assert "400 Bad Request: " + words in problem and advice in problem


@pytest.mark.parametrize(
    ("fault", "problem"),
    [
        (None, None),
        (("busy", 30), None),
        (("cut", "{"), None),
        (
            ("error", (401, "Incorrect API key provided: sk-secret")),
            "401 Unauthorized: Incorrect API key provided: [key]",
        ),
        (("error", (404, "The model `fake` does not exist")), "404 Not Found: The model `fake` does not exist"),
        (("status", 500), "500 Internal Server Error: told to answer 500"),
        (("body", "<html><title>Sign in</title></html>"), "not JSON: a web page, 'Sign in'"),
        (("body", json.dumps({"error": {"message": "No credit", "code": 402}})), "402 Payment Required: No credit"),
        (("late", 1.0), "timeout: no answer in 0.3 s"),
    ],
)
def test_a_probe_is_one_chat_with_the_key(monkeypatch, fault, problem):
    monkeypatch.setenv("KEY_OF_THE_JUDGE", "sk-secret\n")
    with FakeJudgeServer(echo, lambda number, body: fault) as server:
        found = client(server, model="fake", api_key_variable="KEY_OF_THE_JUDGE").probe(
            timeout=0.3 if fault and fault[0] == "late" else 5.0
        )
    assert len(server.bodies) == 1 and server.headers[0]["authorization"] == "Bearer sk-secret"
    assert found is None if problem is None else problem in found


def test_a_server_without_a_list_of_models_needs_the_model_s_name():
    with FakeJudgeServer(echo) as server:
        server._server.RequestHandlerClass.do_GET = lambda handler: handler.reply(404, {"detail": "Not Found"})
        client(server, model="fake").check()
        with pytest.raises(JudgeError, match=r"cannot use the judge's server .*404 Not Found"):
            client(server).check()


def test_a_wrong_key_is_noticed_before_the_first_batch_though_the_models_are_listed(monkeypatch):
    monkeypatch.setenv("KEY_OF_THE_JUDGE", "wrong")
    said = r"401 Unauthorized: no such key\); check the key in .* KEY_OF_THE_JUDGE"
    refused = FakeJudgeServer(echo, lambda number, body: ("error", (401, "no such key")))
    with refused as server, pytest.raises(JudgeError, match=said):
        client(server, api_key_variable="KEY_OF_THE_JUDGE").check()


@pytest.mark.parametrize("value", ["sk-\N{EM DASH}", "sk a\nb"])
def test_a_key_that_cannot_be_sent_is_refused_without_its_value(monkeypatch, value):
    monkeypatch.setenv("KEY_OF_THE_JUDGE", value)
    with pytest.raises(ValueError, match="KEY_OF_THE_JUDGE, which holds the judge's key, has invalid") as refused:
        client("http://127.0.0.1:1/v1", api_key_variable="KEY_OF_THE_JUDGE")
    assert value not in str(refused.value)
    with pytest.raises(ValueError, match="the name of an environment variable, such as OPENAI_API_KEY") as refused:
        client("http://127.0.0.1:1/v1", api_key_variable="sk-12")
    assert "sk-12" not in str(refused.value)


def test_a_wait_is_logged_at_the_first_retry_and_from_time_to_time(monkeypatch, caplog):
    monkeypatch.setattr(retries, "REPORT_EVERY", 0.1)
    with FakeJudgeServer(echo, lambda number, body: ("status", 503) if number < 4 else ("late", 0.3)) as server:
        client(server, max_concurrency=2).complete([chat(i) for i in range(2)])
    first, *later = caplog.messages
    assert first.startswith(f"judge ({server.url}, model fake): try 1 of 11 failed: server_error, 503 Service Unavai")
    assert re.search(r"0 of 2 requests done after \d s; last failure: server_error, 503 .* \(try \d of 11\)", later[0])
    caplog.clear()
    with FakeJudgeServer(echo, lambda number, body: ("late", 0.15)) as server:
        client(server).complete([chat("a")])
    assert re.search(r"0 of 1 requests done after \d s; no answer yet$", caplog.messages[0])


def test_a_wait_that_a_server_asks_for_as_a_date_or_in_milliseconds():
    later = datetime.now(UTC) + timedelta(seconds=60)
    assert 50 < requested_wait({"retry-after": format_datetime(later, usegmt=True)}) <= 60
    assert requested_wait({"retry-after-ms": "1500", "retry-after": "2"}) == 1.5
    assert requested_wait({"retry-after": "soon"}) is None and requested_wait({}) is None
