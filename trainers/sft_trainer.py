"""TRL's SFT trainer with checkpoints that are whole or say so, and a count of tokens that goes on after a resume."""

from trl import SFTTrainer as TRLSFTTrainer

from .whole_checkpoints import CountedTokens


class SFTTrainer(CountedTokens, TRLSFTTrainer):
    """Takes what [`~trl.SFTTrainer`] takes."""
