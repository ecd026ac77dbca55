"""Checkpoints, resuming, and numbers that go wrong, on real runs: pytest tests/test_checkpoint.py (about two minutes)

Runs are stopped at an exact place by their own reward function, which is a user's code and may do anything.
"""

import json
import os
import resource
import subprocess
import sys

import pytest
import torch
from helpers import HERE, torchrun
from safetensors.torch import load_file

from config import parse_config

SABOTEUR = """
import os, signal, sys
import rewards

calls = 0

def score(golds, completions):
    global calls
    calls += 1
    step, rank, action = os.environ.get("SABOTAGE", "0 0 none").split()
    if (calls, os.environ["RANK"]) == (int(step), rank):
        if action == "inf":
            return [3e38 if i % 3 else 0.0 for i in range(len(golds))]  # finite, but their mean is not
        os.kill(os.getpid(), getattr(signal, action))
    return rewards.score(golds, completions)
"""
FLAGS = [
    "--preset",
    "tiny",
    "--total-steps",
    6,
    "--prompts-per-step",
    8,
    "--sampler",
    "transformers",
    "--save-every",
    2,
    "--reward",
    "saboteur:score",
    "--od-ratio",
    0.97,
]


def steer(name):
    return ["--objective" if name == "track" else "--schedule", name]


@pytest.fixture(autouse=True)
def saboteur(tmp_path, monkeypatch):
    (tmp_path / "saboteur.py").write_text(SABOTEUR)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


def metrics(directory):
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def weights(directory):
    return load_file(directory / "model/model.safetensors")


