r"""One form for answers that say the same: what can be decided from their texts alone, before math-verify has to judge.

`normalise` applies `EDITS`, `quantity` takes a unit off the end, and `compare` decides where texts are enough. A rule
accepts only what certainly means the gold, because a policy in training finds every rule that accepts more. The table
in the docstring of rewards.py shows with examples what is judged how. This file needs the standard library only.
"""

import re
import unicodedata
from decimal import Decimal

INTEGER = re.compile(r"-?[0-9]+")  # [0-9]: \d takes the digits of other scripts
_NUMBER = r"[+-]? ?[0-9]+(?:\.[0-9]+)?"
_TEXT = r"\\text ?\{ ?"
_GROUP = r"(?:\\.|[^{}\\])*"
for _ in range(4):  # braces within braces
    _GROUP = rf"(?:\\.|[^{{}}\\]|\{{{_GROUP}\}})*"
_SIGNS = {"−": "-", "‐": "-", "‑": "-", "°": r"^\circ "}
_SIGNS |= {"∞": r"\infty ", "·": r"\cdot ", "⋅": r"\cdot ", "≈": r"\approx "}
_SIZES = dict(hundred=2, thousand=3, million=6, billion=9, trillion=12)  # powers of ten


def _flat(text: str) -> str:
    return unicodedata.normalize("NFKC", text)


def _plain_number(match: re.Match) -> str:
    sign, whole, decimals = match.groups()
    number = (whole.lstrip("0") or "0") + (decimals or "").rstrip("0").rstrip(".")
    return "-" + number if sign == "-" and number != "0" else number


def _scaled_number(match: re.Match) -> str:
    number, exponent, text, size = match.groups()
    return format(Decimal(number.replace(" ", "")).scaleb(int(exponent or _SIZES[size])), "f") + (text or "")


def _remainder(match: re.Match) -> str:
    return match[1] if int(match[1]) < int(match[2]) else match[0]


def _periodic_number(match: re.Match) -> str:
    whole, fixed, period = match.groups()
    numerator = int(whole + fixed + period) - int(whole + fixed or "0")
    return rf"\frac{{{numerator}}}{{{(10 ** len(period) - 1) * 10 ** len(fixed)}}}"


