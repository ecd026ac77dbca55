r"""One form for answers that say the same: what can be decided from their texts alone, before math-verify has to judge.

`normalise` applies `EDITS`, `quantity` takes a unit off the end, and `compare` decides where texts are enough. A rule
accepts only what certainly means the gold, because a policy in training finds every rule that accepts more: units are
an allow-list, and every other letter is a factor. The table in the docstring of verifier.py shows with examples what
is judged how. This file needs the standard library only.
"""

import re
import unicodedata
from decimal import Decimal
from functools import lru_cache

INTEGER = re.compile(r"-?[0-9]+")  # [0-9]: \d takes the digits of other scripts
_NUMBER = r"[+-]? ?[0-9]+(?:\.[0-9]+)?"
_DIGITS = r"(?:\{ ?([0-9]+) ?\}|([0-9]))"  # as an index
_TEXT = r"\\text ?\{ ?"
_END = r"(?![a-zA-Z])"  # of a command or a word
_SIGNS = {"Å": "AA", "且": "text{and}", "或": "text{or}"}
_SIGNS |= dict(
    zip("∞·⋅≈⩽⩾∈∖∠⌊⌋⌈⌉", "infty cdot cdot approx le ge in setminus angle lfloor rfloor lceil rceil".split()),
    **dict(zip("πθΩαβγλμφωΔ", "pi theta Omega alpha beta gamma lambda mu phi omega Delta".split())),
    **{sign: f"text{{{name}}}" for sign, name in zip("€£¥¢₹", "euro pound yen cent rupee".split())},
    **{sign: f"mathbb{{{name}}}" for sign, name in zip("ℝℤℕℚℂ", "RZNQC")},
)
_SIGNS = {sign: rf"\{name} " for sign, name in _SIGNS.items()} | dict.fromkeys("°º˚", r"^\circ ")
_SIGNS |= dict(zip("−‐‑。、∶“”", "---.,:''"))
_SIZES = dict(hundred=2, thousand=3, million=6, billion=9, trillion=12, 成=-1, 百=2, 千=3, 万=4, 亿=8)  # powers of ten
_DIGIT = "零一二两三四五六七八九"
_WORDS = "zero one two three four five six seven eight nine ten eleven twelve".split()
_FUNCTIONS = "arc(?:sin|cos|tan)|sinh?|cosh?|tanh?|cot|csc|ln|lg|log|exp|sqrt|pi|[iI]nfinity"
# A plain name, which may stand left of = or \in: x, S_{10}, x', \theta, f(x), f^{-1}(3), AB, |S|, (x,y), \text{Area}
_LETTER = r"(?:[a-zA-Z]|\\(?!pi|infty)[a-z]+)(?:_(?:\w|\{[^{}]*\}))?'?"
_NAME = (
    rf"{_LETTER}(?:(?<![xyz])(?:\^\{{-1\}})?\(\w(?:, ?\w)*\))?|\|?[A-Z]{{1,3}}\|?"
    rf"|\({_LETTER}(?:, ?{_LETTER})+\)|{_TEXT}[a-zA-Z]+ ?\}}"
)


def _flat(text: str) -> str:
    return unicodedata.normalize("NFKC", text)


def _plain_number(match: re.Match) -> str:
    sign, whole, decimals = match.groups()
    number = (whole.lstrip("0") or "0") + (decimals or "").rstrip("0").rstrip(".")
    return "-" + number if sign == "-" and number != "0" else number


def _scaled_number(match: re.Match) -> str:
    number, exponent, text, size = match.groups()
    return format(Decimal(number.replace(" ", "")).scaleb(int(exponent or _SIZES[size])), "f") + (text or "")


def _chinese_number(match: re.Match) -> str:
    total = digit = 0
    for value in map(int, map(unicodedata.numeric, match[0].replace("两", "二"))):
        total, digit = (total, value) if value < 10 else (total + (digit or 1) * value, 0)
    return str(total + digit)


def _periodic_number(match: re.Match) -> str:
    whole, fixed, period = match[1], match[2], match[3] or match[4]
    numerator = int(whole + fixed + period) - int(whole + fixed or "0")
    return rf"\frac{{{numerator}}}{{{(10 ** len(period) - 1) * 10 ** len(fixed)}}}"