def same_weights(a, b):
    a, b = weights(a), weights(b)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Finished runs of 6 steps by schedule, made once."""
    directory, runs = tmp_path_factory.mktemp("undisturbed"), {}
    (directory / "saboteur.py").write_text(SABOTEUR)

    def run(schedule):
        if schedule not in runs:
            runs[schedule] = directory / schedule
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("PYTHONPATH", str(directory))
                torchrun("grpo.py", *FLAGS, *steer(schedule), "--output", runs[schedule])
        return runs[schedule]

    return run


@pytest.mark.parametrize(
    "schedule, sabotage, kept",
    [
        ("od", "4 1 SIGKILL", 2),  # killed in step 3, after the checkpoint of 2 steps and the metrics of 3
        ("id", "4 0 SIGTERM", 4),  # asked to stop in step 3: finishes it and saves
        ("track", "6 0 SIGKILL", 4),  # its controller has an integral
    ],
)
def test_a_stopped_and_resumed_run_is_the_run_that_was_never_stopped(
    undisturbed, tmp_path, monkeypatch, schedule, sabotage, kept
):
    flags = [*FLAGS, *steer(schedule), "--output", tmp_path / "run"]
    monkeypatch.setenv("SABOTAGE", sabotage)
    stopped = torchrun("grpo.py", *flags, check=False)
    assert stopped.returncode != 0 and not (tmp_path / "run/model").exists()
    assert len(metrics(tmp_path / "run")) == int(sabotage[0]) - ("KILL" in sabotage)
    if "TERM" in sabotage:
        assert "stopped by SIGTERM after 4 steps; go on with --resume" in stopped.stdout
    monkeypatch.delenv("SABOTAGE")
    resumed = torchrun(
        "grpo.py", "--resume", tmp_path / "run", "--timeout-minutes", 30
    )  # other flags come from the run
    assert "changed on resume: timeout_minutes 60.0 -> 30.0" in resumed.stdout
    assert f"after {kept} of 6 steps" in resumed.stdout
    expected = metrics(undisturbed(schedule))
    assert metrics(tmp_path / "run") == expected and [line["step"] for line in expected] == list(range(6))
    if schedule == "od":
        assert {line["schedule_state"]["raising"] for line in expected} == {True, False}  # the state matters
    assert same_weights(tmp_path / "run", undisturbed(schedule))
    assert sorted(p.name for p in (tmp_path / "run/checkpoints").iterdir())[-2:] == ["step-00004", "step-00006"]


def test_resume_on_another_number_of_ranks_and_auto(tmp_path, monkeypatch):
    flags = [*FLAGS, "--schedule", "od", "--output", tmp_path / "run", "--resume", "auto"]
    monkeypatch.setenv("SABOTAGE", "4 0 SIGUSR1")
    torchrun("grpo.py", *flags, check=False)  # auto: there is nothing to resume, so it starts
    monkeypatch.delenv("SABOTAGE")
    assert "after 4 of 6 steps" in torchrun("grpo.py", *flags, ranks=1).stdout
    lines = metrics(tmp_path / "run")
    assert [line["step"] for line in lines] == list(range(6))
    assert abs(lines[4]["entropy"] - lines[3]["entropy"]) < 0.05  # other seeds from here on, the same policy


def test_a_half_written_checkpoint_and_metrics_line_are_not_used(undisturbed, tmp_path):
    torchrun("grpo.py", *FLAGS, "--schedule", "id", "--output", tmp_path / "run")
    run = tmp_path / "run"
    (run / "checkpoints/step-00006").rename(run / "checkpoints/step-00006.tmp")
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 6, "entr')
    torchrun("grpo.py", "--resume", run)
    assert metrics(run) == metrics(undisturbed("id")) and same_weights(run, undisturbed("id"))


def test_a_full_disk_does_not_end_the_run_until_its_last_save(tmp_path):
    """The limit on a file's size stands in for a full disk: large enough for metrics, too small for a checkpoint or a
    model."""
    command = [sys.executable, "grpo.py", *map(str, FLAGS), "--schedule", "static", "--output", str(tmp_path / "run")]
    done = subprocess.run(
        command,
        cwd=HERE,
        capture_output=True,
        text=True,
        timeout=200,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000)),
    )
    assert done.returncode == 1
    assert done.stderr.count("going on, the one before it is kept") == 3
    assert len(metrics(tmp_path / "run")) == 6 and not list((tmp_path / "run/checkpoints").iterdir())
    assert "step-00006 could not be saved" in done.stderr and not (tmp_path / "run/curves.png").exists()


# ------------------------------------------------------------------------------------------------------ flags on resume


@pytest.fixture
def saved(tmp_path, capsys):
    cfg = parse_config(["--preset", "tiny", "--schedule", "did", "--lr", "1e-5", "--output", str(tmp_path)])
    (tmp_path / "config.json").write_text(cfg.to_json())
    return tmp_path


def test_resume_takes_the_runs_flags_and_lists_changes(saved):
    cfg = parse_config(["--resume", str(saved), "--lr", "2e-5"])
    assert (cfg.schedule, cfg.lr, cfg.preset, cfg.resume) == ("did", 2e-5, "tiny", str(saved))
    assert cfg.changes(json.loads((saved / "config.json").read_text())) == {"lr": "1e-05 -> 2e-05"}


@pytest.mark.parametrize(
    "flags", [["--schedule", "id"], ["--total-steps", "7"], ["--seed", "1"], ["--data", "x.jsonl"]]
)
def test_resume_refuses_another_run(saved, flags, capsys):
    with pytest.raises(SystemExit) as stop:
        parse_config(["--resume", str(saved), *flags])
    assert stop.value.code == 2
    assert flags[0][2:].replace("-", "_") in capsys.readouterr().err and "--resume-anyway" not in flags
    assert (
        getattr(parse_config(["--resume", str(saved), *flags, "--resume-anyway"]), flags[0][2:].replace("-", "_"))
        is not None
    )


def test_resume_of_nothing(tmp_path, capsys):
    with pytest.raises(SystemExit):
        parse_config(["--resume", str(tmp_path)])
    assert f"--resume {tmp_path}" in capsys.readouterr().err
    cfg = parse_config(["--resume", "auto", "--output", str(tmp_path / "new")])
    assert cfg.resume is None and cfg.output == str(tmp_path / "new")


# ------------------------------------------------------------------------------------------------------ numbers that go
# wrong


def test_advantages_that_are_not_finite_end_the_run_on_all_ranks_and_are_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("SABOTAGE", "2 1 inf")
    done = torchrun("grpo.py", *FLAGS, "--schedule", "static", "--output", tmp_path / "run", check=False)
    assert done.returncode == 1
    assert "numbers in advantages are not finite" in done.stderr and "step 1, phase" in done.stderr
    saved = torch.load(tmp_path / "run/bad-step-1/rollouts.pt", weights_only=False)
    assert not saved["advantages"].isfinite().all() and len(saved["rollouts"].responses) == 64
    assert all(tensor.isfinite().all() for tensor in load_file(tmp_path / "run/bad-step-1/model.safetensors").values())
    assert len(metrics(tmp_path / "run")) == 1


def test_a_gradient_that_is_not_finite_never_reaches_the_weights(tmp_path):
    """A learning rate of 1e38 makes the second optimizer step's activations overflow."""
    flags = [*FLAGS, "--schedule", "static", "--lr", "1e38", "--lr-warmup-steps", 0, "--total-steps", 1]
    done = torchrun("grpo.py", *flags, "--output", tmp_path / "run", check=False)
    assert done.returncode == 1
    assert "gradient norm nan" in done.stderr and "first logp" in done.stderr
    tolerant = torchrun("grpo.py", *flags, "--output", tmp_path / "tolerant", "--skip-bad-steps", 100, check=False)
    assert metrics(tmp_path / "tolerant")[0]["bad_steps"] == 15, tolerant.stderr  # of 16: only the first was sound
