"""`judge:`, `meta_judge:` and `held_out_judge:` in a grpo recipe: a language model that scores by a rubric.

judge:
  url: http://127.0.0.1:8001/v1      # vllm serve MODEL --port 8001
  rubric: rubrics/essay.yaml         # task and items; a rubric of a run goes on with `metatune rubric show`
meta_judge: {url: "http://127.0.0.1:8002/v1"}
held_out_judge: {url: "http://127.0.0.1:8003/v1", rubric: rubrics/essay_expert.yaml}
"""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from metatune.recipes.config import ConfigError, MissingHereError
from metatune.recipes.conform import conform
from metatune.recipes.data import nearest_path
from metatune.rewards import Judge, JudgeClient, JudgeError, JudgeReward, MetaJudge, RubricBounds, read_rubric
from metatune.rewards.judge import MODES
from metatune.rewards.prompt_templates import PromptTemplates
from metatune.trainers import MPOConfig
from metatune.trainers.mpo_config import HELD_OUT, OWN_OPTIONS

LIMITS = ("max_prompt_characters", "max_completion_characters")  # of what a judge is shown
BOUNDS = ("max_items", "max_points", "max_criterion_characters")  # of a rubric; its task is given, and stays


@dataclass
class ServerEntry:
    """What every entry says of its server.

    Args:
        url (`str`): of the server's OpenAI-compatible API, with its /v1.
        model (`str`, *optional*): the name by which it serves the model; by default its only one.
        api_key_variable (`str`, *optional*): environment variable that has the key; never the key itself.
        max_concurrency (`int`, *optional*): requests under way at a time, of one process.
        timeout (`float`, *optional*): seconds for one try.
        retries (`int`, *optional*): tries after the first.
        deadline (`float`, *optional*): seconds for a request with all its tries.
        temperature (`float`, *optional*, defaults to 0.0): of the sampling; null sends none.
        max_tokens (`int`, *optional*): of an answer.
        max_tokens_field (`str`, *optional*): field that `max_tokens` is sent in; `max_completion_tokens` for OpenAI's
            reasoning models.
        structured (`str`, *optional*): `json_schema` (guided decoding) or `none`.
        extra_body (`dict`, *optional*): further keys of every request.
        templates (`str`, *optional*): folder of prompt templates in place of ours.
    """

    url: str
    model: str | None = None
    api_key_variable: str | None = None
    max_concurrency: int | None = None
    timeout: float | None = None
    retries: int | None = None
    deadline: float | None = None
    temperature: float | None = 0.0
    max_tokens: int | None = None
    max_tokens_field: str | None = None
    structured: str | None = None
    extra_body: dict | None = None
    templates: str | None = None

    def __post_init__(self):
        if not _is_address(self.url):
            raise ValueError(f"`url` is the address of a server, such as http://127.0.0.1:8001/v1, not {self.url!r}")
        parts = urlsplit(self.url)
        if parts.username or parts.password:
            raise ValueError(
                "`url` contains a user or a password: set `api_key_variable` to an environment variable instead"
            )
        if self.api_key_variable is not None and not self.api_key_variable.isidentifier():
            raise ValueError(
                "`api_key_variable` is the name of an environment variable, such as OPENAI_API_KEY, not the key itself"
            )
        given = self._given()
        given.pop("api_key_variable", None)  # need not be set where a recipe is only read
        JudgeClient(self.url, **given)

    @property
    def lacks_key(self) -> bool:
        """Whether the key is to be in a variable that is not set here."""
        return self.api_key_variable is not None and not os.environ.get(self.api_key_variable)

    def problem(self) -> str | None:
        """Send the server a short chat; returns the problem and how to fix it, or `None`."""
        return JudgeClient(self.url, **self._given()).probe()

    def client(self, name: str = "judge") -> JudgeClient:
        """Connect to the server of the judge `name`, and check that it serves the model."""
        client = JudgeClient(self.url, name=name, **self._given())
        client.check()
        return client

    def _given(self) -> dict[str, Any]:
        """The options of the client that are given."""
        names = [field.name for field in fields(ServerEntry) if field.name not in ("url", "templates")]
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return {"temperature": self.temperature, **given}


