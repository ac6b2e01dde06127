"""`metatune metarm`: the phases of a round and their files, and going on after a stop."""

import json
from types import SimpleNamespace

import pytest
import torch
import yaml

from metatune.recipes import metarm_round, reward, rounds
from metatune.recipes.adapters import STARTER
from metatune.recipes.metarm_policy import Policy
from metatune.rewards.importance import effective_sample_size

from .launches import write_pairs
from .metarm_setup import METARM, read, rows, run


@pytest.fixture
def fake_trainings(monkeypatch):
    """Replace the trainings: a reward model is the starter with a random head, a policy its source, moved a little."""
    calls = []

    def launch(recipe, parser, args):
        script, training, model = parser.parse_args_and_config(args)
        recipe.check(script, training, model)
        name = recipe.__name__.rpartition(".")[2]
        calls.append(SimpleNamespace(name=name, script=script, training=training, model=model))
        from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

        source = STARTER if model.model_name_or_path == "starter" else model.model_name_or_path
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(training.seed)
            if recipe is reward:
                loaded = AutoModelForSequenceClassification.from_pretrained(source, num_labels=1)
            else:
                loaded = AutoModelForCausalLM.from_pretrained(source)
                with torch.no_grad():
                    loaded.lm_head.weight.add_(torch.randn_like(loaded.lm_head.weight), alpha=0.005)
        loaded.save_pretrained(training.output_dir)
        AutoTokenizer.from_pretrained(source).save_pretrained(training.output_dir)
        return 0

    monkeypatch.setattr(rounds, "launch", launch)
    return calls


@pytest.fixture
def sampled(monkeypatch):
    """Count how many responses each call of a policy samples."""
    calls, respond = [], Policy.respond

    def counted(self, prompts, count, seed):
        calls.append(len(prompts) * count)
        return respond(self, prompts, count, seed)

    monkeypatch.setattr(Policy, "respond", counted)
    return calls


# A round and its files


def test_a_round_of_metarm(tmp_path, fake_trainings, capsys):
    assert run(tmp_path) == 0
    folder = tmp_path / "run" / "round-1"
    responses = rows(folder / "responses.jsonl")
    assert len(responses) == 8 and all(len(row["responses"]) == 4 == len(row["tokens"]) for row in responses)
    assert {gold for row in responses for gold in row["gold"]} <= {0.0, 1.0}

    of_reward, of_grpo = fake_trainings
    assert (of_reward.name, of_grpo.name) == ("reward", "grpo")
    assert of_reward.script.meta_dataset_name == str(folder / "responses.jsonl")
    assert of_reward.training.meta_step == "normalised" and of_reward.model.model_name_or_path == "starter"
    assert of_reward.script.dataset_name == str(tmp_path / "run" / "pairs")
    assert of_grpo.script.reward_models == [{"path": str(folder / "reward_model")}]
    assert of_grpo.script.reward_funcs is None and of_grpo.training.reward_weights is None
    assert of_grpo.script.distributions == METARM["distributions"]
    assert of_reward.training.seed != of_grpo.training.seed

    summary, rounds = read(folder / "summary.json"), read(tmp_path / "run" / "rounds.json")
    assert rounds[1] == summary and rounds[0]["round"] == 0
    assert summary["prompts"] == 12 and 0 <= summary["gold"] <= 1
    assert summary["gold_interval"][0] <= summary["gold"] <= summary["gold_interval"][1]
    assert summary["score_before"] != summary["score"] and summary["unscored"] == 0
    assert 0 <= summary["accuracy"] <= 1 and summary["compared"] > 0 and 0 <= summary["accuracy_on_pairs"] <= 1
    assert "effective_sample_size" not in summary
    printed = capsys.readouterr().out
    assert "score before" in printed and f"Saved to {folder / 'policy'}" in printed


