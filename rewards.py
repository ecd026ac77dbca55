r"""Rewards: 1.0 if the last \boxed{...} of a completion is the gold answer, 0.0 for everything else, always with a reason.

    score(["1/2"], [r"... so it is \boxed{0.5}."])  # [Result(reward=1.0, reason='correct', answer='0.5')]

The braces of that box must balance; there is no fallback to "Answer:" lines or to the rest of the text. Two rules are ours: after
normalisation (unicode minus, LaTeX spaces, $, a full stop at the end, thousands separators, "025" and "25.0" for 25) integers are
equal iff their digits are, and equal strings are equal. math-verify judges every other pair (as LaTeX only: no eval, no number
fished out of junk). Its own verdicts, whatever one thinks of them: 30^\circ and 30 cm are 30; 9\% is 9 and 0.09; {7} is 7; (1,2) is
a pair, an open interval, {1,2} and 1<x<2; the base in 52_9 is ignored; floats agree to 6 decimals; "3 4" is 3 + 4; of x=7 and 3=7
the right side counts; Evelyn is a product of letters.

math-verify can hang, hold the GIL, eat memory, and it needs SIGALRM. So it runs in subprocesses only (this file run as a script,
importing math-verify and nothing heavier) under limits on memory and CPU seconds, replaced when they overrun. The first answer that
needs one starts them. When their parent dies they exit: at the end of their input if idle, by their CPU limit at the latest if busy.

Reasons: correct, wrong, no_box, unclosed, too_long, unparsed (math-verify can't read the answer), bad_gold (or the gold: see
`check_gold`), timeout, crash, deadline (the batch ran out of time before this answer got a try).
"""

import heapq
import importlib
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
from collections.abc import Callable
from multiprocessing.connection import wait
from typing import NamedTuple

MAX_CHARS = 512  # of an answer or a gold
CPU_SECONDS = (0.25, 1.5)  # of a first try and of the retry; ordinary answers take 5 ms, 1 in 100 more than 60 ms
MEMORY_BYTES = 1 << 30
START_SECONDS = 60.0  # importing sympy takes 0.5 s, more from a cold network disk


class Result(NamedTuple):
    reward: float  # 0.0 or 1.0 from `score`; any finite number from a reward of your own
    reason: str
    answer: str | None  # content of the last box, normalised


def score(golds: list, completions: list, workers: int | None = None, deadline: float = 60.0) -> list[Result]:
    """One Result per (gold, completion), in order. Never raises or hangs because of what golds and completions contain.

    `workers`: processes at most (default: this rank's share of the cores, at most 8). `deadline`: seconds for the whole batch.
    Any thread may call; calls take turns. Raises ValueError if the lists differ in length.
    """
    if len(golds) != len(completions):
        raise ValueError(f"score got {len(golds)} golds and {len(completions)} completions: pass one gold per completion")
    rows = [_compare(_gold_text(gold), completion) for gold, completion in zip(golds, completions)]
    pairs = list(dict.fromkeys((gold, answer) for gold, answer, reason in rows if reason is None))  # each pair once
    verdicts = _verify(pairs, workers, deadline) if pairs else {}
    reasons = [reason or verdicts[gold, answer] for gold, answer, reason in rows]
    return [Result(float(reason == "correct"), reason, answer) for reason, (_, answer, _) in zip(reasons, rows)]


def check_gold(gold: str | int | float | list) -> str:
    """The normalised gold, for when the data is loaded; takes lists of one too. Raises ValueError if it can't be parsed."""
    text = _gold_text(gold)
    if _INTEGER.fullmatch(text):
        return text
    reason = _verify([(text, text)], 1, 60.0)[text, text] if text else "bad_gold"
    if reason != "correct":
        raise ValueError(f"gold {ascii(gold):.200} can't be used ({reason}): give an integer, or LaTeX of at most {MAX_CHARS} "
                         "characters that math-verify parses, or drop the row")
    return text