_SPACE = rf"\\[,;:> ]|\\(?:q?quad|(?:thin|en)space|hfill|(?:math)?strut){_END}|~|\s"
_UNSEEN = """displaystyle textstyle scriptstyle bf rm it sf tt tiny scriptsize footnotesize small normalsize large Large
    LARGE huge Huge underline boldsymbol bold bm pmb emph fbox ensuremath mathop noindent nonumber relax vec hat angle
    left right""".split()
_SET = rf"^\\\{{ ?{_LETTER}(?: ?\\in ?\\mathbb\{{R\}})? ?(?:\\mid|:|\|) ?(?=.*(?:[<>≤≥≠]|\\[lg]e|\\ne))(.*?) ?\\\}}$"
_FOR_ALL = rf"(?:\\forall|(?:{_TEXT})?for (?:all|any|every)(?: real)?(?: numbers?)? ?\}}?) ?{_LETTER}"
_REALS = rf"^(?:{_TEXT})?(?:[tT]he )?(?:set of )?(?:[aA]ll )?(?:[rR]eal numbers|[rR]eals) ?\}}?$"
_SIZED = rf"[eE]([+-]?[0-9]{{1,3}})(?![\w.])| ?({_TEXT})?({'|'.join(_SIZES)})(?![米克瓦焦卡])s?{_END}"
_MONEY = rf"(?:(?:US ?)?\\\$|USD|{_TEXT}(?:USD|([a-z]{{3,6}})) ?\}})"

