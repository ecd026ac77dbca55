r"""Rewards: 1.0 if the last \boxed{...} of a completion is the gold answer, else 0.0, and always a reason.

    score(["1/2"], [r"... so it is \boxed{0.5}."])  # [Result(reward=1.0, reason='correct', answer='0.5')]

The braces of that box must balance. There is no fallback to "Answer:" lines or to the rest of the text. answers.py
gives gold and answer one form, and decides where their texts are enough: for integers, units and words. math-verify
judges every other pair. It reads LaTeX only, evaluates no code and takes no number out of junk. This table says what
is judged how. A test reads it; two spaces separate the answers.

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

math-verify can hang, hold the GIL and eat memory, and it needs SIGALRM. So it runs in subprocesses only (this file run
as a script, importing math-verify and nothing heavier), under limits on memory and CPU seconds. The first answer that
needs one starts them. When their parent dies they exit, at once if idle and at their CPU limit if busy.

Every answer gets a first try of equal CPU time, in the order in which they came, before any gets a second one. So no
answer, however long it takes, keeps another from its first try. A batch of n answers takes n × 0.25 CPU seconds at the
very most, shared by the workers, and then a minute for second tries.

Reasons: correct, wrong, no_box, unclosed, too_long, unparsed (math-verify cannot read the answer), bad_gold (or the
gold: see `check_golds`), timeout, crash.
"""

import importlib
import inspect
import json
import math
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import suppress
from multiprocessing.connection import wait
from typing import NamedTuple

import answers

MAX_CHARS = 512  # of an answer or a gold
CPU_SECONDS = (0.25, 1.5)  # of a first try and of a second; ordinary answers take 5 ms, 1 in 100 more than 60 ms
RETRY_SECONDS = 60.0  # for all second tries of a batch
MEMORY_BYTES = 1 << 30
START_SECONDS = 60.0  # importing sympy takes 0.5 s, more from a cold network disk
Pair = tuple[str, str]  # gold and answer, as texts for math-verify


class Result(NamedTuple):
    reward: float  # 0.0 or 1.0 from `score`; any finite number from a reward of your own
    reason: str
    answer: str | None  # content of the last box, normalised, without a unit


class RewardError(RuntimeError):
    """The reward function failed. Raised by rollout.py, alike on every rank, before anything has changed."""


def score(golds: list, completions: list, workers: int | None = None) -> list[Result]:
    """One Result per (gold, completion), in order. Never raises or hangs because of what golds and completions contain.

    `workers`: processes at most (default: this rank's share of the cores, at most 8). Any thread may call; calls take
    turns. Raises ValueError if the lists differ in length, and RuntimeError if math-verify cannot be started.
    """
    if len(golds) != len(completions):
        raise ValueError(f"score got {len(golds)} golds and {len(completions)} completions: pass as many of both")
    rows = [_compare(_gold_text(gold), completion) for gold, completion in zip(golds, completions)]
    pairs = list(dict.fromkeys(pair for _, reason, pair in rows if not reason))  # each pair once
    verdicts = _verify(pairs, workers)
    judged = [(answer, reason or verdicts[pair]) for answer, reason, pair in rows]
    return [Result(float(reason == "correct"), reason, answer) for answer, reason in judged]


def check_golds(golds: list, workers: int | None = None) -> list[tuple[str, str | None]]:
    """(normalised gold, None or what is wrong with it) for each gold: a text, a number, or a list of one of them. For
    when the data is loaded. Numbers and words need no subprocess. Rank 0 shows a progress bar of the rest."""
    from tqdm import tqdm  # here: the workers, who run this file too, do not need it

    texts = [_gold_text(gold) for gold in golds]
    sure = {text for text in set(texts) if answers.INTEGER.fullmatch(text) or answers.is_word(text)}
    pairs = {text: answers.compare(text, text)[1:] for text in dict.fromkeys(texts) if text and text not in sure}
    to_judge = list(dict.fromkeys(pairs.values()))
    hidden = os.environ.get("RANK", "0") != "0"
    with tqdm(desc="checking golds", total=len(to_judge), unit="gold", delay=2.0, disable=hidden) as bar:
        verdicts = _verify(to_judge, workers, bar.update)
    checked = []
    for gold, text in zip(golds, texts):
        reason = "correct" if text in sure else verdicts[pairs[text]] if text else "bad_gold"
        advice = f"give an integer, or LaTeX of at most {MAX_CHARS} characters that math-verify parses, or drop the row"
        problem = None if reason == "correct" else f"gold {ascii(gold):.200} can't be used ({reason}): {advice}"
        checked.append((text, problem))
    return checked