@dataclass
class HeldOutJudgeEntry(ServerEntry):
    """A judge that trains nothing.

    Args:
        rubric (`str`): JSON or YAML file with its rubric.
        mode (`str`, *optional*, defaults to `"single"`): `single` or `plan_execute`.
        max_prompt_characters (`int`, *optional*): of a prompt that it is shown.
        max_completion_characters (`int`, *optional*): of an answer that it is shown.
    """

    rubric: str = ""
    mode: str = "single"
    max_prompt_characters: int | None = None
    max_completion_characters: int | None = None

    def __post_init__(self):
        super().__post_init__()
        if not self.rubric:
            raise ValueError("give `rubric`, a JSON or YAML file with task and items")
        if self.mode not in MODES:
            raise ValueError(f"`mode` is one of {', '.join(MODES)}, not {self.mode!r}")
        for name in LIMITS:
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"`{name}` is at least 1, not {getattr(self, name)}")

    def judge(self, name: str = "held_out_judge") -> Judge:
        """Make the judge `name`; raises what its parts raise."""
        given = {name: getattr(self, name) for name in LIMITS if getattr(self, name) is not None}
        rubric = read_rubric(self.rubric)
        return Judge(self.client(name), rubric, mode=self.mode, templates=self.templates, **given)


@dataclass
class JudgeEntry(HeldOutJudgeEntry):
    """The judge that trains.

    Args:
        weight (`float`, *optional*, defaults to 1.0): of this reward in the sum.
        reference_column (`str`, *optional*): column with the known answer, which it is shown.
        max_failure_rate (`float`, *optional*, defaults to 0.5): share of failed judgements that ends the run.
    """

    weight: float = 1.0
    reference_column: str | None = None
    max_failure_rate: float = 0.5

    def __post_init__(self):
        super().__post_init__()
        if not math.isfinite(self.weight):
            raise ValueError(f"`weight` is not finite: {self.weight}")
        if not 0 <= self.max_failure_rate <= 1:
            raise ValueError(f"`max_failure_rate` is between 0 and 1, not {self.max_failure_rate}")

    def reward(self) -> JudgeReward:
        """Make the reward function; raises what its parts raise."""
        return JudgeReward(
            self.judge("judge"), reference_column=self.reference_column, max_failure_rate=self.max_failure_rate
        )


@dataclass
class MetaJudgeEntry(ServerEntry):
    """The model that rewrites the rubric.

    Args:
        num_refinements (`int`, *optional*, defaults to 4): analyses side by side.
        max_items (`int`, *optional*): of a rubric that it writes.
        max_points (`int`, *optional*): of one item.
        max_criterion_characters (`int`, *optional*): of one criterion.
        max_characters (`int`, *optional*): of a prompt or an answer that it is shown.
    """

    num_refinements: int = 4
    max_items: int | None = None
    max_points: int | None = None
    max_criterion_characters: int | None = None
    max_characters: int | None = None

    def __post_init__(self):
        super().__post_init__()
        for name in ("num_refinements", "max_characters"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"`{name}` is a whole number of at least 1, not {value!r}")
        self.bounds()

    def bounds(self) -> RubricBounds:
        return RubricBounds(**{name: getattr(self, name) for name in BOUNDS if getattr(self, name) is not None})

    def meta_judge(self) -> MetaJudge:
        """Make the meta judge; raises what its parts raise."""
        options: dict[str, Any] = {"num_refinements": self.num_refinements}
        options |= {} if self.max_characters is None else {"max_characters": self.max_characters}
        return MetaJudge(
            self.client("meta_judge"), self.bounds(), templates=PromptTemplates(self.templates), **options
        )