def load_reward(spec: str = "rewards:score") -> Callable[[list, list], list[Result]]:
    """The reward function named "module:function", which takes golds and completions as `score` does and returns a finite float or
    a Result for each completion. For example in my_rewards.py, for --reward my_rewards:brevity,

        def brevity(golds, completions):
            return [1.0 / (1 + len(completion)) for completion in completions]

    Raises ValueError if there is no such function; calling the one returned raises ValueError if the values are not as described.
    """
    module, _, name = spec.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ModuleNotFoundError, AttributeError, ValueError) as error:
        raise ValueError(f"reward {spec!r}: {error}; name it module:function and put the module's folder on PYTHONPATH") from error

    def reward(golds: list, completions: list) -> list[Result]:
        values = function(golds, completions)
        try:
            results = [v if isinstance(v, Result) else Result(float(v), "custom", None) for v in values]
            problems = [f"{r.reward} for completion {i}" for i, r in enumerate(results) if not math.isfinite(r.reward)]
            problems += [f"{len(results)} values"] if len(results) != len(completions) else []
        except (TypeError, ValueError) as error:
            problems = [str(error)]
        if problems:
            raise ValueError(f"reward {spec!r} must return a finite float or Result for each of {len(completions)} completions, "
                             f"but: {problems[0]}")
        return results

    return reward


# ----------------------------------------------------------------------------------------------------------------- our own rules

_BOX = re.compile(r"\\boxed\s*\{")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # an escaped brace is a symbol, not a group
_INTEGER = re.compile(r"-?[0-9]+")  # [0-9]: \d takes the digits of other scripts


def _normalise(text: str) -> str:
    text = text.replace("−", "-").replace("{,}", ",")
    text = re.sub(r"(\\\\|\\\$)|\\!\s*|\$|\\[()\[\]]", r"\1", text)  # no \! or math delimiters, but \\ (next row) and \$ stay
    text = re.sub(r"(\\\\)|(?:\\[,;: ]|~|\s)+", lambda match: match[1] or " ", text).strip()
    text = re.sub(r"(?<!\.)(?<!\\right)\.$", "", text).rstrip()
    if re.fullmatch(r"[+-]? ?[1-9][0-9]{0,2}([, ])[0-9]{3}(\1[0-9]{3})*(\.[0-9]*)?", text):
        text = re.sub(r"(?<=[0-9])[, ]", "", text)
    if number := re.fullmatch(r"([+-]?) ?0*([0-9]+)(\.0*)?", text):
        text = ("-" if number[1] == "-" and number[2] != "0" else "") + number[2]
    return text


def _gold_text(gold: object) -> str:
    """The normalised gold; empty if it is nothing that a gold can be."""
    if isinstance(gold, (list, tuple)) and len(gold) == 1:
        gold = gold[0]
    if isinstance(gold, (int, float)):
        number = re.fullmatch(r"-?[0-9.]+", str(gold) if abs(gold) < 1e300 else "")  # not True, nan, 1e-07
        gold = number and number[0]
    return _normalise(gold) if isinstance(gold, str) and len(gold) <= MAX_CHARS else ""


def _compare(gold: str, completion: object) -> tuple[str, str | None, str | None]:
    """(gold, answer, reason), the reason None if math-verify has to say."""
    boxes = list(_BOX.finditer(completion)) if isinstance(completion, str) else []
    if not boxes:
        return gold, None, "no_box"
    start, depth = boxes[-1].end(), 1
    for brace in _BRACE.finditer(completion, start):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            break
    else:
        return gold, None, "unclosed"
    if brace.start() - start > MAX_CHARS:
        return gold, None, "too_long"
    answer = _normalise(completion[start:brace.start()])
    if not gold or not answer:
        return gold, answer, "unparsed" if gold else "bad_gold"
    if gold == answer:
        return gold, answer, "correct"
    return gold, answer, "wrong" if _INTEGER.fullmatch(gold) and _INTEGER.fullmatch(answer) else None


# --------------------------------------------------------------------------------------------------- math-verify in subprocesses

_STARTING = object()  # the job of a worker that has not said "ready" yet