def load_reward(spec: str = "rewards:score") -> Callable[[list, list], list[Result]]:
    """The reward function named "module:function", which takes golds and completions as `score` does and returns a
    list of one finite number or Result for each completion. In my_rewards.py, for --reward my_rewards:brevity:

        def brevity(golds, completions):
            return [1.0 / (1 + len(completion)) for completion in completions]

    Raises ValueError if the module cannot be imported or has no such function, or if the function does not take two
    arguments. The function returned raises ValueError if the values are not as described.
    """
    module, _, name = spec.partition(":")
    sys.path += [os.getcwd()] if os.getcwd() not in sys.path else []  # a module in the caller's directory is found, too
    try:
        function = getattr(importlib.import_module(module), name)
        inspect.signature(function).bind([], [])
    except Exception as error:  # importing a module can raise anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(
            f"--reward {spec} can't be used ({reason}); name it module:function, start in the module's "
            "folder or put it on PYTHONPATH, and let the function take (golds, completions)"
        ) from error

    def reward(golds: list, completions: list) -> list[Result]:
        values, results = function(golds, completions), []
        try:
            if isinstance(values, (str, Mapping, Set)):
                raise TypeError(f"a {type(values).__name__} has no value for each completion")
            for value in values:
                result = value if isinstance(value, Result) else Result(value, "custom", None)
                result = result._replace(reward=float(result.reward), reason=str(result.reason))
                if not math.isfinite(result.reward):
                    raise ValueError(f"{result.reward} for completion {len(results)}")
                results.append(result)
            if len(results) != len(completions):
                raise ValueError(f"{len(results)} values")
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"--reward {spec} must return a list of one finite number or Result for each of {len(completions)} "
                f"completions, but: {error}"
            ) from error
        return results

    return reward


# ----------------------------------------------------------------------------------------------------- gold and answer

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


# ----------------------------------------------------------------------------------------- math-verify in subprocesses

_STARTING = ("", "")  # the job of a worker that has not said "ready" yet


