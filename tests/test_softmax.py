"""Softmax policies: exact expectations, identities between runs, the paper's signs: pytest tests/test_softmax.py"""

import itertools
import json
import math
from pathlib import Path

import pytest
import torch

from methods import METHODS
from schedules import SCHEDULES, make_schedule
from study.softmax import PRESETS, Settings, SoftmaxPolicy, exact, main, parse, run
from trainer.logger import read_lines
from trainer.plots import plot_runs, read_metrics

SMALL = dict(states=8, positions=2, vocab=16, features=12, prompts=8, group_size=8, updates=4, checked=2)
POLICIES = ("tabular", "linear")


def small(policy="tabular", **kwargs) -> Settings:
    return Settings(**PRESETS[policy] | SMALL | dict(policy=policy) | kwargs)


def entropies(cfg: Settings) -> list[float]:
    return [line["entropy"] for line in run(cfg)]


@pytest.mark.parametrize("policy", POLICIES)
def test_exact_equals_enumeration_of_all_responses(policy):
    cfg = small(policy, states=3, positions=2, vocab=5, prompts=3)
    torch.manual_seed(1)
    model = SoftmaxPolicy(cfg)
    entropy, p_right = exact(model, cfg)
    p = model(torch.arange(6)).softmax(-1).view(3, 2, 5).tolist()
    right = model.right.view(3, 2, 5).tolist()
    total, response_entropy = 0.0, [0.0] * 3
    for s, (a, b) in itertools.product(range(3), itertools.product(range(5), repeat=2)):
        chance = p[s][0][a] * p[s][1][b]
        total += chance * (right[s][0][a] and right[s][1][b])
        response_entropy[s] -= chance * math.log(chance)
    assert p_right.mean() == pytest.approx(total / 3, abs=1e-6)
    assert entropy.sum(1).tolist() == pytest.approx(
        response_entropy, abs=1e-5
    )  # positions are independent: entropies add up


def test_without_spread_the_first_policy_is_uniform_or_zipf():
    assert entropies(small(spread=0.0, total_steps=1))[0] == pytest.approx(math.log(16), abs=1e-6)
    weights = [k**-2.0 for k in range(1, 17)]
    p = [w / sum(weights) for w in weights]
    expected = -sum(x * math.log(x) for x in p)
    for policy in POLICIES:
        assert entropies(small(policy, spread=0.0, zipf=2.0, total_steps=1))[0] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_seed_fixes_the_run_and_only_the_seed(policy):
    cfg = small(policy, schedule="od", total_steps=4)
    assert list(run(cfg)) == list(run(cfg))
    assert entropies(cfg) != entropies(small(policy, schedule="od", total_steps=4, seed=1))


@pytest.mark.parametrize("policy", POLICIES)
def test_measured_change_is_the_difference_of_entropies(policy):
    lines = list(run(small(policy, total_steps=6)))  # prompts = states: every context is in every batch
    changes = [b["entropy"] - a["entropy"] for a, b in itertools.pairwise(lines)]
    assert [line["entropy_change"] for line in lines[:-1]] == pytest.approx(changes, abs=1e-6)
    assert any(abs(change) > 1e-3 for change in changes)


@pytest.mark.parametrize("name", SCHEDULES)
def test_thresholds_are_the_schedules(name):
    lines = list(run(small(schedule=name, total_steps=6, seed=3)))
    schedule = make_schedule(name, 6)
    for line in lines:
        assert [*line["upper"], *line["lower"]] == pytest.approx(sum(schedule(line["step"], line["entropy"]), ()))
    first = next(run(small(total_steps=6, seed=3)))
    assert all(
        lines[0][key] == first[key] for key in ("entropy", "reward", "regions_rule")
    )  # paired: the same first rollouts


def test_nothing_moves_without_learning_or_without_a_difference_of_rewards():
    for frozen in (dict(lr=0.0), dict(paid_correct=1.0, paid_wrong=1.0)):
        lines = list(run(small(total_steps=3, **frozen)))
        assert {line["entropy_change"] for line in lines} == {0.0} and len({line["entropy"] for line in lines}) == 1
        assert all(line["clip_frac_high"] == line["clip_frac_low"] == 0 for line in lines)


