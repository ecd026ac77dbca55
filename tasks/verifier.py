r"""Is the last \boxed{...} of a text the gold answer? The verifier behind `rewards.score`.

    judge(["1/2"], [r"... so it is \boxed{0.5}."])  # [("0.5", "correct")]

The braces of that box must balance. There is no fallback to "Answer:" lines or to the rest of the text.
tasks/answers.py gives gold and answer one form, and decides where their texts are enough: for integers, units, words
and choices. math-verify and sympy judge every other pair, in the processes of tasks/workers.py. They read LaTeX only,
evaluate no code and take no number out of junk. This table says what is judged how. A test reads it; two spaces
separate the answers.

    rule             | gold          | correct                                         | wrong
    integers         | 204           | 204.  0204  204.00  +204  $204$  204,  204。     | -204  2040  204.5
    thousands        | 1234567       | 1,234,567  1{,}234{,}567  1\,234\,567           | 1,234  12,34,567
    sizes            | 2500000       | 2.5e6  2.5 \times 10^6  2.5 \text{ million}     | 2.5  2.5e5  2.5 \text{ lakh}
    number words     | 8             | eight  \text{Eight}  八                          | 八十  八成  eighty
    print            | 204           | \color{blue}{204}  \huge 204  {\bf 204}  `204`  | \overline{204}  20\bf 3
    space            | 204           | &204  204\hfill  204\strut  \left.204\right.    | 2 04  204 4
    choice, print    | 204           | \textbf{(C)}\ 204  C) 204  **204**              | \textbf{(C)}  2**04  (C)
    a name           | 204           | x = 204  f(3)=204  S_{10}=204  204=x  AB=204    | x^2=204  -x=204  m+n=204
    relation         | 204           | =204  \approx 204  x = 204 = 200+4              | \neq 204  >204  x=204=205
    remainder        | 204           | 204 \pmod{1000}  204 \bmod 1000                 | 204 \pmod{2}  1204 \pmod{1000}
    with remainder   | 5 R 3         | 5\text{ remainder }3  5R3                       | 3 R 5  5 R 4  5
    ordinals         | 12            | 12th  12^{\text{th}}                            | 12t  12^{t}
    unit of one      | 204 | 204 \text{ cm}^2  204 km/h  204 eggs  \$204 | 204x  204m  204π  204 \text{ dozen}
    units of both    | 5 \text{ m}   | 5  5 m  5 \text{ meters}  5\,\mathrm{m}  5米     | 5 \text{ cm}  5 cm  5\%
    percent          | 12.5\%        | 12.5  0.125  12\frac12\%  12.5 percent          | 1.25  1250
    degrees          | 30            | 30^\circ  30°  30 degrees  30\degree            | 30^2  \frac{\pi}{6}
    radians          | \frac{\pi}{6} | 30^\circ  pi/6                                  | 30  60^\circ
    number base      | 52_8          | 52  52_{8}  (52)_8                              | 52_9  53_8
    another base     | 52            | 52_{10}                                         | 52_8  52_{\text{eight}}
    one answer only  | 204           | 204, 204                                        | 204 or 205  205, 204  204 205
    a set            | 1,-2          | -2, 1  1 \text{ and } -2  x=1 or x=-2  \{1,-2\} | 1  1,2  2x=1, 2x=-2
    fractions        | \frac{7}{2}   | 7/2  3.5  3 1/2  3\frac{1}{2}  3½               | 31/2  3 \cdot 1/2
    products         | 6             | 2(3)  2 \cdot 3                                 | 5  2^3  2 3
    periods          | 1/3           | 0.\overline{3}  0.(3)  0.333...  0.333333       | 0.333  0.3
    small numbers    | e^{-40}       | \frac{1}{e^{40}}  4.248e-18                     | e^{-41}  2e^{-40}  0
    roots            | \sqrt{2}      | √2  2^{1/2}  \frac{2}{\sqrt{2}}  1.414214       | 2  1.41
    complex          | -1+2i         | -1 + 2 i  2\mathrm{i}-1  i(2+i)                 | -1-2i  1+2i
    functions        | \ln 2         | ln 2  \text{ln}(2)                              | \lg 2  2
    counting         | 120           | C_{10}^3  \binom{10}{3}  A_6^3                  | C_{10}^2
    expressions      | (x+1)^2       | x^2+2x+1  f(x)=(x+1)^2  (x+1)^2 \text{ for all } x | x^2+1  (y+1)^2  (X+1)^2
    same left side   | N=n           | N = n                                           | N=n+1  N=2n
    both signs       | -2,1,2        | 1, \pm 2  x=1 \text{ or } x=\pm 2               | 1, 2  \pm 2
    in order         | 3,1,1         | 3, 1, 1                                         | 3, 1  1, 1, 3
    two equations    | x=1,y=2       | y=2,x=1  (1,2)                                  | x=2,y=1  x=1,y=3  (2,1)
    a product        | 3x+2t         | 2t+3x                                           | 3x+2  3x+2 \text{ cm}
    any integer      | \frac{\pi}{4}+k\pi | \frac{\pi}{4}+n\pi                              | \frac{\pi}{4}+2n\pi
    pair, interval   | (1,2)         | 1<x<2  \{1,2\}  P(1,2)                          | [1,2]  (2,1)
    vectors          | \begin{pmatrix}1\\3\end{pmatrix} | (1,3)  \begin{pmatrix}1\\[4pt]3\end{pmatrix}    | (3,1)
    inequalities     | x \ge 3       | [3,\infty)  \{x : x \ge 3\}                     | x > 3
    union            | (-\infty,0)\cup(1,\infty) | x<0 or x>1 | x<0, x>1  x>0 or x>1
    all but one      | (-\infty,1)\cup(1,\infty) | \mathbb{R}-\{1\}  x \ne 1                       | \mathbb{R}
    all              | \mathbb{R}    | ℝ  \text{all real numbers}  (-\infty,\infty)    | \mathbb{Z}
    empty set        | \emptyset     | \varnothing  \{\}  ∅                            | 0
    ratios           | 2:3:5         | 2\colon 3\colon 5                               | 2:5:3
    clocks           | 12:30         | 12{:}30                                         | 2:5  0.4
    lists            | 1,\ldots,n    | 1,...,n                                         | 1,n
    words            | \text{east}   | east  East  \textbf{east}  \text{the east}      | seat  eats
    words and digits | \text{June 20} | June 20  June 20th                              | June 2  20
    choices          | (C)           | C  \text{(C)}  C) 12  C: a cat                  | (B)  (C) or (B)
    several choices  | AC            | A, C  \text{A and C}                            | A  A, B
    unpaid, units    | 0.5 \text{ m} | 0.5                                             | 50 \text{ cm}
    unpaid, times    | 1.5 \text{ h} | 1.5 | 90 \text{ min}  1 \text{ h } 30 \text{ min}
    unpaid, cents    | \$0.12        | 0.12                                            | 12¢
    unpaid, nouns    | 7 | 7 \text{ points} | 7 \text{ gizmos}  7N  7 \text{ pairs}
    unpaid, counting | 10            | C_5^3                             | C(5,3)  {}_5C_3  C^3_5  {5 \choose 3}
    unpaid, bases    | 52_8          | 52                                              | 52_{\text{eight}}
    unpaid, words    | 25            | 25                                              | twenty-five
    unpaid, print    | \ln 2         | \ln{2}                                          | \log_e 2

The last rows are right, but rarely written, and stay unpaid. A gold that no answer can match is refused by
`check_golds`, and answers to it are unpaid: sentences, dates, "None", "N/A", Python's b'5' and lists of texts.

Reasons: correct, wrong, no_box, unclosed, too_long, unparsed (math-verify cannot read the answer), bad_gold (or the
gold: see `check_golds`), timeout, crash.
"""