# (pattern, what it becomes), one after the other, and all again until nothing changes. Each names what needs it: golds
# of a data set, or answers that models write (tests/test_rewards.py).
EDITS = [
    # characters
    (r"[\u00ad\u200b-\u200f\u2060-\u2064\ufeff]", ""),  # from copied pages
    (r"[²³¹⁰-ⁿ]+", lambda match: f"^{{{_flat(match[0])}}}"),  # x¹⁰
    (r"[₀-ₜ]+", lambda match: f"_{{{_flat(match[0])}}}"),  # 52₈
    (r"[¼-¾⅐-⅞]", lambda match: re.sub("(.*)⁄(.*)", r"\\frac{\1}{\2}", _flat(match[0]))),  # 3½
    (r"∛", "√[3]"),
    (r"(?:√|\\?sqrt(?= ?\())(\[3\])?\s*(?:\(([^()]*)\)|([0-9]+|[a-zA-Z]))", r"\\sqrt\1{\2\3}"),  # 3√13, sqrt(5)
    (r"(^|[(\[{,=])\s*–", r"\1-"),  # –5; between two numbers this dash is no minus
    (r"[^\x00-\x7f]", lambda match: _SIGNS.get(match[0]) or _flat(match[0])),  # 2π, ≥, °, full-width digits
    # what is not seen in print
    (r"(\\\\) ?\[[0-9.]+ ?[a-z]{2}\]", r"\1"),  # MATH: rows of a matrix with \\[4pt]
    # OlympiadBench: 69$,$84; but not \$, and not \\, the next row of a matrix
    (r"(\\\\|\\\$)|\\!\s*|\$|\\[()\[\]]", r"\1"),
    (rf"(\\\\)|(?:{_SPACE})+", lambda match: match[1] or " "),  # 48\,125, &5, 5\hfill
    (r"\\(?:(?:text)?color|colorbox|[hv]?phantom|[hv]space\*?) ?\{[^{}]*\} ?", " "),  # \color{blue}{204}, 5\hspace{1cm}
    (r"\\(?:left|right) ?\.", ""),  # \left.5\right.
    (rf"\\(?:{'|'.join(_UNSEEN)}|[bB]igg?[lrm]?){_END} ?", ""),  # \huge 5, \bigl(1,2\bigr), \vec{i}
    # MATH: \mathrm{cm}, \textbf{(C)}, \mathsf{5}
    (rf"\\(?:math(?:rm|bf|it|sf|tt|cal)|text(?:bf|rm|it|sf|tt|normal)|[mh]box|operatorname){_END}", r"\\text"),
    (rf"{_TEXT}\\text ?\{{([^{{}}]*)\}} ?\}}", r"\\text{\1}"),  # \text{€}12, \text{ 且 }
    (rf"{_TEXT}((?:[0-9]|[^\w{{}}])*|[ei]|-?(?:{_FUNCTIONS})) ?\}}", r" \1 "),  # \text{2}, 6-5\mathrm{i}, \text{arctan}
    (rf"^{_TEXT}(-?[0-9][^{{}}]*)\}}$", r"\1"),  # \text{204 dollars}
    (r"^([`'\"]|\*+|__?)([^`'\"*]*)\1$", r"\2"),  # `5`, **204**
    (r"^\{((?:\\.|[^{}\\]|\{[^{}]*\})*)\}$", r"\1"),  # {\bf 204}
    (r"(?<=[0-9])\{,\}(?=[0-9]{3}(?![0-9]))", ""),  # 11{,}111
    (r" ?(?:\\colon(?![a-z])|(?<!\\)\{:\}|:) ?", ":"),  # 12{:}30, 2\colon 3
    (rf"\\[lc]?dots{_END}|\.\.\.+", r"\\text{dots}"),  # 1,2,...,n
    (r"^(?:[ &]|\\?#)+|(?:[ ,;&]|\\\\)+$|(?<!\.)\.$", ""),  # 204,  204。  &204  #204
    (r"^(?!\{)[^:]+(?::[^:]+){2,}$", lambda match: f"({match[0].replace(':', ',')})"),  # 2:3:5, no division
    (rf"^(?:=|\\approx{_END}) ?", ""),  # =204
    # words and signs for what math-verify reads in another form
    (r"\\(?:mathbb|Bbb) ?([A-Z])|\\Bbb ?\{([A-Z])\}", r"\\mathbb{\1\2}"),  # \mathbb R
    (_REALS, r"\\mathbb{R}"),  # \text{all real numbers}
    (r"(\\mathbb\{R\}) ?(?:-|\\backslash) ?(?=\\\{)", r"\1\\setminus "),  # \mathbb{R}-\{1\}
    (rf"\\varnothing{_END}", r"\\emptyset"),  # ∅
    (r"\\langle ?(.*?) ?\\rangle", r"(\1)"),  # \langle 1,2\rangle
    # pi/2, ln 2
    (rf"(?<![\\a-zA-Z])({_FUNCTIONS}){_END}", lambda match: "\\" + match[1].replace("nfinity", "nfty").lower() + " "),
    (rf"\\lg{_END}", r"\\log"),  # \lg 2
    (r"(\\sqrt ?\[[^][]*\]) ?(\w)", r"\1{\2}"),  # \sqrt[3]2
    (rf"C_{_DIGITS}\^{_DIGITS}", r"\\binom{\1\2}{\3\4}"),  # C_{10}^3
    (rf"[AP]_{_DIGITS}\^{_DIGITS}", r"\\frac{\1\2!}{(\1\2-\3\4)!}"),  # A_6^3
    (r"^[A-Z]'? ?(?=\([^()]+,[^()]+\)$)", ""),  # P(1,2)
    (_SET, r"\1"),  # \{x \mid x \ge 3\}
    (rf"(?<=[^,; ])[,;]? ?{_FOR_ALL}(?: ?\\in ?\\mathbb\{{R\}})? ?\}}?$", ""),  # f(x)=x+1 \text{ for all } x
    (r"(?<=[^,; ])(?:[,;] ?\(?| ?\()[a-zA-Z] ?\\in ?\\mathbb\{[RZ]\}\)?$", ""),  # k\pi, k \in \mathbb{Z}
    # numbers
    (  # AIME: 204 \pmod{1000}
        rf"^([0-9]+) ?(?:{_TEXT}|\(|\\[pb]?(?=mod))+mod{_END}[ {{}}]*([0-9]+)[ )}}]*$",
        lambda match: match[1] if int(match[1]) < int(match[2]) else match[0],
    ),
    (rf"^([0-9]+) ?(?:[Rr]|remainder|{_TEXT}(?:[Rr]|remainder) ?\}}) ?([0-9]+)$", r"(\1,\2)"),  # 5 R 3
    (rf"(?<=[0-9]) ?\^? ?(\{{ ?)?({_TEXT})?(?:st|nd|rd|th) ?(?(2)\}} ?)(?(1)\}}){_END}", ""),  # 12^{\text{th}}
    (rf"(?<!\\)%|(?:(?<=[0-9}}]) ?|{_TEXT})(?:percent|pct)\b(?: ?\}})?", r"\\%"),  # OlympiadBench: 62.5%
    # GSM8K: 1,450,000
    (r"^[+-]? ?[1-9][0-9]{0,2}((,[0-9]{3})+|( [0-9]{3})+)(\.[0-9]*)?$", lambda match: re.sub("[, ]", "", match[0])),
    (rf"^({_NUMBER})(?:{_SIZED})", _scaled_number),  # 2.5 million, 2.5e6, 7万
    (rf"^(?:{_TEXT})?((?i:{'|'.join(_WORDS)})) ?\}}?$", lambda match: str(_WORDS.index(match[1].lower()))),  # five
    (rf"^(?=[{_DIGIT}十百千])(?:[{_DIGIT}]?[十百千]零?)*[{_DIGIT}]?(?=[成万亿元个]*$)", _chinese_number),  # 八十
    (r"^([+-]?) ?(?=\.?[0-9])([0-9]*)(\.[0-9]*)?$", _plain_number),  # AIME: 025, AMC: 27.0, MATH: .35625
    (r"^([+-]?) ?([0-9]+) ([0-9]+)/([0-9]+)$", r"\1\2\\frac{\3}{\4}"),  # 3 1/2
    # 0.(3), 0.\dot{1}4\dot{2}
    (r"(\.[0-9]*)(?:\(([0-9]+)\)|\\dot ?\{?([0-9])\}?(?:([0-9]*)\\dot ?\{?([0-9])\}?)?)", r"\1\\overline{\2\3\4\5}"),
    (r"(\.[0-9]*?)([0-9])\2\2+\\text\{dots\}$", r"\1\\overline{\2}"),  # 0.333...
    (r"([0-9]*)\.([0-9]*)\\(?:overline|bar) ?(?:\{([0-9]+)\}|([0-9]))(?![_0-9])", _periodic_number),  # 0.\overline{3}
    # signs that are units, which go to the end as words
    (  # \$12.50, £12
        rf"^([+-]?) ?{_MONEY} ?((?!\\text)[-0-9.\\].*)$",
        lambda match: rf"{match[1]}{match[3]}\text{{{match[2] or 'dollar'}}}",
    ),
    # MATH: 90^\circ
    (rf" ?(?:\^ ?\{{? ?\\(?:circ|degree) ?\}}?|\\degree) ?(?:[CF]|{_TEXT}[CF] ?\}})?$", r"\\text{degree}"),
]
EDITS = [(re.compile(pattern), replacement) for pattern, replacement in EDITS]