def test_a_round_goes_on_from_the_last_policy_with_a_fresh_reward_model(tmp_path, fake_trainings):
    assert run(tmp_path, rounds=2, reward_model_name_or_path=str(STARTER)) == 0
    first, second = (tmp_path / "run" / f"round-{number}" for number in (1, 2))
    sources = [call.model.model_name_or_path for call in fake_trainings]
    assert sources == [str(STARTER), "starter", str(STARTER), str(first / "policy")]
    assert fake_trainings[2].script.meta_dataset_name == str(second / "responses.jsonl")
    prompts = [[row["prompt"] for row in rows(folder / "responses.jsonl")] for folder in (first, second)]
    assert prompts[0] != prompts[1], "each round draws its own"
    seeds = [call.training.seed for call in fake_trainings]
    assert seeds[0] == seeds[2], "reward models differ by the correction alone"
    assert len(set(seeds)) == 3
    summaries = read(tmp_path / "run" / "rounds.json")
    assert [row["round"] for row in summaries] == [0, 1, 2]
    assert summaries[2]["policy_before"] == str(first / "policy")


def test_without_a_correction_one_reward_model_serves_all_rounds(tmp_path, fake_trainings, sampled):
    assert run(tmp_path, rounds=2, correction="none") == 0
    assert [call.name for call in fake_trainings] == ["reward", "grpo", "grpo"]
    paths = [call.script.reward_models[0]["path"] for call in fake_trainings[1:]]
    assert paths == [str(tmp_path / "run" / "round-1" / "reward_model")] * 2
    assert fake_trainings[0].training.meta_step == "none" and fake_trainings[0].script.meta_dataset_name is None
    pairs, held_out = sampled[:-3], sampled[-3:]
    assert held_out == [48] * 3 and pairs == [60 * 4, 12 * 4], "no meta set"


def test_importance_weights_of_a_policy_that_moved(tmp_path, fake_trainings):
    assert run(tmp_path, rounds=3, correction="ocrm", importance_alpha=0.2) == 0
    of_reward = [call for call in fake_trainings if call.name == "reward"]
    assert all(call.training.pair_weights and call.script.meta_dataset_name is None for call in of_reward)
    import pandas as pd

    sizes = []
    for number, call in enumerate(of_reward, start=1):
        folder = tmp_path / "run" / f"round-{number}"
        assert call.script.dataset_name == str(folder / "pairs")
        table = pd.read_parquet(folder / "pairs" / "train.parquet")
        assert len(table) == 16 and table["weight"].mean() == pytest.approx(1.0)
        sizes.append(read(folder / "summary.json")["effective_sample_size"])
        assert sizes[-1] == pytest.approx(effective_sample_size(table["weight"].to_numpy()))
    assert sizes[0] == 16, "the policy that wrote the pairs weighs them alike"
    assert 1 < sizes[2] < sizes[1] < 16, "the further the policy, the fewer pairs are left"


def test_pairs_are_right_and_wrong_responses_of_the_first_policy(tmp_path, fake_trainings):
    from metatune.curricula import load_distributions
    from metatune.recipes.metarm_policy import gold

    assert run(tmp_path, label_noise=0.25) == 0
    loaded = load_distributions(METARM["distributions"])
    problems = {
        part: {row["prompt"][0]["content"]: row for each in loaded for row in getattr(each, part)}
        for part in ("train", "test")
    }
    for part in ("train", "test"):
        pairs = rows(tmp_path / "run" / "pairs" / f"{part}.jsonl")
        prompts = [pair["prompt"][0]["content"] for pair in pairs]
        assert len(set(prompts)) == len(prompts), "one pair of a problem"
        for pair, prompt in zip(pairs, prompts, strict=True):
            found = [gold(problems[part][prompt], pair[side][0]["content"]) for side in ("chosen", "rejected")]
            assert found == ([0.0, 1.0] if pair["turned"] else [1.0, 0.0])
        assert sum(pair["turned"] for pair in pairs) == (4 if part == "train" else 0)
        assert len(pairs) == 16 if part == "train" else len(pairs) > 0


