"""What the launcher and doctor both check: data, trackers, the hub, models, attention, reward models and judges."""

import json
import os
import socket
from types import SimpleNamespace

import httpx
import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError, LocalTokenNotFoundError

from metatune.curricula import check_distributions
from metatune.curricula.hub_access import hub_answers
from metatune.recipes import cli, launch
from metatune.recipes.chat_template import check_template
from metatune.recipes.config import ConfigError, MissingHereError, read_recipe
from metatune.recipes.conform import nearest
from metatune.recipes.data import load_splits
from metatune.recipes.hub import check_push, check_rights, find_model
from metatune.recipes.launch import suggest
from metatune.recipes.trackers import TRACKERS, check_trackers

from .doctor_setup import doctor
from .launches import GRPO, REWARD, last_line, write_pairs, write_recipe

SFT = {key: value for key, value in REWARD.items() if key != "max_steps"}
DATA = {"name": "a", "source": "dataset", "path": "rows.jsonl", "prompt_column": "question", "verifier": "math"}


@pytest.fixture
def mistaken(tmp_path, monkeypatch, capsys):
    """Run a command on a recipe that must be refused before its launch; returns doctor's finding, the same."""
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(launch, "start", lambda args: pytest.fail("it was launched"))
    monkeypatch.chdir(tmp_path)
    rows = [{"question": f"{i} + 1", "answer": str(i + 1)} for i in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_pairs(tmp_path / "pairs.jsonl")

    def mistaken(command, values, **options):
        recipe = write_recipe(tmp_path / "recipe.yaml", values, **{"output_dir": str(tmp_path / "run"), **options})
        assert cli.main([command, "--config", str(recipe)]) == 2
        error = last_line(capsys.readouterr().err).removeprefix("metatune: error: ")
        assert error in doctor(recipe, "--recipe", command)["problems"]
        return error.removeprefix(f"{recipe}:"), recipe

    return mistaken


@pytest.mark.parametrize(
    ("options", "place", "message"),
    [
        ({"distributions": [{**DATA, "path": "row.jsonl"}]}, "distributions[0].path", "did you mean 'rows.jsonl'?"),
        ({"distributions": [{**DATA, "prompt_column": "qestion"}]}, "distributions[0].prompt_column", "'question'?"),
        ({"distributions": [{**DATA, "verifier": "mathh"}]}, "distributions[0].verifier", "did you mean 'math'?"),
        ({"distributions": [{**DATA, "verifer": "math"}]}, "distributions[0].verifer", "did you mean 'verifier'?"),
        (
            {"distributions": [{"name": "a", "source": "arithmetic", "config": {"trems": 3}}]},
            "distributions[0].config.trems",
            "did you mean 'terms'?",
        ),
        ({"reward_funcs": ["accuracy_reward"]}, "distributions", "has no column 'solution'"),
        ({"model_name_or_path": "starterr"}, "model_name_or_path", "did you mean 'starter'?"),
        (
            {"use_peft": True, "lora_target_modules": ["qproj", "vproj"]},
            "lora_target_modules",
            "no module 'qproj'; did you mean 'q_proj'?",
        ),
        ({"report_to": "wanbd"}, "report_to", "did you mean 'wandb'?"),
        ({"attn_implementation": "sdpaa"}, "attn_implementation", "did you mean 'sdpa'?"),
        ({"curriculum": "sec", "reward_models": [{"path": "runs/rm/x"}]}, "reward_models[0].path", "no such folder"),
    ],
)
def test_launcher_and_doctor_name_the_same_line(mistaken, options, place, message):
    error, recipe = mistaken("grpo", GRPO, **options)
    assert error.startswith(f"{read_recipe(str(recipe)).lines[place]}: ") and message in error


def test_the_data_of_other_commands_is_checked_before_the_launch(mistaken):
    error, _ = mistaken("sft", SFT, dataset_name="rows.jsonl")
    assert "has no column 'text'" in error
    error, _ = mistaken("sft", SFT, dataset_name="rows.jsonl", dataset_text_field="qestion")
    assert "has no column 'qestion'; did you mean 'question'?" in error
    error, _ = mistaken("reward", REWARD, dataset_name="rows.jsonl")
    assert "has no column 'chosen'" in error
    error, _ = mistaken("reward", REWARD, dataset_name="pair.jsonl")
    assert "no such file or folder; did you mean 'pairs.jsonl'?" in error


def test_a_wrong_key_of_a_judge_has_its_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(os, "environ", dict(os.environ))
    recipe = write_recipe(
        tmp_path / "recipe.yaml", GRPO, judge={"url": "http://127.0.0.1:9/v1", "rubirc": "x"}, output_dir="run"
    )
    assert cli.main(["grpo", "--config", str(recipe)]) == 2
    line = read_recipe(str(recipe)).lines["judge.rubirc"]
    assert f"{recipe}:{line}: judge: unknown key 'rubirc'; did you mean 'rubric'?" in capsys.readouterr().err


def test_the_launcher_reads_the_first_rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a"}\n' * 30)
    assert load_splits(str(path), "dataset_name", "train", rows=20)["train"].num_rows == 20
    path.write_text('{"prompt": "a"}\n' * 30 + "not JSON\n")
    for rows in (20, 40, None):  # in a short file the reader meets a later line too
        with pytest.raises(ConfigError, match="line 31: not JSON"):
            load_splits(str(path), "dataset_name", "train", rows=rows)


def test_trackers(monkeypatch, tmp_path):
    def check(*names):
        check_trackers(SimpleNamespace(report_to=list(names)))

    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    assert TRACKERS.keys() == INTEGRATION_TO_CALLBACK.keys()
    check("none")
    with pytest.raises(ConfigError, match=r"report_to: 'tensorbord' is not one of .*; did you mean 'tensorboard'\?"):
        check("tensorbord")
    monkeypatch.setattr("metatune.recipes.trackers.find_spec", lambda name: None)
    with pytest.raises(MissingHereError, match="report_to: wandb is not installed: pip install wandb"):
        check("wandb")
    monkeypatch.setattr("metatune.recipes.trackers.find_spec", lambda name: object())
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(MissingHereError, match="wandb has no key here: run `wandb login`"):
        check("wandb")
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password key\n")
    check("wandb")
    monkeypatch.delenv("NETRC")
    monkeypatch.setenv("WANDB_MODE", "offline")
    check("wandb", "mlflow")


def test_a_model_that_is_neither_here_nor_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    find_model("starter", "model_name_or_path")
    find_model("runs/mine", "model_name_or_path")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(MissingHereError, match=r"model_name_or_path: 'starterr' is not a folder .*mean 'starter'\?"):
        find_model("starterr", "model_name_or_path")
    with pytest.raises(MissingHereError, match=r"did you mean 'runs/mine'\?"):
        find_model("runs/min", "model_name_or_path")
    with pytest.raises(MissingHereError, match="nor a valid name on the hub"):
        find_model("my model", "model_name_or_path")


def test_a_hub_that_does_not_answer_is_asked_once_for_a_model(monkeypatch):
    requests = []

    def unreachable(name, file, revision, local_files_only):
        requests.append(name)
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", unreachable)
    monkeypatch.setattr(
        "transformers.AutoProcessor.from_pretrained", lambda *args, **kwargs: pytest.fail("asked again")
    )
    check_template("someone/absent", None, None)
    with pytest.raises(MissingHereError, match="the hub does not answer"):
        find_model("someone/absent", "model_name_or_path")
    with pytest.raises(MissingHereError, match="did you mean 'starter'"):
        find_model("strater", "model_name_or_path")
    assert requests == ["someone/absent"]


def test_without_a_network_the_launch_does_not_wait_for_the_hub(monkeypatch):
    """The hub's client retries every file five times; one question decides whether anything is asked of it."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.utils._http.http_backoff", lambda *args, **kwargs: pytest.fail("asked"))
        assert not hub_answers()
        with pytest.raises(MissingHereError, match="nor is it in the hub's cache here, and the hub does not answer"):
            find_model("owner/name", "model_name_or_path")
        check_template("owner/name", "main", None)
        with pytest.raises(ConfigError, match="owner/name: it is not in the hub's cache here, and the hub does not"):
            load_splits("owner/name", "dataset_name", "train")
        with pytest.raises(ValueError, match="the hub does not answer"):
            check_distributions([{"name": "a", "source": "dataset", "path": "owner/name"}])


class Hub:
    """The hub's answer about a token, in place of the hub."""

    def __init__(self, answer):
        self.answer = answer

    def __call__(self, token=None):
        return self

    def whoami(self):
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def test_the_right_to_push(tmp_path, monkeypatch):
    def push(answer, **options):
        monkeypatch.setattr(huggingface_hub, "HfApi", Hub(answer))
        given = {"push_to_hub": True, "hub_model_id": None, "hub_token": None, "output_dir": str(tmp_path / "run")}
        check_push(SimpleNamespace(**{**given, **options}))

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    me = {"name": "me", "orgs": [{"name": "lab"}], "auth": {"accessToken": {"role": "write"}}}
    push(me)
    push(me, hub_model_id="lab/model")
    push(None, push_to_hub=False)
    with pytest.raises(ConfigError, match=r"hub_model_id: the token has write access to me, lab, not to 'others'"):
        push(me, hub_model_id="others/model")
    with pytest.raises(ConfigError, match=r"hub_model_id: .*; set hub_model_id: owner/name"):
        push(me, hub_model_id="a/b/c")
    with pytest.raises(MissingHereError, match="there is no hub token on this machine: run `hf auth login`"):
        push(LocalTokenNotFoundError("none"))
    with pytest.raises(MissingHereError, match=r"the hub does not answer .*whether this token may push is unknown"):
        push(httpx.ConnectError("refused"))
    with pytest.raises(ConfigError, match="the token of me is read-only"):
        check_rights({**me, "auth": {"accessToken": {"role": "read"}}}, "me/model", "push_to_hub")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(MissingHereError, match="push_to_hub: HF_HUB_OFFLINE is set"):
        push(me)


def test_suggestions():
    assert nearest("--gpu", ["--cpu", "--gpu_memory", "--gpus"]) == "; did you mean '--gpus'?"
    assert suggest("--gpu", ["--cpu", "--gpu_ids"]) == "; did you mean '--num_processes', one for each GPU?"
    assert suggest("--nproc-per-node", ["--cpu"]) == "; did you mean '--num_processes', one for each GPU?"
    assert suggest("--gpu", ["--cpu", "--gpus"]) == "; did you mean '--gpus'?"


def test_gpu_suggests_gpus(capsys, tmp_path):
    recipe = write_recipe(tmp_path / "recipe.yaml", GRPO, output_dir=str(tmp_path / "run"))
    for args in (["--gpu", "8"], ["--config", str(recipe), "--gpu", "8"]):
        assert cli.main(["doctor", *args]) == 2
        assert "unknown option --gpu; did you mean '--gpus'?" in capsys.readouterr().err
