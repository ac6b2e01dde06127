"""How fast are the rollout engines on two cores, what does sharding cost, and what does metatune add to TRL's step?

    python benchmarks/engines.py [--repeats 5] [--quick]

1. Rollouts: tokens a second of the packaged starter, 32 prompts × 64 tokens each (no completion may end early, so
   that all engines do the same work), one thread an engine, after one round to warm up: `model.generate`, metatune's
   compact loop, transformers' continuous batching, vLLM colocated, and a vLLM server over HTTP.
2. Steps: seconds from the beginning of an optimizer step of 16 completions a process to that of the next: one
   process, DDP, ZeRO-2 and ZeRO-3 on two. Stock `GRPOTrainer` and `DUMPTrainer` with every option off take turns step
   by step in one launch, on prompts of one distribution. The overhead is the ratio of their medians, with a bootstrap
   interval over pairs of neighbouring steps. Goal: within 2 %.

Needs the extras deepspeed and vLLM's CPU build; what is not installed is left out, and said so.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from importlib.util import find_spec

import numpy as np
from shared import CPU_RUN, ROOT, percentile_interval, print_claims

PROMPTS, TOKENS = 32, 64
ENGINES = ("transformers", "compact", "continuous_batching", "vllm colocate", "vllm server")
LAUNCHES = {"1 process": None, "DDP x 2": "cpu2", "ZeRO-2 x 2": "zero2", "ZeRO-3 x 2": "zero3"}
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "DS_ACCELERATOR": "cpu",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "PYTHONPATH": str(ROOT),
}


def prompt_ids(tokenizer) -> list[list[int]]:
    """Return held-out prompts of three families as token ids."""
    from metatune.curricula import load_distributions

    entries = [
        {"name": "countdown", "source": "countdown", "config": {"numbers": 4, "operators": "+-*"}},
        {"name": "arithmetic", "source": "arithmetic", "config": {"terms": 5}},
    ]
    distributions = load_distributions([{**e, "train_size": 1, "test_size": PROMPTS // 2} for e in entries])
    prompts = [prompt for d in distributions for prompt in d.test["prompt"]]
    return [tokenizer.apply_chat_template(p, add_generation_prompt=True, return_dict=False) for p in prompts]


def make_generator(engine: str, server: str | None):
    """Return a function that completes token ids by exactly TOKENS tokens each and returns how many it made."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, ContinuousBatchingConfig, GenerationConfig

    from metatune.recipes.adapters import STARTER

    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(STARTER)
    pad = tokenizer.pad_token_id
    if engine == "vllm colocate":
        from vllm import LLM, SamplingParams

        from metatune.trainers.vllm_cpu import engine_options

        llm = LLM(str(STARTER), max_model_len=256, **engine_options("float32"))
        sampling = SamplingParams(max_tokens=TOKENS, ignore_eos=True, logprobs=0, detokenize=False)

        def complete(prompts):
            outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompts], sampling, use_tqdm=False)
            return sum(len(output.outputs[0].token_ids) for output in outputs)

        return complete
    if engine == "vllm server":
        from trl.generation.vllm_client import VLLMClient

        client = VLLMClient(base_url=server)

        def complete(prompts):
            answer = client.generate(prompts, max_tokens=TOKENS, generation_kwargs={"ignore_eos": True})
            return sum(map(len, answer["completion_ids"]))

        return complete
    model = AutoModelForCausalLM.from_pretrained(STARTER, dtype=torch.float32).eval()
    if engine == "compact":
        from metatune.trainers.generation import sample_completions

        def complete(prompts):
            made = sample_completions(model, prompts, max_new_tokens=TOKENS, eos_token_ids=[], pad_token_id=pad)
            return sum(map(len, made))

        return complete
    options = {"max_new_tokens": TOKENS, "do_sample": True, "pad_token_id": pad, "eos_token_id": None}
    bounded = GenerationConfig(**options, min_new_tokens=TOKENS)  # None alone would mean the checkpoint's own
    if engine == "continuous_batching":
        config = GenerationConfig(**options, use_cuda_graph=False)
        model.generation_config = config

        def complete(prompts):
            batching = ContinuousBatchingConfig()
            outputs = model.generate_batch(
                prompts, generation_config=config, continuous_batching_config=batching, progress_bar=False
            )
            return sum(len(output.generated_tokens) for output in outputs.values())

        return complete

    def complete(prompts):
        longest = max(map(len, prompts))
        ids = torch.tensor([[pad] * (longest - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
        generated = model.generate(input_ids=ids, attention_mask=mask, generation_config=bounded)
        return generated[:, longest:].numel()

    return complete


def measure_rollouts(engine: str, repeats: int, server: str | None) -> None:
    """Print tokens a second of each round as the last line."""
    from transformers import AutoTokenizer

    from metatune.recipes.adapters import STARTER

    complete = make_generator(engine, server)
    prompts = prompt_ids(AutoTokenizer.from_pretrained(STARTER))
    rates = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        tokens = complete(prompts)
        rates.append(tokens / (time.perf_counter() - start))
        if tokens != PROMPTS * TOKENS:
            sys.exit(f"{engine} made {tokens} tokens instead of {PROMPTS * TOKENS}")
    print(json.dumps(rates[1:]), flush=True)


def measure_steps(steps: int) -> None:
    """Train in this process (one of the launch's) and print the seconds of each step, stock and metatune in turn.

    One trainer is of either class in turn: a launch differs from the next by more than the two differ.
    """
    from transformers import TrainerCallback
    from trl import GRPOTrainer

    from metatune.curricula import load_distributions
    from metatune.recipes.adapters import STARTER
    from metatune.rewards import correctness_reward
    from metatune.trainers import DUMPConfig, DUMPTrainer

    seconds = []

    class TakingTurns(TrainerCallback):
        """Changes the trainer's class before each step; times from the beginning of a step to that of the next."""

        def on_step_begin(self, args, state, control, **kwargs):
            now = time.perf_counter()
            if state.global_step:
                seconds.append(now - self.start)
            stock = state.global_step % 2 == 0
            trainer.__class__ = GRPOTrainer if stock else DUMPTrainer
            timer = trainer._throughput
            timer.on_step_end = (lambda *args, **kwargs: None) if stock else type(timer).on_step_end.__get__(timer)
            self.start = time.perf_counter()

    entry = {"name": "a", "source": "arithmetic", "config": {"terms": 5}, "train_size": 400, "test_size": 10}
    args = DUMPConfig(
        output_dir=tempfile.mkdtemp(),
        max_steps=2 * steps + 7,
        per_device_train_batch_size=16,
        num_generations=8,
        max_completion_length=64,
        learning_rate=1e-6,
        logging_steps=1,
        **CPU_RUN,
        model_init_kwargs={"dtype": "float32"},
        curriculum="uniform",
    )
    trainer = DUMPTrainer(
        model=str(STARTER),
        reward_funcs=correctness_reward,
        args=args,
        train_dataset=load_distributions([entry])[0].train,
    )
    trainer.add_callback(TakingTurns())
    trainer.train()
    if trainer.is_world_process_zero():
        print("\n" + json.dumps(seconds[6:]), flush=True)
    trainer.accelerator.wait_for_everyone()  # a process that leaves first takes the other's connections with it
    trainer.accelerator.end_training()


def worker(*args: str, launch: str | None = None, limit: float = 600) -> list[float]:
    """Run a part of this file in processes of its own and return the list that it prints."""
    command = [sys.executable, __file__]
    environment = {**os.environ, **ENVIRONMENT}
    if launch is not None:
        configuration = str(ROOT / "recipes" / "accelerate" / f"{launch}.yaml")
        command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", configuration]
        command += ["--num_processes", "2", "--main_process_port", "0", __file__]
    result = subprocess.run([*command, *args], env=environment, capture_output=True, text=True, timeout=limit)
    lists = [line for line in result.stdout.splitlines() if line.startswith("[") and line.endswith("]")]
    if result.returncode or not lists:
        sys.exit(f"{' '.join(args)} failed:\n{result.stderr[-2000:]}")
    return json.loads(lists[-1])


def start_server() -> tuple[subprocess.Popen, str]:
    """Start a vLLM server of the starter and wait until it is up."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "metatune.recipes.cli", "vllm-serve", "--model", "starter"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(
        [*command, "--port", str(port), "--max_model_len", "256"], env={**os.environ, **ENVIRONMENT}, **quiet
    )
    url = f"http://127.0.0.1:{port}"
    for _ in range(300):
        try:
            urllib.request.urlopen(f"{url}/health", timeout=5)
            return process, url
        except OSError:
            time.sleep(1)
    process.kill()
    sys.exit("the vLLM server did not start")


def interval(values: list[float]) -> tuple[float, list[float]]:
    """Return the median and its 95 % percentile bootstrap interval."""
    draws = np.random.default_rng(0).choice(values, (10_000, len(values)))
    return float(np.median(values)), percentile_interval(np.median(draws, axis=1))


def ratio_of_medians(ours: list[float], stock: list[float]) -> tuple[float, list[float]]:
    """Return the ratio of the medians and its 95 % percentile bootstrap interval over pairs."""
    pairs = np.array([ours, stock])
    draws = np.random.default_rng(0).integers(0, len(stock), (4_000, len(stock)))
    ratios = np.median(pairs[0][draws], axis=1) / np.median(pairs[1][draws], axis=1)
    ratio = np.median(pairs[0]) / np.median(pairs[1])
    return float(ratio), percentile_interval(ratios)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5, help="launches, and rounds of the rollouts")
    parser.add_argument("--steps", type=int, default=40, help="steps of each trainer in a launch")
    parser.add_argument("--quick", action="store_true", help="the same path in five minutes: 1 launch of 10 steps")
    args = parser.parse_args()
    if args.quick:
        args.repeats, args.steps = 1, 10
    rounds = max(args.repeats, 5)
    missing = [name for name in ("vllm", "deepspeed") if find_spec(name) is None]
    claims = []

    print(f"rollouts of the starter, {PROMPTS} x {TOKENS} tokens, one thread, median of {rounds} rounds [95 %]")
    for engine in ENGINES:
        if engine.startswith("vllm") and "vllm" in missing:
            print(f"{engine:22} left out: vLLM is not installed")
            continue
        process, url = start_server() if engine == "vllm server" else (None, "")
        try:
            rate, ci = interval(worker("--rollouts", engine, str(rounds), url))
        finally:
            if process is not None:
                process.terminate()
                process.wait()
        print(f"{engine:22} {rate:8.0f} tokens/s [{ci[0]:.0f}, {ci[1]:.0f}]", flush=True)
        claims.append({"claim": f"tokens a second, {engine}", "value": rate, "ci": ci, "rounds": rounds})

    print(f"\nseconds a step, {args.repeats} launches of {args.steps} steps of each, and metatune over stock [95 %]")
    for name, launch in LAUNCHES.items():
        if name.startswith("ZeRO") and "deepspeed" in missing:
            print(f"{name:12} left out: DeepSpeed is not installed")
            continue
        steps = [s for _ in range(args.repeats) for s in worker("--steps_of", str(args.steps), launch=launch)]
        stock_steps, metatune_steps = steps[::2], steps[1::2]
        ratio, ci = ratio_of_medians(metatune_steps, stock_steps)
        stock, metatune = float(np.median(stock_steps)), float(np.median(metatune_steps))
        print(
            f"{name:12} stock {stock:.3f}  metatune {metatune:.3f}  ratio {ratio:.3f} [{ci[0]:.3f}, {ci[1]:.3f}]",
            flush=True,
        )
        claims.append({"claim": f"seconds a step of stock TRL, {name}", "value": stock, "steps": len(stock_steps)})
        claims.append(
            {
                "claim": f"step time of metatune over stock TRL, {name}",
                "value": ratio,
                "ci": ci,
                "goal": "<= 1.02",
                "met": ratio <= 1.02,
                "steps": len(stock_steps),
            }
        )
    print_claims("engines", claims)


if __name__ == "__main__":
    if "--rollouts" in sys.argv:
        _, _, engine, repeats, server = sys.argv
        measure_rollouts(engine, int(repeats), server or None)
    elif "--steps_of" in sys.argv:
        measure_steps(int(sys.argv[2]))
    else:
        main()
