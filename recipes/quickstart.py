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
from typing import TYPE_CHECKING

from metatune.recipes.config import ConfigError, PlainParser

if TYPE_CHECKING:
    from metatune.recipes.evaluate import EvaluateArguments

RECIPE = Path(__file__).parent / "dump" / "quickstart.yaml"


def evaluate(args: "EvaluateArguments", side: str, model: str) -> None:
    """Evaluate a model into the folder `before` or `after`, and print one line."""
    from metatune.recipes.before_after import evaluate_side

    summary = evaluate_side(args, side, model)
    print(f"  sampled accuracy {summary['accuracy']:.3f} [{summary['ci_low']:.3f}, {summary['ci_high']:.3f}]")


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

    from metatune.eval.report import write_report
    from metatune.recipes import grpo
    from metatune.recipes.before_after import in_one_line, write_comparison
    from metatune.recipes.evaluate import EvaluateArguments
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
    evaluation = EvaluateArguments(
        model="starter",
        distributions=script_args.distributions,
        into=str(folder),
        before="starter",
        num_samples=args.samples,
        max_new_tokens=training_args.max_completion_length,
        batch_size=256,
        dtype="float32",
        device="cpu" if training_args.use_cpu else None,
    )

    print(f"1/4 Evaluating the starter on {len(held_out)} held-out problems, {args.samples} samples each")
    evaluate(evaluation, "before", "starter")
    print(f"2/4 Training with the curriculum '{training_args.curriculum}' for {training_args.max_steps} steps")
    grpo.main(script_args, training_args, model_args)
    print("3/4 Evaluating the trained checkpoint on the same problems")
    evaluate(evaluation, "after", str(folder))

    log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    summary = write_comparison(
        folder,
        generated_tokens=log[-1]["rollout_tokens"],
        seconds=round(time.perf_counter() - started, 1),
        threads=torch.get_num_threads(),
    )
    print("4/4 Writing the report")
    report = write_report(folder)
    print(
        f"{in_one_line(summary)} in {summary['seconds'] / 60:.1f} minutes, {summary['generated_tokens']:,} tokens "
        f"generated.\nOpen {report}"
    )


if __name__ == "__main__":
    try:
        main()
    except ConfigError as error:
        sys.exit(f"metatune: error: {error}")
