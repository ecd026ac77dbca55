"""The study: its arithmetic, its book-keeping, and that the committed results are what the code says: pytest
tests/test_reproduce.py"""

import json
import shutil
from pathlib import Path

import pytest

from methods import Target
from study import reproduce, softmax
from study.figures import draw
from study.reproduce import EXPERIMENTS, Study, parts, seeds_of, summarize
from study.tables import (
    comparisons,
    correct,
    dead,
    half_width,
    holm,
    interval,
    load,
    p_value,
    quantile,
    spread,
    target_table,
    turns,
)
from trainer.config import parse_config
from trainer.logger import read_lines

HERE = Path(__file__).parent.parent  # the repository


def made_up(n: int = 120) -> list[dict]:
    """Lines of a run that follows the target down-up-down exactly, and whose entropy changes by what E2 predicts."""
    target = Target("down-up-down", n)
    return [
        {
            "step": k,
            "entropy": target(k, 0.5),
            "reward": 0.5,
            "correct": k / n,
            "clip_frac_high": 0.01,
            "clip_frac_low": 0.02,
            "predicted_entropy_change": {"E1": 0.0, "E2": target(k + 1, 0.5) - target(k, 0.5), "E3": 0.0, "E4": 0.0},
        }
        for k in range(n)
    ]


def test_summary_of_a_run_whose_numbers_are_known():
    summary = summarize(made_up(), "E1,E2,E3,E4")
    assert summary["prediction"]["correlation"] == pytest.approx(1) and summary["prediction"]["same_sign"] == 1
    assert summary["correct_mean"] == pytest.approx(119 / 240) and summary["final"]["correct"] == pytest.approx(
        (114 + 119) / 240
    )
    assert summary["curves"]["step"][:2] == [0.5, 2.5] and len(summary["curves"]["correct"]) == 60
    assert summary["curves"]["correct"][3] == pytest.approx(6.5 / 120, rel=1e-3)


def test_a_gain_weights_what_is_predicted():
    lines = made_up()
    for line in lines:
        line["predicted_entropy_change"]["E1"] = -1.0  # swamps the correlation unless u = 1 takes it away
        line["controller"] = 1.0 if line["step"] % 2 else 0.0
    assert summarize(lines, "E1,E2,E3,E4", tracks=True)["prediction"]["correlation"] < 0.5
    for line in lines:
        line["controller"] = 1.0
    assert summarize(lines, "E1,E2,E3,E4", tracks=True)["prediction"]["correlation"] == pytest.approx(1)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_command_is_one_that_its_program_takes(experiment):
    for command in EXPERIMENTS[experiment].values():
        _, program, flags = parts(command)
        {"study.softmax": softmax.parse, "grpo.py": parse_config}[program](flags)


