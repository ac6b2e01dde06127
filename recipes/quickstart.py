"""The main job on the embedded default: a starter checkpoint, made better at reasoning by a learned curriculum.

    metatune quickstart [--output_dir DIR] [--max_steps N …]
    make quickstart                                               (builds the environment first)

Evaluates the starter on held-out problems, trains it with `recipes/dump/quickstart.yaml`, evaluates it again on the
same problems, and writes `summary.json`, the pictures and `report.html`. Options other than `--output_dir` and
`--samples` override the training recipe: `--use_cpu false` trains and evaluates on a GPU. A folder that an earlier run
left is kept under another name.
"""

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from metatune.recipes.config import ConfigError, PlainParser

RECIPE = Path(__file__).parent / "dump" / "quickstart.yaml"


def evaluate_checkpoint(model: Path, items, samples: int, max_new_tokens: int, folder: Path, use_cpu: bool):
    """Sample every held-out problem `samples` times, print one line, and save the evaluation in `folder`."""
    from transformers import AutoTokenizer

    from metatune.eval import evaluate
    from metatune.eval.engines import load_engine
    from metatune.recipes.adapters import base_and_adapter

    tokenizer = AutoTokenizer.from_pretrained(model)
    base, adapter = base_and_adapter(str(model))
    engine = load_engine(
        "compact",
        base.name,
        tokenizer,
        dtype="float32",
        device="cpu" if use_cpu else None,
        batch_size=256,
        revision=base.revision,
        adapter=adapter,
    )
    evaluation = evaluate(
        engine,
        tokenizer,
        items,
        num_samples=samples,
        max_new_tokens=max_new_tokens,
        settings={"model": "starter" if folder.name == "before" else "trained"},
    )
    summary = evaluation.save(folder)
    interval = f"[{summary['ci_low']:.3f}, {summary['ci_high']:.3f}]"
    print(f"  sampled accuracy {summary['accuracy']:.3f} {interval}")
    return evaluation


def keep_earlier_run(folder: Path) -> None:
    """Move what an earlier run left out of the way."""
    if folder.exists() and any(folder.iterdir()):
        kept = folder.with_name(f"{folder.name}-{time.strftime('%Y%m%d-%H%M%S')}")
        folder.rename(kept)
        print(f"An earlier run is kept in {kept}")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the quickstart."""
    parser = PlainParser(
        prog="metatune quickstart",
        description=__doc__.splitlines()[0],
        epilog="Any option of `metatune grpo` overrides the recipe, --max_steps 20 say.",
        allow_abbrev=False,
    )
    parser.add_argument("--output_dir", type=Path, default=Path("runs/quickstart"), help="default: %(default)s")
    parser.add_argument("--samples", type=int, default=4, help="of each held-out problem (default: %(default)s)")
    args, overrides = parser.parse_known_args(argv)
    if args.samples < 1:
        parser.error(f"--samples must be at least 1, got {args.samples}")

    started = time.perf_counter()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here comes from the hub, and a look-up could only fail
    print("Loading the libraries …", flush=True)
    import datasets
    import torch
    import transformers

    from metatune.eval.evaluation import compare
    from metatune.eval.files import write_atomically
    from metatune.eval.report import write_report
    from metatune.recipes import grpo
    from metatune.recipes.adapters import STARTER
    from metatune.recipes.run_folder import check_output_dir

    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    folder = args.output_dir
    check_output_dir(str(folder))
    script_args, training_args, model_args = grpo.make_parser("metatune quickstart").parse_args_and_config(
        ["--config", str(RECIPE), "--output_dir", str(folder), *overrides]
    )
    keep_earlier_run(folder)
    _, held_out = grpo.load_data(script_args, with_evaluation=True)
    length, use_cpu = training_args.max_completion_length, training_args.use_cpu

    print(f"1/4 Evaluating the starter on {len(held_out)} held-out problems, {args.samples} samples each")
    before = evaluate_checkpoint(STARTER, held_out, args.samples, length, folder / "before", use_cpu)
    print(f"2/4 Training with the curriculum '{training_args.curriculum}' for {training_args.max_steps} steps")
    grpo.main(script_args, training_args, model_args)
    print("3/4 Evaluating the trained checkpoint on the same problems")
    after = evaluate_checkpoint(folder, held_out, args.samples, length, folder / "after", use_cpu)

    log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    comparison = compare(before, after)
    summary = {
        **comparison,
        "generated_tokens": log[-1]["rollout_tokens"],
        "evaluation_tokens": comparison["generated_tokens"],
        "seconds": round(time.perf_counter() - started, 1),
        "threads": torch.get_num_threads(),
    }
    text = json.dumps(summary, indent=2)
    write_atomically(folder / "summary.json", lambda path: path.write_text(text))
    print("4/4 Writing the report")
    report = write_report(folder)
    print(
        f"Held-out accuracy {summary['accuracy_before']:.3f} -> {summary['accuracy_after']:.3f} "
        f"(+{summary['difference']:.3f}, 95 % interval [{summary['ci_low']:.3f}, {summary['ci_high']:.3f}]) "
        f"in {summary['seconds'] / 60:.1f} minutes, {summary['generated_tokens']:,} tokens generated.\nOpen {report}"
    )


if __name__ == "__main__":
    try:
        main()
    except ConfigError as error:
        sys.exit(f"metatune: error: {error}")