def test_e2_is_a_part_of_the_clipped_tokens():
    lines = list(run(small(total_steps=20, updates=16, schedule="id")))
    assert sum(line["clip_frac_high"] for line in lines) > 0
    assert all(0 <= share <= 1 for line in lines for share in line["clipped"].values())
    assert any(0 < line["clipped"]["clip_high_E2"] < 1 for line in lines)
    only = list(run(small(total_steps=5, updates=16, train_regions="E2")))
    above = [line["clipped"]["clip_high_E2"] for line in only if line["clip_frac_high"]]
    assert above and set(above) == {1.0} and all(line["clip_frac_low"] == 0 for line in only)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("region, sign", [("E1", -1), ("E2", 1), ("E3", 1), ("E4", -1)])
def test_training_one_region_moves_entropy_as_predicted(policy, region, sign):
    cfg = Settings(**PRESETS[policy] | dict(policy=policy, train_regions=region, total_steps=15))
    entropy = entropies(cfg)
    assert sign * (entropy[-1] - entropy[0]) > 0.1


@pytest.mark.parametrize("policy", POLICIES)
def test_real_rewards_are_learned(policy):
    right = [line["correct"] for line in run(small(policy, paid_correct=1.0, paid_wrong=0.0, total_steps=40))]
    assert right[-1] > right[0] + 0.2


@pytest.mark.parametrize("policy", POLICIES)
def test_entropy_follows_a_target_while_static_falls(policy):
    cfg = Settings(
        **PRESETS[policy] | dict(policy=policy, objective="track", target="0:1,0.5:0.8,1:0.9", total_steps=60)
    )
    lines = list(run(cfg))
    h_init = lines[0]["measured_entropy"]
    assert lines[30]["target"] == pytest.approx(0.8 * h_init)
    assert sum(abs(line["entropy"] - line["target"]) for line in lines) / 60 < 0.1 * h_init
    assert entropies(Settings(**PRESETS[policy] | dict(policy=policy, total_steps=60)))[-1] < 0.7 * h_init


@pytest.mark.parametrize("objective", METHODS)
def test_every_objective_trains(objective):
    lines = list(run(small(objective=objective, target="0:1,1:2", entropy_bonus=0.1, total_steps=4, lr=0.1)))
    assert all(math.isfinite(line["entropy"]) for line in lines) and lines[0]["entropy_change"] != 0
    assert ([line["entropy"] for line in lines] == entropies(small(total_steps=4, lr=0.1))) == (objective == "grpo")


def test_pass_at_k_is_right_for_one_sample_and_grows_with_k():
    for line in run(small(total_steps=3)):
        assert line["correct"] <= line["pass@8"] <= line["pass@32"] <= 1
    cfg = small(states=1, prompts=1, total_steps=1)  # one state: no mean over states, 1 − (1 − p)^k by hand
    (line,) = run(cfg)
    assert line["pass@8"] == pytest.approx(1 - (1 - line["correct"]) ** 8)


def test_upper_is_above_static_and_lower_below():
    last = {s: entropies(Settings(schedule=s, total_steps=150))[-1] for s in ("lower", "static", "upper")}
    assert last["lower"] < last["static"] < last["upper"]