@lru_cache(10_000)  # golds and answers come many times
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


# Units that are told apart: all names of one unit are between two bars, short ones as they are written. Then what is
# counted, as the questions of GSM8K and DAPO ask for it, and words between such words. No word that changes the number
# (pairs, dozens, halves, times) and no letter that is short for one (K, M) belongs here.
_UNITS = r"""mm millimeter millimetre 毫米 | cm centimeter centimetre 厘米 | dm 分米 | m meter metre 米 | nm | lb
    | in inch inche | km kilometer kilometre 千米 公里 | ft foot feet | yd yard | mi mile | mph | mg milligram
    | g gram 克 | kg kilogram 千克 公斤 | oz ounce | ton 吨 | ml mL milliliter millilitre 毫升 | l L liter litre 升
    | gallon | cup | s sec second 秒 | min minute 分钟 | h hr hour 小时 | day 天 | week | month | yr year 年 | N newton
    | J joule | W watt | V volt | A ampere | Hz hertz | Pa pascal | kPa | kW 千瓦 | kWh | kJ 千焦 | eV | ohm \Omega
    | \AA | mol | cent | dollar USD | euro | yuan yen 元 | pound | rupee | deg degree 度 | rad radian | sq square 平方
    | cu cubic 立方 | am | pm"""
