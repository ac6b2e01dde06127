"""Rewards: verifiers of answers, reward models, and the reward functions made of them.

Reward models are loaded when used: the process that grades answers reads this package, and needs no torch.
"""

from typing import TYPE_CHECKING, Any

from .bounded import BoundedGrader, GraderStartError
from .correctness import correctness_reward
from .episodes import EpisodeRule, episode_ends, token_texts
from .extraction import AnswerForm, extract_answer, without_thinking
from .forcing import Forcing
from .knights_and_knaves import KnightsAndKnavesVerifier
from .math_answer import MathVerifier
from .reasoning_gym_answer import ReasoningGymVerifier
from .verifiers import (
    VERIFIERS,
    CountdownVerifier,
    ExactVerifier,
    VerdictVerifier,
    Verifier,
    check_reference,
    get_verifier,
)

if TYPE_CHECKING:
    from .judge import Judge, Judgement
    from .judge_client import JudgeClient, JudgeError
    from .judge_reward import JudgeReward
    from .meta_judge import MetaJudge
    from .prompt_templates import PromptTemplates
    from .reward_ensemble import RewardModelReward
    from .reward_model import RewardModel
    from .reward_server import RewardServer, RewardServerError
    from .rubric import Rubric, RubricBounds, RubricItem, read_rubric
    from .rubric_history import RubricHistory, RubricVersion

_LAZY = {
    "Judge": "judge",
    "JudgeClient": "judge_client",
    "JudgeError": "judge_client",
    "JudgeReward": "judge_reward",
    "Judgement": "judge",
    "MetaJudge": "meta_judge",
    "PromptTemplates": "prompt_templates",
    "Rubric": "rubric",
    "RubricBounds": "rubric",
    "RubricHistory": "rubric_history",
    "RubricItem": "rubric",
    "RubricVersion": "rubric_history",
    "read_rubric": "rubric",
    "RewardModel": "reward_model",
    "RewardModelReward": "reward_ensemble",
    "RewardServer": "reward_server",
    "RewardServerError": "reward_server",
}
__all__ = [
    "VERIFIERS",
    "AnswerForm",
    "BoundedGrader",
    "CountdownVerifier",
    "EpisodeRule",
    "ExactVerifier",
    "Forcing",
    "GraderStartError",
    "Judge",
    "JudgeClient",
    "JudgeError",
    "JudgeReward",
    "Judgement",
    "KnightsAndKnavesVerifier",
    "MathVerifier",
    "MetaJudge",
    "PromptTemplates",
    "ReasoningGymVerifier",
    "RewardModel",
    "RewardModelReward",
    "RewardServer",
    "RewardServerError",
    "Rubric",
    "RubricBounds",
    "RubricHistory",
    "RubricItem",
    "RubricVersion",
    "VerdictVerifier",
    "Verifier",
    "check_reference",
    "correctness_reward",
    "episode_ends",
    "extract_answer",
    "get_verifier",
    "read_rubric",
    "token_texts",
    "without_thinking",
]

if not TYPE_CHECKING:  # a type checker would take any name for one of ours

    def __getattr__(name: str) -> Any:
        from importlib import import_module

        if name not in _LAZY:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f".{_LAZY[name]}", __name__), name)
