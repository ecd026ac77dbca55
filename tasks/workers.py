"""math-verify in subprocesses: it can hang, hold the GIL and eat memory, and it needs SIGALRM.

So it runs in subprocesses only (this file run as a script, importing math-verify and nothing heavier), under limits on
memory and CPU seconds. The first answer that needs one starts them. When their parent dies they exit, at once if idle
and at their CPU limit if busy.

Every answer gets a first try of equal CPU time, in the order in which they came, before any gets a second one. So no
answer, however long it takes, keeps another from its first try. A batch of n answers takes n × 0.25 CPU seconds at the
very most, shared by the workers, and then a minute for second tries.
"""

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
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import lru_cache
from multiprocessing.connection import wait

CPU_SECONDS = (0.25, 1.5)  # of a first try and of a second; ordinary answers take 5 ms, 1 in 100 more than 60 ms
RETRY_SECONDS = 60.0  # for all second tries of a batch
MEMORY_BYTES = 1 << 30
START_SECONDS = 60.0  # importing sympy takes 0.5 s, more from a cold network disk
Pair = tuple[str, str]  # gold and answer, as texts for math-verify

_STARTING = ("", "")  # the job of a worker that has not said "ready" yet


class _Worker:
    """A subprocess that runs math-verify. `job` is what it is doing, None when idle; it is overdue at `expires`."""

    def __init__(self) -> None:
        command = [sys.executable, "-P", os.path.abspath(__file__)]  # -P: nothing beside this file can be imported
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


