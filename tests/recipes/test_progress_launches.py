"""Pay for progress on two processes, as users launch it: the same run however it is sharded."""

from pathlib import Path

import pytest

from .launches import GRPO, log_rows, metatune, succeed, write_recipe

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.needs("deepspeed"),
]

MRT = {**GRPO, "episodes": {"by": "delimiter"}, "max_steps": 5}


def train(folder: Path, name: str, config: str, *more: str) -> list[dict]:
    """Launch two processes and return the rows of their steps."""
    two = ("--num_processes", "2", "--accelerate_config", config)
    recipe = ("--config", folder / "recipe.yaml", "--output_dir", folder / name)
    succeed(metatune("grpo", *recipe, *two, *more))
    return log_rows(folder / name)


@pytest.mark.parametrize(
    "estimator", [{"success_estimator": "likelihood"}, {"forced_answer_tokens": 8}], ids=["likelihood", "rollouts"]
)
def test_zero3_pays_the_progress_that_ddp_pays(tmp_path, estimator):
    write_recipe(tmp_path / "recipe.yaml", MRT, progress="episode", **estimator, max_steps=3)
    ddp, zero3 = train(tmp_path, "ddp", "ddp"), train(tmp_path, "zero3", "zero3")
    assert len(zero3) == len(ddp) == 3
    for mine, theirs in zip(zero3, ddp, strict=True):
        assert mine.get("reward") == theirs.get("reward")  # every second step generates
        for key in {"loss", "progress/value_at_start", "progress/mean"} & theirs.keys():
            assert mine[key] == pytest.approx(theirs[key], abs=1e-5), key
    assert sum("progress/mean" in row for row in ddp) == 2
    assert any(row["loss"] for row in ddp)
