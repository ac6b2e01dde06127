"""The command line as a user meets it: real processes, exit codes, one line on stderr."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from metatune.recipes import cli
from metatune.recipes.config import ConfigError, StrictParser
from metatune.recipes.launch import as_options, plan, refuse_abandoned_build, resolve_accelerate_config, separate

RECIPES = Path(cli.__file__).parent
SFT = """
init_config: {model_type: llama, hidden_size: 64, intermediate_size: 128, num_hidden_layers: 2, num_attention_heads: 2,
  tie_word_embeddings: true}
tokenizer: starter
distributions:
  - {name: sums, source: arithmetic}
  - {name: search, source: countdown}
demonstrations: 64
max_steps: 2
per_device_train_batch_size: 4
learning_rate: 1e-3
bf16: false
gradient_checkpointing: false
save_strategy: "no"
report_to: none
logging_steps: 1
disable_tqdm: true
"""


def metatune(*args, script=None, **variables):
    """Run `metatune ARGS`, or a script with a Python of the same environment, away from any launcher's variables."""
    command = [sys.executable, *(script or ["-m", "metatune.recipes.cli"]), *map(str, args)]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ACCELERATE_", "METATUNE_"))}
    environment = {**kept, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **variables}
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)


@pytest.fixture
def recipe(tmp_path):
    def write(extra=""):
        path = tmp_path / "recipe.yaml"
        path.write_text(f"{SFT}output_dir: {tmp_path / 'out'}\n{extra}\n")
        return path

    return write


def assert_refused(done, message):
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("metatune: error: ") and done.stderr.count("\n") == 1, done.stderr
    assert message in done.stderr


def test_help_and_version_need_no_torch():
    code = "import sys; from metatune.recipes.cli import main; main(['--help']); assert 'torch' not in sys.modules"
    assert "usage: metatune COMMAND" in metatune(script=["-c", code]).stdout
    assert metatune("--version").stdout.startswith("metatune ")
    assert metatune().returncode == 0


def test_a_missing_file_is_told_before_torch_is_imported():
    code = (
        "import sys; from metatune.recipes.cli import main\n"
        "assert main(['sft', '--config', 'no.yaml']) == 2 and 'torch' not in sys.modules"
    )
    done = metatune(script=["-c", code])
    assert done.returncode == 0 and "no.yaml: no such file" in done.stderr


def test_unknown_command(capsys):
    assert cli.main(["grop"]) == 2
    assert "unknown command 'grop'; did you mean 'grpo'?" in capsys.readouterr().err


