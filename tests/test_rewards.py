r"""pytest test_rewards.py — with the real math-verify; needs /proc (Linux) for the tests that look at worker processes."""

import glob
import math
import multiprocessing
import os
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
from rewards import Result, check_gold, load_reward, score

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


def children(pid):
    pids = [int(path.split("/")[2]) for path in glob.glob("/proc/[0-9]*")]
    return [child for child in pids if stat(child)[1] == pid and stat(child)[0] not in "XZ" and is_worker(child)]


def is_worker(pid):
    try:
        with open(f"/proc/{pid}/cmdline") as f:
            return f.read().rstrip("\0").endswith("rewards.py")
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_for(condition, seconds):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


def python(script, **kwargs):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], cwd=HERE, stdout=subprocess.PIPE, text=True, **kwargs
    )


# --------------------------------------------------------------------------------------------------------- what is right and wrong

RIGHT = [
    ("7", "7"),
    ("7", "007"),
    ("7", "7.0"),
    ("7", "7."),
    ("7", "$7$"),
    ("7", "+7"),
    ("-7", "−7"),
    ("48125", r"48\,125"),
    ("1000", "1 000"),
    ("1234567", "1,234,567"),
    ("1234567", "1{,}234{,}567"),
    ("10000", r"10,\!000"),
    ("025", "25"),
    (142.0, "142"),
    (27, "27.0"),
    (["5"], "5"),
    ("0", "-0"),
    ("9" * 500, "0" + "9" * 500),
    ("1/2", "0.5"),
    (r"\frac12", r"\dfrac{2}{4}"),
    (r"3\sqrt{13}", r"\sqrt{117}"),
    (0.5, "1/2"),
    (r"\frac{1}{2}", r"x = \frac{1}{2}"),
    ("x^2+2x+1", "(x+1)^2"),
    ("1,-2", "-2, 1"),
    (r"[-2,7]", r"-2\le x\le 7"),
    ("5", r"\text{5}"),
    (r"\left(3,\frac{\pi}{2}\right)", r"(3, \pi/2)"),
    (r"(-\infty,3)\cup(4,5)", r"(4,5)\cup(-\infty,3)"),
    (r"\text{Evelyn}", r"\text{ Evelyn }"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
    ("6-5i", "-5i + 6"),
    ("12", r"12 \text{ cm}"),
    ("30", r"30^\circ"),
    (r"1 \pm \sqrt{19}", r"1+\sqrt{19}, 1-\sqrt{19}"),
    (r"\{1,2\}", r"\{2,1\}"),
    ("2", r"\frac{4}{2}"),
    ("@@", "@@"),
]
WRONG = [
    ("7", "8"),
    ("7", "-7"),
    ("7", "70"),
    (r"3\sqrt{13}", "3"),
    ("1,-2", "1"),
    ("1/2", "1/3"),
    ("x^2+1", "y^2+1"),
    ("7", "x>7"),
    ("7", "7,000"),
    ("7", "7.5"),
    ("[1,2]", "(1,2)"),
    ("1", "11"),
    ("0.333", "0.333..."),
    (r"1 \pm \sqrt{19}", r"1+\sqrt{19}"),
    ("7", "٧"),
    ("9" * 500, "9" * 499),
    # hedged
    ("7", "5, 7"),
    ("7", "7, 5"),
    ("7", r"5 \text{ or } 7"),
    ("7", "$5$ or $7$"),
    ("7", r"7 \text{ and } 8"),
    ("7", r"\pm 7"),
    ("7", r"\{5,7\}"),
    ("7", r"x=5 \text{ or } x=7"),
    ("7", "7;8"),
    ("7", "5-7"),
    # a number inside something that cannot be read must not count
    ("7", "@@ 7 @@"),
    ("7", r"@@ \frac{14}{2} @@"),
    ("7", "@@ 7\\% @@"),
    ("7", "@@ x = 7"),
    ("7", "@@ $7$ @@"),
    ("7", r"@@ \(7\) @@"),
    ("7", r"@@ \begin{align}7\end{align} @@"),
    ("7", r"\approx 7"),
    ("7", r"\neq 7"),
    ("7", "final answer is $7$. I hope"),
    ("7", r"8\boxed7"),
    ("7", r"8 \} 7"),
    ("7", r"\}7\{"),
    ("7", "__import__('os')._exit(7)"),
    ("7", "eval('3+4')"),
    ("7", r"7\x00"),
    ("7", "7\0"),
    ("7", "\\input{/etc/passwd}"),
    ("correct", "wrong"),
    ("7", '"], 9]\n["7", "7'),
]


@pytest.mark.parametrize("workers", [1, 3])
def test_verdicts_are_right_in_order_and_the_same_for_any_number_of_workers(workers):
    cases = [(gold, answer, 1.0) for gold, answer in RIGHT] + [(gold, answer, 0.0) for gold, answer in WRONG]
    results = score([c[0] for c in cases] * 2, [box(c[1]) for c in cases] * 2, workers=workers)
    assert [(*case[:2], result.reward) for case, result in zip(cases * 2, results)] == cases * 2
    assert all(result.reward == float(result.reason == "correct") for result in results)


@pytest.mark.parametrize(
    "completion, reason, answer",
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
        (r"\boxed{{7}} as {x}", "correct", "{7}"),
        (r"\boxed{7}{8}", "correct", "7"),
        (r"\boxed{}", "unparsed", ""),
        (r"\boxed{ . }", "unparsed", ""),
        (r"\boxed{" + "7" * 512 + "}", "wrong", "7" * 512),
        (r"\boxed{" + "7" * 513 + "}", "too_long", None),
        (None, "no_box", None),
        (7, "no_box", None),
        (b"\\boxed{7}", "no_box", None),
        (math.nan, "no_box", None),
        ([r"\boxed{7}"], "no_box", None),
    ],
)
def test_the_answer_is_the_last_box(completion, reason, answer):
    assert score(["7"], [completion]) == [Result(float(reason == "correct"), reason, answer)]