def test_command_writes_what_plots_draws(tmp_path, capsys):
    out = tmp_path / "run"
    main(["--schedule", "did", "--total-steps", "5", "--seed", "4", "--output", str(out)])
    expected = list(run(parse(["--schedule", "did", "--total-steps", "5", "--seed", "4"])))
    assert read_metrics(out)["entropy"] == [line["entropy"] for line in expected]
    assert json.loads((out / "config.json").read_text())["schedule"] == "did"
    assert "after 5 steps" in capsys.readouterr().out
    plot_runs([out, out], tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000


def test_defaults_are_the_policys_and_flags_win():
    assert parse(["--schedule", "id"]).positions == 2 and parse(["--policy", "linear"]).positions == 4
    assert parse([]).policy == "linear" and parse([]).output == "runs/linear-schedules-seed0"
    assert parse(["--policy", "linear", "--positions", "6"]).positions == 6
    assert parse(["--policy", "linear", "--schedule", "od", "--seed", "2"]).output == "runs/linear-od-seed2"


@pytest.mark.parametrize(
    "argv, named",
    [
        (["--train-regions", "E2,E5"], "E5"),
        (["--policy", "tabular", "--prompts", "65"], "--states"),
        (["--policy", "tabular", "--checked", "3"], "--positions"),
        (["--phase-share", "1"], "phase_share"),
        (["--policy", "cubic"], "cubic"),
        (["--objective", "track", "--target", "up"], "up"),
    ],
)
def test_a_bad_flag_is_named(argv, named, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(argv)
    assert stop.value.code == 2 and named in capsys.readouterr().err


def test_a_target_alone_runs_track_and_static_and_draws_them(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setattr("sys.platform", "linux")  # so no picture opens, whatever machine the test runs on
    main(["--target", "0:1,1:1.2", "--total-steps", "3", "--seed", "5", "--output", str(tmp_path)])
    head, *rows, error, picture = capsys.readouterr().out.splitlines()
    assert head.split()[-3:] == ["0", "1", "2"] and picture == str(tmp_path / "entropy.png")
    assert [row[:24].strip() for row in rows] == ["your curve", "GRPO on it (track)", "GRPO (static)"]
    assert len({row[24:30] for row in rows}) == 1  # one definition of entropy, so they start alike
    assert error.endswith("away from the curve on average.")
    assert (tmp_path / "entropy.png").read_bytes().startswith(b"\x89PNG")
    tracked, static = read_metrics(tmp_path / "track"), read_metrics(tmp_path / "static")
    assert tracked["entropy"][0] == static["entropy"][0]  # the same seed, so the same policy
    assert tracked["target"] == pytest.approx([tracked["measured_entropy"][0] * (1 + 0.2 * k / 3) for k in range(3)])
    assert static["target"] == [None] * 3


def test_without_flags_the_papers_schedules_run_side_by_side(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    main(["--total-steps", "3", "--output", str(tmp_path)])
    head, *rows, note, picture = capsys.readouterr().out.splitlines()
    assert [row.split()[0] for row in rows] == ["static", "id", "did", "od"] and picture == str(
        tmp_path / "entropy.png"
    )
    assert len({row[24:30] for row in rows}) == 1 and (tmp_path / "entropy.png").read_bytes().startswith(b"\x89PNG")
    for name in ("static", "id", "did", "od"):
        (line, *_), schedule = read_lines(tmp_path / name / "metrics.jsonl"), make_schedule(name, 3)
        assert [*line["upper"], *line["lower"]] == pytest.approx(sum(schedule(0, line["measured_entropy"]), ()))


def test_the_notebook_runs_from_top_to_bottom(tmp_path, monkeypatch):
    """Its code cells, in order, with fewer steps."""
    notebook = Path(__file__).parent.parent / "study/entropy_on_a_curve.ipynb"
    cells = [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]
    source = "\n".join("".join(cell["source"]) for cell in cells)
    assert source.count("STEPS = 300") == source.count("STEPS = 20") == 1 and source.count("runs/notebook") == 3
    source = source.replace("STEPS = 300", "STEPS = 3").replace("runs/notebook", str(tmp_path))
    source = source.replace("STEPS = 20", "STEPS = 2")
    monkeypatch.chdir(notebook.parent)  # where Jupyter starts it; this also takes back its own chdir
    monkeypatch.syspath_prepend("")  # and this its change of sys.path
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    exec(compile(source, notebook.name, "exec"), {})
    assert (tmp_path / "entropy.png").exists()
    assert len(read_metrics(tmp_path / "trainer")["entropy"]) == 2  # the trainer's own run
    assert (tmp_path / "trainer/curves.png").exists() and (tmp_path / "trainer/tokens.html").exists()
