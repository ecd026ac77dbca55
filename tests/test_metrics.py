"""Tables and pictures of a run, from its metrics: pytest tests/test_metrics.py"""

import json
import re

import numpy as np
import pytest
from helpers import python, tiny_config

from trainer import farewell, plots


def curve(*knots: tuple[int, float], noise: float = 0.0) -> list[float]:
    """100 steps of straight lines between the knots (step, entropy), with noise of that standard deviation."""
    steps, values = zip(*knots)
    return list(np.interp(range(100), steps, values) + noise * np.random.default_rng(0).standard_normal(100))


def test_table_of_entropy():
    seeds = np.array([curve((0, 1.0), (50, 2.0), (99, 0.5)), curve((0, 1.0), (50, 1.0), (99, 0.7))])
    table = plots.entropy_table({"this run": seeds[:1], "static": seeds}).splitlines()
    assert [line.split() for line in table] == [
        ["entropy", "(nats)", "at", "step", "0", "25", "50", "74", "99"],
        ["this", "run", "1.00", "1.50", "2.00", f"{2 - 24 / 49 * 1.5:.2f}", "0.50"],
        ["static", "1.00", "1.25", "1.50", f"{1.5 - 24 / 49 * 0.9:.2f}", "0.60", "(0.50", "to", "0.70)"],
    ]


@pytest.mark.parametrize("entropy, steps", [([0.7], 1), ([1.0, 0.2], 2), ([1.0, 0.5, 0.2], 3)])
def test_table_of_a_run_of_a_few_steps(entropy, steps):
    head, row = plots.entropy_table({"run": np.array([entropy])}).splitlines()
    assert head.split()[4:] == [str(step) for step in range(steps)]
    assert [float(value) for value in row.split()[1:]] == entropy


