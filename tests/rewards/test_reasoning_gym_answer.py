import importlib.util
import json

import pytest

from metatune.rewards import ReasoningGymVerifier
from metatune.rewards.grading_process import EVALUATING, harmless

INFO = {"generator": "chain_sum", "config": {}, "entry": {}}


@pytest.mark.parametrize(
    "answer",
    ["2*x**3/3 + 5*x + C", "-exp(2*x)*sin(x)/4", "(8 + 3)*(7 - 1.5)", ".5", "0 1\n1 0", "_ Q _\n_ _ Q", "ABCDE", ""],
)
def test_answers_that_only_compute_may_be_evaluated(answer):
    assert harmless(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "__import__('os').system('true')",
        "exec(chr(105))",
        "2exec(1)",
        "().__class__",
        "x.real",
        "1 .real",
        "x. real",
        "open(1)",
        "exit()",
        "getattr(a, b)",
        "[x for x in y]",
        "lambda: 1",
        "'x'",
        "\uff45xec(1)",  # Python reads this full-width letter as an e
        "Integral(x, x)",  # the question over again
    ],
)
def test_answers_that_could_do_anything_else_may_not(answer):
    assert not harmless(answer)


def test_without_the_extra_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'metatune\[reasoning-gym\]'"):
        ReasoningGymVerifier().score("4", "4", INFO)


@pytest.mark.needs("reasoning_gym")
class TestWithReasoningGym:
    @pytest.fixture(scope="class")
    def gym(self):
        return importlib.import_module("reasoning_gym")

    @pytest.fixture(scope="class")
    def verifier(self):
        verifier = ReasoningGymVerifier(deadline=10.0)
        yield verifier
        verifier.close()

    def task(self, gym, generator, index=0, **config):
        entry = gym.create_dataset(generator, seed=1, size=index + 1, **config)[index]
        return entry["answer"], {"generator": generator, "config": config, "entry": json.loads(json.dumps(entry))}

    def test_the_answer_is_tagged_or_on_the_last_line_or_everything(self, gym, verifier):
        answer, info = self.task(gym, "chain_sum", min_terms=2)
        for completion in (
            f"hm <answer>{answer}</answer> done",
            f"<answer> {answer}",
            f"a+b\nanswer {answer}",
            answer,
        ):
            assert verifier.score(completion, answer, info) is True
        for completion in (f"<answer>{answer}1</answer>", f"<answer></answer>{answer}", f"answer {answer}0", ""):
            assert verifier.score(completion, answer, info) is False

    @pytest.mark.parametrize("generator", [*EVALUATING, "number_sorting", "knights_knaves", "sudoku", "word_sorting"])
    def test_reference_answers_get_full_marks(self, gym, verifier, generator):
        for index in range(8):
            answer, info = self.task(gym, generator, index)
            if "Integral" not in answer:
                assert verifier.score(answer, answer, info) is True
            assert verifier.score("<answer>0</answer>", answer, info) is False

    @pytest.mark.parametrize(("generator", "malformed"), [("prime_factorization", "2 x 3"), ("game_of_life", "{}")])
    def test_an_answer_that_a_scorer_stumbles_over_is_wrong(self, gym, verifier, generator, malformed):
        answer, info = self.task(gym, generator)
        failures = verifier.failures.copy()
        assert verifier.score(malformed, answer, info) is False
        assert verifier.failures == failures

    def test_a_scorer_that_stumbles_over_the_problem_itself_has_failed(self, gym, verifier):
        answer, info = self.task(gym, "prime_factorization")
        failures = verifier.failures.copy()
        del info["entry"]["answer"]
        assert verifier.score("2 x 3", answer, info) is None and verifier.score(answer, answer, info) is None
        assert verifier.failures - failures == {"error": 2}

    def test_an_attack_is_wrong_and_a_bomb_unscorable(self, gym):
        verifier = ReasoningGymVerifier(deadline=1.0)
        answer, info = self.task(gym, "countdown")
        verdicts = [
            verifier.score(c, answer, info) for c in (answer, "__import__('os')._exit(3)", "9**9**9**9", answer)
        ]
        verifier.close()
        assert verdicts == [True, False, None, True]
        assert verifier.failures == {"timeout": 1}

    def test_a_task_at_fault_is_an_error(self, gym, verifier):
        answer, info = self.task(gym, "chain_sum")
        with pytest.raises(ValueError, match="no generator 'chain_sums'"):
            verifier.score(answer, answer, {**info, "generator": "chain_sums"})
        with pytest.raises(ValueError, match="chain_sum refuses config"):
            verifier.score(answer, answer, {**info, "config": {"min_terms": -1}})
        with pytest.raises(ValueError, match="info lacks 'generator'"):
            verifier.score(answer, answer, {})
