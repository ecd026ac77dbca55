"""How jobs end: real processes that fail, hang, are interrupted and are killed: pytest tests/test_distributed.py (about
two minutes)"""

import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import HERE
from hypothesis import given
from hypothesis import strategies as st
from test_checkpoint import metrics, weights

from trainer.distributed import Phases, StopRequest, my_share, seed_of

TORCHRUN = [sys.executable, "-m", "trainer.distributed"]  # as torchrun.sh starts it
FLAGS = (
    "--preset tiny --total-steps 3 --prompts-per-step 8 --group-size 8 --epochs 4 --mini-batches 1 "
    "--sampler transformers --schedule id"
).split()
MISCHIEF = """
import os, time, signal
from tasks import tiny

def score(golds, responses):
    if os.environ["RANK"] == "1":
        {action}
    return tiny.score(golds, responses)
"""


def test_every_second_of_a_step_is_counted_once(monkeypatch):
    """A clock that is set by hand, so that no machine is too slow."""
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now, sleep=time.sleep)
    monkeypatch.setattr("trainer.distributed.time", clock)
    phases = Phases(float("inf"))

    def run(step):  # of 10 seconds, 4 of them between phases
        for phase, inside, after in (("rollout", 1, 1), ("update", 2, 0), ("rollout", 3, 3)):
            with phases(phase):
                clock.now += inside
            clock.now += after
        return phases.take()

    clock.now = 5.0  # before the first step
    phases.take()
    for step in range(2):
        assert run(step) == {"seconds": {"between": 4, "rollout": 4, "update": 2, "step": 10}, "memory": None}
    clock.now += 7  # after a step's line: in the next one
    assert run(2)["seconds"]["step"] == 17


class Job:
    """A torchrun job whose processes can all be found again, by a mark in their environment."""

    def __init__(self, tmp_path, *flags, action="pass", launch=("--standalone", "--nproc_per_node=2")):
        (tmp_path / "mischief.py").write_text(MISCHIEF.format(action=action))
        self.mark, self.output = uuid.uuid4().hex, tmp_path / "run"
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(tmp_path), "JOB_MARK": self.mark}
        command = [
            *TORCHRUN,
            *launch,
            "grpo.py",
            *FLAGS,
            "--reward",
            "mischief:score",
            "--output",
            str(self.output),
            *flags,
        ]
        self.log = tmp_path / "log.txt"
        self.process = subprocess.Popen(
            command, cwd=HERE, env=environment, stdout=open(self.log, "w"), stderr=subprocess.STDOUT
        )

    def processes(self) -> list[int]:
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if self.mark.encode() in path.read_bytes() and "Z" not in (path.parent / "stat").read_text().split()[2]:
                    found.append(int(path.parent.name))
            except OSError:
                pass  # it has just ended
        return found

    def wait_for_steps(self, n):
        while (
            not (self.output / "metrics.jsonl").exists()
            or len((self.output / "metrics.jsonl").read_text().splitlines()) < n
        ):
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.1)

    def end(self, within: float) -> tuple[int, str]:
        """The exit code and all output; nothing of the job may be left, seconds after its end."""
        start = time.monotonic()
        try:
            code = self.process.wait(timeout=within)
        finally:
            self.process.kill()
        while self.processes() and time.monotonic() - start < within:
            time.sleep(0.2)
        left = self.processes()
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        assert not left, self.log.read_text()
        return code, self.log.read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc, which only Linux has")
class TestEndings:
    def test_success_leaves_nothing(self, tmp_path):
        """With one prompt a step, so that one of the two ranks has none."""
        code, log = Job(tmp_path, "--total-steps", "2", "--prompts-per-step", "1").end(within=400)
        assert code == 0, log

    def test_an_exception_on_one_rank_ends_all_and_is_shown_last(self, tmp_path):
        broken = "__import__('sys').modules['__main__'].make_batch = lambda *args: 1 / 0"
        code, log = Job(tmp_path, action=broken).end(within=400)
        assert code == 1
        last = log[log.rindex("Root Cause") :]
        assert "ZeroDivisionError" in last and "rank 1, step 0, phase after old_stats" in log

    def test_a_rank_that_dies_ends_the_others(self, tmp_path):
        code, log = Job(tmp_path, action="os.kill(os.getpid(), signal.SIGKILL)").end(within=400)
        assert code == 1
        assert "Signal 9 (SIGKILL) received" in log[log.rindex("Root Cause") :]

    def test_a_phase_that_hangs_is_named_with_its_rank(self, tmp_path):
        code, log = Job(tmp_path, "--timeout-minutes", "0.25", action="time.sleep(1000)").end(within=400)
        assert code == 1
        assert "rank 1, step 0, phase reward: not done after 0.25 minutes (--timeout-minutes)" in log

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    def test_a_signal_to_torchrun_ends_all(self, tmp_path, number):
        job = Job(tmp_path, "--total-steps", "1000")
        job.wait_for_steps(1)
        job.process.send_signal(number)
        code, log = job.end(within=400)
        assert code == 128 + number and "Traceback" not in log
        assert f"stopped by {number.name} after" in log
        assert list((tmp_path / "run/checkpoints").glob("step-*[0-9]"))

    def test_kill_9_of_torchrun_ends_its_ranks(self, tmp_path):
        job = Job(tmp_path, "--total-steps", "1000")
        job.wait_for_steps(1)
        assert len(job.processes()) >= 3
        job.process.kill()
        job.end(within=100)


