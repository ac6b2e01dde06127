r"""A math answer as a formula: normalized LaTeX for math-verify, and a text that is equal for equal notations.

    read_formula(r"$12\,000$ dollars.").text           # 12000
    read_formula("x + 1").equals(read_formula("x+1"))  # True, False, or None: only algebra can decide

Answers and references go through the same steps, so that both may use the same notations.
"""

import re
from dataclasses import dataclass
from decimal import Decimal

from .latex_text import LONGEST, from_ascii, from_unicode
from .math_words import TEXT, Marks, note_meridiem, note_month, percent_signs, take_bases, take_currency, without_words

_DELIMITERS = re.compile(
    r"(?<!\\)\\[()\[\]]|(?<!\\)\$+|`+|(?<![\w)\]}])\*\*|\*\*(?![\w(\\{-])|\\displaystyle(?![A-Za-z])"
)
_LEADING = re.compile(
    r"(?:[\s:;,=~*_]|\.(?!\d)|\\(?:approx|quad|qquad|therefore|implies|Rightarrow|[,;:! ])(?![A-Za-z]))*"
)
_TRAILING = re.compile(r"(?:[\s.;,:*_]|(?<!\\)\\(?:quad|qquad|[,;:! ])){1,20}$")
_THIN = r"(?:\\[,;:! ]|\{[,\s]\}|\\thinspace\s*|~|')"  # separators of thousands that cannot separate a list
_THOUSANDS = re.compile(rf"(?<![\d.,])(\d{{1,3}})((?:{_THIN}\d{{3}})+|(?: \d{{3}})+|(?:_\d{{3}})+)(?![\d,]*\d)")
_COMMAS = re.compile(r"([-+]?)([1-9]\d{0,2}(?:,\d{3})+)(?=\.\d|\.?$|\s*[^\d\s,.])")
_SPACES = re.compile(r"(?<!\\)\\[,;:! ]|\\(?:quad|qquad|thinspace)(?![A-Za-z])|~|\s+")
_PLUS = re.compile(r"(^|[(\[{,;=<>|&]|\\in|\\\\)\s*\+\s*(?=[\d.\\A-Za-z(])")
_MIXED = re.compile(r"(?<![\w.,/^{])(\d{1,9}) (\d{1,9})/(\d{1,9})(?![\d.,]*\d)")  # 7 1/2, of which math-verify reads 1

_NEGATIVE = re.compile(r"(?<![\w\\])(?:minus|negative)\s+(?=[\d.]|\\[dt]?frac|\\sqrt|\\pi)", re.IGNORECASE)
_REPEATING = re.compile(r"(?<![\w.])(\d*)\.(\d*)\\(?:overline|bar)\s*\{(\d{1,40})\}(?!\d)")
_PRIMED = re.compile(r"[A-Za-z)]'+(?![a-z])")

_NUMBER = re.compile(r"-?(?:\d+\.?\d*|\.\d+)")
_DECIMAL_COMMA = re.compile(r"-?\d+,\d+")
_CLOCK = re.compile(r"\d{1,2}:[0-5]\d")
_CHOICE = re.compile(r"(?:\(([A-Z])\)|([A-Z])[.):])\S")
_LETTERS = re.compile(r"[A-Z]{2}|[^\W\d_]{3,}")
_ONE_LETTER = re.compile(r"(?:option|choice)?\(?([A-Za-z])\)?", re.IGNORECASE)
_WORDS = re.compile(r"no|[^\W\d_][^\W\d_'.,-]{2,}", re.IGNORECASE)  # compared without case
_ONE_NOTATION = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\m?(?:left|right|[bB]ig{1,2}[lr]?)(?![A-Za-z])|\\displaystyle(?![A-Za-z])", ""),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\\frac\s*(\d)\s*(\d)(?!\d)", r"\\frac{\1}{\2}"),
        (r"\\sqrt\s*(\d)", r"\\sqrt{\1}"),
        (r"\\(le|ge|ne)q(?:slant)?(?![A-Za-z])", r"\\\1"),
        (r"\\varnothing(?![A-Za-z])", r"\\emptyset"),
        (r"\\mathbb\s*([A-Z])", r"\\mathbb{\1}"),
        (r"\^\s*\{?\s*\\prime\s*\}?", "'"),
        (r"\\pmod\s*(?:\{([^{}]*)\}|(\w))", r"(mod\1\2)"),
        (r"\\b?mod(?![A-Za-z])", "mod"),
        (r"<=", r"\\le"),
        (r">=", r"\\ge"),
        (r"!=", r"\\ne"),
        (r"\\([{}%])", r"\1"),
        (r"\\lbrace(?![A-Za-z])", "{"),
        (r"\\rbrace(?![A-Za-z])", "}"),
        (r"\^\s*\{\s*(\w|\\circ)\s*\}", r"^\1"),
        (r"_\s*\{\s*(\w)\s*\}", r"_\1"),
        (r"(?<!\d)\s+|\s+(?!\d)", ""),  # 1 2 is not 12
        (r"\s+", " "),
    )
]