ENTRIES = {"judge": JudgeEntry, "meta_judge": MetaJudgeEntry, "held_out_judge": HeldOutJudgeEntry}


def read_judge(name: str, value: dict[str, Any] | None) -> Any:
    """Read one of `ENTRIES`; `None` where it is not given. Raises `ValueError` that names the entry and the option."""
    if value is None:
        return None
    try:
        if "url" not in value:
            raise ValueError("give `url`, the address of the server")
        return ENTRIES[name](**conform(value, ENTRIES[name]))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def given_judges(script_args: Any) -> dict[str, Any]:
    """Return those of `ENTRIES` that a recipe gives, by their names."""
    entries = {name: read_judge(name, getattr(script_args, name)) for name in ENTRIES}
    return {name: entry for name, entry in entries.items() if entry is not None}


def read_judges(script_args: Any) -> None:
    """Raise `ValueError` unless all of `ENTRIES` can be read, and a judge is there for the other two."""
    for name in ENTRIES:
        read_judge(name, getattr(script_args, name))
        if getattr(script_args, name) is not None and script_args.judge is None:
            raise ValueError(f"`{name}` goes with a `judge`: give one, or leave it out")


def check_judges(script_args: Any, training_args: MPOConfig) -> None:
    """Tell what can be told before a server is asked.

    Raises:
        ConfigError: for options without effect, and for a rubric or templates that cannot be used.
        MissingHereError: if the only problem is a key that is not set on this machine.
    """
    defaults = {option.name: option.default for option in fields(MPOConfig)}
    if script_args.judge is None:
        for name in OWN_OPTIONS:
            if getattr(training_args, name) != defaults[name]:
                raise ConfigError(f"`{name}` has no effect without a judge: set `judge`, or remove it")
        return
    for name in HELD_OUT if script_args.held_out_judge is None else ():
        if getattr(training_args, name) != defaults[name]:
            raise ConfigError(f"`{name}` has no effect without a held-out judge: set `held_out_judge`, or remove it")
    if training_args.meta_every and script_args.meta_judge is None:
        raise ConfigError("set a `meta_judge` that rewrites the judge's rubric, or keep it with `meta_every: 0`")
    entries = given_judges(script_args)
    bounds = entries["meta_judge"].bounds() if "meta_judge" in entries else None
    for name, entry in entries.items():
        if isinstance(entry, HeldOutJudgeEntry):
            if not Path(entry.rubric).exists():
                raise ConfigError(f"{name}: `rubric`: {entry.rubric}: no such file{nearest_path(entry.rubric)}")
            _load(name, read_rubric, entry.rubric, bounds if name == "judge" else None)
        _load(f"{name}: `templates`", PromptTemplates, entry.templates)
    for name, entry in entries.items():  # last: on another machine it may be set
        if entry.lacks_key:
            raise MissingHereError(
                f"{name}: `api_key_variable`: the environment variable {entry.api_key_variable} is not set"
            )


def load_judge_reward(entry: JudgeEntry) -> JudgeReward:
    """Connect to the judge and return its reward function."""
    return _load("judge", entry.reward)


def load_judges(script_args: Any) -> dict[str, Any]:
    """Connect to the judges that a trainer takes beside its reward functions, and return them by their arguments."""
    meta, held_out = (read_judge(name, getattr(script_args, name)) for name in ("meta_judge", "held_out_judge"))
    judges = {"meta_judge": _load("meta_judge", meta.meta_judge)} if meta else {}
    return judges | ({"held_out_judge": _load("held_out_judge", held_out.judge)} if held_out else {})


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # an impossible port, or half of an IPv6 address
        return False


def _load(name: str, make: Callable[..., Any], *values: Any) -> Any:
    """Call what makes a judge; what it lacks is a [`ConfigError`] that names the entry."""
    try:
        return make(*values)
    except (ValueError, JudgeError) as error:
        raise ConfigError(f"{name}: {error}") from error
