"""A chat server over HTTP without a model: it answers as a function says, and fails as told. A stand-in for vLLM."""

import json
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Fault = tuple[str, Any]


def drip(handler: BaseHTTPRequestHandler):
    """Begin an answer and send a byte now and then, for ever: no read of it ever takes long."""
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.end_headers()
    handler.close_connection = True
    with suppress(BrokenPipeError, ConnectionResetError):
        while True:
            handler.wfile.write(b" ")
            time.sleep(0.05)


class FakeJudgeServer:
    """Serve `answer(body) -> text` at `/v1/chat/completions`, as a context.

    `fault(number, body)` may return what goes wrong with the request of that number (from 0): `("status", 500)`,
    `("busy", seconds)` (HTTP 429 with Retry-After), `("body", text)` (HTTP 200 with that body), `("text", text)` (a
    whole completion with that answer), `("cut", text)` (the same, its tokens used up), `("late", seconds)`,
    `("hang up", None)`, `("error", (400, text))` (that status, with the text as its message).
    """

    def __init__(
        self, answer: Callable[[dict], str], fault: Callable[[int, dict], Fault | None] | None = None, port=0
    ):
        self.answer, self.fault, self.bodies, self.headers = answer, fault or (lambda number, body: None), [], []
        self.running = self.most_running = 0
        self._lock, fake = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            def do_GET(self):
                self.reply(200, {"object": "list", "data": [{"id": "fake", "object": "model"}]})

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with fake._lock:
                    number = len(fake.bodies)
                    fake.bodies.append(body)
                    fake.headers.append({name.lower(): value for name, value in self.headers.items()})
                    fake.running += 1
                    fake.most_running = max(fake.most_running, fake.running)
                try:
                    self.respond(fake.fault(number, body), body)
                finally:
                    with fake._lock:
                        fake.running -= 1

            def respond(self, fault, body):
                kind, value = fault or (None, None)
                if kind == "late":
                    time.sleep(value)
                if kind == "hang up":
                    self.close_connection = True
                elif kind == "status":
                    self.reply(value, {"error": {"message": f"told to answer {value}"}})
                elif kind == "error":
                    self.reply(value[0], {"error": {"message": value[1]}})
                elif kind == "busy":
                    self.reply(429, {"error": {"message": "too many"}}, {"Retry-After": str(value)})
                elif kind == "body":
                    self.reply(200, value)
                else:
                    text = value if kind in ("text", "cut") else fake.answer(body)
                    self.reply(200, completion(text, "length" if kind == "cut" else "stop"))

            def reply(self, status, value, headers=()):
                data = (value if isinstance(value, str) else json.dumps(value)).encode()
                try:
                    self.send_response(status)
                    for name, content in {"Content-Type": "application/json", **dict(headers)}.items():
                        self.send_header(name, content)
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True  # the client did not wait

        class Server(ThreadingHTTPServer):
            request_queue_size, daemon_threads = 256, True

        self._server = Server(("127.0.0.1", port), Handler)
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *error):
        self._server.shutdown()
        self._server.server_close()


def completion(text: str | None, finish_reason: str = "stop") -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": finish_reason}
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    return {"id": "1", "object": "chat.completion", "created": 0, "model": "fake", "choices": [choice], "usage": usage}
