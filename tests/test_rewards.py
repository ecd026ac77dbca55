r"""With the real math-verify. Tests that look at worker processes need /proc (Linux)."""

import glob
import math
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rewards
from rewards import Result, load_reward, score
from tasks import verifier, workers
from tasks.verifier import check_golds

HERE = os.path.dirname(os.path.abspath(rewards.__file__))
SLOW_IN_PYTHON = r"2^{2^{2^{2^{2^{2}}}}}"
STUCK_IN_C = r"9^{9^{9^{9}}}"


def box(answer):
    return r"So the answer is \boxed{" + answer + "}."


def reward(gold, answer):
    return score([gold], [box(answer)])[0].reward


def fractions(n):
    """n different pairs that only math-verify can find equal."""
    return [rf"\frac{{{i}}}{{7919}}" for i in range(1, n + 1)], [
        box(rf"\frac{{{3 * i}}}{{{3 * 7919}}}") for i in range(1, n + 1)
    ]


def stat(pid):
    try:
        with open(f"/proc/{pid}/stat") as f:
            state, parent = f.read().rpartition(")")[2].split()[:2]
        return state, int(parent)
    except (FileNotFoundError, ProcessLookupError):
        return "X", 0


def workers_of(pid):
    """The processes that judge for process `pid`: its own children, which start others, and those."""
    pids = [int(path.split("/")[2]) for path in glob.glob("/proc/[0-9]*")]
    pids = [worker for worker in pids if stat(worker)[0] not in "XZ" and is_worker(worker)]
    starters = [worker for worker in pids if stat(worker)[1] == pid]
    return starters, [worker for worker in pids if stat(worker)[1] in starters]


def is_worker(pid):
    try:
        with open(f"/proc/{pid}/cmdline") as f:
            return f.read().rstrip("\0").endswith("workers.py")
    except (FileNotFoundError, ProcessLookupError):
        return False


def gone(pids):
    return all(stat(pid)[0] in "XZ" for pid in pids)


