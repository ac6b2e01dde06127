"""TRL's SFT trainer with complete checkpoints, a token count that survives a resume, and a stop at a NaN."""

from trl import SFTTrainer as TRLSFTTrainer

from .finite_training import FiniteTraining
from .model_card import NamedModelCard
from .whole_checkpoints import CountedTokens


class SFTTrainer(NamedModelCard, CountedTokens, FiniteTraining, TRLSFTTrainer):
    """Has the arguments of [`~trl.SFTTrainer`]."""
