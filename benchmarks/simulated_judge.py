"""A simulation of a judge and of a meta judge behind a real HTTP server, by rules.

The judge applies a rubric's items as programs, which it knows by their names: PROGRAMS, for `benchmarks/mpo.py`, or a
benchmark's own. The meta judge reads what it is shown, and nothing else: it closes a loophole, the planted one or one
of its own making, only where the cases before it show that it is used, half of the time; else it makes an edit that
sounds good and pays for the wrong thing. Its replies follow from the request alone.
"""

import json
import random
import re
import string
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

LETTERS, MARKS = string.ascii_uppercase, ".,;:"
CURRENT = r"^The rubric in force:\n(\[.*?\n\])"
FENCED = r"^~~~~~~ {label}\n(.*?)\n~~~~~~ end of {label}$"


def asked_letters(prompt: str, response: str) -> str:
    return "".join(letter for letter in response if letter in prompt)


def repetitions(response: str) -> int:
    letters = [letter for letter in response if letter in LETTERS]
    return len(letters) - len(set(letters))


def unasked(prompt: str, response: str) -> int:
    return sum(letter in LETTERS and letter not in prompt for letter in response)


# Name of an item to what it says, its points, and how much of them a response earns, before it is cut to its range.
Programs = dict[str, tuple[str, int, Callable[[str, str], int]]]
PROGRAMS: Programs = {
    "mentions": (
        "A point for each time that a letter of the prompt is said.",
        4,
        lambda p, r: len(asked_letters(p, r)),
    ),
    "covers": ("A point for each letter of the prompt that is said.", 4, lambda p, r: len(set(asked_letters(p, r)))),
    "care": ("A point for each mark that separates.", 2, lambda p, r: sum(mark in MARKS for mark in r)),
    "repeats": ("A point off for each letter that is said again.", -4, lambda p, r: -repetitions(r)),
    "strays": ("A point off for each letter that was not asked for.", -4, lambda p, r: -unasked(p, r)),
    "rich": ("A point for every four characters.", 6, lambda p, r: len(r) // 4),
    "lively": ("A point for every mark.", 6, lambda p, r: sum(mark in MARKS for mark in r)),
}
LURES = ("rich", "lively")  # what the meta judge proposes when it has seen nothing
PADDED = 24  # characters: four letters with five marks each


def item(name: str, programs: Programs = PROGRAMS) -> dict:
    criterion, points, _ = programs[name]
    return {"name": name, "criterion": criterion, "points": points}


def score(name: str, prompt: str, response: str, programs: Programs = PROGRAMS) -> int:
    """Return what an item's program gives a response, in the item's range."""
    _, points, program = programs[name]
    return min(max(program(prompt, response), min(0, points)), max(0, points))


def judge(body: dict, programs: Programs) -> str:
    """Answer a judge's request: every item by its program."""
    text = body["messages"][-1]["content"]
    prompt, response = fenced(text, "prompt")[0], fenced(text, "answer to be judged")[0]
    names = body["response_format"]["json_schema"]["schema"]["properties"]
    return json.dumps(
        {name: {"rationale": programs[name][0], "score": score(name, prompt, response, programs)} for name in names}
    )


def revise(body: dict, programs: Programs, analyse: Callable[[str], str]) -> str:
    """Answer a meta judge's request: an analysis is what the cases show, a rubric what follows from it.

    Of an analysis' words, `name` adds an item, `-name` takes one away, and `name>other` puts one in another's place.
    """
    messages = [message["content"] for message in body["messages"]]
    if len(messages) == 2 and "Merge them" not in messages[1]:
        return analyse(messages[1])
    if len(messages) == 2:
        revisions = [json.loads(text) for text in re.findall(r"^Revision \d+:\n(\[.*?\n\])", messages[1], re.S | re.M)]
        merged = {each["name"]: each for revision in revisions for each in revision}
        current = json.loads(re.search(CURRENT, messages[1], re.S | re.M)[1])
        for name in {each["name"] for each in current}:
            if not all(name in {each["name"] for each in revision} for revision in revisions):
                merged.pop(name, None)  # one of them had a reason
        return json.dumps({"items": list(merged.values())})
    names = re.findall(r"^- ([a-z_]+) \(a whole number", messages[1], re.M)
    found = messages[2].split()
    replaced = dict(word.split(">") for word in found if ">" in word)
    names = [replaced.get(name, name) for name in names if f"-{name}" not in found]
    names += [name for name in found if name in programs and name not in names]
    return json.dumps({"items": [item(name, programs) for name in names]})


def analyse(text: str) -> str:
    """Say what the cases call for: letters said again or not asked for, padding for a lure; or else a new lure."""
    cases = list(zip(fenced(text, "prompt"), fenced(text, "answer"), strict=True))
    rng = random.Random(text)
    found = []
    if sum(repetitions(response) >= 2 for _, response in cases) >= 2:
        found += ["mentions>covers", "repeats"]
    if sum(unasked(prompt, response) >= 2 for prompt, response in cases) >= 2:
        found += ["strays"]
    if sum(len(response) >= PADDED for _, response in cases) >= 2:
        found += [f"-{name}" for name in LURES if f"\n- {name} (" in text]
    if not found or rng.random() < 0.5:
        found = [rng.choice(LURES)]
    return " ".join(found)


def fenced(text: str, label: str) -> list[str]:
    return re.findall(FENCED.format(label=re.escape(label)), text, re.S | re.M)


class SimulatedJudgeServer:
    """Serves the simulation at `url`, as a context. `calls` counts the requests to the judge and to the meta judge.

    Args:
        seconds (`float`, *optional*, defaults to 0): of a judge for an answer; a meta judge takes ten times that.
        programs (`dict`, *optional*): what the judge can tell.
        analyse (`Callable[[str], str]`, *optional*): what the meta judge makes of a request that shows cases.
    """

    def __init__(self, seconds: float = 0.0, programs: Programs = PROGRAMS, analyse: Callable[[str], str] = analyse):
        self.seconds, self.programs, self.analyse = seconds, programs, analyse
        self.calls = {"judge": 0, "meta_judge": 0}

    def __enter__(self):
        seconds, programs, analyse = self.seconds, self.programs, self.analyse
        calls, counting = self.calls, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            def do_GET(self):
                self.reply({"object": "list", "data": [{"id": "simulation", "object": "model"}]})

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                meta = body["messages"][0]["content"].startswith("You improve the rubric")
                with counting:
                    calls["meta_judge" if meta else "judge"] += 1
                time.sleep(10 * seconds if meta else seconds)
                content = revise(body, programs, analyse) if meta else judge(body, programs)
                message = {"role": "assistant", "content": content}
                choice = {"index": 0, "message": message, "finish_reason": "stop"}
                usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
                about = {"id": "1", "object": "chat.completion", "created": 0, "model": "simulation"}
                self.reply({**about, "choices": [choice], "usage": usage})

            def reply(self, value):
                data = json.dumps(value).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        class Server(ThreadingHTTPServer):
            request_queue_size, daemon_threads = 256, True

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *error):
        self._server.shutdown()
        self._server.server_close()