class _Worker:
    """A subprocess that runs math-verify. `job` is what it is doing, None when idle; it is overdue at `expires`."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, os.path.abspath(__file__)], bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, start_new_session=True,  # Ctrl-C is for the parent
            env={**os.environ, "SYMPY_GROUND_TYPES": "python", "MPMATH_NOGMPY": "1"})
        self.job, self.expires = _STARTING, time.monotonic() + START_SECONDS

    def fileno(self) -> int:
        return self.process.stdout.fileno()

    def send(self, job: tuple, cpu_seconds: float) -> None:
        self.job, self.expires = job, time.monotonic() + cpu_seconds + 0.75  # its own limit should come first
        try:
            self.process.stdin.write(json.dumps([*job[-1], cpu_seconds]).encode() + b"\n")
        except BrokenPipeError:
            pass  # it died while idle: reading will say so

    def stop(self) -> str:
        with self.process:  # closes the pipes and waits
            self.process.kill()
        return "timeout" if self.process.returncode == -signal.SIGPROF or time.monotonic() > self.expires else "crash"


_lock, _workers = threading.Lock(), []
os.register_at_fork(after_in_child=lambda: globals().update(_lock=threading.Lock(), _workers=[]))  # not the parent's pipes


def _verify(pairs: list[tuple[str, str]], workers: int | None, deadline: float) -> dict[tuple[str, str], str]:
    """{(gold, answer): reason} from math-verify. Plain answers go first, and what fails is retried once, later, with more time: so
    answers that hang take none from the others. Raises RuntimeError if math-verify can't be started."""
    workers = workers or min(8, max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))
    verdicts = dict.fromkeys(pairs, "deadline")
    # a job: (priority, order, attempt, (gold, answer)); powers, factorials, binomials and long numbers are what can hang
    queue = [(len(re.findall(r"[\^!]|binom|[0-9]{6,}", pair[1])), i, 0, pair) for i, pair in enumerate(pairs)]
    heapq.heapify(queue)
    undecided, failed_starts = len(pairs), 0
    with _lock:
        end = time.monotonic() + deadline
        try:
            while undecided and time.monotonic() < end:
                _workers[:] = [worker for worker in _workers if worker.job or worker.process.poll() is None]  # no idle dead ones
                while len(_workers) < min(workers, undecided):
                    _workers.append(_Worker())
                for worker in _workers[:workers]:
                    if worker.job is None and queue:
                        job = heapq.heappop(queue)
                        worker.send(job, CPU_SECONDS[job[2]])
                active = [worker for worker in _workers if worker.job]
                ready = wait(active, max(0.0, min(end, *(worker.expires for worker in active)) - time.monotonic()))
                for worker in active:
                    if worker not in ready and time.monotonic() < worker.expires:
                        continue
                    reply = os.read(worker.fileno(), 100).decode().strip() if worker in ready else ""
                    job, worker.job = worker.job, None
                    if not reply:  # it died, or has to
                        _workers.remove(worker)
                        reply = worker.stop()
                    if job is not _STARTING:
                        priority, order, attempt, pair = job
                        verdicts[pair] = reply
                        if reply in ("timeout", "crash") and attempt == 0:
                            heapq.heappush(queue, (priority + 1, order, 1, pair))
                        else:
                            undecided -= 1
                    elif reply != "ready":
                        failed_starts += 1  # one may have been killed from outside
                        if failed_starts == 3:
                            raise RuntimeError(f"math-verify does not start ({reply}): pip install math-verify, or see what "
                                               f"`{sys.executable} {os.path.abspath(__file__)}` prints")
        finally:
            for worker in [worker for worker in _workers if worker.job not in (None, _STARTING)]:  # out of time, or interrupted
                _workers.remove(worker)
                worker.stop()
    return verdicts


def _serve() -> None:
    """A worker: reads JSON lines [gold, answer, CPU seconds] and writes a reason for each."""
    if sys.platform == "linux":  # elsewhere this limit is missing or not enforced
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # both are inherited
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    replies = os.dup(1)
    os.dup2(2, 1)  # whatever the parser prints is no reply
    from math_verify import LatexExtractionConfig, parse, verify
    config = [LatexExtractionConfig(boxed_match_priority=0)]

    def judge(gold: str, answer: str) -> str:
        # "first_match": if the box can't be read, nothing inside it is read on its own
        golds, answers = [parse(rf"\boxed{{{text}}}", config, "no_fallback", "first_match", None) for text in (gold, answer)]
        if not (golds and answers):
            return "unparsed" if golds else "bad_gold"
        return "correct" if verify(golds, answers, allow_set_relation_comp=True, timeout_seconds=None) else "wrong"

    judge(r"\left(\frac{1}{2}, 2x^2-\sqrt{3}\right)", r"(0.5, -\sqrt3+2x^{2})")  # fills the parser's tables, which takes 0.2 s
    os.write(replies, b"ready\n")
    for line in sys.stdin:  # ends when the parent does
        gold, answer, cpu_seconds = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, cpu_seconds)  # SIGPROF kills, even inside C code that never returns to Python
        reason = judge(gold, answer)
        signal.setitimer(signal.ITIMER_PROF, 0)
        os.write(replies, reason.encode() + b"\n")


if __name__ == "__main__":
    _serve()
