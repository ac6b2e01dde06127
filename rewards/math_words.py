r"""Words around a number or formula: units, lead-ins, multiples, currencies, the base of a numeral, a.m. and p.m.

Units are dropped, not compared: `5 cm` equals `5`. Words that change the value stay (`2 million`, `at least 5`,
`half of 5`, `3 fifths`), and so do letters that may be variables: `5c` does not equal `5`. Currencies, bases, months
and a.m. or p.m. are kept as marks, which must agree where both answers have them.
"""

import re
from decimal import Decimal

TEXT = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|normal|up)?|math(?:rm|bf|it|sf|tt|normal)|mbox|operatorname\*?|emph|boldsymbol)"
    r"\s*\{([^{}]*)\}"
)
Marks = dict[str, tuple[str, ...]]

_CURRENCY = re.compile(
    r"\\(?:euro|texteuro|pounds|textsterling|textdollar|\$)(?![A-Za-z])|[€£¥₹₩₽₪₫₴₦₱฿¢]"
    r"|(?<![A-Za-z])(?:US|A|C|HK|NZ)\s?(?=\\?\$\s?\d)"
    r"|(?<![A-Za-z])Rs\.?\s?(?=\d)|(?<![A-Za-z])(?:USD|EUR|GBP|JPY|CNY|INR|CAD|AUD|CHF|RMB)(?![A-Za-z])"
)
_SYMBOLS = {
    "EUR": "€",
    "euro": "€",
    "texteuro": "€",
    "GBP": "£",
    "pounds": "£",
    "textsterling": "£",
    "INR": "₹",
    "Rs": "₹",
}
_SYMBOLS |= dict.fromkeys(["USD", "US", "A", "C", "HK", "NZ", "CAD", "AUD", "$", "textdollar"], "$")
_SYMBOLS |= dict.fromkeys(["JPY", "CNY", "RMB"], "¥")
_MERIDIEM = re.compile(r"(?<![A-Za-z])([ap])\.?\s?m\b\.?", re.IGNORECASE)

_MONTHS = "Jan(?:uary)?|Feb(?:ruary)?|Mar(?:ch)?|Apr(?:il)?|May|June?|July?|Aug(?:ust)?|Sept?(?:ember)?|Oct(?:ober)?"
_MONTH = re.compile(rf"\b(?=(?:{_MONTHS}|Nov(?:ember)?|Dec(?:ember)?)\b)([A-Z][a-z]{{2}})")

_NUMERAL = r"[0-9]+[A-Fa-f0-9]*|[A-Fa-f]+[0-9][A-Fa-f0-9]*|[A-F]{2,}"
_BASED = re.compile(
    rf"(?<![\w\\.])\(?({_NUMERAL})\)?\s?_\s?(?:\{{?\(?(?:\\text\{{)?\s?(\d\d?|[a-z]+)\s?\)?\}}{{0,2}})(?![\w.])"
)
_SPOKEN_BASE = re.compile(
    r"(?<=[0-9A-Fa-f)])(?:\s*_\s*\{?)?\s*(?:\\text\s*\{)?[\s(,]*(?:in )?\bbase[\s~}-]*(\d+|[a-z]+)[\s)]*\}{0,2}"
)
_NAMES = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_BASES = {name: str(base) for base, name in enumerate(_NAMES, 2)} | {"sixteen": "16"}