@pytest.mark.parametrize(
    "argv",
    [
        ["grpo.py", *FLAGS, "--total-steps", "1", "--output", "OUT"],
        [
            "evaluate.py",
            *"--model tiny --benchmarks tiny --samples 1 --sampler transformers --output OUT".split(),
        ],
    ],
)
def test_no_rank_exits_with_its_process_group_up(tmp_path, argv):
    """About one exit in ten of such ranks was an abort. The second time there is nothing left to do."""
    argv = [str(tmp_path / "out") if word == "OUT" else word for word in argv]
    script = "import atexit, os, runpy, sys, torch.distributed as d; "
    script += "atexit.register(lambda: d.is_initialized() and os._exit(77)); sys.argv = {}; "
    for words in (argv, ["grpo.py", "--resume", argv[-1]] if argv[0] == "grpo.py" else argv):
        command = [sys.executable, "-c", script.format(words) + "runpy.run_path(sys.argv[0], run_name='__main__')"]
        done = subprocess.run(
            command, cwd=HERE, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_two_agents_are_one_job(tmp_path):
    """Two nodes, here two torchrun agents with two ranks each, shard within a node and replicate between nodes (HSDP).

    The learning rate is too small to change a float32 weight. So both jobs sample the same responses, and each gradient
    is a sum over the same tokens, added up in another order. A sum of n float32 numbers is off by at most n · 2^-24 of
    the sum of their sizes, which is 1e-3 for the 10^4 tokens that there are at most. A gradient that misses a node's
    share, or counts it twice, is off by a factor."""
    still = ["--lr", "1e-15", "--total-steps", "2"]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    jobs = []
    for node in range(2):
        (tmp_path / str(node)).mkdir()
        launch = (
            f"--nnodes=2 --nproc_per_node=2 --node_rank={node} --master_addr=127.0.0.1 --master_port={port}".split()
        )
        jobs.append(Job(tmp_path / str(node), "--output", str(tmp_path / "two"), *still, launch=launch))
    for job in jobs:
        code, log = job.end(within=400)
        assert code == 0, log
    (tmp_path / "one").mkdir()
    code, log = Job(tmp_path / "one", *still, launch=("--standalone", "--nproc_per_node=4")).end(within=400)
    assert code == 0, log
    for a, b in zip(metrics(tmp_path / "two"), metrics(tmp_path / "one/run"), strict=True):
        assert a["reward"] == b["reward"] and a["n_tokens"] == b["n_tokens"] < 10_000
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-3)
    start = weights(tmp_path / "one/run")
    assert all(torch.equal(tensor, start[name]) for name, tensor in weights(tmp_path / "two").items())


def test_nohup_is_respected():
    handlers = {number: signal.getsignal(number) for number in range(1, 32)}
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        StopRequest()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN != signal.getsignal(signal.SIGTERM)
    finally:
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
            signal.signal(number, handlers[number])


@given(st.lists(st.integers(), max_size=40), st.integers(1, 9))
def test_shares_join_to_the_whole_and_are_nearly_equal(items, world_size):
    shares = [my_share(items, rank, world_size) for rank in range(world_size)]
    assert sum(shares, []) == items
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_seeds_differ_and_last():
    seeds = {seed_of(*parts) for parts in [(0, 1), (1, 0), (0, 1, 0), (0, "1"), ("0", 1)]}
    assert len(seeds) == 5 and all(0 <= seed < 2**32 for seed in seeds)
    assert seed_of(0, "rollout", 3, 0, 1) == seed_of(0, "rollout", 3, 0, 1)
