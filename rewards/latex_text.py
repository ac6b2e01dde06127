r"""Write Unicode and ASCII math as LaTeX that math-verify reads: `2√3` and `2sqrt(3)` become `2\sqrt{3}`.

Only notation changes here, never the value. What math-verify reads by itself is left alone.
"""
# ruff: noqa: RUF001 - the tables are of characters that look like others

import re
import unicodedata

LONGEST = 1500  # characters; a longer answer is not rewritten, only its characters are

_SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱˣʸ"
_SUBSCRIPTS = "₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎ₐₑₓₙₘₖᵢⱼ"
_LOWERED = str.maketrans(_SUPERSCRIPTS + _SUBSCRIPTS, "0123456789+-=()nixy" + "0123456789+-=()aexnmkij")
_RUNS = re.compile(f"([{_SUPERSCRIPTS}]+)|([{_SUBSCRIPTS}]+)")
_BARRED = re.compile("(?:[0-9][\u0304\u0305])+")
_SYMBOLS = {
    **dict.fromkeys("−‒–﹣－", "-"),
    **dict.fromkeys("·⋅∙•", r"\cdot "),
    **dict.fromkeys("°º˚", r"^\circ "),
    **dict.fromkeys("’‘′ʼ", "'"),
    **{"×": r"\times ", "✕": r"\times ", "÷": "/", "∕": "/", "⁄": "/", "∶": ":", "∗": "*"},
    **{"≤": r"\le ", "⩽": r"\le ", "≥": r"\ge ", "⩾": r"\ge ", "≠": r"\ne ", "≈": r"\approx ", "≡": r"\equiv "},
    **{"±": r"\pm ", "∓": r"\mp ", "∞": r"\infty ", "∝": r"\propto ", "∠": r"\angle "},
    **{"∪": r"\cup ", "∩": r"\cap ", "∅": r"\emptyset ", "∈": r"\in ", "∉": r"\notin ", "∖": r"\setminus "},
    **{"⊂": r"\subset ", "⊆": r"\subseteq ", "∑": r"\sum ", "∏": r"\prod ", "∫": r"\int ", "→": r"\to "},
    **{"ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "ℕ": r"\mathbb{N}", "ℚ": r"\mathbb{Q}", "ℂ": r"\mathbb{C}"},
    **{"△": r"\triangle ", "⊥": r"\perp ", "∥": r"\parallel ", "≅": r"\cong ", "∼": r"\sim ", "∣": r"\mid "},
    **{"¬": r"\neg ", "∧": r"\land ", "∨": r"\lor ", "⇒": r"\Rightarrow ", "⇔": r"\Leftrightarrow "},
    **{"∀": r"\forall ", "∃": r"\exists ", "∂": r"\partial "},
    **{"⌊": r"\lfloor ", "⌋": r"\rfloor ", "⌈": r"\lceil ", "⌉": r"\rceil "},
    **{"⟨": r"\langle ", "⟩": r"\rangle ", "∛": "cbrt", "√": "sqrt"},
    **{"ϕ": r"\phi ", "ϵ": r"\epsilon ", "µ": r"\mu ", "∆": r"\Delta ", "。": "."},
}
_GREEK = re.compile("GREEK (SMALL|CAPITAL) LETTER ([A-Z]+)")
_LATIN_CAPITALS = {"ALPHA": "A", "BETA": "B", "EPSILON": "E", "ZETA": "Z", "ETA": "H", "IOTA": "I", "KAPPA": "K"}
_LATIN_CAPITALS |= {"MU": "M", "NU": "N", "OMICRON": "O", "RHO": "P", "TAU": "T", "UPSILON": "Y", "CHI": "X"}
_WORDS = (
    "arcsin arccos arctan arcsec arccsc arccot sinh cosh tanh sin cos tan sec csc cot ln log pi infty alpha beta "
    "gamma delta theta lambda sigma omega phi"
)
_COMMANDS = re.compile(rf"(?<![A-Za-z\\])({'|'.join(_WORDS.split())})(?![A-Za-z])")
_INVERSES = re.compile(r"(?<![A-Za-z\\])a(sin|cos|tan)(?![A-Za-z])")
_INFINITY = re.compile(r"(?<![A-Za-z\\])(?:infinity|inf|oo)(?![A-Za-z])")
# What takes an argument in parentheses, where LaTeX wants braces. `\sqrt(2)` is as common as `sqrt(2)`.
_CALL = re.compile(r"(?P<call>\\sqrt(?=\s*\()|(?<![A-Za-z\\])(?:sqrt|cbrt|exp|abs|floor|ceil)|\^)\s*(?P<open>[({[]?)")
_CALLS = {"^": "^{ARGUMENT}", "sqrt": r"\sqrt{ARGUMENT}", "cbrt": r"\sqrt[3]{ARGUMENT}", "exp": "e^{ARGUMENT}"}
_CALLS |= {"abs": "|ARGUMENT|", "floor": r"\lfloor ARGUMENT\rfloor ", "ceil": r"\lceil ARGUMENT\rceil "}
_OPERAND = re.compile(r"\d+(?:\.\d+)?|\\[A-Za-z]+|[A-Za-z]")
_LONG_EXPONENT = re.compile(r"\^\s*(-\s*[A-Za-z0-9]|-?\d\d)(\d*)")
# 2e-1 may be 2e - 1, so a sign needs a decimal, a capital E, or two digits.
_E_NOTATION = re.compile(r"(?<![\w.])(\d+\.\d+[eE][+-]?\d+|\d+(?:e\d+|e[+-]\d{2,}|E[+-]?\d+))(?![\w.])")


def from_unicode(text: str) -> str:
    r"""Write Unicode characters of math as LaTeX: `x²` as `x^{2}`, `½` as `\frac{1}{2}`, `π` as `\pi`."""
    if text.isascii():
        return text
    text = _BARRED.sub(lambda run: r"\overline{" + re.sub(r"\D", "", run[0]) + "}", text)
    text = _RUNS.sub(lambda run: ("^{" if run[1] else "_{") + run[0].translate(_LOWERED) + "}", text)
    return "".join(_character(character) for character in text)


def from_ascii(text: str) -> str:
    r"""Write functions and powers of plain text as LaTeX: `sqrt(2)` as `\sqrt{2}`, `x**2` as `x^2`, `pi` as `\pi`."""
    if len(text) > LONGEST:
        return text
    text = re.sub(r"(?<=[\w)\]}])\*\*(?=[\w(\\{-])", "^", text)
    text = _E_NOTATION.sub(_scientific, text)
    text = _INFINITY.sub(r"\\infty ", _INVERSES.sub(r"arc\1", text))
    for call in reversed(list(_CALL.finditer(text))):  # from the right, so that inner calls are rewritten first
        text = _rewrite_call(text, call)
    text = _LONG_EXPONENT.sub(r"^{\1\2}", text)
    return _COMMANDS.sub(r"\\\1 ", text)


def braces_balance(text: str) -> bool:
    r"""Report whether every brace that is not escaped as `\{` has its partner."""
    depth = 0
    for brace in re.finditer(r"\\.|[{}]", text, re.DOTALL):
        depth += {"{": 1, "}": -1}.get(brace.group(), 0)
        if depth < 0:
            return False
    return depth == 0


def _character(character: str) -> str:
    if character.isascii():
        return character
    if unicodedata.category(character) == "Cf":  # zero-width characters and marks of direction
        return ""
    if character in _SYMBOLS:
        return _SYMBOLS[character]
    digit = unicodedata.decimal(character, None)
    if digit is not None:  # full-width digits, and those of other scripts
        return str(digit)
    if unicodedata.decomposition(character).startswith("<fraction>"):
        upper, _, lower = unicodedata.normalize("NFKC", character).partition("\N{FRACTION SLASH}")
        return rf"\frac{{{upper}}}{{{lower}}}" if lower else character
    greek = _GREEK.fullmatch(unicodedata.name(character, ""))
    if greek is not None:
        small, name = greek[1] == "SMALL", "lambda" if greek[2] == "LAMDA" else greek[2].lower()
        if not small and greek[2] in _LATIN_CAPITALS:  # LaTeX has no command for these
            return _LATIN_CAPITALS[greek[2]]
        return rf"\{name if small else name.capitalize()} "
    return unicodedata.normalize("NFKC", character)  # thin and no-break spaces, full-width and mathematical letters


def _scientific(number: re.Match[str]) -> str:
    mantissa, exponent = re.split("[eE]", number[0])
    return rf"{mantissa}\times 10^{{{int(exponent)}}}"


def _rewrite_call(text: str, call: re.Match[str]) -> str:
    name, start, opening = call["call"].removeprefix("\\"), call.end(), call["open"]
    before = text[: call.start()]
    if opening == "(" and (end := _closing(text, call.start("open"))) is not None:
        return before + _CALLS[name].replace("ARGUMENT", text[start:end]) + text[end + 1 :]
    if name == "^" or opening == "(":
        return text
    if opening:  # sqrt{2}, sqrt[3]{2}
        return f"{before}\\{name}{text[call.start('open') :]}"
    operand = _OPERAND.match(text, start)
    return before + _CALLS[name].replace("ARGUMENT", operand[0]) + text[operand.end() :] if operand else text


def _closing(text: str, start: int) -> int | None:
    """Return where the parenthesis at `start` closes; `None` if it does not."""
    depth = 0
    for index in range(start, len(text)):
        depth += (text[index] == "(") - (text[index] == ")")
        if depth == 0:
            return index
    return None
