"""Words and pictures of a run, from its metrics: pytest tests/test_metrics.py"""

import json
import re

import numpy as np
import pytest
from helpers import tiny_config

import metrics


def curve(*knots: tuple[int, float], noise: float = 0.0) -> list[float]:
    """100 steps of straight lines between the knots (step, entropy), with noise of that standard deviation."""
    steps, values = zip(*knots)
    return list(np.interp(range(100), steps, values) + noise * np.random.default_rng(0).standard_normal(100))


def numbers(words: str) -> list[float]:
    return [float(word) for word in words.replace(",", "").split() if word.replace(".", "").isdigit()]


@pytest.mark.parametrize("noise", [0.0, 0.03])
def test_words_name_each_turn_of_a_curve(noise):
    """Means of 5 steps lie within 2 steps of the knots, and within what the curve does in 2 steps of their values;
    noise adds at most three standard errors of such a mean."""
    words = metrics.entropy_in_words(curve((0, 1.0), (25, 0.6), (50, 1.1), (99, 0.2), noise=noise))
    assert [word for word in words.split() if word in ("rose", "fell")] == ["fell", "rose", "fell"]
    start, low, at_low, high, at_high, end = numbers(words)
    assert [start, low, high, end] == pytest.approx([1.0, 0.6, 1.1, 0.2], abs=2 * 0.5 / 25 + 3 * noise / 5**0.5 + 0.005)
    if not noise:
        assert [at_low, at_high] == pytest.approx([25, 50], abs=2)


def test_words_leave_out_what_is_small():
    assert metrics.entropy_in_words(curve((0, 1.0), (50, 1.1), (99, 1.0))) == "stayed near 1.05"
    assert metrics.entropy_in_words(curve((0, 1.0), (30, 1.1), (99, 0.3))).startswith("fell from 1.0")


@pytest.mark.parametrize("entropy", [[0.7], [0.7, 0.7], [1.0, 0.2]])
def test_words_of_a_run_of_a_few_steps(entropy):
    words = metrics.entropy_in_words(entropy)
    assert words == ("fell from 1.00 to 0.20" if entropy[-1] == 0.2 else "stayed near 0.70")


def reference(label: str, seed: int) -> dict:
    curves = {"step": [0.5, 50.0, 99.5], "entropy": [1.0, 0.8, 0.5 + 0.1 * seed], "reward": [0.1, 0.2, 0.3]}
    return {"label": label, "seed": seed, "h_init": 1.0, "final": {"entropy": 0.5 + 0.1 * seed}, "curves": curves}


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    path = tmp_path / "tiny.jsonl"
    lines = [reference(label, seed) for label in ("static", "id", "did") for seed in (0, 1)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.setattr(metrics, "REFERENCES", path)


def test_a_run_of_the_tiny_preset_is_held_against_static_and_its_own_schedule(shipped):
    beside = metrics.references(tiny_config(schedule="id", seed=3, save_every=7))
    assert {label: [line["seed"] for line in lines] for label, lines in beside.items()} == {
        "static": [0, 1],
        "id": [0, 1],
    }
    assert list(metrics.references(tiny_config(schedule="static"))) == ["static"]


@pytest.mark.parametrize(
    "change",
    [{"lr": 1e-3}, {"total_steps": 50}, {"objective": "entropy-bonus"}, {"model": "x"}, {"reward": "my:score"}],
)
def test_a_run_with_other_settings_is_held_against_nothing(shipped, change):
    assert metrics.references(tiny_config(schedule="static", **change)) == {}


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
    text = metrics.farewell(tiny_config(schedule="id"), tmp_path)
    assert "entropy rose from" in text and "and was 1.4" in text  # near the top, at half-time
    shipped_seeds = r", mean of 2 seeds: 1.00 at the start, \d\.\d\d at half-time, 0.55 at the end \(0.50 to 0.60\)"
    assert re.search("static" + shipped_seeds, text) and re.search("id" + shipped_seeds, text)
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    text = metrics.farewell(tiny_config(schedule="id", lr=1e-3), tmp_path)
    assert "entropy rose from" in text and "seeds" not in text