import os
import re

from tqdm import tqdm

from tasks import answers
from tasks.workers import Pair, verify

MAX_CHARS = 512  # of an answer or a gold


def judge(golds: list, responses: list, workers: int | None = None) -> list[tuple[str | None, str]]:
    """(answer, reason) of each (gold, response), in order: the content of the last box, normalised and without a
    unit, and one of the reasons above. Never raises or hangs because of what golds and responses contain.

    `workers`: processes at most (default: this rank's share of the cores, at most 8). Any thread may call; calls take
    turns. Raises ValueError if the lists differ in length, and RuntimeError if math-verify cannot be started.
    """
    if len(golds) != len(responses):
        raise ValueError(f"score got {len(golds)} golds and {len(responses)} responses: pass as many of both")
    rows = [_compare(_gold_text(gold), response) for gold, response in zip(golds, responses)]
    pairs = list(dict.fromkeys(pair for _, reason, pair in rows if not reason))  # each pair once
    verdicts = verify(pairs, workers)
    return [(answer, reason or verdicts[pair]) for answer, reason, pair in rows]


def check_golds(golds: list, workers: int | None = None) -> list[tuple[str, str | None]]:
    """(normalised gold, None or what is wrong with it) for each gold: a text, a number, or a list of one of them. For
    when the data is loaded. Numbers and words need no subprocess. Rank 0 shows a progress bar of the rest."""
    texts = [_gold_text(gold) for gold in golds]
    sure = {text for text in set(texts) if answers.INTEGER.fullmatch(text) or answers.is_word(text)}
    pairs = {text: answers.compare(text, text)[1:] for text in dict.fromkeys(texts) if text and text not in sure}
    to_judge = list(dict.fromkeys(pairs.values()))
    hidden = os.environ.get("RANK", "0") != "0"
    with tqdm(desc="checking golds", total=len(to_judge), unit="gold", delay=2.0, disable=hidden) as bar:
        verdicts = verify(to_judge, workers, bar.update)
    checked = []
    for gold, text in zip(golds, texts):
        reason = "correct" if text in sure else verdicts[pairs[text]] if text else "bad_gold"
        advice = f"give an integer, or LaTeX of at most {MAX_CHARS} characters that math-verify parses, or drop the row"
        what = isinstance(gold, str) and answers.not_a_gold(gold[:MAX_CHARS]) or reason
        problem = None if reason == "correct" else f"gold {ascii(gold):.200} can't be used ({what}): {advice}"
        checked.append((text, problem))
    return checked


