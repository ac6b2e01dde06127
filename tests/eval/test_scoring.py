import json

import pytest
import torch

from metatune.eval import scoring as module
from metatune.eval.engines import CompactEngine
from metatune.eval.scoring import evaluate
from metatune.rewards.rendering import Rendering


class Verifier:
    """Right if the reference occurs in the text; cannot tell about the reference `?`."""

    def score(self, completion, answer, info):
        return None if answer == "?" else answer in completion


class Scripted:
    """An engine that plays back texts, one after another."""

    def __init__(self, tokenizer, texts, finished=True):
        self.tokenizer, self.texts, self.finished = tokenizer, texts, finished
        self.eos_token_ids = frozenset({tokenizer.eos_token_id})

    def generate(self, prompt_ids, sampling):
        self.prompts = [self.tokenizer.decode(ids) for ids in prompt_ids]
        end = [self.tokenizer.eos_token_id] if self.finished else []
        return [self.tokenizer(text)["input_ids"] + end for text in self.texts[: len(prompt_ids)]]


def item(key="p", answer="7", **columns):
    row = {
        "prompt": [{"role": "user", "content": f"3+4 {key}"}],
        "answer": answer,
        "distribution": "sums",
        "verifier": "contains",
        "info": json.dumps({}),
        "key": key,
    }
    return row | columns


@pytest.fixture(autouse=True)
def verifier(monkeypatch):
    known = module.get_verifier
    monkeypatch.setattr(module, "get_verifier", lambda name: Verifier() if name == "contains" else known(name))


def test_every_sample_is_scored_by_its_items_verifier(tokenizer):
    engine = Scripted(tokenizer, ["is 7", "is 8", "is 9", "so 9"])
    evaluation = evaluate(engine, tokenizer, [item("p", "7"), item("q", "9")], num_samples=2)
    assert [(c.key, c.sample, c.correct) for c in evaluation.completions] == [
        ("p", 0, True),
        ("p", 1, False),
        ("q", 0, True),
        ("q", 1, True),
    ]
    assert engine.prompts[0] == "<user>3+4 p<assistant>"
    first = evaluation.completions[0]
    assert (first.completion, first.tokens, first.truncated, first.prompt) == ("is 7", 5, False, "3+4 p")
    assert evaluation.settings["num_samples"] == 2
    assert evaluation.seconds > 0


def test_a_verdict_that_cannot_be_had_is_none_not_false(tokenizer):
    evaluation = evaluate(Scripted(tokenizer, ["7"]), tokenizer, [item(answer="?")])
    assert evaluation.completions[0].correct is None
    assert evaluation.summary()["accuracy"] is None


def test_a_verifier_that_raises_costs_its_completion_and_not_the_evaluation(tokenizer, monkeypatch, caplog):
    class Fragile(Verifier):
        def score(self, completion, answer, info):
            return int(completion) == int(answer)

    monkeypatch.setattr(module, "get_verifier", lambda name: Fragile())
    evaluation = evaluate(Scripted(tokenizer, ["7", "seven"]), tokenizer, [item("p"), item("q")])
    assert [completion.correct for completion in evaluation.completions] == [True, None]
    assert evaluation.summary()["num_unscorable"] == 1
    assert "the verifier 'contains' raised ValueError" in caplog.text and "of sums" in caplog.text


def test_an_item_that_cannot_be_scored_is_named(tokenizer):
    broken = item(verifier="knights_and_knaves", info=json.dumps({"names": ["Zoey"], "solution": []}))
    with pytest.raises(ValueError, match=r"sums: the item 'p' cannot be scored: .*solution"):
        evaluate(Scripted(tokenizer, ["Zoey is a knight"]), tokenizer, [broken])


def test_a_completion_without_an_ending_token_was_truncated(tokenizer):
    evaluation = evaluate(Scripted(tokenizer, ["7"], finished=False), tokenizer, [item()])
    assert evaluation.completions[0].truncated


def test_a_real_model_evaluates_alike_twice_and_leaves_the_random_state(model, tokenizer):
    engine = CompactEngine(model, tokenizer)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    runs = [
        evaluate(engine, tokenizer, [item("p"), item("q")], num_samples=3, max_new_tokens=8, seed=s) for s in (0, 0, 1)
    ]
    assert runs[0].completions == runs[1].completions
    assert runs[0].completions != runs[2].completions
    assert torch.equal(torch.get_rng_state(), state)
    assert all(c.tokens <= 8 for c in runs[0].completions)


def test_rendering_is_the_chat_template_with_the_assistants_turn_open(tokenizer):
    ids = Rendering(tokenizer).prompt_ids([{"role": "user", "content": "1+1"}])
    assert tokenizer.decode(ids) == "<user>1+1<assistant>"


@pytest.mark.parametrize(
    "items, options, message",
    [
        ([], {}, "no item"),
        ([item(), item()], {}, "2 items have the key 'p'"),
        ([{k: v for k, v in item().items() if k != "answer"}], {}, "item 1 lacks the column 'answer'"),
        ([item(verifier="")], {}, "distribution 'sums' has no verifier"),
        ([item()], {"num_samples": 0}, "num_samples"),
        ([item()], {"num_samples": 2, "temperature": 0}, "greedy decoding repeats itself"),
    ],
)
def test_bad_input_is_refused(tokenizer, items, options, message):
    with pytest.raises(ValueError, match=message):
        evaluate(Scripted(tokenizer, []), tokenizer, items, **options)


def test_a_tokenizer_without_a_chat_template_is_refused(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", None)
    with pytest.raises(ValueError, match="no chat template"):
        evaluate(Scripted(tokenizer, []), tokenizer, [item()])


def test_a_completion_that_starts_in_the_thinking_has_no_answer_before_it_ends(tokenizer, monkeypatch):
    texts = ["answer 7", "hm</think>\nanswer 7"]
    items = [item("p", verifier="exact"), item("q", verifier="exact")]
    assert [c.correct for c in evaluate(Scripted(tokenizer, texts), tokenizer, items).completions] == [True, True]
    template = tokenizer.chat_template + "{% if add_generation_prompt %}<think>{% endif %}"
    monkeypatch.setattr(tokenizer, "chat_template", template)
    completions = evaluate(Scripted(tokenizer, texts), tokenizer, items).completions
    assert [(c.correct, c.extracted, c.completion) for c in completions] == [
        (False, None, texts[0]),
        (True, "7", texts[1]),
    ]