def verify(pairs: list[Pair], workers: int | None, progress: Callable[[], object] = lambda: None) -> dict[Pair, str]:
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
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig, _Latex2Sympy, latex2sympy, normalize_latex
    from latex2sympy2_extended.logic import And
    from latex2sympy2_extended.sets import FiniteSet
    from math_verify import grader
    from math_verify import verify as math_verify
    from sympy import Basic, Eq, Float, I, MatrixBase, Rational, Symbol, Tuple, Union, floor, log, pi
    from sympy.core.function import AppliedUndef
    from sympy.core.relational import Relational

    form = NormalizationConfig(malformed_operators=True, nits=True, boxed="none")
    cases = ConversionConfig(lowercase_symbols=False)  # N is not n
    scales = {"%": Rational(1, 100), "°": pi / 180}
    parser_product = _Latex2Sympy.convert_postfix_list

    def product(self: _Latex2Sympy, factors: list, first: int = 0) -> Basic | MatrixBase:
        """In place of the parser's, which reads every number after an integer as for 2 1/2, and 2(3) as 5."""
        found = parser_product(self, factors, first)
        if not isinstance(found, Rational) or first + 1 == len(factors):
            return found
        whole, part = (factor.getText() for factor in factors[first : first + 2])
        if whole.isdigit() and part.startswith(r"\frac") and found < int(whole) + 1:
            return found
        return self.mul_flat(self.convert_postfix(factors[first]), product(self, factors, first + 1))

    _Latex2Sympy.convert_postfix_list = product

    @lru_cache(20)  # one gold comes with many answers
    def read(text: str) -> Basic | MatrixBase | None:
        if re.search(r"[0-9)}] ?[_']", text):  # the parser would take 16_8 for 16
            return None
        texts = [re.sub(r"^\\\{(.*\\pm.*)\\\}$", r"\1", text)]
        while len(texts) < 16 and (sign := re.search(r"\\pm(?![a-z])", texts[0])):  # 3, 1 \pm \sqrt{2}
            texts = [text.replace(sign[0], one, 1) for text in texts for one in "+-"]
        try:
            parsed = latex2sympy(normalize_latex(", ".join(texts), form), None, True, False, None, cases)
            parsed = parsed.xreplace({Symbol("i", real=True): I})
        except Exception:
            return None
        if len(texts) > 1 and isinstance(parsed, FiniteSet):
            parsed = FiniteSet(*parsed.args)  # in which 3 comes once
        if isinstance(parsed, FiniteSet) and any(map(is_inequality, parsed.args)) and len(parsed.free_symbols) == 1:
            with suppress(Exception):  # x<0 or x>1
                either = re.search(r"\bor\b", text)
                return Union(*(part.as_set() for part in parsed.args)) if either else And(*parsed.args)
        return parsed

    def is_inequality(parsed: Basic) -> bool:
        return isinstance(parsed, (Relational, And)) and not parsed.atoms(Eq)

    def value(parsed: Basic | MatrixBase) -> Basic | MatrixBase | None:
        """What an equation says of a name: 5 for x = 5 = 10/2. None for every other equation."""
        if isinstance(parsed, FiniteSet):
            values = [value(part) for part in parsed._unsorted_args]
            return None if None in values else FiniteSet(*values)
        if not isinstance(parsed, (Eq, And)) or is_inequality(parsed):
            return parsed
        parts = [parsed] if isinstance(parsed, Eq) else parsed._unsorted_args
        sides = [side for part in parts for side in part.args]
        sides = [side for side in sides if not isinstance(side, (Symbol, AppliedUndef))] or sides[-1:]
        return sides[0] if sides and all(equal(sides[0], side) for side in sides[1:]) else None

    def numbers_equal(a: Basic | MatrixBase, b: Basic | MatrixBase, *_: int) -> bool:
        """In place of math-verify's comparison, for which all small numbers are equal. Decimals have to agree in six
        decimals, or in four digits where these come later; fractions in all digits, other exact numbers in 30."""
        if isinstance(a, MatrixBase) and isinstance(b, MatrixBase):
            return a.shape == b.shape and all(grader.sympy_expr_eq(x, y, 6, 15) for x, y in zip(a, b))
        try:
            a, b = a.doit(), b.doit()
            if a.is_Rational and b.is_Rational:
                return a == b
            x, y = a.evalf(40), b.evalf(40)
            size = max(abs(x), abs(y))
            if not size.is_finite:
                return x == y
            tolerance = size * Rational(10) ** -30
            if a.has(Float) or b.has(Float):
                tolerance = Rational(10) ** min(-6, floor(log(size, 10)) - 3) / 2
            return bool(abs(x - y) <= tolerance)
        except Exception:  # no numbers
            return False

    grader.sympy_numeric_eq = numbers_equal

    def equal(wanted: Basic | MatrixBase, found: Basic | MatrixBase) -> bool:
        if wanted.atoms(Eq) and not found.atoms(Eq):  # x = 1, y = 2
            names, wanted = {part.args[0] for part in wanted.args}, value(wanted)
            wanted = Tuple(*wanted._unsorted_args) if isinstance(wanted, FiniteSet) and len(names) > 1 else wanted
        elif not wanted.atoms(Eq):
            found = value(found)
        if wanted is None or found is None:
            return False
        if isinstance(wanted, FiniteSet) and len(wanted._unsorted_args) > len(wanted.args):  # 3, 1, 1 is no set
            wanted, found = (Tuple(*getattr(side, "_unsorted_args", [])) for side in (wanted, found))
        for matrix, other in ((wanted, found), (found, wanted)):
            if is_inequality(matrix) and isinstance(other, (FiniteSet, Tuple)):  # -2 < x < 1 is no pair
                return False
            if isinstance(matrix, MatrixBase) and 1 in matrix.shape and not isinstance(other, MatrixBase):
                wanted, found = (Tuple(*matrix), other) if matrix is wanted else (other, Tuple(*matrix))
        free = [{name for name in side.free_symbols if name.name in ("k", "m", "n")} for side in (wanted, found)]
        if wanted.has(pi) and len(free[0]) == len(free[1]) == 1:  # pi/4 + k pi
            found = found.xreplace(dict(zip(free[1], free[0])))
        if is_inequality(wanted) and is_inequality(found) and wanted.free_symbols == found.free_symbols:
            with suppress(Exception):  # sympy has no set for every relation
                wanted, found = wanted.as_set(), found.as_set()
        return math_verify(wanted, found, allow_set_relation_comp=True, timeout_seconds=None)

    def judge(gold: str, answer: str) -> str:
        wanted, found = (read(text.rstrip("%°")) for text in (gold, answer))
        if wanted is None or found is None:
            return "bad_gold" if wanted is None else "unparsed"
        scale = [scales.get(text[-1], 1) for text in (gold, answer)]
        same = False
        with suppress(Exception):
            sign_counts = scale[0] == 1 != scale[1] and (wanted.has(pi) or wanted.is_number and abs(wanted) < 1)
            same = not sign_counts and equal(wanted, found)  # a sign is dropped from 204%, and not from 1/2%
            same = same or scale[0] != scale[1] and equal(wanted * scale[0], found * scale[1])
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
