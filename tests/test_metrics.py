"""Tables and pictures of a run, from its metrics: pytest tests/test_metrics.py"""

import json
import re

import numpy as np
import pytest
from helpers import python, tiny_config

from trainer import plots


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


def reference(label: str, seed: int) -> dict:
    curves = {"step": [0.5, 50.0, 99.5], "entropy": [1.0, 0.8, 0.5 + 0.1 * seed], "reward": [0.1, 0.2, 0.3]}
    return {"label": label, "seed": seed, "h_init": 1.0, "final": {"entropy": 0.5 + 0.1 * seed}, "curves": curves}


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    path = tmp_path / "tiny.jsonl"
    lines = [reference(label, seed) for label in ("static", "id", "did") for seed in (0, 1)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.setattr(plots, "REFERENCES", path)


def test_a_run_of_the_tiny_preset_is_held_against_static_and_its_own_schedule(shipped):
    beside = plots.references(tiny_config(schedule="id", seed=3, save_every=7))
    assert {label: [line["seed"] for line in lines] for label, lines in beside.items()} == {
        "static": [0, 1],
        "id": [0, 1],
    }
    assert list(plots.references(tiny_config(schedule="static"))) == ["static"]


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
def test_a_run_with_other_settings_is_held_against_nothing(shipped, change):
    assert plots.references(tiny_config(schedule="static", **change)) == {}


def test_the_farewell_tells_what_the_run_and_others_did_and_draws_all(shipped, tmp_path):
    lines = [
        {
            "step": step,
            "entropy": entropy,
            "reward": 0.25,
            "clip_frac_high": 0.0,
            "clip_frac_low": 0.0,
            "upper": [0.0, 0.2],
            "lower": [0.0, 0.2],
            "target": None,
            "seconds": {"step": 1.2},
        }
        for step, entropy in enumerate(curve((0, 1.0), (50, 1.5), (99, 0.5)))
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = plots.farewell(tiny_config(schedule="id"), tmp_path)
    table = dict(re.findall(r"^(this run|static|id)\b(.*)$", text, re.MULTILINE))
    assert table["this run"].split() == ["1.00", "1.25", "1.50", "1.01", "0.50"]
    shipped = ", mean of 2 seeds 1.00 0.90 0.80 0.68 0.55 (0.50 to 0.60)".split()
    assert table["static"].split() == table["id"].split() == shipped
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    text = plots.farewell(tiny_config(schedule="id", lr=1e-3), tmp_path)
    assert "this run" in text and "seeds" not in text


REPORT = """
import sys
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
logger.close()
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


def test_wandb_has_every_number(tmp_path, monkeypatch):
    """Offline, which needs no account."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB__SERVICE_WAIT", "300")  # seconds; a busy machine is not a failure
    for kind in ("CACHE", "CONFIG", "DATA"):
        monkeypatch.setenv(f"WANDB_{kind}_DIR", str(tmp_path / kind))  # and nothing of it in the user's home
    done = python("-c", REPORT, tmp_path, "wandb", 0)
    summary = dict(re.findall(r"wandb: +(\S+) (-?[0-9.]+)$", done.stderr.partition("Run summary:")[2], re.MULTILINE))
    assert {key: float(summary[key]) for key in ("entropy", "upper/slope", "reasons/correct")} == {
        "entropy": 0.5,
        "upper/slope": -0.25,
        "reasons/correct": 0.25,
    }
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