class _Worker:
    """A subprocess that runs math-verify. `job` is what it is doing, None when idle; it is overdue at `expires`."""

    def __init__(self) -> None:
        command = [sys.executable, os.path.abspath(__file__)]
        pipes = dict(bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        env = {**os.environ, "SYMPY_GROUND_TYPES": "python", "MPMATH_NOGMPY": "1"}
        self.process = subprocess.Popen(command, **pipes, env=env, start_new_session=True)  # Ctrl-C is for the parent
        self.job, self.expires = _STARTING, time.monotonic() + START_SECONDS

    def fileno(self) -> int:
        return self.process.stdout.fileno()

    def send(self, job: Pair, cpu_seconds: float) -> None:
        self.job = job
        self.expires = time.monotonic() + 8 * cpu_seconds + 1.0  # its own limit comes first, on a busy machine too
        with suppress(BrokenPipeError):  # it died while idle: reading will say so
            self.process.stdin.write(json.dumps([*job, cpu_seconds]).encode() + b"\n")

    def stop(self) -> None:
        _workers.remove(self)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        with self.process:  # closes the pipes and waits
            pass


_lock, _workers = threading.Lock(), []
# A forked child must not write into its parent's pipes.
os.register_at_fork(after_in_child=lambda: globals().update(_lock=threading.Lock(), _workers=[]))


def _verify(pairs: list[Pair], workers: int | None, progress: Callable[[], object] = lambda: None) -> dict[Pair, str]:
    """{pair: reason} from math-verify. What overruns or dies in its first try is tried once more, after all first
    tries. `progress` is called after each first try. Raises RuntimeError if math-verify cannot be started."""
    share = (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    workers, verdicts = workers or min(8, max(1, share)), {}
    with _lock:
        try:
            for pair, reason in _try(pairs, workers, CPU_SECONDS[0], math.inf):
                verdicts[pair] = reason
                progress()
            again = [pair for pair in pairs if verdicts[pair] in ("timeout", "crash")]
            verdicts |= _try(again, workers, CPU_SECONDS[1], time.monotonic() + RETRY_SECONDS)
        finally:
            for worker in [worker for worker in _workers if worker.job not in (None, _STARTING)]:  # interrupted
                worker.stop()
    return verdicts


def _try(pairs: list[Pair], workers: int, cpu_seconds: float, end: float) -> Iterator[tuple[Pair, str]]:
    """(pair, reason) as the workers judge the pairs, which they take in the order given, until `end`."""
    queue, undecided, failed_starts = deque(pairs), len(pairs), 0
    while undecided and time.monotonic() < end:
        for worker in [worker for worker in _workers if worker.job is None and worker.process.poll() is not None]:
            worker.stop()  # it died while idle
        while len(_workers) < min(workers, undecided):
            _workers.append(_Worker())
        for worker in _workers[:workers]:
            if worker.job is None and queue:
                worker.send(queue.popleft(), cpu_seconds)
        active = [worker for worker in _workers if worker.job]
        ready = wait(active, max(0.0, min(end, *(worker.expires for worker in active)) - time.monotonic()))
        for worker in active:
            if worker not in ready and time.monotonic() < worker.expires:
                continue
            reply = os.read(worker.fileno(), 100).decode().strip() if worker in ready else "timeout"
            if worker not in ready or not reply:  # overdue, or dead
                worker.stop()
            job, worker.job = worker.job, None
            if job is not _STARTING:
                undecided -= 1
                yield job, reply or "crash"
            elif reply != "ready":
                failed_starts += 1  # one may have been killed from outside
                if failed_starts == 3:
                    raise RuntimeError(
                        f"math-verify does not start ({reply or 'crash'}): pip install math-verify, or see what "
                        f"`{sys.executable} {os.path.abspath(__file__)}` prints"
                    )


def _serve() -> None:
    """A worker: reads JSON lines [gold, answer, CPU seconds] and writes a reason for each. It imports math-verify once
    and lets a forked child judge, so that a child that its CPU limit kills is replaced in 10 ms."""
    if sys.platform == "linux":  # elsewhere this limit is missing or not enforced
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # both are inherited
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    replies = os.dup(1)
    os.dup2(2, 1)  # whatever the parser prints is no reply
    from latex2sympy2_extended import NormalizationConfig
    from latex2sympy2_extended.logic import And
    from latex2sympy2_extended.sets import FiniteSet
    from math_verify import LatexExtractionConfig, parse, verify
    from sympy import Eq, Union
    from sympy.core.relational import Relational

    form = NormalizationConfig(units=False, malformed_operators=True, nits=True, boxed="last")  # units: 3x+2t is 3x+2
    config = [LatexExtractionConfig(boxed_match_priority=0, normalization_config=form)]

    def read(text: str) -> list:
        # "first_match": if the box can't be read, nothing inside it is read on its own
        parsed = parse(rf"\boxed{{{text}}}", config, "no_fallback", "first_match", None)
        parts = parsed[0].args if parsed and isinstance(parsed[0], FiniteSet) and re.search(r"\bor\b", text) else ()
        if parts and all(isinstance(part, (Relational, And)) and not isinstance(part, Eq) for part in parts):
            with suppress(Exception):  # sympy has no set for every relation
                return [Union(*(part.as_set() for part in parts))]  # x<0 or x>1
        return parsed

    def places(number: object) -> int:
        """Decimals that show four digits of a number, so that small ones do not all look like 0."""
        try:
            return 3 - math.floor(math.log10(abs(float(number))))
        except Exception:  # no number, 0, or too large for a float
            return 0

    def judge(gold: str, answer: str) -> str:
        wanted, found = read(gold), read(answer)
        if not (wanted and found):
            return "unparsed" if wanted else "bad_gold"
        rounding = max(6, places(wanted[0]), places(found[0]))
        same = verify(wanted, found, rounding, allow_set_relation_comp=True, timeout_seconds=None)
        return "correct" if same else "wrong"

    judge(r"\left(\frac{1}{2}, 2x^2-\sqrt{3}\right)", r"(0.5, -\sqrt3+2x^{2})")  # fills the parser's tables: 0.2 s
    os.write(replies, b"ready\n")
    while child := os.fork():
        status = os.waitpid(child, 0)[1]
        if os.WIFEXITED(status) or os.WTERMSIG(status) != signal.SIGPROF:
            return  # the end of the input, or killed from outside
        os.write(replies, b"timeout\n")
    for line in sys.stdin:  # ends when the parent does
        gold, answer, cpu_seconds = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, cpu_seconds)  # SIGPROF kills, even in C code that never returns
        reason = judge(gold, answer)
        signal.setitimer(signal.ITIMER_PROF, 0)
        os.write(replies, reason.encode() + b"\n")


if __name__ == "__main__":
    _serve()
