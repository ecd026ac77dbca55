"""What the ranks of one job share: how they start, what each of them does, and how they end together."""

import ctypes
import hashlib
import logging
import os
import signal
import sys
import threading
import time
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.distributed.run
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError


def init_distributed(timeout_minutes: float) -> torch.device:
    """One process group, from torchrun's variables or of this process alone. `timeout_minutes`: of a collective."""
    if sys.platform == "linux":  # end with torchrun, even if that is killed with -9
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    for pair in "RANK=0 LOCAL_RANK=0 WORLD_SIZE=1 LOCAL_WORLD_SIZE=1 MASTER_ADDR=127.0.0.1 MASTER_PORT=0".split():
        os.environ.setdefault(*pair.split("="))
    backend, device = "gloo", torch.device("cpu")
    if torch.cuda.is_available():
        backend, device = "cpu:gloo,cuda:nccl", torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
        torch.backends.cuda.enable_cudnn_sdp(False)  # it makes a plan for every new shape, and most shapes here are new
    dist.init_process_group(backend, timeout=timedelta(minutes=timeout_minutes))
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


def print0(text: str, file=None) -> None:
    """Print on rank 0 only, by default to stdout. It works before the process group exists."""
    if os.environ.get("RANK", "0") == "0":
        print(text, file=file, flush=True)


class StopRequest:
    """Remembers a signal that asks the run to stop, until a step is done: SIGTERM and SIGUSR1 of a batch scheduler,
    Ctrl-C, SIGHUP of a connection that dropped, SIGQUIT. A second Ctrl-C ends the run at once."""

    def __init__(self):
        self.signal = 0
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
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
        while time.monotonic() - self.since < self.limit:
            time.sleep(min(1.0, self.limit / 10))
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
    logging.getLogger("torch.distributed.elastic.multiprocessing.api").setLevel(logging.CRITICAL)
    try:
        torch.distributed.run.main()
    except ChildFailedError as error:
        if error.get_first_failure()[1].exitcode == 2:
            sys.exit(2)
        raise
