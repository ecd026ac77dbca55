"""Kill a 2-rank run with -9 at random instants, resume it each time, and compare it with a run that was left alone.

./torchrun.sh python tests/kill_runs.py --kills 30       # minutes; ends with a table
./torchrun.sh pytest tests/kill_runs.py                  # 4 kills for each of two schedules
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tqdm import tqdm

from trainer.logger import read_lines

HERE = Path(__file__).parent.parent  # the repository


def start(output: Path, schedule: str) -> subprocess.Popen:
    """A run of 24 steps that saves after each one, so that many kills fall into a checkpoint; it resumes what there
    is."""
    flags = (
        "--preset=tiny --total-steps=24 --prompts-per-step=8 --group-size=8 --epochs=4 --mini-batches=1 --save-every=1 "
        "--sampler=transformers --resume=auto"
    )
    command = [
        *[sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "grpo.py"],
        *flags.split(),
        f"--schedule={schedule}",
        *(["--od-ratio=0.97"] if schedule == "od" else []),
        f"--output={output}",
    ]
    return subprocess.Popen(
        command,
        cwd=HERE,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def steps_done(output: Path) -> int:
    path = output / "metrics.jsonl"
    return len(read_lines(path)) if path.exists() else 0


def kill_and_resume(output: Path, schedule: str, kills: int, seed: int) -> dict[str, int]:
    """Run to the end with `kills` kills of all processes at once; returns how many of them fell where."""
    rng, fell = random.Random(seed), {"before the first step": 0, "between steps": 0, "while saving": 0}
    for _ in tqdm(range(kills), desc=f"kills of {schedule}", unit="kill"):
        process, before = start(output, schedule), steps_done(output)
        deadline = time.monotonic() + 120
        if rng.random() < 0.9:  # wait for a step, so that the run gets on; else a kill at start-up
            while steps_done(output) == before and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.7))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        time.sleep(0.2)  # ranks end with torchrun, by the kernel's signal
        saving = list((output / "checkpoints").glob("*.tmp"))
        fell["while saving" if saving else "between steps" if steps_done(output) else "before the first step"] += 1
        if steps_done(output) == 24:
            break
    log = (process := start(output, schedule)).communicate()[0]
    assert process.returncode == 0, log
    return fell


def compare(a: Path, b: Path) -> tuple[int, float]:
    """(metrics lines that differ, largest difference of a final weight); timings are left out."""

    def lines(run):
        timings = ("seconds", "memory")
        return [{k: v for k, v in line.items() if k not in timings} for line in read_lines(run / "metrics.jsonl")]

    a_lines, b_lines = lines(a), lines(b)
    differ = sum(x != y for x, y in zip(a_lines, b_lines)) + abs(len(a_lines) - len(b_lines))
    a, b = (load_file(run / "model/model.safetensors") for run in (a, b))
    return differ, max((a[name] - b[name]).abs().max().item() for name in a | b)


def kill_test(schedule: str, kills: int, seed: int) -> str:
    """A line of the table; raises if there is a difference."""
    with tempfile.TemporaryDirectory() as directory:
        alone, killed = Path(directory, "alone"), Path(directory, "killed")
        process = start(alone, schedule)
        log = process.communicate()[0]
        assert process.returncode == 0, log
        fell = kill_and_resume(killed, schedule, kills, seed)
        differ, largest = compare(alone, killed)
    line = "| " + " | ".join(map(str, [schedule, sum(fell.values()), *fell.values(), differ, largest])) + " |"
    assert differ == 0 and largest == 0, line
    return line


@pytest.mark.parametrize("schedule", ["id", "od"])
def test_a_killed_run_is_the_run_left_alone(schedule):
    kill_test(schedule, kills=4, seed=0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Kill runs at random instants, resume them, and compare.")
    parser.add_argument("--kills", type=int, default=30, help="for each schedule")
    parser.add_argument("--schedules", nargs="+", default=["id", "did", "od"])
    parser.add_argument("--seed", type=int, default=0, help="of the instants")
    args = parser.parse_args()
    print(
        "| schedule | kills | before the first step | between steps | while saving | "
        "lines of metrics that differ | largest difference of a weight |"
    )
    print("|---|---|---|---|---|---|---|")
    for schedule in args.schedules:
        print(kill_test(schedule, args.kills, args.seed), flush=True)
