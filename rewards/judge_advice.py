"""How to fix a failure of a judge's server: the recipe option to change, or what to check."""

from collections.abc import Collection

from .chat_replies import NO_ACCESS, NOT_FOUND, Cause

TOKEN_FIELDS = ("max_tokens", "max_completion_tokens")
TOO_LONG = ("context length", "maximum context", "context window", "too long", "too many tokens")
FORMATS = ("response_format", "json_schema", "schema", "guided", "structured", "grammar")
START = "start it with `vllm serve MODEL`, and specify its address with /v1"
BY_FAILURE = {
    "timeout": "raise `timeout` and `deadline`, or lower `max_concurrency`",
    "rate_limit": "lower `max_concurrency`, or raise `retries` and `deadline`",
    "server_error": "check the server's log",
    "truncated": "raise `max_tokens`",
    "empty": "check the model's replies; a reasoning model needs more `max_tokens`",
    "refusal": "check the prompts and the rubric, or use another model",
    "no_json": "use a larger model, or `structured: json_schema` if the server supports it",
    "bad_scores": "use a larger model, or `structured: json_schema` if the server supports it",
}


def advice(cause: Cause, *, key_variable: str | None, max_tokens_field: str, extra_keys: Collection[str]) -> str:
    """Return how to fix a failure, as a clause.

    Args:
        cause (`Cause`): of the failure.
        key_variable (`str`, *optional*): environment variable with the key.
        max_tokens_field (`str`): request field of the token limit.
        extra_keys (`Collection[str]`): additional keys of a request.
    """
    words = cause.detail.lower()
    if cause.failure in ("connection", "bad_reply"):
        return "check `url` (it ends with /v1)" if key_variable else START
    if cause.failure != "refused":
        return BY_FAILURE[cause.failure]
    if cause.status in NO_ACCESS and key_variable is None:
        return "set `api_key_variable` to the environment variable that holds the server's key"
    if cause.status in NO_ACCESS:
        return f"check the key in the environment variable {key_variable}, and the account behind it"
    if cause.status == NOT_FOUND:
        return "check `url` (it ends with /v1) and `model`"
    if any(part in words for part in TOO_LONG):
        return "lower `max_prompt_characters`, `max_completion_characters` or `max_tokens`"
    for key in extra_keys:
        if key.lower() in words:
            return f"remove or change `{key}` in `extra_body`"
    if "temperature" in words:
        return "set `temperature: null`, which omits it"
    if any(field in words for field in TOKEN_FIELDS):
        other = next(field for field in TOKEN_FIELDS if field != max_tokens_field)
        return f"set `max_tokens_field: {other}`"
    if any(part in words for part in FORMATS):
        return "set `structured: none`, which omits `response_format`"
    return "check the server's log for the reason"