@dataclass(frozen=True)
class Formula:
    """One answer, normalized.

    Args:
        text (`str`): LaTeX for math-verify, without units, currencies and bases of numerals.
        key (`str`): the answer as written, in one notation; equal keys are equal answers.
        bare_key (`str`): the key of `text`.
        marks (`dict[str, tuple[str, ...]]`): what `text` lacks and must agree where both answers have it: `currency`,
            `base`, `month`, and `meridiem`, a.m. or p.m.
    """

    text: str
    key: str
    bare_key: str
    marks: Marks

    def equals(self, other: "Formula") -> bool | None:
        """Compare texts and plain numbers; `None` if only algebra can decide."""
        if any(self.marks[name] != other.marks[name] for name in self.marks.keys() & other.marks.keys()):
            return False
        if self.key == other.key or self.bare_key == other.bare_key != "":
            return True
        ours, theirs = self.bare_key, other.bare_key
        for one, another in ((self.key, other.key), (other.key, self.key)):
            if (choice := _CHOICE.match(one)) and re.fullmatch("[A-Z]", another):  # "(C) 12 cm" chooses C
                return (choice[1] or choice[2]) == another
            if _DECIMAL_COMMA.fullmatch(one) and _NUMBER.fullmatch(another):
                return Decimal(one.replace(",", ".")) == Decimal(another)
        if _primed(ours) != _primed(theirs):  # math-verify reads x' as x
            return False
        if _NUMBER.fullmatch(ours) and _NUMBER.fullmatch(theirs):
            return Decimal(ours) == Decimal(theirs)
        if _CLOCK.fullmatch(ours) and _CLOCK.fullmatch(theirs):  # as ratios, 1:20 would equal 2:40
            return ours.lstrip("0") == theirs.lstrip("0")
        if _LETTERS.fullmatch(ours) and _LETTERS.fullmatch(theirs):  # as products of letters, CAB would equal ABC
            return False
        brackets = _brackets(ours), _brackets(theirs)
        if None not in brackets and brackets[0] != brackets[1]:  # a pair, a set, an open and a closed interval
            return False
        return None


def read_formula(answer: str) -> Formula:
    """Normalize an answer: Unicode, delimiters, spacing, separators of thousands, signs, currencies, units, bases."""
    marks: Marks = {}
    text = take_currency(from_unicode(answer), marks)
    text = from_ascii(_without_separators(_bare(text)))
    text = _PLUS.sub(r"\1", text)
    text = _SPACES.sub(" ", text).strip()
    text = _MIXED.sub(lambda number: f"{int(number[1]) * int(number[3]) + int(number[2])}/{number[3]}", text)
    text = _REPEATING.sub(_fraction, _NEGATIVE.sub("-", text))
    text = percent_signs(text)
    key = _key(text)
    if len(text) > LONGEST:
        return Formula(text, key, key, marks)
    note_meridiem(text, marks)
    note_month(text, marks)
    text = without_words(take_bases(text, marks))
    return Formula(text, key, _key(text), marks)


def _bare(text: str) -> str:
    """Drop what surrounds a formula: delimiters of math, Markdown, a leading `=` or `:`, a trailing period."""
    text = re.sub(r"^\s*[*_]+", "", _DELIMITERS.sub("", text))
    return _LEADING.sub("", _TRAILING.sub("", text), count=1) or text.strip()


def _fraction(repeating: re.Match[str]) -> str:
    r"""Write a repeating decimal as the fraction that it is: `0.\overline{3}` as `\frac{3}{9}`."""
    whole, fixed, period = repeating.groups()
    numerator = int(whole + fixed + period) - int(whole + fixed or "0")
    return rf"\frac{{{numerator}}}{{{(10 ** len(period) - 1) * 10 ** len(fixed)}}}"


def _without_separators(text: str) -> str:
    text = re.sub(r"\\!\s*", "", text)
    text = _THOUSANDS.sub(lambda number: number[1] + re.sub(r"\D", "", number[2]), text)
    if whole := _COMMAS.match(text):
        text = whole[1] + whole[2].replace(",", "") + text[whole.end() :]
    return text


def _primed(key: str) -> set[str]:
    """Return the primed symbols in a formula or the right side of an equation: f' and x' are not f and x."""
    return set(_PRIMED.findall(key.rpartition("=")[2]))


def _brackets(key: str) -> str | None:
    """Return the brackets around a whole pair, set or interval; `None` for anything else."""
    if len(key) < 3 or key[0] not in "([{" or key[-1] not in ")]}" or "," not in key:
        return None
    depth = 0
    for index, character in enumerate(key):
        depth += (character in "([{") - (character in ")]}")
        if depth == 0 and index < len(key) - 1:
            return None
    return key[0] + key[-1]


def _key(text: str) -> str:
    text = TEXT.sub(r"\1", TEXT.sub(r"\1", text))
    for pattern, replacement in _ONE_NOTATION:
        text = pattern.sub(replacement, text)
    text = text.rstrip(".,;:")
    if letter := _ONE_LETTER.fullmatch(text):
        return letter[1]
    return text.casefold() if _WORDS.fullmatch(text) else text