_UNITS = {name: names.split()[0] for names in _UNITS.split("|") for name in names.split()}
_MEASURES = {*_UNITS.values()}
_COUNTED = """unit integer way value number point element divisor student triangle solution subset sequence game piece
    marble path permutation coin arrangement ball people move function card polynomial cookie rectangle member step
    combination prime car term player word page coloring edge egg line block tile friend handshake side group problem
    book cell face color boy girl letter tree round banana apple pencil calorie slice question orange bird guest route
    stamp bag bean worker stick plate circle pen item chair balloon toy animal bottle ticket sticker cow leg row flower
    dog cat shoe pizza children men women passenger brick team seat room house cake vertices 个 人 名 只 本
    条 张 件 种 次 岁"""
_UNITS |= {name: name for name in _COUNTED.split()} | dict.fromkeys(
    "per of each a every old long tall left total different".split(), ""
)
_TERM = (
    r"(?:\\text ?\{(?:[^\W\d_]|[ ./'-]|\^ ?\{?[23]\}?)*\}|(?:(?<= )m ?)?/ ?[hs](?![A-Za-z])|\\(?:AA|Omega)(?![A-Za-z])"
    r"|(?<![\\A-Za-z])(?:[A-Za-z]{2,}|[^\W\da-zA-Z_]+)(?![A-Za-z]))(?:\^ ?\{?[23]\}?)?"
)
_QUANTITY = re.compile(rf"(.*?(?:[0-9)}}\]%]|\\pi(?= )|[A-Za-z](?= ?\\text))) ?({_TERM}(?:[ /.]*{_TERM})*)")


def _unit(word: str) -> str | None:
    """The one name of a unit; empty for per and the like; None for what is no unit."""
    short = len(word) < 3 and word.isascii()  # M is no metre
    return _UNITS.get(word if short or word in _UNITS else word.lower().rstrip("s"))


def quantity(text: str) -> tuple[str, tuple[str, ...]]:
    """(value, unit) of a normalised text. The unit is a tuple of sorted words, empty where there is none. The percent
    sign and the base of a number count as units."""
    value, unit = text, ()
    if text.endswith(r"\%"):
        value, unit = text[:-2], ("%",)
    elif number := re.fullmatch(r"\(?((?=[A-F]*[0-9])[0-9A-F]+)\)?_\{? ?([0-9]+) ?\}?", text):
        value, unit = number[1], ("_" + number[2],)
    elif match := _QUANTITY.fullmatch(text):
        words = re.findall(r"平方|立方|\\AA|\\Omega|[^\W\d_]+", match[2].replace(r"\text", ""))
        names = [_unit(word) for word in words]
        if len(names) <= 5 and None not in names and {*names} - {"", "sq", "cu"}:
            powers = [{"2": "sq", "3": "cu"}[power] for power in re.findall("[23]", match[2])]
            value, unit = match[1], tuple(sorted({name for name in (*names, *powers) if name}))
    value = normalise(value) if unit else text
    return (value, unit) if value else (text, ())


def _plain(text: str) -> str:
    return " ".join(re.sub(rf"{_TEXT}([^{{}}]*)\}}", r"\1", text).split())


def word(text: str) -> str:
    r"""The words of a text that is nothing but words, "east" for \text{East}, "june 20" for \text{June 20}. Empty for
    every other text."""
    plain = re.sub("^(?:an?|the|on) |(?<=solution)s$", "", _plain(text).strip("() .").casefold())
    return plain if re.fullmatch(r"[^\W\d_]+(?:[ '-]+[^\W_]+|, ?[0-9]+)*", plain) else ""


def is_word(gold: str) -> bool:
    r"""Whether a gold is words, \text{east} or east, and not a product of variables like xy."""
    return bool(word(gold) and re.search(_TEXT + r"|^[^\x00-\x7f]|^[A-Za-z]{4,}(?: |$)|^no ", gold))


def _letters(text: str) -> str:
    """The choices that a text names, "AC" for (A) and (C). After a single one may stand what it says: E: a score."""
    text = re.sub(r"^(?:[Oo]ption|[Cc]hoice) ", "", _plain(text))
    if re.fullmatch(r"\(?[A-H]\)?(?:(?:, ?| ?and ?| )?\(?[A-H]\)?)*", text):
        return "".join(sorted(set(re.findall("[A-H]", text))))
    first = re.match(r"\(?([A-H])[).:]", text)
    return first[1] if first and not re.search(r"(?<![A-Za-z])[A-H](?![A-Za-z])", text[first.end() :]) else ""


