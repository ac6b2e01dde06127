"""Text of a policy or a data set inside of a judge's prompt: data, whatever it says.

A policy is paid by what a judge makes of its text, so it learns to talk to the judge. What it wrote stands between two
markers, and what looks like a marker in it becomes other characters; tokens that chat templates read as the beginning
of a turn are defused where one can see it; characters that nobody sees are shown; and it is bounded in length, with
what was left out said. That makes instructions in it no less readable: the prompt must say that they are none, and the
tests can only show that they stay where they are.
"""

import re
import unicodedata

MARKER = "~" * 6
LIKE_MARKER = re.compile(MARKER + "~*")
# The turns of Llama, Mistral, Qwen, Gemma, Phi, DeepSeek, EXAONE, GLM, Command and Seed, and what is written alike:
# either half of <|...|> is one too, since Gemma 4 has <|turn> and <turn|>. Of F#'s and Elixir's |> none is hit.
CONTROL_TOKENS = re.compile(
    r"<[|\uff5c](?=\w)|(?<=[\w\u2581])[|\uff5c]>|\[[|\uff5c]\w+[|\uff5c]\]|<</?SYS>>|\[gMASK\]"
    r"|\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|TOOL_CONTENT|THINK|IMG)\]"
    r"|</?(?:s|bos|eos|pad|unk|sop|eop|image|(?:bos|eos)_token|(?:start|end)_of_(?:turn|image)|extra_id_\d+|seed:\w+)>",
    re.IGNORECASE,
)
# Quotation marks for angles, wide brackets for square ones, broken bars for bars.
VISIBLE = str.maketrans("<>[]|\uff5c", "\u2039\u203a\uff3b\uff3d\u00a6\u00a6")
HIDDEN = ("Cc", "Cf", "Cs", "Co")  # controls, format characters, half a surrogate pair, private ones
KEPT = "\n\t\u200c\u200d"  # lines and columns; joiners, which emoji and several scripts are spelled with
# Drawn as nothing though no such category says so; variation selectors other than those of emoji can spell any text.
BLANK = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0\ufe00-\ufe0d\U000e0000-\U000e0fff]")


def fence(text: str, limit: int, label: str) -> str:
    """Return text between two lines that it does not contain, nor anything like them.

    Args:
        text (`str`): whatever it is.
        limit (`int`): characters that are kept, two thirds of them from the beginning and the rest from the end.
        label (`str`): what it is called in the opening line.
    """
    text = LIKE_MARKER.sub(lambda run: "\N{TILDE OPERATOR}" * len(run[0]), shorten(defuse(text), limit))
    return f"{MARKER} {label}\n{text}\n{MARKER} end of {label}"


def defuse(text: str) -> str:
    """Return text without the tokens of chat templates and without characters that cannot be seen."""
    text = "".join(
        "\N{REPLACEMENT CHARACTER}"
        if character not in KEPT and unicodedata.category(character) in HIDDEN
        else character
        for character in text.replace("\r\n", "\n").replace("\r", "\n")
    )
    text = BLANK.sub("\N{REPLACEMENT CHARACTER}", text)
    return CONTROL_TOKENS.sub(lambda match: match[0].translate(VISIBLE), text)


def shorten(text: str, limit: int) -> str:
    """Return at most `limit` characters of a text, and a line that says how many were left out."""
    if len(text) <= limit:
        return text
    head = 2 * limit // 3
    tail = limit - head  # above 0, since limit is
    return f"{text[:head]}\n[{len(text) - limit} characters are left out here]\n{text[len(text) - tail :]}"