EDITS = [  # (pattern, what it becomes), one after the other, and all again until nothing changes
    # characters: those of no width, raised and lowered ones, fractions, roots, full-width digits
    (r"[\u00ad\u200b-\u200f\u2060-\u2064\ufeff]", ""),
    (r"[²³¹⁰-ⁿ]+", lambda match: f"^{{{_flat(match[0])}}}"),
    (r"[₀-ₜ]+", lambda match: f"_{{{_flat(match[0])}}}"),
    (r"[¼-¾⅐-⅞]", lambda match: re.sub("(.*)⁄(.*)", r"\\frac{\1}{\2}", _flat(match[0]))),
    (r"√\s*(?:\(([^()]*)\)|([0-9]+|[a-zA-Z]))", r"\\sqrt{\1\2}"),
    (r"(^|[(\[{,=])\s*–", r"\1-"),  # between two numbers this dash is no minus
    (r"[^\x00-\x7f]", lambda match: _SIGNS.get(match[0]) or _flat(match[0])),
    # what is not seen in print: math delimiters, but not \\ (the next row of a matrix) or \$; spaces, colours, fonts
    (r"(\\\\|\\\$)|\\!\s*|\$|\\[()\[\]]", r"\1"),
    (r"(\\\\)|(?:\\[,;: ]|\\q?quad(?![a-zA-Z])|~|\s)+", lambda match: match[1] or " "),
    (r"\\(?:(?:text)?color|[hv]?phantom) ?\{[^{}]*\} ?", ""),
    (r"\\(?:displaystyle|bf|rm|it|[lL]arge|underline|boldsymbol|bm)(?![a-zA-Z]) ?", ""),
    (r"\\(?:mathrm|mathbf|mathit|textbf|textrm|textit|textnormal|mbox)(?![a-zA-Z])", r"\\text"),
    (r"\\text ?\{((?:[0-9]|[^\w{}])*| ?[ei] ?)\}", r"\1"),  # no words in it
    (rf"^{_TEXT}(-?[0-9][^{{}}]*)\}}$", r"\1"),
    (r"(?<![\w)}])\*\*([^*]+)\*\*(?![\w({])", r"\1"),
    (rf"^\{{({_GROUP})\}}$", r"\1"),
    (r"^ +|(?: |,|;|\\\\)+$|(?<!\.)(?<!\\right)\.$", ""),
    (r"\{,\}", ","),
    # signs in front, the letter of a choice, a remainder n (mod m) with n < m
    (r"^(?:=|\\approx(?![a-zA-Z])) ?", ""),
    (rf"^{_TEXT}\([A-H]\) ?\}} ?(?=[^ ,;\\]|\\(?!text))(?!or\b|and\b)", ""),
    (r"^\([A-H]\) ?(?=[-+]?[0-9.]|\\[dt]?frac|\\sqrt|\\\$)", ""),
    (rf"^([0-9]+) ?(?:{_TEXT}|\(|\\[pb]?(?=mod))+mod(?![a-zA-Z])[ {{}}]*([0-9]+)[ )}}]*$", _remainder),
    (r"\\varnothing(?![a-zA-Z])", r"\\emptyset"),
    # numbers: percent, thousands, 2.5e6 and 2.5 million, 025.0, mixed ones, periods
    (rf"(?<!\\)%|(?:(?<=[0-9}}]) ?|{_TEXT})(?:percent|pct)\b(?: ?\}})?", r"\\%"),
    (r"^[+-]? ?[1-9][0-9]{0,2}((,[0-9]{3})+|( [0-9]{3})+)(\.[0-9]*)?$", lambda match: re.sub("[, ]", "", match[0])),
    (rf"^({_NUMBER})(?:[eE]([+-]?[0-9]{{1,3}})(?![\w.])| ?({_TEXT})?({'|'.join(_SIZES)})s?\b)", _scaled_number),
    (r"^([+-]?) ?(?=\.?[0-9])([0-9]*)(\.[0-9]*)?$", _plain_number),
    (r"^([+-]?) ?([0-9]+) ([0-9]+)/([0-9]+)$", r"\1\2\\frac{\3}{\4}"),
    (r"([0-9]*)\.([0-9]*)\\(?:overline|bar) ?\{([0-9]+)\}(?!_)", _periodic_number),
    # signs that are units, which go to the end as words
    (r"^([+-]?) ?\\\$ ?(.+)$", r"\1\2\\text{dollar}"),
    (rf" ?\^ ?\{{? ?\\circ ?\}}? ?(?:[CF]|{_TEXT}[CF] ?\}})?$", r"\\text{degree}"),
]
EDITS = [(re.compile(pattern), replacement) for pattern, replacement in EDITS]


def normalise(text: str) -> str:
    """The text in the form that all answers that say the same should have. Doing it twice changes nothing."""
    for _ in range(8):  # two or three are enough for any sensible answer
        before = text
        if not INTEGER.fullmatch(text) or text[0] in "-0":
            for pattern, replacement in EDITS:
                text = pattern.sub(replacement, text)
        if text == before:
            break
    return text


# Units that are told apart. All names of one unit are between two bars. Another word after a number may be a unit too,
# if it is no number, operation or function, and comes before no second answer. It is not held against an answer.
_UNITS = """mm millimeter millimetre | cm centimeter centimetre | m meter metre | km kilometer kilometre | in inch inche
    | ft foot feet | yd yard | mi mile | mph | mg milligram | g gram | kg kilogram | lb pound | oz ounce
    | ml milliliter millilitre | l liter litre | s sec second | min minute | h hr hour | day | week | month | yr year
    | cent | dollar usd | deg degree | rad radian | sq square | cu cubic | th | am | pm"""