def test_a_gold_that_no_answer_can_match_is_reported():
    golds = [None, "", math.nan, True, [], ["1", "2"], object(), "7" * 513, 10**9000, "\0"]
    assert [(r.reward, r.reason) for r in score(golds, [box("x+1")] * len(golds))] == [(0.0, "bad_gold")] * len(golds)


def test_lists_must_match():
    assert score([], []) == []
    with pytest.raises(ValueError, match="2 golds and 1 completions"):
        score(["1", "2"], [box("1")])


@pytest.mark.parametrize(
    "gold, text",
    [
        ("025", "25"),
        (142.0, "142"),
        (-3, "-3"),
        (["$5$"], "5"),
        ("1,234", "1234"),
        (r"\frac{1}{2}", r"\frac{1}{2}"),
        (r"\text{Evelyn}", r"\text{Evelyn}"),
        (r"11,\! 111,\! 100", "11111100"),
        (0.25, "0.25"),
        ("y = 2x+3", "y = 2x+3"),
    ],
)
def test_check_gold_normalises_once_and_for_all(gold, text):
    assert check_gold(gold) == text == check_gold(text)


@pytest.mark.parametrize("gold", ["", "@@", r"\frac{1}{", None, math.nan, True, ["1", "2"], "\ud800", "x" * 600])
def test_check_gold_names_what_it_cannot_parse(gold):
    with pytest.raises(ValueError, match="can't be used") as error:
        check_gold(gold)
    assert ascii(gold)[:100] in str(error.value)


INTEGERS = st.integers(-(10**12), 10**12)


def integer_forms(n):
    grouped = f"{n:,}"
    return [
        str(n),
        f" {n} ",
        f"{n}.",
        f"{n}.00",
        f"${n}$",
        rf"\({n}\)",
        rf"{n}\,",
        f"~{n}",
        str(n).replace("-", "−"),
        str(n).replace("-", "- "),
        *[grouped.replace(",", separator) for separator in (",", "{,}", r"\,", r",\!", " ")],
        ("-" if n < 0 else "") + f"00{abs(n)}",
    ]


@given(INTEGERS, INTEGERS)
@settings(max_examples=50, deadline=None)
def test_integers_are_equal_iff_they_are_in_any_form(n, m):
    for gold in (n, *integer_forms(n)):
        assert [r.reward for r in score([gold] * 16, [box(form) for form in integer_forms(n)])] == [1.0] * 16
        assert [r.reward for r in score([gold] * 16, [box(form) for form in integer_forms(m)])] == [float(n == m)] * 16


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


PIECES = [
    "\\boxed{",
    "{",
    "}",
    "\\",
    "7",
    "x",
    "\\frac",
    "\\sqrt",
    ",",
    "$",
    "\0",
    "\ud800",
    "=",
    "\\text{",
    "\\begin{matrix}",
    "&",
    "\\\\",
    " ",
]
PIECED = st.lists(st.sampled_from(PIECES), max_size=12).map("".join)


