"""What the ranks of one job share: how they start, what each of them does, and how they end together."""

import ctypes
import hashlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from datetime import timedelta
from typing import NoReturn

import torch
import torch.distributed as dist
import torch.distributed.run
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

ALONE = "RANK=0 LOCAL_RANK=0 WORLD_SIZE=1 LOCAL_WORLD_SIZE=1 MASTER_ADDR=127.0.0.1 MASTER_PORT=0"
NEVER = 100 * 24 * 60.0  # minutes, for a job with `Phases`, which end what hangs but not what was suspended


class Steady:
    """A text stream whose write and flush never raise: nothing that is printed may end a run, or keep it from saving.

    A write fails when the log's disk is full, when the reader of a pipe has ended (Ctrl-C ends `tee` too), when the
    terminal is gone, and inside a signal handler that came in the middle of another write. That text is lost."""

    def __init__(self, stream):
        self.stream = stream

    def write(self, text: str) -> int:
        try:
            self.stream.write(text)
        except (OSError, ValueError, RuntimeError):
            pass
        return len(text)

    def flush(self) -> None:
        try:
            self.stream.flush()
        except (OSError, ValueError, RuntimeError):
            pass

    def __getattr__(self, name):
        return getattr(self.stream, name)


def steady_streams() -> None:
    """The first call of a program: stdout and stderr become `Steady`, also where they are closed. What their encoding
    lacks is written as an escape."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name) or open(os.devnull, "w")
        if not isinstance(stream, Steady):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")
            setattr(sys, name, Steady(stream))


def init_distributed(timeout_minutes: float = NEVER) -> torch.device:
    """One process group, from torchrun's variables or of this process alone. `timeout_minutes`: of a collective. Raises
    ValueError for an environment that has only some of these variables, and for an address that can't be used."""
    if sys.platform == "linux":  # end with torchrun, even if that is killed with -9
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    world_size = os.environ.get("WORLD_SIZE", "1")
    if missing := [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
        if world_size != "1":
            raise ValueError(
                f"WORLD_SIZE is {world_size} in the environment, without {' and '.join(missing)}: unset it, or start "
                "the processes with torchrun"
            )
    if world_size == "1" and not dist.is_torchelastic_launched():  # no port that was exported for another program
        os.environ |= dict(MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    for pair in ALONE.split():
        os.environ.setdefault(*pair.split("="))
    backend, device = "gloo", torch.device("cpu")
    if torch.cuda.is_available():
        backend, device = "cpu:gloo,cuda:nccl", torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
        torch.backends.cuda.enable_cudnn_sdp(False)  # it makes a plan for every new shape, and most shapes here are new
    try:
        dist.init_process_group(backend, timeout=timedelta(minutes=timeout_minutes))
    except (RuntimeError, ValueError) as error:
        where = "MASTER_ADDR {MASTER_ADDR}, MASTER_PORT {MASTER_PORT}, RANK {RANK}".format(**os.environ)
        raise ValueError(f"{where}: the processes can't meet ({str(error).splitlines()[0][:200]})") from None
    return device


def end_distributed(*samplers) -> None:
    """The last collective of a job: closes the samplers, of which vLLM takes the process group down, and then the
    group. A rank that exits with its gloo group still up is now and then aborted, if another exits later."""
    dist.barrier()
    for sampler in samplers:
        sampler.close()
    if dist.is_initialized():
        dist.destroy_process_group()


def seed_of(*parts) -> int:
    """A 32-bit seed from e.g. (seed, step, rank). Nothing else is random, so there is no state to save."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=4).digest(), "big")


def my_share(items: list, rank: int, world_size: int) -> list:
    """This rank's contiguous, nearly equal share, so that the ranks' shares in rank order are `items` again."""
    return items[len(items) * rank // world_size : len(items) * (rank + 1) // world_size]


def gather(items: list) -> list:
    """All ranks' lists joined in rank order, on every rank."""
    if dist.get_world_size() == 1:
        return items  # pickling a list of small tensors takes longer than anything else here
    parts = [None] * dist.get_world_size()
    dist.all_gather_object(parts, items)
    return [item for part in parts for item in part]


def on_rank0(function: Callable, *args):
    """What `function` returns on rank 0, on every rank, where its ValueError or OSError is raised too. A collective."""
    outcome = [None]
    if dist.get_rank() == 0:
        try:
            outcome = [(function(*args), None)]
        except (ValueError, OSError) as error:
            outcome = [(None, str(error))]
    dist.broadcast_object_list(outcome)
    value, error = outcome[0]
    if error is not None:
        raise ValueError(error)
    return value


def refuse(error: Exception) -> NoReturn:
    """Ends the process for what the user can mend, which every rank has seen: one line from one rank."""
    print0(f"grpo.py: error: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(2)


def print0(text: str, file=None) -> None:
    """Print on rank 0 only, by default to stdout. It works before the process group exists."""
    if os.environ.get("RANK", "0") == "0":
        print(text, file=file, flush=True)


class StopRequest:
    """Remembers a signal that asks the run to stop, until a step is done: SIGTERM and SIGUSR1 of a batch scheduler,
    Ctrl-C, SIGHUP of a connection that dropped (not under nohup), SIGQUIT. A second Ctrl-C ends the run at once."""

    def __init__(self):
        self.signal = 0
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._remember)

    def _remember(self, number, frame) -> None:
        self.signal = number
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            print0("stopping after this step, with a checkpoint; Ctrl-C again ends the run at once", file=sys.stderr)

    def agreed(self) -> int:
        """The signal that any rank has got, 0 for none; the same on every rank. A collective."""
        seen = torch.tensor(self.signal)
        dist.all_reduce(seen, dist.ReduceOp.MAX)
        return int(seen)


class Phases:
    """`with phases("rollout"): ...` adds up the seconds spent in each phase of a step, and ends one that never ends.

    A phase that takes longer than `limit_minutes` ends this process, and with it the job, with rank, step and phase
    named. On GPUs a collective that waits for a dead rank would otherwise end with a bare abort, and generation that
    hangs would not end at all. Make one per process: its watch never ends."""

    def __init__(self, limit_minutes: float):
        self.limit = 60 * limit_minutes
        self.step, self.phase, self.since, self.seconds, self.memory = 0, "start", time.monotonic(), {}, {}
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        """Adds up its own ticks. Where a tick took much longer, nothing ran (Ctrl-Z, a closed laptop): no hang."""
        tick, since, waited, before = min(1.0, self.limit / 10), self.since, 0.0, time.monotonic()
        while waited < self.limit:
            time.sleep(tick)
            now = time.monotonic()
            waited, before = waited + min(now - before, 2 * tick), now
            if since != self.since:  # another phase
                since, waited = self.since, 0.0
        late = f"not done after {self.limit / 60:g} minutes (--timeout-minutes)"
        print(f"grpo.py: error: {self.where}: {late}", file=sys.stderr, flush=True)
        os._exit(1)

    @contextmanager
    def __call__(self, phase: str):
        self._book("between")
        self.phase = phase
        yield  # no finally: after an exception the phase stays, for `where`
        self._book(phase)
        self.phase = f"after {phase}"
        if torch.cuda.is_available():
            free, total = torch.cuda.mem_get_info()
            self.memory[phase] = max(self.memory.get(phase, 0.0), (total - free) / 2**30)
            if phase == "sleep":
                self.memory["free_after_sleep"] = free / 2**30

    def _book(self, phase: str) -> None:
        now = time.monotonic()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self.since
        self.since = now

    def take(self) -> dict:
        """What a line of metrics.jsonl has of them, since the last `take`: the seconds of each phase, those between
        phases, and in "step" their sum, so that none is missing; and the memory, or None without a GPU."""
        self._book("between")
        seconds, memory, self.seconds, self.memory = self.seconds, self.memory, {}, {}
        return {"seconds": {**seconds, "step": sum(seconds.values())}, "memory": memory or None}

    @property
    def where(self) -> str:
        return f"rank {os.environ.get('RANK', '0')}, step {self.step}, phase {self.phase}"


if __name__ == "__main__":  # torchrun, but without its 40 lines of report on a user's mistake, which a rank has named
    steady_streams()
    for name in ("multiprocessing.api", "agent.server.api"):
        logging.getLogger(f"torch.distributed.elastic.{name}").setLevel(logging.CRITICAL)
    try:
        torch.distributed.run.main()
    except SignalException as stop:  # the ranks have said what it did
        sys.exit(128 + stop.sigval)
    except ChildFailedError as error:
        if error.get_first_failure()[1].exitcode == 2:
            sys.exit(2)
        raise
