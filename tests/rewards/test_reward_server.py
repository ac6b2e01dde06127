"""Reward models behind HTTP: a real vLLM pooling server agrees with transformers; failures are errors, never rewards.

What a healthy server does not do is played by a fake one, over real HTTP.
"""

import json
import socket
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from metatune.rewards import reward_server
from metatune.rewards.reward_model import RewardModel
from metatune.rewards.reward_server import RewardServer, RewardServerError

from .fake_judge_server import drip
from .test_reward_model import CONVERSATIONS, TEXTS, tiny_model
from .vllm_server import kill, vllm_server


class FakePoolingServer(ThreadingHTTPServer):
    """Answers as vLLM 0.31 does (recorded), rewarding a response with its first token; `failures` come first.

    A failure is a status with its body, seconds of silence before the answer, or `None` for none.
    """

    def __init__(self, model: str, num_labels: int = 1):
        super().__init__(("127.0.0.1", 0), FakeHandler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.models, self.num_labels = [model], num_labels
        self.failures: list[tuple[int, dict] | float | None] = []
        self.requests: list[dict] = []


class FakeHandler(BaseHTTPRequestHandler):
    def answer(self, body, status: int = 200) -> None:
        text = json.dumps(body).encode()
        self.send_response(status)
        self.end_headers()
        with suppress(BrokenPipeError):
            self.wfile.write(text)

    def do_GET(self):
        models = [{"id": name, "object": "model", "root": name, "max_model_len": 48} for name in self.server.models]
        self.answer({"object": "list", "data": models})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append(body)
        failure = self.server.failures.pop(0) if self.server.failures else None
        if isinstance(failure, tuple):
            return self.answer(failure[1], failure[0])
        time.sleep(failure or 0)
        rows = [
            {"index": row, "label": None, "probs": [float(ids[0])] * self.server.num_labels, "num_classes": 1}
            for row, ids in enumerate(body["input"])
        ]
        self.answer({"id": "classify-1", "object": "list", "model": body["model"], "data": rows[::-1]})

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("reward-model"), num_labels=1)