_LABEL = re.compile(  # the letter of a choice, before what it says
    rf"{_TEXT}\(?[A-H][).:] ?\}} ?(?=[^ ,;\\]|\\(?!text))(?!or\b|and\b)"
    r"|(?:\([A-H]\)|[A-H][):]) ?(?=[-+]?[0-9.]|\\[dt]?frac|\\sqrt|\\\$)"
)


def _assignment(text: str) -> tuple[str, str]:
    r"""(name, value) of x = 5 or 5 = x; the name is empty if there is none."""
    match = re.fullmatch(rf"({_NAME}) ?(?:=|\\in{_END}) ?([^=]+)|([^=]+?) ?= ?({_NAME})", text)
    return (match[1] or match[4], match[2] or match[3]) if match else ("", text)


def compare(gold: str, answer: str) -> tuple[bool | None, str, str]:
    """(same, gold, answer) of two normalised texts. If `same` is None, math-verify has to judge the texts, which may
    end in % or °."""
    if INTEGER.fullmatch(gold) and INTEGER.fullmatch(answer):
        return gold == answer, gold, answer
    if letters := _letters(gold):
        return _letters(answer) == letters or (None if len(letters) > 1 else gold == answer), gold, answer
    (name, right), (other, found) = _assignment(gold), _assignment(answer)
    same_name = name.replace(" ", "") == other.replace(" ", "") != ""
    if same_name or name and "=" not in answer or other and "=" not in gold:
        return compare(normalise(right), normalise(found))
    if gold != answer and (label := _LABEL.match(answer)):
        return compare(gold, normalise(answer[label.end() :]))
    (gold_value, gold_unit), (value, unit) = quantity(gold), quantity(answer)
    if re.fullmatch("-?[0-9.]+", gold_value) and (metres := re.fullmatch(r"(-?[0-9.]+) ([mgshlL])", answer)):
        value, unit = metres[1], (metres[2].lower(),)  # after a number alone, and not where the gold has variables
    known = lambda unit: unit and all(name in _MEASURES or not name.isalpha() for name in unit)
    base = unit and unit[0][0] == "_" and unit != ("_10",)
    signs = {("%",): "%", ("deg",): "°"} if gold_unit != unit else {}
    same = None
    if known(gold_unit) and known(unit) and gold_unit != unit or base and gold_unit != unit:
        same = False
    elif gold_value == value and (unit not in signs or INTEGER.fullmatch(value)):
        same = True
    elif is_word(gold):
        same = word(gold) == word(answer)
    elif re.fullmatch("[0-9]{1,2}:[0-5][0-9]", gold_value):  # the time of a clock, no division
        same = False
    elif ("%",) not in (gold_unit, unit):
        integers = INTEGER.fullmatch(gold_value) and INTEGER.fullmatch(value)
        same = False if integers or re.fullmatch(r"[0-9.]+(?: [0-9.]+)+", value) else None
    return same, gold_value + signs.get(gold_unit, ""), value + signs.get(unit, "")


_NO_GOLDS = {  # what no answer can match
    "a date": r"[0-9]{4}([-/])[0-9]{1,2}\1[0-9]{1,2}|[0-9]{1,2}([-/])[0-9]{1,2}\2[0-9]{4}",
    "no answer": r"(?i:nan|n/a|none|null|proof)",
    "Python": r"b(['\"]).*\1|[\[({] ?['\"].*",
    "a sentence": r".*\b(?:is|are|was|were|has|have)\b.*|(?:.*?(?<![\\a-zA-Z])[a-zA-Z]{2,}(?![a-zA-Z])){6}.*",
}


def not_a_gold(gold: str) -> str:
    """What a gold is that no answer can match, "a date"; empty for every other gold."""
    kinds = (what for what, pattern in _NO_GOLDS.items() if re.fullmatch(pattern, gold.strip(), re.DOTALL))
    return next(kinds, "")
