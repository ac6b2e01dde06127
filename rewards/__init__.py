"""Rewards: verifiers of answers, and the reward functions made of them."""

from .bounded import BoundedGrader, GraderStartError
from .correctness import correctness_reward
from .episodes import EpisodeRule, episode_ends, token_texts
from .extraction import extract_answer
from .forcing import Forcing
from .knights_and_knaves import KnightsAndKnavesVerifier
from .math_answer import MathVerifier
from .reasoning_gym_answer import ReasoningGymVerifier
from .verifiers import VERIFIERS, CountdownVerifier, ExactVerifier, Verifier, get_verifier

__all__ = [
    "VERIFIERS",
    "BoundedGrader",
    "CountdownVerifier",
    "EpisodeRule",
    "ExactVerifier",
    "Forcing",
    "GraderStartError",
    "KnightsAndKnavesVerifier",
    "MathVerifier",
    "ReasoningGymVerifier",
    "Verifier",
    "correctness_reward",
    "episode_ends",
    "extract_answer",
    "get_verifier",
    "token_texts",
]