_BOX = re.compile(r"\\boxed\s*\{")
_EMPTY = re.compile(r"(?:[\s~]|\\[ ,;:!]|\\q?quad)*\}")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # an escaped brace is a symbol, not a group


def last_box(text: object) -> tuple[str | None, str]:
    r"""(content of the last \boxed{...}, ""), or (None, reason) if there is none that counts. An empty box that comes
    after others does not."""
    boxes = list(_BOX.finditer(text)) if isinstance(text, str) else []
    while len(boxes) > 1 and _EMPTY.match(text, boxes[-1].end()):
        boxes.pop()
    if not boxes:
        return None, "no_box"
    start, depth = boxes[-1].end(), 1
    for brace in _BRACE.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            too_long = brace.start() - start > MAX_CHARS
            return (None, "too_long") if too_long else (text[start : brace.start()], "")
    return None, "unclosed"


def _gold_text(gold: object) -> str:
    """The normalised gold; empty if it is nothing that a gold can be."""
    if isinstance(gold, (list, tuple)) and len(gold) == 1:
        gold = gold[0]
    if isinstance(gold, (int, float)) and not isinstance(gold, bool) and abs(gold) < 1e300:  # false for nan, too
        gold = str(gold)
    if not isinstance(gold, str) or len(gold) > MAX_CHARS or answers.not_a_gold(gold):
        return ""
    return answers.normalise(gold)


def _compare(gold: str, response: object) -> tuple[str | None, str, Pair | None]:
    """(answer, reason, pair). Where the reason is empty, math-verify has to judge the pair (gold, answer)."""
    content, reason = last_box(response)
    if content is None:
        return None, reason, None
    text = answers.normalise(content)
    if not (gold and text):
        return text, "unparsed" if gold else "bad_gold", None
    same, *pair = answers.compare(gold, text)
    return answers.quantity(text)[0], {True: "correct", False: "wrong", None: ""}[same], tuple(pair)