def shipped_run(label: str, seed: int) -> dict:
    """Entropy of 20 windows: static falls from 1 to .6, the others rise to 1.5 + .1 · seed and fall to .8."""
    peak = 1.0 if label == "static" else 1.5 + 0.1 * seed
    entropy = [*np.linspace(1.0, peak, 10), *np.linspace(peak, 0.6 if label == "static" else 0.8, 10)]
    return {"label": label, "seed": seed, "h_init": 1.0, "curves": {"entropy": entropy}}


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    path = tmp_path / "tiny.jsonl"
    lines = [shipped_run(label, seed) for label in ("static", "id", "did") for seed in (0, 1)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.setattr(farewell, "SHIPPED", path)


def test_a_run_of_the_built_in_task_is_held_against_static_and_its_own_schedule(shipped):
    found = farewell.shipped(tiny_config(schedule="id", seed=3, save_every=7))
    assert {label: list(seeds) for label, seeds in found.items()} == {"static": [0, 1], "id": [0, 1]}
    assert list(farewell.shipped(tiny_config(schedule="static"))) == ["static"]
    assert farewell.is_built_in(tiny_config(schedule="id", seed=3, save_every=7))


@pytest.mark.parametrize(
    "change",
    [
        {"lr": 1e-3},
        {"total_steps": 50},
        {"objective": "entropy-bonus"},
        {"model": "x"},
        {"reward": "my:score"},
        {"temperature": 0.5},
        {"max_grad_norm": 0.01},
        {"is_correction": "token"},
        {"train_regions": "E2"},
        {"dynamic_sampling": 3},
    ],
)
def test_a_run_with_other_settings_is_held_against_nothing(change):
    assert not farewell.is_built_in(tiny_config(schedule="static", **change))


def test_measures_of_curves_that_are_known():
    run = curve((0, 1.0), (49, 2.0), (50, 2.0), (99, 0.5))
    found = farewell.measure(run, curve((0, 1.0), (99, 1.0)))
    last, peak = np.mean(run[95:]), np.mean(run[45:50])
    assert found == pytest.approx(
        {"rise": peak, "half-time": np.mean(run[45:55]), "fall": last / max(peak, np.mean(run[50:55]))}
    )


def write_run(directory, entropy: list[float]):
    entropy = np.interp(np.linspace(0, 99, tiny_config().total_steps), range(100), entropy)  # as many steps as it has
    line = {"reward": 0.25, "clip_frac_high": 0.0, "clip_frac_low": 0.0, "upper": [0.0, 0.2], "lower": [0.0, 0.2]}
    line |= {"target": None, "seconds": {"step": 1.2}}
    lines = [line | {"step": step, "entropy": value} for step, value in enumerate(entropy.tolist())]
    directory.mkdir(exist_ok=True)
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_the_farewell_says_what_entropy_did_here_and_elsewhere_and_draws_it(shipped, tmp_path, monkeypatch):
    write_run(tmp_path, curve((0, 1.0), (50, 1.55), (99, 0.2)))
    write_run(tmp_path / "static", curve((0, 1.0), (99, 0.6)))
    monkeypatch.setattr(farewell, "train_static", lambda cfg, directory: directory / "static")
    text = farewell.farewell(tiny_config(schedule="id"), tmp_path)
    assert re.search(r"^id: entropy rose to 1\.\d+ times its start, was 1\.\d+ times static's at half-time", text, re.M)
    assert re.search(r"peak of the first half / start +1\.5\d  \(2 seeds gave 1\.50 to 1\.60\)$", text, re.M)
    assert re.search(r"end / peak +0\.\d+  \(2 seeds gave 0\.50 to 0\.53: outside\)$", text, re.M)
    table = dict(re.findall(r"^(this run|static, the same seed|id, mean of 2 seeds) +(.*)$", text, re.M))
    assert table["this run"].split()[0:5:4] == ["1.00", "0.20"] and table["static, the same seed"].split()[4] == "0.60"
    assert table["id, mean of 2 seeds"].split()[0] == "1.00" and "(0.80 to 0.80)" in table["id, mean of 2 seeds"]
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    text = farewell.farewell(tiny_config(schedule="id", lr=1e-3), tmp_path)
    assert "this run" in text and "seeds" not in text


def test_a_broken_line_of_metrics_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n{"step": 1, "ent\n{"step": 2}\n')
    with pytest.raises(ValueError, match=r"metrics.jsonl, line 2, can't be read"):
        plots.plot_runs([tmp_path], tmp_path / "out.png")


REPORT = """
import psutil, sys
from pathlib import Path
from trainer.config import parse_config
from trainer.distributed import end_distributed, init_distributed
from trainer.logger import Logger

init_distributed(5)
directory, report_to, first = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
logger = Logger(parse_config(["--preset", "tiny", "--report-to", report_to]), directory, first)
for step in range(first, 2):
    logger.log({"step": step, "entropy": 1.5 - step, "reward": 0.25, "clip_frac_high": 0.0, "clip_frac_low": 0.0,
                "reasons": {"correct": 0.25}, "upper": [-0.25, 0.5], "lower": [0.0, 0.2], "target": None})
    if step == first and len(sys.argv) > 4:
        for child in psutil.Process().children(recursive=True):
            child.kill()
logger.close()
logger.finish_report()
end_distributed()
"""


def test_tensorboard_has_every_number_of_every_step_of_a_resumed_run(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for first in (0, 1):  # the second process makes step 1 again, as a resumed run does
        python("-c", REPORT, tmp_path, "tensorboard", first)
    events = EventAccumulator(str(tmp_path)).Reload()
    found = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert found["entropy"] == [(0, 1.5), (1, 0.5)]
    assert found["upper/slope"] == [(0, -0.25), (1, -0.25)] and found["upper/intercept"] == [(0, 0.5), (1, 0.5)]
    assert found["reasons/correct"] == [(0, 0.25), (1, 0.25)] and "target" not in found


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """W&B without an account, and with nothing of it in the user's home."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB__SERVICE_WAIT", "300")  # seconds; a busy machine is not a failure
    monkeypatch.setenv("HOME", str(tmp_path))
    for kind in ("CACHE", "CONFIG", "DATA"):
        monkeypatch.setenv(f"WANDB_{kind}_DIR", str(tmp_path / kind))


def test_wandb_has_every_number(tmp_path, offline):
    done = python("-c", REPORT, tmp_path, "wandb", 0)
    summary = dict(re.findall(r"wandb: +(\S+) (-?[0-9.]+)$", done.stderr.partition("Run summary:")[2], re.MULTILINE))
    assert {key: float(summary[key]) for key in ("entropy", "upper/slope", "reasons/correct")} == {
        "entropy": 0.5,
        "upper/slope": -0.25,
        "reasons/correct": 0.25,
    }
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert (tmp_path / "wandb-id").read_text() in str(list(tmp_path.glob("wandb/offline-run-*/*.wandb")))


def test_a_wandb_process_that_dies_ends_the_reporting_and_not_the_run(tmp_path, offline):
    done = python("-c", REPORT, tmp_path, "wandb", 0, "kill")
    assert (done.stdout + done.stderr).count("reporting failed and is off from here on") == 1
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


def test_wandb_without_a_login_is_one_line_at_the_start(tmp_path, offline, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    flags = ["--preset", "tiny", "--report-to", "wandb", "--output", tmp_path / "run"]
    done = python("grpo.py", *flags, check=False)
    (said,) = [line for line in done.stderr.splitlines() if "error" in line]
    assert done.returncode == 2 and "--report-to wandb: " in said and "WANDB_MODE=offline" in said
    assert not (tmp_path / "run").exists()