@pytest.fixture
def fake(folder, monkeypatch):
    monkeypatch.setattr(reward_server, "PAUSES", (0.01, 0.01))
    server = FakePoolingServer(str(folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_a_request_asks_for_raw_rewards_of_tokens_in_their_order(fake):
    client = RewardServer(fake.url + "/", batch_size=2)
    first = [ids[0] for ids in (client.tokenizer("1")["input_ids"], client.tokenizer("2")["input_ids"])]
    assert first[0] != first[1]
    assert client.score(["1", "2", "1"], ["", "", ""]).tolist() == [first[0], first[1], first[0]]
    assert [len(request["input"]) for request in fake.requests] == [2, 1]
    assert all(request["use_activation"] is False for request in fake.requests)
    assert client.score([], []).shape == (0,)


def test_the_servers_length_bounds_a_response(fake):
    client = RewardServer(fake.url)
    assert client.max_length == 48
    assert np.isnan(client.score(["1", "1"], ["2", "7 " * 60])).tolist() == [False, True] and client.num_too_long == 1
    assert [len(request["input"]) for request in fake.requests] == [1]


def test_what_passes_is_tried_again(fake):
    client = RewardServer(fake.url, timeout=0.3)
    fake.failures = [(500, {"error": {"message": "engine"}}), 1.0]
    assert np.isfinite(client.score(["1"], ["2"]))[0] and len(fake.requests) == 3


def test_what_does_not_pass_is_an_error_and_no_reward(fake):
    client = RewardServer(fake.url, retries=2)
    fake.failures = [(503, {})] * 3
    with pytest.raises(RewardServerError, match=f"at {fake.url}/classify, tried 3 times .HTTP 503"):
        client.score(["1"], ["2"])
    fake.failures = [(400, {"error": {"message": "Token id 99 is out of vocabulary"}})]
    with pytest.raises(RewardServerError, match=r"HTTP 400: Token id 99 is out of vocabulary\)"):
        client.score(["1"], ["2"])
    fake.failures = [(200, {"data": []})]
    with pytest.raises(RewardServerError, match="scored 0 responses of the 1 it was sent"):
        client.score(["1"], ["2"])
    fake.failures = [(200, {"detail": "hello"})]
    with pytest.raises(RewardServerError, match="an answer that is not vLLM's"):
        client.score(["1"], ["2"])
    for row in ("x", {"index": 0}, {"index": 0, "probs": None}, {"index": 0, "probs": ["high"]}):
        fake.failures = [(200, {"data": [row]})]
        with pytest.raises(RewardServerError, match="an answer that is not vLLM's"):
            client.score(["1"], ["2"])
    fake.num_labels = 2
    with pytest.raises(RewardServerError, match="is no reward model: it has 2 labels"):
        client.score(["1"], ["2"])


@pytest.mark.timeout(20)
def test_a_server_that_never_ends_its_answer(fake, monkeypatch):
    client = RewardServer(fake.url, timeout=0.3, retries=2)
    monkeypatch.setattr(FakeHandler, "do_POST", drip)
    with pytest.raises(RewardServerError, match=r"tried 3 times \(no complete answer in 0.3 s\)"):
        client.score(["1"], ["2"])


def test_nobody_listens(monkeypatch):
    monkeypatch.setattr(reward_server, "PAUSES", (0.01, 0.01))
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(RewardServerError, match=rf"{url}/v1/models, tried 3 times .*vllm serve MODEL"):
            RewardServer(url, retries=2)
    with pytest.raises(RewardServerError, match=r"at not-a-url/v1/models \(its URL must start with http"):
        RewardServer("not-a-url")


def test_the_model_and_its_tokenizer_are_found(fake, folder):
    assert RewardServer(fake.url, model=str(folder)).model == str(folder)
    with pytest.raises(RewardServerError, match=r"serves .*, not other"):
        RewardServer(fake.url, model="other")
    fake.models = ["elsewhere/rm", "elsewhere/rm-2"]
    with pytest.raises(RewardServerError, match=r"serves elsewhere/rm, elsewhere/rm-2: name one of them as model"):
        RewardServer(fake.url)
    with pytest.raises(ValueError, match=r"tokenizer of elsewhere/rm, .*name the model's folder .* as tokenizer"):
        RewardServer(fake.url, model="elsewhere/rm")
    assert RewardServer(fake.url, model="elsewhere/rm", tokenizer=str(folder)).model == "elsewhere/rm"


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.needs("vllm")
def test_a_real_server_rewards_as_transformers_does(tmp_path, monkeypatch):
    """The token that ends a text also pads here, as in many models; transformers and vLLM read another one by it."""
    folder = tiny_model(tmp_path / "rm", num_labels=1, hidden_size=64, padded_by_end=True)
    with vllm_server(folder, tmp_path / "server.log", 48, "--runner", "pooling") as (url, process):
        model, client = RewardModel(folder, device="cpu"), RewardServer(url, retries=2)
        assert client.max_length == 48
        for pairs in (TEXTS, CONVERSATIONS):
            rewards = model.score(pairs["prompt"], pairs["rejected"])
            assert np.ptp(rewards) > 0.1
            assert client.score(pairs["prompt"], pairs["rejected"]) == pytest.approx(rewards, abs=1e-3)
            margins = model.score_pairs(pairs["chosen"], pairs["rejected"], pairs["prompt"])
            assert client.score_pairs(pairs["chosen"], pairs["rejected"], pairs["prompt"]) == pytest.approx(
                margins, abs=1e-3
            )
        longest = [10] * client.max_length
        assert client.score_ids([longest]) == pytest.approx(model.score_ids([longest]), abs=1e-3)
        monkeypatch.setattr(reward_server, "PAUSES", (0.1, 0.1))
        kill(process)
        with pytest.raises(RewardServerError, match="tried 3 times"):
            client.score(["1"], ["2"])