_UNITS = {name: names.split()[0] for names in _UNITS.split("|") for name in names.split()}
_NO_UNIT = re.compile(
    r"zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|\w+teen|(?:twen|thir|for|fif|six|seven|eigh|nine)ty"
    r"|hundred|thousand|\w*illion|dozen|hal(?:f|ves)|thirds?|quarters?|(?:four|fif|six|seven|eigh|nin|ten|hundred|thousand)ths?"
    r"|.*[十百千万亿].*|plus|minus|times|over|squared|cubed|mod|modulo|base|factorial|power|root|alpha|beta|gamma|delta|theta"
    r"|lambda|sigma|omega|(?:sin|cos|tan|cot|sec|csc|log|exp|sqrt)\w?|and|or|not|but|to|if|is|are|was|than|more|less|least|most"
)
_NAMES = "|".join(name for name in _UNITS if len(name) > 1)  # m alone could be a variable
_TERM = (
    r"(?:\\text ?\{(?:[^\W\d_]|[ ./()'-]|\^[23])*\}|/ ?[hs](?![A-Za-z])"
    rf"|(?<![\\A-Za-z])(?:per|{_NAMES}|[A-Za-z]{{4,}}|[^\W\da-zA-Z_]+)(?![A-Za-z]))(?:\^ ?\{{?[23]\}}?)?"
)
_QUANTITY = re.compile(rf"(.*?(?:[0-9)}}\]%]|[A-Za-z](?= ?\\text))) ?({_TERM}(?:[ /.]*{_TERM})*)")


def quantity(text: str) -> tuple[str, tuple[str, ...]]:
    """(value, unit) of a normalised text. The unit is a tuple of sorted words, empty where there is none. The percent
    sign and the base of a number count as units."""
    value, unit = text, ()
    if text.endswith(r"\%"):
        value, unit = text[:-2], ("%",)
    elif number := re.fullmatch(r"([0-9A-Z]+)_\{?([0-9]+)\}?", text):
        value, unit = number[1], ("_" + number[2],)
    elif match := _QUANTITY.fullmatch(text):
        words = re.findall(r"[^\W\d_]+", match[2].replace(r"\text", "").replace(".", "").lower())
        names = [_UNITS.get(word) or _UNITS.get(word.rstrip("s"), word) for word in words if word != "per"]
        other = [name for name in names if name not in _UNITS]
        if len(names) <= 4 and not any(_NO_UNIT.fullmatch(name) or name.isascii() and len(name) < 3 for name in other):
            powers = [{"2": "sq", "3": "cu"}[power] for power in re.findall("[23]", match[2])]
            value, unit = match[1], tuple(sorted(names + powers))
    value = normalise(value) if unit else text
    return (value, unit) if value else (text, ())


def word(text: str) -> str:
    r"""The words of a text that is nothing but words, "east" for \text{East}. Empty for every other text."""
    plain = re.sub(rf"{_TEXT}([^{{}}]*)\}}", r"\1", text).strip("() .").casefold()
    return plain if re.fullmatch(r"[^\W\d_]+(?:[ '-][^\W\d_]+)*", plain) else ""


def is_word(gold: str) -> bool:
    r"""Whether a gold is words, \text{east} or (C), and not a product of variables like xy."""
    return bool(word(gold) and re.search(_TEXT + r"|^\([A-Z]\)$|^[A-Za-z]{4,}(?: [A-Za-z]+)*$", gold))


def compare(gold: str, answer: str) -> tuple[bool | None, str, str]:
    """(same, gold, answer) of two normalised texts. If `same` is None, math-verify has to judge the texts."""
    (left, _, right), (other, _, found) = gold.partition("="), answer.partition("=")
    one_equation = right and found and "=" not in right + found  # x=1,y=2 is not x=2,y=1
    if one_equation and left.strip() == other.strip() != "0":  # math-verify reads N and n as one variable
        return compare(normalise(right), normalise(found))
    (gold_value, gold_unit), (value, unit) = quantity(gold), quantity(answer)
    if re.fullmatch("-?[0-9.]+", gold_value) and (metres := re.fullmatch(r"(-?[0-9.]+) ([mgshlL])", answer)):
        value, unit = metres[1], (metres[2].lower(),)  # after a number alone, and not where the gold has variables
    known = lambda unit: unit and all(name in _UNITS or not name.isalpha() for name in unit)
    same = None
    if known(gold_unit) and known(unit) and gold_unit != unit:
        same = False
    elif gold_value == value:
        same = True
    elif is_word(gold):
        same = word(gold) == word(answer)
    elif ("%",) in (gold_unit, unit):
        return None, gold, answer
    elif INTEGER.fullmatch(gold_value) and INTEGER.fullmatch(value) or re.fullmatch(r"[0-9.]+(?: [0-9.]+)+", value):
        same = False
    return same, gold_value, value
