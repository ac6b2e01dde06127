"""Log-probabilities of given tokens from vLLM, without the trap of its prefix cache.

Asked for `prompt_logprobs`, vLLM does not read its prefix cache; with `skip_reading_prefix_cache=False` it does, which
is several times faster where many continuations share a prefix. But then it computes nothing at the cached positions,
and their entries in the answer are memory that nobody wrote: numbers that look like log-probabilities.
"""

from typing import Any


def scored_prompt_logprobs(output: Any, first: int) -> list[float]:
    """Return the log-probabilities of a prompt's tokens from position `first` on.

    Args:
        output (`vllm.RequestOutput`): of a request with `prompt_logprobs`, on whichever setting of the cache.
        first (`int`): position of the first token that is wanted, at least 1: nothing precedes token 0.

    Returns:
        `list[float]`: one number for each of the prompt's tokens from `first` on.

    Raises:
        ValueError: if a wanted token was scored from a cached position, the output does not tell, or has no numbers.
    """
    if output.prompt_logprobs is None:
        raise ValueError("the output has no prompt_logprobs: ask for them in SamplingParams(prompt_logprobs=0)")
    if first < 1:
        raise ValueError(f"first must be at least 1, because nothing precedes token 0; got {first}")
    cached = output.num_cached_tokens
    if cached is None:
        raise ValueError("the output does not say how many tokens were cached, so none of its numbers can be trusted")
    # The number at position i comes from the logits at i - 1, which must have been computed.
    if cached and first - 1 < cached:
        raise ValueError(
            f"token {first} was scored from a position in the prefix cache ({cached} tokens), where vLLM computes "
            f"nothing and returns uninitialised memory: ask from token {cached + 1} on, or leave "
            "skip_reading_prefix_cache at its default"
        )
    return [
        output.prompt_logprobs[position][token].logprob
        for position, token in enumerate(output.prompt_token_ids)
        if position >= first
    ]