def test_runs_are_made_once_and_a_failed_one_is_told(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(
        reproduce,
        "EXPERIMENTS",
        {
            "small": {
                "static": "study.softmax --policy tabular --states 8 --prompts 8 --updates 1",
                "broken": "study.softmax --policy tabular --prompts 65",
            }
        },
    )
    study = Study(tmp_path / "results", tmp_path / "runs", seeds=2, quick=True)
    with pytest.raises(SystemExit, match="2 of 4 runs failed"):
        study.run_all(["small"], jobs=2)
    told = capfd.readouterr()
    assert "--prompts must not exceed --states" in told.err and "('small', 'broken', 1)" in told.out
    lines = read_lines(tmp_path / "results" / "small.jsonl")
    assert sorted((line["label"], line["seed"], line["steps"]) for line in lines) == [
        ("static", 0, 100),
        ("static", 1, 100),
    ]
    assert study.missing(["small"]) == [("small", "broken", 0), ("small", "broken", 1)]


def test_unknown_experiment_is_named(capsys):
    with pytest.raises(SystemExit) as stop:
        reproduce.main(["--only", "linear,circle"])
    assert stop.value.code == 2 and "circle" in capsys.readouterr().err


def test_the_committed_results_are_the_study_and_nothing_else():
    """Each run of `seeds_of` is there, once, by its label's command, and no other."""
    studies = load(HERE / "study/results")
    studies.pop("sanity", None)  # see test_sanity.py
    assert studies.keys() == EXPERIMENTS.keys()
    assert Study(HERE / "study/results", HERE, seeds=None, quick=False).missing(list(EXPERIMENTS)) == []
    for experiment, runs in studies.items():
        for label, lines in runs.items():
            assert {line["command"] for line in lines} == {EXPERIMENTS[experiment][label]}
            assert len(lines) == seeds_of(experiment, label)
            assert all(json.dumps(line, allow_nan=False) for line in lines)


def test_figures_and_tables_come_from_the_results_alone(tmp_path, capsys):
    committed = HERE / "study/results"
    for path in committed.glob("*.jsonl"):
        shutil.copy(path, tmp_path)
    draw(tmp_path)
    assert {path.name for path in tmp_path.glob("*.png")} == {path.name for path in committed.glob("*.png")}
    assert (tmp_path / "tables.md").read_text() == (committed / "tables.md").read_text()
    (tmp_path / "words.jsonl").unlink()
    capsys.readouterr()
    draw(tmp_path)
    assert "draw_words: no results of words" in capsys.readouterr().out


def test_interval_is_students():
    assert interval([1.0, 2.0, 3.0, 4.0, 5.0], 2) == "3.00 ± 1.96"  # 2.776 · sqrt(2.5 / 5)
    assert interval([1.0]) == "1.000"


@pytest.mark.parametrize("n, t", [(2, 12.7062), (3, 4.3027), (4, 3.1824), (10, 2.2622), (20, 2.0930), (31, 2.0423)])
def test_quantiles_are_those_of_the_printed_tables(n, t):
    assert quantile(n) == pytest.approx(t, abs=5e-5)


def test_p_value_is_a_twentieth_where_the_interval_ends_at_zero():
    values = [1.0, 2.0, 3.0, 4.0, 5.0]
    assert p_value([x - 3 + half_width(values) for x in values]) == pytest.approx(0.05)
    assert p_value([2.0, 2.0]) == 0 and p_value([0.0, 0.0]) == 1


def test_holm_divides_by_what_is_left():
    # .01 < .05 / 4, .015 < .05 / 3, .03 > .05 / 2: with it the larger ones are out, though .04 < .05 / 1
    assert holm({"a": 0.04, "b": 0.01, "c": 0.03, "d": 0.015}) == {"b", "d"}


def run_of(seed: int, final: float, predicted: list[float]) -> dict:
    curves = {"predicted": predicted, "clip_frac_high": [0.1], "clip_frac_low": [0.1]}
    prediction = {"same_sign": 0.8}
    return dict(seed=seed, final={"correct": final}, curves=curves, prediction=prediction, error_measured=0.1 * seed)


def test_dead_runs_are_named_and_kept_out():
    good = [run_of(seed, 0.5, [0.1, 0.1]) for seed in (1, 2)]
    frozen, wrong = run_of(3, 0.5, [0.1, 0.0]), run_of(4, 0.001, [0.1, 0.1])
    assert [dead(line) for line in (*good, frozen, wrong)] == [False, False, True, True]
    runs = {"static": good, "track": [*good, frozen, wrong], "stare": good}
    assert "| track | 2 of 4 |  | 15.0 ±" in target_table("some", runs)
    assert spread(runs["track"], correct) == (0.5, 0.001, 0.5)  # median and range
    against = {"track": "static", "stare": "static"}
    assert comparisons(runs, against) == "Comparisons in a column: 1. Dead runs: track 2 of 4."


def test_steps_without_a_gradient_have_no_sign():
    lines = made_up()
    for line in lines[60:]:  # all rewards alike
        line["predicted_entropy_change"] = dict.fromkeys(line["predicted_entropy_change"], 0.0)
    assert summarize(lines, "E1,E2,E3,E4")["prediction"]["same_sign"] == 1


def test_turns_of_a_curve():
    """A move of less than `least` is noise, however many there are of them."""
    assert turns([1.0, 0.5, 0.9, 0.6], 0.1) == 2
    assert turns([1.0, 0.95, 1.02, 0.97, 1.03, 0.95], 0.1) == 0
    assert turns([1.0, 1.2, 1.15, 1.4, 1.35, 0.9, 0.95, 0.5], 0.1) == 1
    assert turns([0.0, 1.0] * 4, 0.5) == 6


def test_a_command_may_begin_with_its_environment():
    assert parts("A=1 B=x=y grpo.py --flag 'a b'") == ({"A": "1", "B": "x=y"}, "grpo.py", ["--flag", "a b"])
    assert parts("study.softmax --target 0:1") == ({}, "study.softmax", ["--target", "0:1"])
