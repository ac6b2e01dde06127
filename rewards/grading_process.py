"""The child process that grades: one JSON request a line on stdin, one JSON reply a line on stdout.

Started by `metatune.rewards.bounded` as a script, with the arguments GRADER MEMORY SECONDS. It imports nothing from
metatune, so that it starts fast, and unpickles nothing. A reply is one of

    {"score": true}              graded
    {"failure": "memory"}        the grader failed on this answer (also "recursion", "error")
    {"invalid": "what to mend"}  the request itself is at fault; the parent raises

It is bounded, not a sandbox: memory is limited and files cannot be written, but a grader runs with its user's rights.
"""

import json
import logging
import os
import re
import resource
import runpy
import signal
import sys
from collections.abc import Callable
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

Grader = Callable[[dict[str, Any]], bool]


class InvalidRequestError(Exception):
    """The request, not the answer, is at fault."""


def math_grader() -> Grader:
    """Compare `completion` with the reference `answer` by math-verify; both are LaTeX, or the completion free text.

    math-verify has no option for how numbers are compared, so `math_equality.equal` takes the place of its function.
    """
    import math_verify.grader
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify
    from sympy import Complement, Intersection, Union

    # The caller has dropped units. math-verify's list of them has single letters, so that `5c` would equal `5`.
    without_units = NormalizationConfig(basic_latex=True, malformed_operators=True, nits=True, boxed="all")
    in_box = [LatexExtractionConfig(boxed_match_priority=0, normalization_config=without_units)]
    in_text = [LatexExtractionConfig(), ExprExtractionConfig()]
    set_operations = (Union, Intersection, Complement)  # which the parser leaves unevaluated
    math_verify.grader.sympy_numeric_eq = runpy.run_path(str(Path(__file__).with_name("math_equality.py")))["equal"]

    # Their own timeouts rest on SIGALRM handlers that C code never reaches: the parent's deadline replaces them.
    def read(text: str) -> list:
        # What a box holds is all of the answer: no search for some number in it when it cannot be read.
        places = in_box if text.startswith("\\boxed{") else in_text
        values = parse(text, places, parsing_timeout=None, raise_on_error=True)
        return [value.doit() if isinstance(value, set_operations) else value for value in values]

    @lru_cache(maxsize=256)  # of references only: they recur, and what is kept counts against the memory limit
    def read_reference(answer: str) -> list:
        return read(f"\\boxed{{{answer}}}")

    def grade(request: dict[str, Any]) -> bool:
        for reference, answer in product(read_reference(request["answer"]), read(request["completion"])):
            try:
                if verify(reference, answer, allow_set_relation_comp=True, timeout_seconds=None, raise_on_error=True):
                    return True
            except MemoryError:
                raise
            except Exception:  # an answer that math-verify cannot compare with a readable reference is not equal to it
                continue
        return False

    grade({"completion": "\\boxed{\\frac{1}{2}}", "answer": "0.5"})  # loads the lazy half before the clock runs
    return grade


# Their scorers hand the answer to `eval` or to SymPy's `parse_expr`, which evals it.
EVALUATING = (
    "binary_matrix",
    "countdown",
    "intermediate_integration",
    "n_queens",
    "polynomial_multiplication",
    "puzzle24",
    "simple_integration",
    "spiral_matrix",
    "string_insertion",
)
FUNCTIONS = "sin cos tan sec csc cot asin acos atan sinh cosh tanh exp log ln sqrt pi Abs".split()  # noqa: SIM905


def harmless(answer: str) -> bool:
    """Tell whether `eval` can only compute: numbers, operators, one-letter names, known functions, runs of A to E.

    Every oracle answer of the `EVALUATING` generators is of this form, except integrals left unevaluated: to accept
    `Integral(...)` would reward repeating the question.
    """
    foreign = re.search(r"[^\w\s.,+\-*/^()\[\]]|\.\s*[^\W\d]", answer)
    words = re.findall(r"[^\W\d]\w*", answer)
    known = all(len(word) == 1 or word in FUNCTIONS or set(word) <= set("ABCDE") for word in words)
    return answer.isascii() and not foreign and known


def reasoning_gym_grader() -> Grader:
    """Score `answer` by the generator's own `score_answer`; only full marks are right.

    Some scorers raise on an answer of another form than theirs. It is wrong where they do not on the problem's own.
    """
    import reasoning_gym
    from reasoning_gym.factory import DATASETS

    @lru_cache(maxsize=256)
    def dataset(generator: str, config: str) -> Any:
        if generator not in DATASETS:
            raise InvalidRequestError(f"reasoning-gym has no generator {generator!r}")
        try:
            return reasoning_gym.create_dataset(generator, seed=0, size=1, **json.loads(config))
        except (AssertionError, TypeError, ValueError) as error:
            raise InvalidRequestError(f"{generator} refuses config {config}: {error}") from error

    def grade(request: dict[str, Any]) -> bool:
        scorer = dataset(request["generator"], json.dumps(request["config"], sort_keys=True))
        if request["generator"] in EVALUATING and not harmless(request["answer"]):
            return False
        entry = request["entry"]

        def is_right(answer: Any) -> bool:
            return scorer.score_answer(answer, entry) >= 1 - 1e-9

        try:
            return is_right(request["answer"])
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            if is_right(entry.get("answer")):
                return False
            raise

    return grade


GRADERS: dict[str, Callable[[], Grader]] = {"math": math_grader, "reasoning_gym": reasoning_gym_grader}


def reply_to(request: dict[str, Any], grade: Grader) -> dict[str, Any]:
    """Grade one request; whatever the grader raises is a failure, never a wrong answer."""
    try:
        return {"score": bool(grade(request))}
    except InvalidRequestError as error:
        return {"invalid": str(error)}
    except MemoryError:
        return {"failure": "memory"}
    except RecursionError:
        return {"failure": "recursion"}
    except Exception:
        return {"failure": "error"}


def main(grader: str, memory: int, seconds: float) -> None:
    """Announce readiness, then answer requests until stdin ends."""
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # a library that prints must not write into the replies
    logging.disable(logging.CRITICAL)

    def send(reply: dict[str, Any]) -> None:
        replies.write(json.dumps(reply) + "\n")
        replies.flush()

    try:
        grade = GRADERS[grader]()
    except Exception as error:
        send({"invalid": f"{type(error).__name__}: {error}"})
        return
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    send({"ready": True})
    for line in sys.stdin:
        # The parent kills a late grader; should the parent itself be gone, the kernel does.
        signal.setitimer(signal.ITIMER_REAL, seconds)
        reply = reply_to(json.loads(line), grade)
        signal.setitimer(signal.ITIMER_REAL, 0)
        send(reply)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
