"""One round of `metatune star`, phase by phase; the file that a phase writes last says that it is finished.

| phase | writes | holds |
|---|---|---|
| sample | `samples.jsonl` | a row a trace: its problem, token ids, text, length, verdict |
| force | `traces.jsonl`, then `forced.json` | right traces, their episodes and J along them; J_0 of all problems |
| fine-tune | `kept/train.jsonl`, `sft.yaml`, then `model/` | token ids and labels of the kept traces; the model |
| sum up | `summary.json` | the round's numbers |

Traces are trained on as the token ids that were sampled, prompt masked: written as a conversation once more, a chat
template that hides earlier thinking would drop the very trace.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from trl import ModelConfig, SFTConfig

from ..eval.files import read_rows, write_atomically, write_json, write_rows
from ..trainers.star import RightTrace, choose
from . import sft
from .config import ConfigError
from .rounds import Row, empty_accelerator_cache, seed_of, train
from .run_folder import effective_recipe, last_whole_checkpoint
from .star_sampler import Sampler, mean

PROBLEMS_PER_CALL = 16  # problems whose cut traces go to the engine together: it bounds the rows held in memory


@dataclass
class Round:
    """A round and its folder.

    Args:
        number (`int`): from 1.
        folder (`Path`): where its files go.
        source (`str`): folder or hub name of the model that samples.
        args (`StarScriptArguments`): the recipe's own options.
        training_args (`SFTConfig`): options of the fine-tuning.
        model_args (`ModelConfig`): the model's options.
        launch_args (`list[str]`): the launcher's options, for the fine-tuning.
    """

    number: int
    folder: Path
    source: str
    args: Any
    training_args: SFTConfig
    model_args: ModelConfig
    launch_args: list[str]

    @property
    def model(self) -> Path:
        """Folder of the fine-tuned model; it is there when the fine-tuning is over."""
        return self.folder / "model"

    def run(self, problems: Sequence[Row]) -> Row:
        """Run the phases that are not finished and return the round's summary.

        Args:
            problems (`Sequence[dict]`): all training problems, of which this round draws its own.

        Raises [`ConfigError`] if no trace is kept, or a prompt or trace does not fit; `SystemExit` with the launcher's
        code if the fine-tuning failed, which has been told by then.
        """
        summary = self.folder / "summary.json"
        if not summary.exists():
            drawn = self._draw(problems)
            self._generate(drawn)
            empty_accelerator_cache()  # the engine's weights, before another process wants the memory
            if not self.model.exists():
                self._fine_tune()
            write_json(summary, self._summarise())
        return json.loads(summary.read_text())

    def _draw(self, problems: Sequence[Row]) -> list[Row]:
        number = self.args.num_prompts or len(problems)
        return random.Random(self._seed("problems")).sample(list(problems), number)

    def _seed(self, what: str) -> int:
        return seed_of(self.training_args.seed, self.number, what)

    # Sampling and forced answers

    def _generate(self, problems: list[Row]) -> None:
        """Sample traces and measure the right ones, whichever is not there yet, with one load of the model."""
        with_values = self.args.select == "progress"
        if (self.folder / "samples.jsonl").exists() and ((self.folder / "forced.json").exists() or not with_values):
            return
        try:
            sampler = Sampler(self.source, self.args, self.training_args, self.model_args)
            if not (self.folder / "samples.jsonl").exists():
                self._tell(f"sampling {self.args.num_samples} traces of {len(problems)} problems")
                write_rows(self.folder / "samples.jsonl", sampler.sample(problems, self._seed("samples")))
            if with_values:
                self._force(sampler, problems)
        except (ValueError, ImportError) as error:
            raise ConfigError(" ".join(str(error).split())) from error

    def _force(self, sampler: Sampler, problems: list[Row]) -> None:
        right = [row for row in self._samples if row["right"]]
        self._tell(f"{len(right)} of {len(self._samples)} traces are right; measuring their progress")
        starts: list[float | None] = []
        traces: list[Row] = []
        tokens = 0
        for first in range(0, len(problems), PROBLEMS_PER_CALL):
            part = range(first, min(first + PROBLEMS_PER_CALL, len(problems)))
            rows = [row for row in right if row["problem"] in part]
            measured = sampler.measure({i: problems[i] for i in part}, rows, self._seed(f"forced answers {first}"))
            starts, traces, tokens = starts + measured[0], traces + measured[1], tokens + measured[2]
        for row, trace in zip(right, traces, strict=True):
            trace["step"] = self.number
            trace["prompt"] = row["prompt"]
        kept = set(self._choose(self._samples, traces))
        for trace in traces:
            trace["kept"] = (trace["problem"], trace["sample"]) in kept
        write_rows(self.folder / "traces.jsonl", traces)
        text = json.dumps({"success_at_once": starts, "tokens": tokens}) + "\n"
        write_atomically(self.folder / "forced.json", lambda path: path.write_text(text))

    # Selection and fine-tuning

    def _choose(self, samples: list[Row], traces: list[Row]) -> list[tuple[int, int]]:
        """Choose a right trace of every problem that has one; returns (problem, sample) pairs in order."""
        measured = {(trace["problem"], trace["sample"]): trace for trace in traces}
        candidates: dict[int, list[tuple[int, Row]]] = {}
        for row in samples:
            if not row["right"]:
                continue
            if self.args.select != "progress":
                trace = {"ends": [row["tokens"]], "values": None}
            elif (trace := measured[row["problem"], row["sample"]])["regret"] is None:
                continue
            candidates.setdefault(row["problem"], []).append((row["sample"], trace))
        rng = random.Random(self._seed("selection"))
        chosen = []
        for problem, members in candidates.items():
            right = [RightTrace(ends=trace["ends"], values=trace["values"]) for _, trace in members]
            chosen.append((problem, members[choose(right, self.args.select, rng)][0]))
        return chosen

    def _fine_tune(self) -> None:
        """Fine-tune on the kept traces by `metatune sft`, as the launcher's options say."""
        rows = [
            {"input_ids": row["prompt_ids"] + row["ids"], "labels": [-100] * len(row["prompt_ids"]) + row["ids"]}
            for row in self._kept
        ]
        if not rows:
            raise ConfigError(
                f"round {self.number}: none of {len(self._samples)} traces ended right, so there is nothing to "
                "fine-tune on; raise num_samples or max_completion_length, or begin with easier problems"
            )
        self._tell(f"fine-tuning on {len(rows)} traces")
        write_rows(self.folder / "kept" / "train.jsonl", rows)
        training = self.folder / "training"
        source = self.source if self.args.start_from == "last" else self.model_args.model_name_or_path
        recipe = yaml.safe_load(effective_recipe(self.training_args, self.model_args)) | {
            "model_name_or_path": source,
            "dataset_name": str(self.folder / "kept"),
            "output_dir": str(training),
            "resume_from_checkpoint": last_whole_checkpoint(training) is not None,
        }
        if self.training_args.model_init_kwargs:
            recipe["model_init_kwargs"] = self.training_args.model_init_kwargs
        train(sft, recipe, self.model, self.launch_args)

    # What a finished phase left

    @cached_property
    def _samples(self) -> list[Row]:
        return read_rows(self.folder / "samples.jsonl")

    @property
    def _traces(self) -> list[Row]:
        path = self.folder / "traces.jsonl"
        return read_rows(path) if path.exists() else []

    @property
    def _kept(self) -> list[Row]:
        chosen = set(self._choose(self._samples, self._traces))
        return [row for row in self._samples if (row["problem"], row["sample"]) in chosen]

    def _summarise(self) -> Row:
        samples, kept, traces = self._samples, self._kept, self._traces
        problems = len({row["problem"] for row in samples})
        path = self.folder / "forced.json"
        forced: Row = json.loads(path.read_text()) if path.exists() else {"success_at_once": [], "tokens": 0}
        starts = dict(enumerate(forced["success_at_once"]))
        scored = [row for row in samples if row["correct"] is not None]
        measured = [row for row in scored if starts.get(row["problem"]) is not None]
        regrets: dict[int, list[float]] = {}  # by problem: only the selection tells the two means apart
        for trace in traces:
            if trace["regret"] is not None:
                regrets.setdefault(trace["problem"], []).append(trace["regret"])
        return {
            "round": self.number,
            "sampled_from": self.source,
            "select": self.args.select,
            "problems": problems,
            "samples": len(samples),
            "unscorable": len(samples) - len(scored),
            "unmeasured": sum(None in trace["values"] for trace in traces),
            "cut_off": mean(row["truncated"] for row in samples),
            "right": mean(row["right"] for row in samples),
            "kept": len(kept) / problems,
            "success_at_once": mean(value for value in starts.values() if value is not None),
            "progress": mean(row["right"] - starts[row["problem"]] for row in measured),
            "regret": mean(sum(values) / len(values) for values in regrets.values()),
            "regret_kept": mean(trace["regret"] for trace in traces if trace["kept"]),
            "tokens": mean(row["tokens"] for row in samples),
            "tokens_kept": mean(row["tokens"] for row in kept),
            "sampled_tokens": sum(row["tokens"] for row in samples),
            "forced_tokens": forced["tokens"],
        }

    def _tell(self, what: str) -> None:
        print(f"Round {self.number}: {what}", flush=True)