_MULTIPLES = {"dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_MULTIPLES |= {"quadrillion": 10**15, "lakh": 10**5, "crore": 10**7}
_NAME = "|".join(_MULTIPLES)
_MULTIPLE = re.compile(rf"(?<![\w.])(\d+(?:\.\d+)?)((?:\s*(?:{_NAME})s?(?![A-Za-z]))+)", re.IGNORECASE)
_PERCENT = re.compile(r"(?<=[\d}\s)])\s*(?:(?<!\\)%|\bper\s?cent(?:age)?\b|\bpct\b)", re.IGNORECASE)

_UNIT = (
    r"(?:mm|cm|dm|km|ft|in|yd|mi|mg|kg|lbs?|oz|ml|mL|hrs?|mins?|secs?|mph|kmh|km/h|m/s|cm/s|cc|sq|cu|rad|deg|k?Hz|MHz"
    r"|kWh?|kJ|k?Pa|mol|[aApP]\.?[mM]|[rR]s)(?![A-Za-z])"
)
_POWER = r"(?:\^\{?[23]\}?)?"
_WORD = rf"(?:{_UNIT}|(?:of|a|an|to|by|on|at|per|/)(?![A-Za-z])|[^\W\d_]{{3,}}){_POWER}[.,]?"
_UNITS = re.compile(rf"(?<=[\d}})\]%!|])(?:\s*{_UNIT}{_POWER})?(?:\s+{_WORD}|(?<=[a-z])\s?/\s?{_WORD})*[\s.]*$")
_POWER_OF_TEN = r"(?:\s*\\(?:times|cdot)\s*10\^\{?[-+]?\d+\}?)?"
_ONE_LETTER_UNIT = re.compile(rf"([-+]?[\d.,]+(?:/\d+)?{_POWER_OF_TEN}) [mgshlLVAWNJKCF]{_POWER}")
_TEXT_UNITS = re.compile(
    r"(?:\s*\\(?:text(?:bf|it|rm|normal)?|mathrm|mbox)\s*\{(?!\s*[eid]\s*\})[^{}]*\}(?:\^\{?[-\d]+\}?)?)+\s*$"
)
_LEAD_IN = re.compile(r"(?:[^\W\d_]+[,:]?\s+)*[^\W\d_]{2,}[,:]?\s+(?=[-+]?(?:[\d.]|\\[dt]?frac))")
# Words that change the value before or after them, and do not only describe it.
_PARTS = "third|fourth|fifth|sixth|seventh|eighth|ninth|tenth|hundredth|thousandth|millionth"
_COUNTS = "two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|[a-z]{3,5}teen|twenty"
_COUNTS += "|thirty|forty|fifty|sixty|seventy|eighty|ninety"
_IN_UNITS = re.compile(
    rf"\b(?:and|or|not|mod(?:ulo)?|plus|minus|if|when|where|than|unless|is|are|{_COUNTS}|(?:{_PARTS})s|halves|squared|cubed"
    r"|factorial|inverse|point|power|repeating|recurring|most|least)\b",
    re.IGNORECASE,
)
_IN_LEAD_IN = re.compile(
    r"\b(?:and|or|not|no|more|less|fewer|least|most|than|under|over|below|above|between|before|after|greater|smaller"
    r"|never|from|except|without|step|case|part|option|exceeds|exceeding|beyond|up|roots?)\b"
    rf"|\b(?:half|(?:{_PARTS})s?|quarter|twice|thrice|double|triple|squares?|cubes?|reciprocal|inverse|opposite|factorial"
    rf"|log(?:arithm)?|multiples?|powers?|factors?|point|{_COUNTS}|{_NAME})\s+(?:of\s+)?$",
    re.IGNORECASE,
)


def take_currency(text: str, marks: Marks) -> str:
    """Remove currency signs and codes, and record them in `marks`."""
    found = {match[0].strip(" .\\") for match in _CURRENCY.finditer(text)}
    if not found:
        return text
    marks["currency"] = tuple(sorted({_SYMBOLS.get(name, name) for name in found}))
    return _CURRENCY.sub("", text)


def take_bases(text: str, marks: Marks) -> str:
    """Remove the bases of numerals, and record them in `marks`."""
    text = _SPOKEN_BASE.sub(r"_{\1}", text)
    numerals = [(numeral[1].upper(), _BASES.get(numeral[2], numeral[2])) for numeral in _BASED.finditer(text)]
    if not numerals or not all(base.isdigit() for _, base in numerals):
        return text
    marks["base"] = tuple(sorted(f"{digits}_{base}" for digits, base in numerals))
    return _BASED.sub(lambda numeral: numeral[1].upper(), text)


def note_month(text: str, marks: Marks) -> None:
    """Note the month of a date: June 5 is not July 5."""
    if month := _MONTH.search(text):
        marks["month"] = (month[1].lower(),)


def note_meridiem(text: str, marks: Marks) -> None:
    """Note whether a time is before or after noon."""
    if meridiem := _MERIDIEM.search(TEXT.sub(r" \1", text)):
        marks["meridiem"] = (meridiem[1].lower(),)


def percent_signs(text: str) -> str:
    r"""Write percentages as `50\%`."""
    return _PERCENT.sub(r"\\%", text)


def without_words(text: str) -> str:
    """Drop words that describe one number or formula: units after it, and a lead-in such as "about" before it."""
    spoken = TEXT.sub(r" \1 ", text)
    if _MULTIPLE.search(spoken):
        text = _MULTIPLE.sub(_multiplied, spoken)
        text = " ".join(text.split())
    for units in (_TEXT_UNITS, _UNITS):
        found = units.search(text)
        if found and found.start() and not _IN_UNITS.search(found[0]):
            text = text[: found.start()].rstrip(" ,.")
    lead_in = _LEAD_IN.match(text)
    if lead_in and not _IN_LEAD_IN.search(lead_in[0]):
        text = text[lead_in.end() :]
    one_letter = _ONE_LETTER_UNIT.fullmatch(text)
    return one_letter[1] if one_letter else text


def _multiplied(number: re.Match[str]) -> str:
    value = Decimal(number[1])
    for name in number[2].lower().split():
        value *= _MULTIPLES.get(name) or _MULTIPLES[name.removesuffix("s")]
    return f"{value:f}"