@given(st.lists(st.one_of(PIECED, st.text(max_size=40), st.none(), st.binary(max_size=5)), max_size=20))
@settings(max_examples=15, deadline=None)
def test_no_input_raises(texts):
    n, boxed = len(texts), [box(text) if isinstance(text, str) else text for text in texts]
    for golds, completions in ((["7"] * n, texts), (["x+1"] * n, boxed), (texts, [box("x+1")] * n)):
        results = score(golds, completions)
        assert len(results) == n
        assert {r.reason for r in results} <= {
            "correct",
            "wrong",
            "no_box",
            "unclosed",
            "too_long",
            "unparsed",
            "bad_gold",
        }


# ---------------------------------------------------------------------------------------------------------------- bounds on time


def test_4096_integers_take_less_than_half_a_second():
    text = r"We find $x_1^2 + \frac{1}{2}$ by { and }. " * 75  # 3,000 characters each
    golds, completions = [str(i) for i in range(4096)], [text + box(str(i - i % 2)) for i in range(4096)]
    start = time.process_time()
    results = score(golds, completions)
    assert time.process_time() - start < 0.5
    assert [r.reward for r in results] == [1.0, 0.0] * 2048


def test_long_texts():
    cases = [
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
    start = time.monotonic()
    results = score(["7"] * len(cases), [text for text, _ in cases])
    assert [r.reason for r in results] == [reason for _, reason in cases]
    assert time.monotonic() - start < 5.0


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


def test_answers_that_hang_take_no_time_from_the_others():
    """5% of the answers hang: the batch ends within its deadline, and every other answer gets its right reward."""
    golds, completions = fractions(19 * len(HOSTILE))
    for i, answer in enumerate(HOSTILE):
        golds.insert(20 * i, r"\frac{1}{7}")
        completions.insert(20 * i, box(answer))
    start = time.monotonic()
    results = score(golds, completions, workers=2, deadline=7.0)
    assert time.monotonic() - start < 7.5
    assert [r.reward for r in results[::20]] == [0.0] * len(HOSTILE)
    assert [r.reason for i, r in enumerate(results) if i % 20] == ["correct"] * 19 * len(HOSTILE)


def test_one_answer_takes_five_seconds_at_most_and_the_next_is_judged():
    assert reward("1/2", "0.5") == 1.0  # starts a worker
    start = time.monotonic()
    assert score(["1/2"], [box(STUCK_IN_C)]) == [Result(0.0, "timeout", STUCK_IN_C)]
    assert time.monotonic() - start < 5.0
    assert reward("1/2", "0.5") == 1.0


def test_the_deadline_is_kept_and_said():
    golds, completions = fractions(3)
    start = time.monotonic()
    results = score(golds, completions, deadline=0.0)
    assert time.monotonic() - start < 1.0
    assert [(r.reward, r.reason) for r in results] == [(0.0, "deadline")] * 3
    assert [r.reward for r in score(golds, completions)] == [1.0] * 3


def test_memory_is_limited():
    assert reward("7", r"(x+1)^{10^9}+x") == 0.0  # wants 1.6 GB
    assert reward("1/2", "0.5") == 1.0
    assert children(os.getpid())
    for pid in children(os.getpid()):
        with open(f"/proc/{pid}/limits") as f:
            assert next(int(line.split()[3]) for line in f if line.startswith("Max address space")) <= 1 << 30


# -------------------------------------------------------------------------------------------------------------- processes, threads


def test_threads_at_once():
    golds, completions = fractions(20)
    results = [None] * 4

    def run(i):
        results[i] = score(golds[i:] + golds[:i], completions)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [[r.reward for r in rs] for rs in results] == [[1.0] * 20, *[[0.0] * 20] * 3]
    assert [r.reward for r in score(golds, completions)] == [1.0] * 20  # the workers outlive the threads


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
        with pytest.raises(KeyboardInterrupt):
            score(*fractions(1000))
    finally:
        signal.signal(signal.SIGALRM, previous)
    assert [r.reason for r in score(["1/2", "1/3"], [box("0.5"), box("0.5")])] == ["correct", "wrong"]


def test_workers_killed_or_stopped_in_a_batch_cost_no_reward():
    golds, completions = fractions(600)
    assert [r.reward for r in score(golds[:10], completions[:10], workers=2)] == [1.0] * 10
    results = []
    thread = threading.Thread(target=lambda: results.extend(score(golds, completions, workers=2)))
    thread.start()
    time.sleep(0.3)
    assert thread.is_alive()
    killed, stopped = children(os.getpid())[:2]
    os.kill(killed, signal.SIGKILL)
    os.kill(stopped, signal.SIGSTOP)
    thread.join()
    assert [r.reason for r in results] == ["correct"] * 600
    workers = children(os.getpid())
    for pid in workers:
        os.kill(pid, signal.SIGKILL)  # and all of them between batches
    assert wait_for(lambda: all(stat(pid)[0] in "XZ" for pid in workers), 5.0)
    thread = threading.Thread(target=lambda: results.append(reward("1/2", "0.5")))
    thread.start()
    assert wait_for(lambda: children(os.getpid()), 5.0)
    os.kill(children(os.getpid())[0], signal.SIGKILL)  # and one that is starting
    thread.join()
    assert results[-1] == 1.0


def test_workers_that_ignore_sigterm_and_inherit_odd_signals():
    process = python(rf"""
        import rewards, signal
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGPROF, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGPROF, signal.SIGTERM])
        print([result.reason for result in rewards.score(["1/2"] * 2, [r"\boxed{{{STUCK_IN_C}}}", r"\boxed{{0.5}}"], workers=1)])
    """)
    assert process.communicate(timeout=30)[0] == "['timeout', 'correct']\n"


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
    assert wait_for(lambda: children(process.pid), 5.0)
    workers = children(process.pid)
    time.sleep(0.1)
    process.kill()
    process.wait()
    assert wait_for(lambda: all(stat(pid)[0] in "XZ" for pid in workers), 5.0)


def test_several_ranks_and_forked_children_at_once():
    golds, completions = fractions(10)
    assert [r.reward for r in score(golds, completions)] == [
        1.0
    ] * 10  # workers are up: a fork in the middle of Popen is another story
    busy = threading.Thread(
        target=score, args=fractions(300)
    )  # so the fork comes while workers have jobs and the lock is held
    busy.start()
    assert wait_for(rewards._lock.locked, 5.0)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        futures = [
            pool.apply_async(score, (golds, completions)),
            pool.apply_async(score, (golds, completions[1:] + completions[:1])),
        ]
        mine = score(golds, completions)
        theirs = [future.get(timeout=30) for future in futures]
    assert [[r.reward for r in rs] for rs in (mine, *theirs)] == [[1.0] * 10, [1.0] * 10, [0.0] * 10]
    busy.join()


def test_integers_start_no_worker_and_import_no_math_verify():
    process = python(
        r"""
        import sys, rewards
        assert rewards.score(["7", "8"], [r"\boxed{7}", r"\boxed{7}"])[0].reward == 1.0
        print(rewards.check_gold("025"), "math_verify" in sys.modules, "torch" in sys.modules, flush=True)
        sys.stdin.read()
    """,
        stdin=subprocess.PIPE,
    )
    assert process.stdout.readline() == "25 False False\n"
    assert children(process.pid) == []
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
    assert "pip install math-verify" in process.communicate(timeout=30)[0]


# ------------------------------------------------------------------------------------------------------------- a reward of your own


@pytest.fixture
def my_rewards(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_rewards", raising=False)

    def write(body):
        (tmp_path / "my_rewards.py").write_text(
            f"from rewards import Result\n\n\ndef mine(golds, completions):\n    {body}\n"
        )
        return load_reward("my_rewards:mine")

    return write


def test_load_reward_default_is_score():
    golds, completions = ["7", "1/2"], [box("7"), box("0.25")]
    assert (
        load_reward()(golds, completions)
        == load_reward("rewards:score")(golds, completions)
        == score(golds, completions)
    )


def test_load_reward_takes_floats_and_results(my_rewards):
    mine = my_rewards("return [len(c) / 2 if g == 'x' else Result(1.0, g, 'a') for g, c in zip(golds, completions)]")
    assert mine(["x", "fine"], ["abc", ""]) == [Result(1.5, "custom", None), Result(1.0, "fine", "a")]


@pytest.mark.parametrize(
    "body, message",
    [
        ("return [0.0]", "1 values"),
        ("return None", "not iterable"),
        ("return [0.0, float('nan')]", "nan for completion 1"),
        ("return [Result(float('inf'), 'r', None), 0]", "inf for completion 0"),
        ("return ['a', 'b']", "could not convert"),
        ("return [None, 1]", "float"),
    ],
)
def test_load_reward_rejects_what_is_no_reward(my_rewards, body, message):
    with pytest.raises(ValueError, match=f"for each of 2 completions, but: .*{message}"):
        my_rewards(body)(["1", "2"], ["a", "b"])


@pytest.mark.parametrize(
    "spec", ["", "score", ":score", "rewards:", "rewards:nothing", "no_such_module:score", "no.such:score"]
)
def test_load_reward_says_what_to_do(spec):
    with pytest.raises(ValueError, match="module:function"):
        load_reward(spec)


def test_load_reward_lets_the_functions_own_errors_through(my_rewards):
    with pytest.raises(ZeroDivisionError):
        my_rewards("return 1 / 0")([], [])