def test_given_pairs_and_prompts_without_a_verifier(tmp_path, fake_trainings):
    """Prompts as texts, pairs as conversations, nothing that tells what is right."""
    (tmp_path / "prompts").mkdir()
    for part, number in (("train", 8), ("test", 3)):
        lines = [json.dumps({"prompt": f"{i} + {i} = "}) + "\n" for i in range(number)]
        (tmp_path / "prompts" / f"{part}.jsonl").write_text("".join(lines))
    pairs = write_pairs(tmp_path / "pairs.jsonl", 8)
    data = {"distributions": None, "prompts_name": str(tmp_path / "prompts"), "num_pairs": None}
    assert run(tmp_path, dataset_name=str(pairs), **data) == 0
    assert not (tmp_path / "run" / "pairs").exists()
    assert fake_trainings[0].script.dataset_name == str(pairs)
    assert (
        fake_trainings[1].script.dataset_name == str(tmp_path / "prompts")
        and fake_trainings[1].script.distributions is None
    )
    summary = read(tmp_path / "run" / "round-1" / "summary.json")
    assert summary["gold"] is None and summary["ungraded"] == 12 and summary["accuracy"] is None
    assert summary["score"] is not None and summary["accuracy_on_pairs"] is None


@pytest.mark.needs("deepspeed")
def test_the_blocks_are_recipes_with_the_launcher_s_options(tmp_path, fake_trainings):
    launcher = {"num_processes": 2, "accelerate_config": "zero2"}
    assert run(tmp_path, grpo=launcher) == 0
    folder = tmp_path / "run" / "round-1"
    written = yaml.safe_load((folder / "grpo.yaml").read_text())
    assert {**written, **METARM["grpo"], **launcher} == written
    assert "num_processes" not in yaml.safe_load((folder / "reward.yaml").read_text())


def test_prompts_with_an_empty_response_are_left_out(tmp_path, fake_trainings, monkeypatch, capsys):
    respond = Policy.respond

    def silent(self, prompts, count, seed):
        responses = respond(self, prompts, count, seed)
        if len(prompts) == 8:  # those of the meta set
            responses[1]["text"] = responses[9]["text"] = " "
        return responses

    monkeypatch.setattr(Policy, "respond", silent)
    assert run(tmp_path) == 0
    assert len(rows(tmp_path / "run" / "round-1" / "responses.jsonl")) == 6
    assert "2 prompts had an empty response" in capsys.readouterr().out


# Going on


def test_a_finished_phase_is_not_repeated(tmp_path, fake_trainings, sampled, monkeypatch):
    """Stopped before each phase in turn, a run ends as if it had never been stopped."""
    names = ("responses.jsonl", "heldout.jsonl", "summary.json")
    assert run(tmp_path, rounds=2) == 0
    expected = [(tmp_path / "run" / f"round-{n}" / name).read_text() for n in (1, 2) for name in names]
    calls, launches = list(sampled), len(fake_trainings)
    (tmp_path / "stopped").mkdir()
    sampled.clear()
    fake_trainings.clear()
    for name in ("_respond", "_train_reward_model", "_train_policy", "_summarise"):
        with monkeypatch.context() as patch:
            patch.setattr(metarm_round.Round, name, lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
            assert run(tmp_path / "stopped", rounds=2, resume_from_checkpoint=True) == 130
    assert run(tmp_path / "stopped", rounds=2, resume_from_checkpoint=True) == 0
    assert sampled == calls and len(fake_trainings) == launches
    folder = tmp_path / "stopped" / "run"
    found = [(folder / f"round-{n}" / name).read_text() for n in (1, 2) for name in names]
    assert [text.replace("stopped/run", "run") for text in found] == expected


def test_a_run_may_be_made_longer_but_not_another_one(tmp_path, fake_trainings, capsys):
    assert run(tmp_path) == 0
    assert run(tmp_path) == 2
    assert "holds a run already" in capsys.readouterr().err
    assert run(tmp_path, grpo={"learning_rate": 1e-3}, resume_from_checkpoint=True) == 2
    assert "grpo is not what the run" in capsys.readouterr().err
    assert run(tmp_path, rounds=2, resume_from_checkpoint=True) == 0
    assert [call.name for call in fake_trainings] == ["reward", "grpo"] * 2


def test_a_failed_training_ends_the_run_with_its_code(tmp_path, monkeypatch):
    monkeypatch.setattr(rounds, "launch", lambda *args: 3)
    with pytest.raises(SystemExit, match="3"):
        run(tmp_path)
    assert not (tmp_path / "run" / "round-1" / "reward_model").exists()