def wait_for(condition, seconds=60.0):
    """Waits for what has to come at once, on a machine however busy."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


def python(script, **kwargs):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], cwd=HERE, stdout=subprocess.PIPE, text=True, **kwargs
    )


# ---------------------------------------------------------------------------------------------- what is right and wrong

TABLE = [line.split(" | ") for line in verifier.__doc__.splitlines() if line.count(" | ") == 3][1:]
TABLE = {
    name.strip(): (gold.strip(), *(re.split(" {2,}", cell.strip()) for cell in cells)) for name, gold, *cells in TABLE
}

# A gold and answers to it, separated by two spaces; a colon stands between them.
CORRECT = r"""
204: n = 204  f(3)=204  \boxed{204}  \left(204\right)  204.0 \text{ cm}.  204\text{th}  204\,m  \(204\)
204: 2.04 \cdot 10^{2}  |S|=204  |AB| = 204  f^{-1}(3) = 204  204 \text{ different ways}
204: \text{(C) } 204  $\textbf{(C)}~204$  (C) 204  204 \text{ (mod } 1000)  204 (mod 1000)
204: \textcolor{red}{\textbf{204}}
204: 204\%  204 percent  204 miles per hour  204元  204\text{个}  \text{204 dollars}  204^\circ\text{C}  ２０４  204\\
48125: 48\,125  48{,}125  48,125.00
1000000: 1 million  \$1 \text{ million}  1 million dollars  1e6
-5: −5  –5  - 5  -5.0
5: \text{5}  \frac{10}{2}  (5)  2+3
1/2: 0.5  ½  \frac12  \dfrac{2}{4}  $\tfrac12$.  .5  y = \frac{1}{2}
\frac{1}{6}: 0.1\overline{6}  1/6
-\frac{4}{3}: -1.\overline{3}  -1\frac{1}{3}  -1 1/3
3\sqrt{13}: \sqrt{117}  3√13  3√(13)  {\bf 3\sqrt{13}}  \textbf{(A)}\ 3\sqrt{13}  3\sqrt{13}\text{ units}
x^{10}: x¹⁰
52_8: 52₈
17.5%: 17.5  17.5\%  0.175  17.5 \text{ percent}
0.09: 9\%
1,-2: \{-2, 1\}  x=1 \text{ or } x=-2  \boldsymbol{\{1,-2\}}
1 \pm \sqrt{19}: 1+\sqrt{19}, 1-\sqrt{19}
[-2,7]: -2\le x\le 7  x \in [-2,7]
(-\infty,3)\cup(4,5): (4,5)\cup(-\infty,3)  x<3 \text{ or } 4<x<5
x<0 or x>1: (-\infty,0)\cup(1,\infty)  x>1 \text{ or } x<0
\left(3,\frac{\pi}{2}\right): (3, \pi/2)  {\bf (3, \pi/2)}
\begin{pmatrix}1\\2\end{pmatrix}: \begin{pmatrix} 1 \\ 2 \end{pmatrix}
6-5i: -5i + 6  6-5\mathrm{i}
\text{Evelyn}: evelyn  \text{ Evelyn }
(E): E  \textbf{(E)}
\text{(B)}: B
12 \text{ cm}^2: 12  12 cm^2  12 \text{ square centimeters}  12 \text{ units}
y=-2x: -2x
.0000672: 6.72e-5  0.0000672
90^{\circ}$,$60^{\circ}: 90, 60  60^\circ, 90^\circ
@@: @@
5: \tiny 5  \mathsf{5}  \texttt{5}  \emph{5}  \strut 5  5\hspace{1cm}  5&  "5"  __5__  \text{five}  ５。  \#5  5¢
5: 5千克  5千米  5平方米  5个  5\text{ people}  5 \text{ miles per hour}  \text{€}5  5£  USD 5  5 \text{ square units}
9.8: 9.8\,\Omega  9.8\AA  9.8 \text{ N}  9.8 \mathrm{~m} / \mathrm{s}^{2}  9.8 m/s  9.8 °C  9.8\text{ kWh}
15\mbox{ cm}^2: 15\text{cm²}  15 \text{ sq cm}  15平方厘米
70000: 7万  七万元
0.5: 五成  50\%
21: 21st  21^{st}  21$^\text{st}$
2\pi: 2π  2 pi  π+π
-i: -1i  i^3  \frac{1}{i}
\{i,-i\}: \pm i
\sqrt[3]{2}: ∛2  \sqrt[3]2  2^{1/3}
\sqrt{5}: sqrt(5)  5^{0.5}  \sqrt(5)
e^{16}-1: -1 + exp(16)
\arctan\frac{1}{2}: \text{arctan}\frac12  arctan(0.5)  \tan^{-1}\frac12  \operatorname{arctan}\frac{1}{2}
\frac{\pi}{2}: π/2  pi/2  90°
120^\circ: 120\degree  120º  \frac{2\pi}{3}  120度
\sqrt{2}\%: \sqrt2 \%  \frac{\sqrt2}{100}
66\frac{2}{3}\%: \frac{200}{3}\%  2/3
\frac{5}{33}: 0.\dot{1}\dot{5}  0.(15)  0.\overline{15}
\frac{4}{27}: 0.\dot{1}4\dot{8}
\infty: +\infty  ∞  \text{Infinity}  infinity
\mathbb{R}: \mathbb R  \Bbb{R}  x\in\mathbb{R}  all reals
x \in [-2,7]: \{x \mid -2 \le x \le 7\}  \{x \in \mathbb{R} : -2≤x≤7\}  x∈[-2,7]  7 \ge x \ge -2
|x|<3: -3<x<3  (-3,3)  x>-3 \text{ and } x<3
k<4 \text{ and } k\neq 0: k<4且k≠0  k≠0, k<4  k\in(-\infty,0)\cup(0,4)
(1,2): (x,y)=(1,2)  P = (1,2)  \bigl(1,2\bigr)  \langle 1,2\rangle  (1;2)  x=1, y=2
(2,1): x=2, y=1
\begin{pmatrix}-2\\-14\\-7\end{pmatrix}: (-2,-14,-7)  \begin{bmatrix}-2\\[0.5em]-14\\[0.5em]-7\end{bmatrix}
\mathbf{i}+2\mathbf{j}: \vec{i}+2\vec{j}  \hat i+2\hat j  i+2j
f(x)=x+1: f(x)=x+1, x\in\mathbb{R}  f(x)=x+1 \text{ for all real numbers } x  f(x)=x+1 \quad \forall x
\frac{1}{2}: \frac12 = 0.5  p = 1/2 = 0.5  P(A)=\frac12
m_{\max }=n^{2}-n-1: n^2-n-1  m_{\max}=n^2-n-1
E: E)  E: a risk score  E。  \textbf{(E)}\ 12  Option E
AC: A and C  (A),(C)  C, A
\text{no solution}: no solutions  No solution.
\text{Saturday}: a Saturday  on Saturday
\text{甲}: 甲。  甲
12:30: 12 : 30  12\colon 30  12：30
1011_2: (1011)_2  1011_{\text{2}}
2^{1009}: 2 \cdot 2^{1008}
f(x)=x,f(x)=-x: f(x)=\pm x  x, -x  f(x)=-x \text{ or } f(x)=x
\frac{1+\sqrt{5}}{2},\frac{1-\sqrt{5}}{2}: \frac{1\pm\sqrt{5}}{2}  x = \frac{1 \pm \sqrt{5}}{2}
1,2,-2: 1, \pm 2  x=1 \text{ or } x=\pm 2
(3,2),(-3,2),(3,-2),(-3,-2): (\pm 3, \pm 2)  (3,\pm2),(-3,\pm2)
(-\infty,0)\cup\{1\}: x<0 \text{ or } x=1
\lfloor n/2\rfloor: ⌊n/2⌋  \left\lfloor \frac{n}{2} \right\rfloor
\frac{20000}{\pi}: \frac{20{,}000}{\pi}
\log_2 3: \log_2(3)  \frac{\ln 3}{\ln 2}
\frac{x+2}{7}: f^{-1}(x) = \frac{x+2}{7}
6: 2(3)  (2)(3)  2\binom{3}{1}  2 \cdot 1 (3)
x=1,y=2: (1,2)  1, 2
16,3,1,1: 16, 3, 1, 1  x=16, y=3, z=1, w=1
\frac{1}{52!}: \frac{1}{52 \cdot 51!}
"""
WRONG = r"""
7: 8  -7  70  7,000  7.5  x>7  ٧  11  7!  7^2  7²  \neq 7  \text{less than }7  <7  7e1  7e-1
7: 7x  7xy  7m  7i  7\mathrm{i}  7\pi  7 pi  7 sqrt  7 sinx  7\theta  7 theta  7\overline{3}  7.\overline{3}
7: 7 thousand  7 \text{ million}  7 \text{ dozen}  7 squared  7 \text{ over } 2  7万  7\text{千}
7: 7 \text{ hundredths}  7 half
7: 5, 7  7, 5  5 \text{ or } 7  $5$ or $7$  7 \text{ and } 8  \pm 7  7 \pm 1  \{5,7\}  x=5 \text{ or } x=7
7: 7;8  5-7  5–7
7: 7 8  7 \quad 8  7\text{ 8}  7 (8)  7 \text{ (or 8)}  7 \text{ or more}  7 \text{ to }8  3 4  7:8
7: 7\text{, not }8  2 5/2
7: \textbf{(7)}\ 8  \textbf{(C)}  (C) 8  \color{7}{8}  \phantom{7}  7 \pmod{7}  7 \bmod 5  17 \pmod{10}
7: **7**8  7**1**
7: @@ 7 @@  @@ \frac{14}{2} @@  @@ 7\% @@  @@ x = 7  @@ $7$ @@  @@ \(7\) @@  @@ \begin{align}7\end{align} @@
7: final answer is $7$. I hope  8\boxed7  8 \} 7  \}7\{  __import__('os')._exit(7)  eval('3+4')
7: 7\x00  \input{/etc/passwd}
7: 7π  7θ  7é  7ж  7\theta
7: 7 \text{ twelfths}  7 \text{ dozens}  7 \text{ lakh}  7成  7倍  7\text{M}  7K  7 \text{ pairs}  7 \text{ square}
7: 7 \text{ percentile}  7\text{ times } 2  7\text{ base eight}  7 \text{ sixteenths}  7 \text{ squared}  7'
7: 2x=7  x/2=7  x+y=7  x(x+1)=7  |x|=7  \sqrt{x}=7  \pi=7  3=7  7=8  7=2x  -7=x  n!=7  x^2=y=7  x^2=49, x=7
7: x^{-1}=7  f^{-1}=7  |x|=7  -|S|=7  |S|+1=7
16: 16_8  16_{16}  16_{\text{eight}}  (16)_8  16_8+0  \text{16}_8
e^{-40}: e^{-40}+e^{-41}  10^{-17}
\frac{1}{52!}: 10^{-40}  \frac{1}{51!}
(e^{-30},e^{-31}): (e^{-31},e^{-30})  (e^{-30},0)
2^{1009}: 2^{1009}+1
1: 1+10^{-16}
\infty: -\infty  0
|x|<3: x<3  [-3,3]
x>0, y>0: y>0
(1,2): x=2,y=1  f(1,2)=3
1,2: x^2=1, x=2
E: D: E  A, E  E: x, D: y
204: 2 04  20 4  2,04  204,0  204.5  2.04  20.4  –204
3\sqrt{13}: 3  3\sqrt{1}3
1/2: 1/3  \frac{2}{1}  0.50001
1/3: 0.33333  0.\overline{33}4
0: 0.0000001
0.0000672: 0.000067
9\%: 90\%  0.0009
100: 1e  1 hundredth
528: 52₈
x^2+1: y^2+1  x^2
2m: 2  2 \text{ m}^2
6m: 6  6 \text{ kg}
1,-2: 1  -2  1, 2  1-2
[1,2]: (1,2)  1<x<2
0.333: 0.333...
1 \pm \sqrt{19}: 1+\sqrt{19}
(-\infty,0)\cup(1,\infty): x<0 \text{ and } x>1  x<0 or x>2  (-\infty,0)
5 \text{ cm}: 5 \text{ m}  5 \text{ cm}^2  5\%  5 inches  6 \text{ cm}
\$5: 5 \text{ cents}
\text{seat}: east  \text{east}  seats
\text{No}: on  \text{Yes}
Navin: Nivan
(B): (C)  BC  (B)(C)  \text{(B), (C)}  \textbf{(B)} or \textbf{(C)}
5: 2(3)  (2)(3)  2[3]  2\binom{3}{1}  3\frac{4}{2}  1(4)
3: 2e^0
7: 七七  一七
24: 2\phantom{1}4  2\hspace{1cm}4  2\color{red}4  20(4)  12\frac{12}{1}
n: N
N=n: N=N  n=N+1
3R^2: 3r^2
1,-2: -2<x<1  x>-2 \text{ and } x<1
-2<x<1: -2, 1
1 \pm \sqrt{19}: 1-\sqrt{19} < x < 1+\sqrt{19}
x=1,y=2: (2,1)  2, 1  1
16,3,1,1: 16, 3, 1  16, 3, 3, 1
1/2: \frac{1}{2}\%  0.5\%
\frac{\pi}{6}: \frac{\pi}{6}^\circ
correct: wrong
"""


def cases(text):
    lines = [line.partition(": ") for line in text.strip().splitlines()]
    return [(gold, answer) for gold, _, found in lines for answer in found.split("  ")]


@pytest.mark.parametrize("name", TABLE)
def test_the_table_in_the_docstring(name):
    gold, correct, wrong = TABLE[name]
    pairs = [(answer, 1.0) for answer in correct] + [(answer, 0.0) for answer in wrong]
    results = score([gold] * len(pairs), [box(answer) for answer, _ in pairs])
    assert [(*pair, result) for pair, result in zip(pairs, results) if result.reward != pair[1]] == []


@pytest.mark.parametrize("workers", [1, 3])
def test_verdicts_are_right_in_order_and_the_same_for_any_number_of_workers(workers):
    expected = [(*case, 1.0) for case in cases(CORRECT)] + [(*case, 0.0) for case in cases(WRONG)]
    expected += [
        ("7", "7\0", 0.0),
        ("7", '"], 9]\n["7', 0.0),
        ("204", "\u200b2\u200b04\ufeff", 1.0),
        (142.0, "142", 1.0),
    ]
    expected += [
        ("9" * 500, "0" + "9" * 500, 1.0),
        ("9" * 500, "9" * 499, 0.0),
        (["5"], "5", 1.0),
        (1e-7, "10^{-7}", 1.0),
    ]
    expected = expected + expected[::-1]
    results = score([e[0] for e in expected], [box(e[1]) for e in expected], workers=workers)
    assert [(*e, result) for e, result in zip(expected, results) if result.reward != e[2]] == []
    assert all(result.reward == float(result.reason == "correct") for result in results)


def test_no_answer_is_paid_for_two_integers():
    """Whatever is said about 204: an answer may be right for 204 or for another integer, but never for both."""
    integers = [204, 205, 203, 2, 4, 20, 1000, -204, 2040, 204000, 8, 5]
    said = {answer for gold, *found in TABLE.values() if gold == "204" for answer in sum(found, [])}
    said |= {answer for gold, answer in cases(CORRECT + WRONG) if gold == "204"}
    paid = [sum(result.reward for result in score(integers, [box(answer)] * len(integers))) for answer in sorted(said)]
    assert len(said) > 60 and set(paid) == {0.0, 1.0}


@pytest.mark.parametrize(
    "response, reason, answer",
    [
        ("no box, though the answer is 7", "no_box", None),
        ("Answer: 7", "no_box", None),
        (r"\boxed7", "no_box", None),
        ("", "no_box", None),
        (r"\boxed{7", "unclosed", None),
        (r"\boxed{7} and then \boxed{7", "unclosed", None),
        (r"\boxed{7\}", "unclosed", None),
        (r"\boxed{8} no, \boxed{7}", "correct", "7"),
        (r"\boxed{7} no, \boxed{8}", "wrong", "8"),
        (r"\boxed {7}", "correct", "7"),
        (r"\boxed{\boxed{7}}", "correct", "7"),
        (r"\boxed{{7}} as {x}", "correct", "7"),
        (r"\boxed{7 \text{ cm}}", "correct", "7"),
        (r"\boxed{7}{8}", "correct", "7"),
        (r"\boxed{}", "unparsed", ""),
        (r"\boxed{ . }", "unparsed", ""),
        (r"\boxed{7} \text{ where } \boxed{ }", "correct", "7"),
        (r"\boxed{8} \boxed{7} \boxed{\quad}", "correct", "7"),
        (r"\boxed{" + "7" * 512 + "}", "wrong", "7" * 512),
        (r"\boxed{" + "7" * 513 + "}", "too_long", None),
        (None, "no_box", None),
        (7, "no_box", None),
        (b"\\boxed{7}", "no_box", None),
        (math.nan, "no_box", None),
        ([r"\boxed{7}"], "no_box", None),
    ],
)
def test_the_answer_is_the_last_box(response, reason, answer):
    assert score(["7"], [response]) == [Result(float(reason == "correct"), reason, answer)]


def test_a_gold_that_no_answer_can_match_is_reported():
    golds = [None, "", math.nan, True, [], ["1", "2"], object(), "7" * 513, 10**9000, "\0"]
    assert [(r.reward, r.reason) for r in score(golds, [box("x+1")] * len(golds))] == [(0.0, "bad_gold")] * len(golds)


def test_lists_must_match():
    assert score([], []) == []
    with pytest.raises(ValueError, match="2 golds and 1 responses"):
        score(["1", "2"], [box("1")])


GOLDS = [  # gold, the text that it becomes
    ("025", "25"),
    (142.0, "142"),
    (-3, "-3"),
    (["$5$"], "5"),
    ("1,234", "1234"),
    (10**30, "1" + "0" * 30),
    (1e-7, "0.0000001"),
    (r"\frac{1}{2}", r"\frac{1}{2}"),
    (r"\text{Evelyn}", r"\text{Evelyn}"),
    (r"11,\! 111,\! 100", "11111100"),
    (0.25, "0.25"),
    ("y = 2x+3", "y = 2x+3"),
    ("18 dollars", "18 dollars"),
]
NO_GOLDS = ["", "@@", r"\frac{1}{", None, math.nan, True, ["1", "2"], "\ud800", "x" * 600, 10**400]
NO_GOLDS_NAMED = {
    "a date": ["2024-01-05", "1/5/2024", "2024/1/5"],
    "no answer": ["None", "NaN", "nan", "N/A", "proof", "null"],
    "Python": ["b'5'", "['6', '7']", '["6"]', "{'a': 5}"],
    "a sentence": [
        "So she makes 18 dollars every day.",
        "x is 18",
        "The answer is 18.",
        "He has 5 apples left",
        "She sold the eggs at the market",
    ],
}
# The forms in which the data sets write golds: DAPO, AIME, AMC, GSM8K, MATH-500, OlympiadBench.
GOLD_FORMS = r"""34
-3
025
27.0
1,450,000
.35625
[-2,7]
\frac{243}{625}
\frac{270}7
6+9i
Evelyn
3\sqrt{13}
(-\infty,2)\cup(3,\infty)
137\frac{1}{2}
(\frac{3}{5},\frac{8}{3}]
18.90
-2,1
\{1\pm\sqrt{5},-2\}
4210_{5}
(E)
\cotx
5x-7y+11z+4=0
\begin{pmatrix}-1/3\\2/3\\5/3\end{pmatrix}
\frac{1}{2 n+2}
\binom{2n}{n}
m n-\lfloor m / 2\rfloor
69$,$84
f(n)=n$, $g(n)=1
\angle B E A_{1}=90$,$\angle A E B_{1}=90
\left\lfloor\log _{2} n\right\rfloor+1
m_{\max }=n^{2}-n-1
k \geqslant 2
(-\infty, 0) \cup\{1\}$.
\frac{8}{\sqrt[3]{7}}
90^{\circ}$,$60^{\circ}
(45^{\circ}, 60^{\circ}),(135^{\circ}, 60^{\circ})
8 \%
62.5%
10^{100}$,$10^{1 / 100}
x=\frac{1}{6} \pi+\pi k, \frac{1}{3} \pi+\pi k
\frac{d !}{2 k(d-k) !}
\quad(2+\sqrt{2}, 1+\sqrt{2})
\text{June 20}
x<0 or x>1
5 \text{ m}
\frac{100}{3}\%
\$12.50
2:3:5
1, 2, \ldots, n""".splitlines()


def test_golds_are_normalised_once_and_for_all():
    texts = [text for _, text in GOLDS]
    assert check_golds([gold for gold, _ in GOLDS]) == [(text, None) for text in texts]
    assert check_golds(texts) == [(text, None) for text in texts]


def test_golds_that_cannot_be_used_are_named_among_those_that_can():
    checked = check_golds(["7", *NO_GOLDS, "1/2"])
    assert [problem for _, problem in checked[:1] + checked[-1:]] == [None, None]
    for gold, (_, problem) in zip(NO_GOLDS, checked[1:-1]):
        assert ascii(gold)[:100] in problem and "can't be used" in problem


def test_golds_that_no_answer_can_match_are_refused_and_pay_nothing():
    golds = sum(NO_GOLDS_NAMED.values(), [])
    names = [name for name, found in NO_GOLDS_NAMED.items() for _ in found]
    for name, (_, problem) in zip(names, check_golds(golds)):
        assert f"({name})" in problem
    results = score(golds + ["2024-01-05"], [*map(box, golds), box("2018")])
    assert {(result.reward, result.reason) for result in results} == {(0.0, "bad_gold")}


def test_check_golds_and_score_agree():
    """A gold that passes is paid for itself in every usual spelling."""
    assert [problem for _, problem in check_golds(GOLD_FORMS)] == [None] * len(GOLD_FORMS)
    spell = [
        lambda gold: gold,
        lambda gold: f"${gold}$",
        lambda gold: rf"\, {gold}\;",
        lambda gold: gold.replace(r"\frac", r"\dfrac").replace(",", ", "),
        lambda gold: rf"\displaystyle{{{gold}}}.",
        lambda gold: gold if "text" in gold else gold.replace(" ", r"\,"),
    ]
    said = [(gold, spelled(gold)) for gold in GOLD_FORMS if gold != "1,450,000" for spelled in spell]
    results = score([gold for gold, _ in said], [box(answer) for _, answer in said])
    assert [(*pair, result) for pair, result in zip(said, results) if result.reward != 1.0] == []


def test_every_usable_gold_is_its_own_answer():
    golds = [text for _, text in GOLDS] + [gold for gold, _ in cases(CORRECT)]
    assert [result.reason for result in score(golds, [box(gold) for gold in golds])] == ["correct"] * len(golds)


@given(st.integers(-999, 999), st.integers(-999, 999))
@settings(max_examples=12, deadline=None)
def test_a_wrong_integer_stays_wrong_in_forms_that_math_verify_reads(n, m):
    forms = [
        rf"\frac{{{2 * m}}}{{2}}",
        f"x={m}",
        f"{m - 1}+1",
        rf"{m}\text{{ cm}}",
        rf"\left({m}\right)",
        f"{m}.0000",
        rf"\text{{{m}}}",
        rf"{m} \times 1",
    ]
    assert [r.reward for r in score([str(n)] * 8, [box(form) for form in forms])] == [float(n == m)] * 8
    assert [r.reward for r in score([str(m)] * 8, [box(form) for form in forms])] == [1.0] * 8
    hedges = [f"{n}, {m}", f"{m}, {n}", rf"{m} \text{{ or }} {n}", rf"\{{{n}, {m}\}}"]
    assert n == m or not any(r.reward for r in score([str(n)] * 4, [box(hedge) for hedge in hedges]))


@given(st.integers(-50, 50), st.integers(1, 50), st.integers(2, 9))
@settings(max_examples=12, deadline=None)
def test_a_right_fraction_rewritten_stays_right(p, q, k):
    gold = rf"\frac{{{p}}}{{{q}}}"
    forms = [
        gold,
        f"{p}/{q}",
        rf"\dfrac{{{k * p}}}{{{k * q}}}",
        rf"y = \frac{{{p}}}{{{q}}}",
        rf"$\tfrac{{{p}}}{{{q}}}$.",
        rf"\frac{{{-p}}}{{{-q}}}",
        rf"\left( \frac{{{p}}}{{{q}}} \right)",
        rf"{p} \cdot \frac{{1}}{{{q}}}",
    ]
    assert [r.reward for r in score([gold] * 8, [box(form) for form in forms])] == [1.0] * 8
    assert reward(gold, rf"\frac{{{k * p + 1}}}{{{k * q}}}") == 0.0


PIECES = [*r"\boxed{ { } \ 7 x \frac \sqrt , $ = \text{ \begin{matrix} & \\".split(), "\0", "\ud800", " "]
PIECED = st.lists(st.sampled_from(PIECES), max_size=12).map("".join)


@given(st.lists(st.one_of(PIECED, st.text(max_size=40), st.none(), st.binary(max_size=5)), max_size=20))
@settings(max_examples=15, deadline=None)
def test_no_input_raises(texts):
    n, boxed = len(texts), [box(text) if isinstance(text, str) else text for text in texts]
    for golds, responses in ((["7"] * n, texts), (["x+1"] * n, boxed), (texts, [box("x+1")] * n)):
        results = score(golds, responses)
        assert len(results) == n
        reasons = {"correct", "wrong", "no_box", "unclosed", "too_long", "unparsed", "bad_gold"}
        assert {r.reason for r in results} <= reasons


# ------------------------------------------------------------------------------------------------------- bounds on work


def test_long_texts():
    long = [
        ("{" * 20_000 + box("7"), "correct"),
        (r"\boxed{" + "{" * 20_000, "unclosed"),
        (r"\boxed{" + "{" * 20_000 + "}" * 20_001, "too_long"),
        ("x" * 10**6 + box("7"), "correct"),
        (box("7" * 10**6), "too_long"),
        (r"\boxed{" * 10**5, "unclosed"),
        ("\\" * 10**6, "no_box"),
        (r"\boxed" + " " * 10**6 + "{7}", "correct"),
        (box(" " * 500 + "7"), "correct"),
        (box("\ud800"), "unparsed"),
        (box("\0" * 100), "unparsed"),
    ]
    results = score(["7"] * len(long), [text for text, _ in long])
    assert [r.reason for r in results] == [reason for _, reason in long]


HOSTILE = [
    SLOW_IN_PYTHON,
    STUCK_IN_C,
    "10000000!",
    "1000000000!",
    "((9!)!)!",
    r"\binom{10^9}{5\cdot 10^8}",
    "9" * 500 + "^{99999}",
    r"\sin(10^{10^{10}})",
    "7^{-10^{9}}",
    r"\log_{2}(2^{2^{40}})",
    "{" * 250 + "7" + "}" * 250,
    "(" * 250 + "7" + ")" * 250,
    r"\prod_{n=1}^{10^8} n",
    r"x^{" * 80 + "2" + "}" * 80,
]


@pytest.fixture
def tries(monkeypatch):
    """[((gold, answer), CPU seconds)] of each try, in order."""
    made, send = [], workers._Worker.send

    def spy(worker, pair, cpu_seconds):
        made.append((pair, cpu_seconds))
        send(worker, pair, cpu_seconds)

    monkeypatch.setattr(workers._Worker, "send", spy)
    return made


def test_no_answer_keeps_another_from_its_try(tries, monkeypatch):
    """Answers that take far longer than they may come before right ones, which are paid though there is no time for
    second tries: every answer has one try of equal CPU time, in the order in which they came."""
    monkeypatch.setattr(workers, "RETRY_SECONDS", 0.0)
    golds, responses = fractions(30)
    nested = ["(" * n + "7" + ")" * n for n in range(60, 76)]
    results = score(["1/2"] * 16 + golds, [box(answer) for answer in nested] + responses, workers=2)
    assert {r.reason for r in results[:16]} <= {"timeout", "crash"}  # out of time, or of stack just before
    assert [r.reason for r in results[16:]] == ["correct"] * 30
    assert [pair[0] for pair, _ in tries] == ["1/2"] * 16 + golds
    assert {seconds for _, seconds in tries} == {workers.CPU_SECONDS[0]}


def test_answers_that_hang_are_tried_twice_and_last(tries, monkeypatch):
    monkeypatch.setattr(workers, "CPU_SECONDS", (0.25, 0.5))
    golds, responses = fractions(3 * len(HOSTILE))
    golds += [r"\frac{1}{7}"] * len(HOSTILE)
    results = score(golds, [*responses, *map(box, HOSTILE)], workers=2)
    assert [r.reason for r in results[: -len(HOSTILE)]] == ["correct"] * 3 * len(HOSTILE)
    assert not any(r.reward for r in results[-len(HOSTILE) :])
    first, second = tries[: len(golds)], tries[len(golds) :]
    assert [pair[0] for pair, _ in first] == golds
    assert {seconds for _, seconds in second} == {workers.CPU_SECONDS[1]}
    assert [pair for pair, _ in first if pair in dict(second)] == [pair for pair, _ in second]
    assert reward("1/2", "0.5") == 1.0


def test_memory_is_limited():
    assert reward("7", r"(x+1)^{10^9}+x") == 0.0  # wants 1.6 GB
    assert reward("1/2", "0.5") == 1.0
    starters, judges = workers_of(os.getpid())
    assert starters and judges
    for pid in starters + judges:
        with open(f"/proc/{pid}/limits") as f:
            assert next(int(line.split()[3]) for line in f if line.startswith("Max address space")) <= 1 << 30


# --------------------------------------------------------------------------------------------------- processes, threads


def test_threads_at_once():
    golds, responses = fractions(20)
    results = [None] * 4

    def run(i):
        results[i] = score(golds[i:] + golds[:i], responses)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [[r.reward for r in rs] for rs in results] == [[1.0] * 20, *[[0.0] * 20] * 3]
    assert [r.reward for r in score(golds, responses)] == [1.0] * 20  # the workers outlive the threads


def test_the_callers_alarm_survives():
    fired = []
    previous = signal.signal(signal.SIGALRM, lambda *_: fired.append(1))
    try:
        signal.setitimer(signal.ITIMER_REAL, 30.0)
        assert [r.reward for r in score(*fractions(5))] == [1.0] * 5
        assert 0 < signal.getitimer(signal.ITIMER_REAL)[0] < 30.0
        signal.setitimer(signal.ITIMER_REAL, 0.2)  # and one that goes off meanwhile
        assert score(["1/2"], [box(SLOW_IN_PYTHON)])[0].reason == "timeout"
        assert fired == [1]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def test_an_interrupted_batch_leaves_no_reply_for_the_next():
    def interrupt(*_):
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGALRM, interrupt)
    try:
        assert [r.reward for r in score(*fractions(4))] == [1.0] * 4
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(KeyboardInterrupt):  # these take 0.25 CPU seconds each
            score(["1/2"] * 100, [box("(" * n + "7" + ")" * n) for n in range(60, 160)])
    finally:
        signal.signal(signal.SIGALRM, previous)
    assert [r.reason for r in score(["1/2", "1/3"], [box("0.5"), box("0.5")])] == ["correct", "wrong"]


@pytest.mark.parametrize("send", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("role", ["starter", "judge"])
def test_a_worker_killed_or_stopped_in_a_batch_costs_no_reward(send, role):
    golds, responses = fractions(300)
    assert [r.reward for r in score(golds[:10], responses[:10], workers=2)] == [1.0] * 10
    results = []
    thread = threading.Thread(target=lambda: results.extend(score(golds, responses, workers=2)))
    thread.start()
    assert wait_for(lambda: any(worker.job and worker.job != ("", "") for worker in workers._workers))
    starters, judges = workers_of(os.getpid())
    os.kill((starters if role == "starter" else judges)[0], send)
    thread.join()
    assert [r.reason for r in results] == ["correct"] * 300
    for worker in list(workers._workers):
        worker.stop()


def test_workers_killed_between_batches_or_while_they_start_cost_no_reward():
    assert reward("1/2", "0.5") == 1.0
    pids = sum(workers_of(os.getpid()), [])
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    assert wait_for(lambda: gone(pids))
    results = []
    thread = threading.Thread(target=lambda: results.append(reward("1/2", "0.5")))
    thread.start()
    assert wait_for(lambda: workers_of(os.getpid())[0])
    os.kill(workers_of(os.getpid())[0][0], signal.SIGKILL)
    thread.join()
    assert results == [1.0]


def test_workers_that_ignore_sigterm_and_inherit_odd_signals():
    process = python(rf"""
        import rewards, signal
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGPROF, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGPROF, signal.SIGTERM])
        results = rewards.score(["1/2"] * 2, [r"\boxed{{{STUCK_IN_C}}}", r"\boxed{{0.5}}"], workers=1)
        print([result.reason for result in results])
    """)
    assert process.communicate()[0] == "['timeout', 'correct']\n"


@pytest.mark.parametrize("answer", ["0.5", STUCK_IN_C])
def test_no_orphans_when_the_parent_is_killed(answer):
    process = python(rf"""
        import rewards
        rewards.score(["1/2"], [r"\boxed{{0.5}}"])
        print("started", flush=True)
        while True:
            rewards.score(["1/2"], [r"\boxed{{{answer}}}"])
    """)
    assert process.stdout.readline() == "started\n"
    assert wait_for(lambda: all(workers_of(process.pid)))
    pids = sum(workers_of(process.pid), [])
    process.kill()
    process.wait()
    assert wait_for(lambda: gone(pids))


def test_several_ranks_and_forked_children_at_once():
    golds, responses = fractions(10)
    assert [r.reward for r in score(golds, responses)] == [1.0] * 10  # a fork in the middle of Popen is another story
    busy = threading.Thread(
        target=score, args=fractions(300)
    )  # workers have jobs when the fork comes, the lock is held
    busy.start()
    assert wait_for(workers._lock.locked)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        futures = [
            pool.apply_async(score, (golds, responses)),
            pool.apply_async(score, (golds, responses[1:] + responses[:1])),
        ]
        mine = score(golds, responses)
        theirs = [future.get() for future in futures]
    assert [[r.reward for r in rs] for rs in (mine, *theirs)] == [[1.0] * 10, [1.0] * 10, [0.0] * 10]
    busy.join()


def test_integers_units_and_words_start_no_worker_and_import_no_math_verify():
    process = python(
        r"""
        import sys, rewards
        from tasks import verifier
        golds, said = ["7", "8", "7", "east"], ["7", "7", r"7 \text{ cm}", r"\text{seat}"]
        results = rewards.score(golds, [rf"\boxed{{{answer}}}" for answer in said])
        assert [result.reward for result in results] == [1.0, 0.0, 1.0, 0.0]
        print(verifier.check_golds(["025"]), "math_verify" in sys.modules, "torch" in sys.modules, flush=True)
        sys.stdin.read()
    """,
        stdin=subprocess.PIPE,
    )
    assert process.stdout.readline() == "[('25', None)] False False\n"
    assert workers_of(process.pid) == ([], [])
    process.communicate("")


def test_a_missing_math_verify_is_an_error_and_not_a_zero(tmp_path):
    (tmp_path / "math_verify.py").write_text("raise ImportError")
    process = python(
        r"""
        import rewards
        try:
            rewards.score(["1/2"], [r"\boxed{0.5}"])
        except RuntimeError as error:
            print(error)
    """,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert "pip install math-verify" in process.communicate()[0]


# ------------------------------------------------------------------------------------------------- a reward of your own


@pytest.fixture
def my_rewards(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_rewards", raising=False)

    def write(body):
        (tmp_path / "my_rewards.py").write_text(
            f"from rewards import Result\n\n\ndef mine(golds, responses):\n    {body}\n"
        )
        return load_reward("my_rewards:mine")

    return write


def test_load_reward_default_is_score():
    golds, responses = ["7", "1/2"], [box("7"), box("0.25")]
    assert load_reward()(golds, responses) == load_reward("rewards:score")(golds, responses)
    assert load_reward()(golds, responses) == score(golds, responses)


def test_load_reward_takes_numbers_and_results(my_rewards):
    mine = my_rewards("return [len(c) / 2 if g == 'x' else Result(1.0, g, 'a') for g, c in zip(golds, responses)]")
    assert mine(["x", "fine"], ["abc", ""]) == [Result(1.5, "custom", None), Result(1.0, "fine", "a")]


@pytest.mark.parametrize("body", ["np.float32([0.5, 1])", "[Result(np.float32(0.5), 'r', None), True]", "(0.5, 1)"])
def test_load_reward_makes_plain_floats(my_rewards, body):
    results = my_rewards(f"import numpy as np; return {body}")(["1", "2"], ["a", "b"])
    assert [(type(r.reward), r.reward) for r in results] == [(float, 0.5), (float, 1.0)]


@pytest.mark.parametrize(
    "body, message",
    [
        ("return [0.0]", "1 values"),
        ("return None", "not iterable"),
        ("return [0.0, float('nan')]", "nan for response 1"),
        ("return [Result(float('inf'), 'r', None), 0]", "inf for response 0"),
        ("return ['a', 'b']", "could not convert"),
        ("return [None, 1]", "float"),
        ("return [10**400, 1]", "too large"),
        ("return dict.fromkeys([1, 2], 0.5)", "a dict has no value for each response"),
        ("return {0, 1}", "a set has no"),
        ("return '10'", "a str has no"),
    ],
)
def test_load_reward_rejects_what_is_no_reward(my_rewards, body, message):
    with pytest.raises(ValueError, match=f"for each of 2 responses, but: .*{message}"):
        my_rewards(body)(["1", "2"], ["a", "b"])


@pytest.mark.parametrize(
    "spec, reason",
    [
        ("", "ValueError: Empty module name"),
        ("score", "no attribute|No module"),
        (":score", "Empty module name"),
        ("rewards:", "no attribute"),
        ("rewards:nothing", "no attribute 'nothing'"),
        ("no_such_module:score", "No module named"),
        ("no.such:score", "No module named"),
        ("tasks.verifier:MAX_CHARS", "not a callable"),
        ("tasks.verifier:last_box", "too many positional arguments"),
        ("my_rewards:mine", r"SyntaxError: .*\(my_rewards.py, line 2\)"),
    ],
)
def test_load_reward_says_in_one_line_what_to_do(tmp_path, monkeypatch, spec, reason):
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_rewards", raising=False)
    (tmp_path / "my_rewards.py").write_text("def mine(golds, responses):\n    return [\n")
    with pytest.raises(ValueError, match=f"can't be used .*{reason}.*module:function") as error:
        load_reward(spec)
    assert "\n" not in str(error.value)


def test_load_reward_lets_the_functions_own_errors_through(my_rewards):
    with pytest.raises(ZeroDivisionError):
        my_rewards("return 1 / 0")(["1"], ["a"])


def test_load_reward_hands_over_lists_that_the_function_may_spoil(my_rewards):
    golds, responses = ["1", "2"], ["a", "b"]
    mine = my_rewards("return [float(bool(golds.pop() and responses.pop())) for _ in range(len(golds))]")
    assert [result.reward for result in mine(golds, responses)] == [1.0, 1.0]
    assert (golds, responses) == (["1", "2"], ["a", "b"])


def test_load_reward_asks_nothing_for_a_rank_without_prompts(my_rewards):
    assert my_rewards("return [max(len(c) for c in responses)]")([], []) == []