def test_mistakes_before_any_launch(recipe):
    path = recipe("learning_rte: 1")
    line = len(path.read_text().splitlines())
    assert_refused(
        metatune("sft", "--config", path), f"{path}:{line}: unknown key 'learning_rte'; did you mean 'learning_rate'?"
    )
    script = metatune("--config", path, script=[str(RECIPES / "sft.py")])
    assert_refused(script, "unknown key 'learning_rte'")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--num_proceses", "2"], "unknown option --num_proceses; did you mean '--num_processes'?"),
        (["--num_processes", "two"], "invalid int value: 'two'"),
        (["--num_processes"], "--num_processes needs a value"),
        (["--accelerate_config", "zero22"], "no file and no name 'zero22'; did you mean 'zero2'?"),
        (["--learning_rate", "fast"], "invalid float value: 'fast'"),
        (["--eval_strategy", "steps"], "`distributions` give no evaluation split"),
        (["--model_name_or_path", "x"], "give either `model_name_or_path` or `init_config`"),
        (["--dataset_name", "x"], "or `dataset_name`"),
        (["--init_config", '{"model_type": "lama"}'], "unknown model_type 'lama'; did you mean 'llama'?"),
        (["--model_init_kwargs", "{a: 1}"], "--model_init_kwargs: {a: 1} is not JSON (Expecting property"),
        (["--use_cpu", "false", "--bf16", "true"], "there is no GPU here: add `use_cpu: true`"),
        (["--init_config", '{"model_type": "llama", "hiden_size": 3}'], "llama has no field 'hiden_size'"),
    ],
)
def test_mistakes_on_the_command_line(recipe, capsys, args, message):
    assert cli.main(["sft", "--config", str(recipe()), *args]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_launch_options_in_a_command_of_one_process(tmp_path, monkeypatch, capsys):
    class Module:
        @staticmethod
        def make_parser(prog):
            return StrictParser([], prog=prog)

    monkeypatch.setattr(cli, "import_module", lambda *_: Module)
    path = tmp_path / "eval.yaml"
    path.write_text("num_processes: 2\n")
    monkeypatch.setattr(os, "environ", dict(os.environ))
    assert cli.main(["eval", "--config", str(path)]) == 2
    assert f"{path}:1: `num_processes` belongs to the launcher" in capsys.readouterr().err


def test_every_command_has_its_module():
    for command in cli.COMMANDS.values():
        module = importlib.import_module(f"metatune.recipes.{command.module}")
        assert callable(module.main)
        assert command.foreign_options or callable(module.make_parser)


def test_separate_leaves_each_its_options():
    parser = StrictParser([])
    parser.add_argument("--steps")
    parser.add_argument("--debug")
    args = [
        "--steps",
        "2",
        "--num_processes=2",
        "--debug",
        "x",
        "--cpu",
        "--config",
        "a.yaml",
        "--mixed_precision",
        "no",
    ]
    assert separate(args, parser) == (
        ["--steps", "2", "--debug", "x", "--config", "a.yaml"],
        ["--num_processes", "2", "--cpu", "--mixed_precision", "no"],
    )


def test_launch_values_of_a_recipe_as_options():
    assert as_options({"num_processes": 2, "cpu": True, "multi_gpu": False}) == ["--num_processes", "2", "--cpu"]


def test_accelerate_configs_by_name_and_file(tmp_path):
    ours = str(RECIPES / "accelerate" / "ddp.yaml")
    assert resolve_accelerate_config(["--accelerate_config", "ddp", "--cpu"]) == ["--config_file", ours, "--cpu"]
    twice = ["--accelerate_config", "zero2", "--accelerate_config", "ddp"]
    assert resolve_accelerate_config(twice) == ["--config_file", ours]  # the command line comes last and wins
    own = tmp_path / "own.yaml"
    own.write_text("num_processes: 1\n")
    assert resolve_accelerate_config(["--accelerate_config", str(own)]) == ["--config_file", str(own)]


def test_every_accelerate_config_is_one_and_says_how_to_launch_it():
    from accelerate.commands.config import load_config_from_file

    files = list((RECIPES / "accelerate").glob("*.yaml"))
    assert {file.stem for file in files} >= {"ddp", "zero2", "cpu2"}
    for file in files:
        load_config_from_file(str(file))
        header = [line for line in file.read_text().splitlines() if line.startswith("#")]
        assert any(f"accelerate launch --config_file recipes/accelerate/{file.name}" in line for line in header)


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Pretend that the machine has so many accelerators, and no configuration of accelerate's own."""

    def pretend(accelerators):
        import torch

        monkeypatch.setattr(os, "environ", dict(os.environ))
        monkeypatch.setattr(torch.accelerator, "device_count", lambda: accelerators)
        monkeypatch.setattr(
            "accelerate.commands.config.config_args.default_yaml_config_file", str(tmp_path / "none.yaml")
        )

    return pretend


def test_plan_on_a_machine_without_accelerator(machine):
    machine(0)
    for asked in (["--num_processes", "2"], ["--cpu", "--num_processes", "2"], ["--config_file", cpu2()]):
        args = plan(asked, "recipe", ["--x", "1"], use_cpu=False)
        assert (args.num_processes, args.multi_gpu, args.cpu, args.main_process_port) == (2, True, False, 0)
        assert args.training_script == "recipe" and args.module and args.training_script_args == ["--x", "1"]
        assert os.environ["ACCELERATE_USE_CPU"] == "true"
    assert plan([], "recipe", [], use_cpu=False).num_processes == 1


def cpu2():
    return str(RECIPES / "accelerate" / "cpu2.yaml")


def test_plan_on_a_machine_with_accelerators(machine):
    machine(4)
    args = plan([], "recipe", [], use_cpu=False)
    assert (args.num_processes, args.multi_gpu) == (4, True)
    assert plan(["--config_file", str(RECIPES / "accelerate" / "ddp.yaml")], "r", [], False).num_processes == 4
    assert plan([], "recipe", [], use_cpu=True).num_processes == 1
    with pytest.raises(ConfigError, match="8 processes are asked for, this machine has 4"):
        plan(["--num_processes", "8"], "recipe", [], use_cpu=False)
    assert plan(["--num_processes", "8"], "recipe", [], use_cpu=True).num_processes == 8


def test_plan_of_deepspeed(machine, monkeypatch):
    machine(0)
    zero2 = ["--config_file", str(RECIPES / "accelerate" / "zero2.yaml"), "--num_processes", "2"]
    monkeypatch.setattr("metatune.recipes.launch.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install 'metatune\\[deepspeed\\]'"):
        plan(zero2, "recipe", [], use_cpu=True)
    monkeypatch.setattr("metatune.recipes.launch.find_spec", lambda name: object())
    with pytest.raises(ConfigError, match="needs use_cpu: true"):
        plan(zero2, "recipe", [], use_cpu=False)
    args = plan([*zero2, "--cpu"], "recipe", [], use_cpu=True)
    assert not args.cpu and not args.multi_gpu and os.environ["ACCELERATE_USE_CPU"] == "false"


def test_a_broken_accelerate_config(machine, tmp_path):
    machine(0)
    broken = tmp_path / "broken.yaml"
    broken.write_text("distributed_typ: MULTI_GPU\n")
    with pytest.raises(ConfigError, match="not a configuration of accelerate"):
        plan(["--config_file", str(broken)], "recipe", [], use_cpu=False)


def test_the_lock_of_a_killed_build_is_told_rather_than_waited_for(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    refuse_abandoned_build()
    lock = tmp_path / "deepspeed_shm_comm" / "lock"
    lock.parent.mkdir()
    lock.touch()
    refuse_abandoned_build()
    assert f"{lock}: another process builds it" in capsys.readouterr().err
    os.utime(lock, (0, 0))
    with pytest.raises(ConfigError, match=r"deepspeed_shm_comm/lock is \d+ minutes old: .*; delete the file"):
        refuse_abandoned_build()


@pytest.mark.slow
def test_sft_from_nothing_in_two_processes(recipe, tmp_path):
    """`--num_processes 2` on a machine without a GPU trains with two, and leaves a model that loads."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    done = metatune("sft", "--config", recipe(), "--num_processes", "2", "--cpu", "--use_cpu")
    assert done.returncode == 0, done.stderr
    state = [line for line in done.stdout.splitlines() if line.startswith("{'loss'")]
    assert len(state) == 2  # the main process alone logs, a line a step
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert model.config.vocab_size == len(AutoTokenizer.from_pretrained(tmp_path / "out"))


@pytest.mark.slow
def test_processes_that_would_train_alone_are_refused(recipe):
    """Started by other means than `metatune`, without use_cpu: two processes of one rank each."""
    launcher = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
    done = metatune("--config", recipe(), script=[*launcher, str(RECIPES / "sft.py")], CUDA_VISIBLE_DEVICES="")
    assert done.returncode != 0
    assert "2 processes were asked for (WORLD_SIZE) but 1 would train together" in done.stderr


@pytest.mark.slow
def test_two_processes_see_twice_the_tokens(recipe, tmp_path):
    tokens = []
    for processes in ("1", "2"):
        folder = tmp_path / processes
        options = ("--num_processes", processes, "--save_strategy=steps", "--output_dir", str(folder))
        done = metatune("sft", "--config", recipe("use_cpu: true"), *options)
        assert done.returncode == 0, done.stderr
        state = json.loads((folder / "checkpoint-2" / "trainer_state.json").read_text())
        tokens.append(state["epoch"])
    assert tokens[1] == pytest.approx(2 * tokens[0])


@pytest.mark.slow
@pytest.mark.needs("deepspeed")
def test_zero2_on_two_processes_is_deepspeed_indeed(recipe, tmp_path):
    """ZeRO's shards of the optimizer lie in the checkpoint, one a process: no silent fall back to plain DDP."""
    path = recipe("use_cpu: true")
    done = metatune(
        "sft", "--config", path, "--accelerate_config", "zero2", "--num_processes", "2", "--save_strategy=steps",
        DS_ACCELERATOR="cpu",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    shards = sorted(file.name for file in (tmp_path / "out" / "checkpoint-2").rglob("*zero_pp_rank_*_optim_states.pt"))
    assert [name.split("rank_")[1][0] for name in shards] == ["0", "1"]
