"""A reward function of your own, with TRL's signature: short completions earn more."""


def brevity(completions: list, **kwargs) -> list[float]:
    """Return a reward for each completion; `None` would be no reward."""
    return [1 / (1 + len(completion[0]["content"])) for completion in completions]
