"""What every curriculum shares: the interface, the allocation of prompts, the state, the registry.

A curriculum chooses among *arms*, the names of task distributions. Before each generation batch, `draw` returns the
arm of each prompt. After the batch, `observe` receives one prompt's group of completions at a time, or
`observe_unscorable` if the completions cannot be compared. `probabilities` always returns what the next `draw` will
use. One `draw` is one tick of the clock, because the policy changes once per batch.

A curriculum is a deterministic function of its seed and of its method calls: ranks that make the same calls in the
same order draw the same prompts. It learns only from the calls of `observe` and `observe_unscorable`, so evaluations
do not affect it.
"""

import difflib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from .recent_prompts import finite_or_none
from .shares import largest_remainder, require

STATE_VERSION = 2  # version 1 did not count unscorable prompts and had no weights of observations
PAST_WEIGHT = 0.8  # of observations before a change of the rewards; later observations have weight 1

CURRICULA: dict[str, type["Curriculum"]] = {}
"""Every curriculum by name. Subclassing with `class Mine(Curriculum, name="mine")` adds to it."""


class Curriculum(ABC):
    """Base class of the curricula.

    Subclasses implement `probabilities`, `learnability`, `_observe`, and, if they keep statistics of their own,
    `_tick`, `_discount_past`, `_statistics`, `_load_statistics` and `_own_metrics`. By default, `_observe_unscorable`
    calls `_observe`.

    Args:
        arms (`Sequence[str]`): names of the task distributions; at least one, all different.
        seed (`int`): seed of the order of a draw and of ties in its allocation.
        **options: the subclass's own options; they are part of the state, and a state with other options is refused.

    Raises:
        ValueError: if there is no arm, or an arm is duplicated, empty or not a string.
    """

    name: ClassVar[str]
    unit_rewards: ClassVar[bool] = False  # whether it needs rewards from 0 to 1
    adaptive: ClassVar[bool] = True  # whether its shares depend on what it observes

    def __init_subclass__(cls, name: str | None = None, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        if name is not None:
            require(name not in CURRICULA, f"there is already a curriculum {name!r}: {CURRICULA.get(name)}")
            cls.name = name
            CURRICULA[name] = cls

    def __init__(self, arms: Sequence[str], *, seed: int, **options: Any):
        self.arms = _checked_arms(arms)
        self.options = {"seed": int(seed), **options}
        self._index = {arm: i for i, arm in enumerate(self.arms)}
        self._rng = np.random.default_rng(self.options["seed"])
        self._carry = np.zeros(len(self.arms))
        self._draws = 0
        self._observed = np.zeros(len(self.arms))

    @abstractmethod
    def probabilities(self) -> np.ndarray:
        """Return the share of prompts that each arm gets at the next draw: float64, shape (N,), sums to 1."""

    @abstractmethod
    def learnability(self) -> np.ndarray:
        """Return the method's estimate of how much each arm teaches: shape (N,), 0.0 for an arm never observed."""

    def draw(self, num_prompts: int) -> np.ndarray:
        """Choose the arm of every prompt of the next generation batch.

        The arms share the prompts by largest remainder, and what rounding takes from an arm or gives to it is carried
        over to the next draw. So over time each arm gets its probability's share to within a few prompts, however
        small `num_prompts * probability` is.

        Args:
            num_prompts (`int`): number of prompts (not of completions), at least 1.

        Returns:
            `np.ndarray`: indices into `arms`, int64, shape (num_prompts,), shuffled.
        """
        if num_prompts < 1:
            raise ValueError(f"num_prompts must be at least 1, got {num_prompts}")
        quotas = num_prompts * self.probabilities() + self._carry
        counts = largest_remainder(quotas, num_prompts, self._rng)
        self._carry = quotas - counts
        self._tick(num_prompts)
        self._draws += 1
        return self._rng.permutation(np.repeat(np.arange(len(self.arms)), counts))

    def observe(
        self,
        arm: str,
        advantages: Sequence[float],
        rewards: Sequence[float] | None = None,
        tokens: Sequence[float] | None = None,
    ) -> None:
        """Learn from one prompt: its group of G completions.

        Args:
            arm (`str`): the distribution that the prompt came from.
            advantages (`Sequence[float]` of length G): the advantage of each completion, as the policy update uses it.
            rewards (`Sequence[float]` of length G, *optional*): raw rewards; the curricula that need them say so.
            tokens (`Sequence[float]` of length G, *optional*): lengths of the completions, in tokens.

        Raises:
            ValueError: if the arm is unknown, the lengths differ, or a value is missing, NaN or infinite.
        """
        index = self._index_of(arm)
        advantages_G = _checked_group(arm, "advantages", advantages)
        size = len(advantages_G)
        rewards_G = None if rewards is None else _checked_group(arm, "rewards", rewards, size)
        tokens_G = None if tokens is None else _checked_group(arm, "tokens", tokens, size)
        self._observe(index, advantages_G, rewards_G, tokens_G)
        self._observed[index] += 1

    def observe_unscorable(self, arm: str, num_completions: int, tokens: Sequence[float] | None = None) -> None:
        """Count one prompt that cannot be compared: fewer than two completions have a reward and are in the loss.

        Call this for every drawn prompt that is not passed to `observe`. The prompt counts as drawn, with the value 0.
        If such prompts were not counted, their arm would look unexplored, and a bandit would draw it more and more.

        Args:
            arm (`str`): the distribution that the prompt came from.
            num_completions (`int`): number of completions that were generated for it.
            tokens (`Sequence[float]` of length `num_completions`, *optional*): their lengths, in tokens.

        Raises:
            ValueError: if the arm is unknown, or an argument is out of range.
        """
        index = self._index_of(arm)
        require(num_completions >= 1, f"arm {arm!r}: num_completions must be at least 1, got {num_completions}")
        tokens_G = None if tokens is None else _checked_group(arm, "tokens", tokens, num_completions)
        self._observe_unscorable(index, num_completions, tokens_G)
        self._observed[index] += 1

    def discount_past(self, factor: float = PAST_WEIGHT) -> None:
        """Reduce the weight of all observations so far, because the meaning of the rewards has changed.

        New observations then change the estimates faster. The factors of several calls multiply.

        Args:
            factor (`float`, *optional*, defaults to `0.8`): factor of the weight of past observations, in (0, 1];
                a new observation has weight 1.
        """
        require(0 < factor <= 1, f"the weight of past observations must be in (0, 1], got {factor}")
        self._discount_past(factor)

    def metrics(self) -> dict[str, float]:
        """Return what to log: `probability/ARM` of the next draw, `learnability/ARM` and `count/ARM`, the number of
        prompts observed, beside the method's own. Never NaN: an arm never observed has learnability 0.0."""
        columns = {
            "probability": self.probabilities(),
            "learnability": self.learnability(),
            "count": self._observed,
            **self._own_metrics(),
        }
        return {f"{key}/{arm}": float(column[i]) for key, column in columns.items() for i, arm in enumerate(self.arms)}

    def state_dict(self) -> dict[str, Any]:
        """Return everything that steers later draws, as JSON values. A reloaded curriculum continues bit for bit."""
        return {
            "version": STATE_VERSION,
            "name": self.name,
            "arms": list(self.arms),
            "options": dict(self.options),
            "rng": self._rng.bit_generator.state,
            "carry": self._carry.tolist(),
            "draws": self._draws,
            "observed": self._observed.tolist(),
            "statistics": self._statistics(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state_dict`. A refused state leaves the curriculum as it was.

        Raises:
            ValueError: if the state has missing or unknown keys, or comes from another version, method, list of arms
                or set of options; the message names what differs.
        """
        expected = self.state_dict()
        _check_same_keys("the state", expected, state)
        how = "resume with the metatune release that wrote it, train on from its weights with model_name_or_path"
        _check_same("version", expected["version"], state["version"], how)
        _check_same("name", expected["name"], state["name"], "resume with the curriculum of the checkpoint")
        _check_same("arms", expected["arms"], state["arms"], "list the checkpoint's arms in the same order")
        _check_same_keys("its options", expected["options"], state["options"])
        for option, value in expected["options"].items():
            _check_same(f"option {option}", value, state["options"][option], "resume with the checkpoint's options")
        _check_same_keys("its statistics", expected["statistics"], state["statistics"])
        carry = self._per_arm("carry", state["carry"])
        observed = self._per_arm("observed", state["observed"])
        draws = checked_count("draws", state["draws"])
        rng = np.random.default_rng()
        try:
            rng.bit_generator.state = state["rng"]
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"curriculum state refused: rng is not a saved generator ({error})") from error
        self._load_statistics(state["statistics"])
        self._rng, self._carry, self._observed, self._draws = rng, carry, observed, draws

    @abstractmethod
    def _observe(
        self, index: int, advantages: np.ndarray, rewards: np.ndarray | None, tokens: np.ndarray | None
    ) -> None:
        """Learn from one prompt of arm `index`; the inputs are checked."""

    def _observe_unscorable(self, index: int, num_completions: int, tokens: np.ndarray | None) -> None:
        """Count one prompt of arm `index` with the value 0: by default as a group in which all rewards are 0."""
        zeros = np.zeros(num_completions)
        self._observe(index, zeros, zeros, tokens)

    def _discount_past(self, factor: float) -> None:  # noqa: B027, without statistics there is nothing to discount
        """Multiply the weight of all observations so far by `factor`, in (0, 1]."""

    def _tick(self, num_prompts: int) -> None:  # noqa: B027, most curricula have no clock
        """Move the clock on, after the probabilities of a draw are settled."""

    def _statistics(self) -> dict[str, Any]:
        """Return the method's own part of the state."""
        return {}

    def _load_statistics(self, statistics: Mapping[str, Any]) -> None:  # noqa: B027, goes with `_statistics`
        """Take over the method's own part of a state whose keys are checked; change nothing if it is refused."""

    def _own_metrics(self) -> dict[str, np.ndarray]:
        """Return the method's own columns for `metrics`: name to an array of shape (N,)."""
        return {}

    def _index_of(self, arm: str) -> int:
        if arm not in self._index:
            raise ValueError(f"unknown arm {arm!r}{_nearest(arm, self.arms)}; the arms are {list(self.arms)}")
        return self._index[arm]

    def _required_rewards(self, index: int, rewards: np.ndarray | None) -> np.ndarray:
        """Return the rewards for a curriculum that needs them, and needs them from 0 (failed) to 1 (solved)."""
        arm = self.arms[index]
        if rewards is None:
            raise ValueError(
                f"arm {arm!r}: curriculum {self.name!r} needs the raw rewards: pass `rewards` to `observe`"
            )
        require(
            rewards.min() >= 0 and rewards.max() <= 1,
            f"arm {arm!r}: curriculum {self.name!r} needs rewards in [0, 1], got {rewards.tolist()}; observe the "
            "verifier's reward alone, or rescale it",
        )
        return rewards

    def _per_arm(self, key: str, values: Sequence[float]) -> np.ndarray:
        """Read an array with one finite number per arm from a state."""
        array = finite_or_none(values)
        if array is None or array.shape != (len(self.arms),):
            raise ValueError(f"curriculum state refused: {key} must hold one finite number per arm, got {values}")
        return array


def checked_count(key: str, value: Any) -> int:
    """Read a whole number >= 0 from a state."""
    require(isinstance(value, int) and value >= 0, f"curriculum state refused: {key} must be a count, got {value!r}")
    return value


def make_curriculum(name: str, arms: Sequence[str], **options: Any) -> Curriculum:
    """Build a curriculum by its name in `CURRICULA`.

    Raises:
        ValueError: if the name or an option is unknown (with the nearest valid one), or a required option is missing.
    """
    if name not in CURRICULA:
        raise ValueError(f"unknown curriculum {name!r}{_nearest(name, CURRICULA)}; choose from {sorted(CURRICULA)}")
    parameters = dict(inspect.signature(CURRICULA[name]).parameters)
    del parameters["arms"]
    for option, value in options.items():
        if option not in parameters:
            hint = _nearest(option, parameters)
            raise ValueError(f"unknown option {option!r} of curriculum {name!r}{hint}; valid: {list(parameters)}")
        _check_option_type(name, option, value, parameters[option].annotation)
    for option, parameter in parameters.items():
        if parameter.default is parameter.empty and option not in options:
            raise ValueError(f"curriculum {name!r} needs the option {option!r}")
    return CURRICULA[name](arms, **options)


def _check_option_type(name: str, option: str, value: Any, expected: Any) -> None:
    # Numbers and switches only; words are checked by the curriculum that knows them.
    if expected in (int, float, bool):
        fits = isinstance(value, (int, float) if expected is float else expected)
        require(
            fits and isinstance(value, bool) == (expected is bool),
            f"option {option!r} of curriculum {name!r} must be a {expected.__name__}, got {value!r} "
            "(YAML reads 1e-1 as text: write 0.1)",
        )


def _nearest(word: str, words: Sequence[str] | Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(str(word), list(words), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _checked_arms(arms: Sequence[str]) -> tuple[str, ...]:
    require(not isinstance(arms, str), f"arms must be a list of names, got the single string {arms!r}")
    arms = tuple(arms)
    require(len(arms) > 0, "a curriculum needs at least one arm, got none")
    for i, arm in enumerate(arms):
        require(isinstance(arm, str) and arm.strip() != "", f"arm {i} must be a non-empty name, got {arm!r}")
    duplicates = sorted({arm for arm in arms if arms.count(arm) > 1})
    require(not duplicates, f"duplicate arms {duplicates}: give every distribution its own name")
    return arms


def _checked_group(arm: str, what: str, values: Sequence[float], length: int | None = None) -> np.ndarray:
    """Read one number per completion; `length` is the number of completions where it is known."""
    group = np.asarray(values, dtype=np.float64)
    require(group.ndim == 1 and len(group) > 0, f"arm {arm!r}: {what} must be a non-empty list of numbers: {values}")
    if length is not None:
        require(len(group) == length, f"arm {arm!r}: {len(group)} {what} for {length} completions")
    bad = np.flatnonzero(~np.isfinite(group))
    require(
        len(bad) == 0,
        f"arm {arm!r}: {what} of completions {bad.tolist()} are NaN, infinite or None; leave out completions that "
        "could not be scored before observing",
    )
    return group


def _check_same_keys(what: str, expected: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    require(isinstance(found, Mapping), f"curriculum state refused: {what} is {found!r}, not a mapping")
    missing, unknown = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    require(
        not missing and not unknown,
        f"curriculum state refused: {what} lacks {missing} and has unknown {unknown}; it was not written by this "
        "curriculum, or by another version of it",
    )


def _check_same(what: str, expected: Any, found: Any, fix: str) -> None:
    require(
        expected == found,
        f"curriculum state refused: {what} is {found!r} in the state and {expected!r} here; {fix}, or start a new run",
    )
