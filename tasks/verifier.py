r"""Is the last \boxed{...} of a text the gold answer? The verifier behind `rewards.score`.

    judge(["1/2"], [r"... so it is \boxed{0.5}."])  # [("0.5", "correct")]

The braces of that box must balance. There is no fallback to "Answer:" lines or to the rest of the text.
tasks/answers.py gives gold and answer one form, and decides where their texts are enough: for integers, units and
words. math-verify judges every other pair, in the processes of tasks/workers.py. It reads LaTeX only, evaluates no code
and takes no number out of junk. This table says what is judged how. A test reads it; two spaces separate the answers.

    rule             | gold          | correct                                          | wrong
    integers         | 204           | 204.  0204  204.00  +204  $204$  204,            | -204  2040  204.5
    thousands        | 1234567       | 1,234,567  1{,}234{,}567  1\,234\,567            | 1,234  12,34,567
    sizes            | 2500000       | 2.5e6  2.5 \times 10^6  2.5 \text{ million}      | 2.5  2.5e5
    print            | 204           | \color{blue}{204}  \underline{204}  {\bf 204}    | \overline{204}  20\bf 3
    choice, print    | 204           | \textbf{(C)}\ 204  **204**                       | \textbf{(C)}  2**04
    relation         | 204           | =204  \approx 204  x = 204                       | \neq 204  >204
    remainder        | 204           | 204 \pmod{1000}  204 \bmod 1000                  | 204 \pmod{2}  1204 \pmod{1000}
    unit of one      | 204           | 204 \text{ cm}^2  204 km/h  204 dollars  \$204   | 204x  204m  204 \text{ dozen}
    units of both    | 5 \text{ m}   | 5  5 m  5 \text{ meters}  5\,\mathrm{m}          | 5 \text{ cm}  5 cm  5\%
    percent          | 9\%           | 9  0.09  9 percent                               | 0.9  900
    degrees          | 30            | 30^\circ  30°  30 degrees                        | 30^2
    number base      | 52_8          | 52  52_{8}                                       | 52_9  53_8
    one answer only  | 204           | 204, 204                                         | 204 or 205  205, 204  204 205
    a set            | 1,-2          | -2, 1  1 \text{ and } -2  x=1 or x=-2  \{1,-2\}  | 1  1,2
    fractions        | \frac{7}{2}   | 7/2  3.5  3 1/2  3\frac{1}{2}  3½                | 31/2  3 \cdot 1/2
    periods          | 1/3           | 0.\overline{3}  0.333333                         | 0.333  0.3
    small numbers    | 0.0000001     | 1e-7  10^{-7}                                    | 0  0.0000002
    roots            | \sqrt{2}      | √2  2^{1/2}  \frac{2}{\sqrt{2}}  1.414214        | 2  1.41
    expressions      | (x+1)^2       | x^2+2x+1  f(x)=(x+1)^2                           | x^2+1  (y+1)^2
    same left side   | N=n           | N = n                                            | N=n+1  N=2n
    two equations    | x=1,y=2       | y=2,x=1                                          | x=2,y=1  x=1,y=3
    a product        | 3x+2t         | 2t+3x                                            | 3x+2  3x+2 \text{ cm}
    pair, interval   | (1,2)         | 1<x<2  \{1,2\}                                   | [1,2]  (2,1)
    union            | (-\infty,0)\cup(1,\infty) | x<0 or x>1                           | x<0, x>1  x>0 or x>1
    empty set        | \emptyset     | \varnothing  \{\}  ∅                             | 0
    words            | \text{east}   | east  East  \textbf{east}                        | seat  eats
    choices          | (C)           | C  \text{(C)}                                    | (B)  (C) or (B)

Reasons: correct, wrong, no_box, unclosed, too_long, unparsed (math-verify cannot read the answer), bad_gold (or the
gold: see `check_golds`), timeout, crash.
"""

import os
import re

from tqdm import tqdm

from tasks import answers
from tasks.workers import Pair, verify

MAX_CHARS = 512  # of an answer or a gold


def judge(golds: list, completions: list, workers: int | None = None) -> list[tuple[str | None, str]]:
    """(answer, reason) of each (gold, completion), in order: the content of the last box, normalised and without a
    unit, and one of the reasons above. Never raises or hangs because of what golds and completions contain.

    `workers`: processes at most (default: this rank's share of the cores, at most 8). Any thread may call; calls take
    turns. Raises ValueError if the lists differ in length, and RuntimeError if math-verify cannot be started.
    """
    if len(golds) != len(completions):
        raise ValueError(f"score got {len(golds)} golds and {len(completions)} completions: pass as many of both")
    rows = [_compare(_gold_text(gold), completion) for gold, completion in zip(golds, completions)]
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
        problem = None if reason == "correct" else f"gold {ascii(gold):.200} can't be used ({reason}): {advice}"
        checked.append((text, problem))
    return checked


_BOX = re.compile(r"\\boxed\s*\{")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # an escaped brace is a symbol, not a group


def last_box(text: object) -> tuple[str | None, str]:
    r"""(content of the last \boxed{...}, ""), or (None, reason) if there is none that counts."""
    boxes = list(_BOX.finditer(text)) if isinstance(text, str) else []
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
    return answers.normalise(gold) if isinstance(gold, str) and len(gold) <= MAX_CHARS else ""


def _compare(gold: str, completion: object) -> tuple[str | None, str, Pair | None]:
    """(answer, reason, pair). Where the reason is empty, math-verify has to judge the pair (gold, answer)."""
    content, reason = last_box(completion)
    if content is None:
        return None, reason, None
    text = answers.normalise(content)
    if not (gold and text):
        return text, "unparsed" if gold else "bad_gold", None
    same, *pair = answers.compare(gold, text)
    return answers.quantity(text)[0], {True: "correct", False: "wrong", None: ""}[same], tuple(pair)
