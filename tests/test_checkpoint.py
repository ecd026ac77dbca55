"""Checkpoints, resuming, and numbers that go wrong, on real runs: pytest tests/test_checkpoint.py (about two minutes)

Runs are stopped at an exact place by their own reward function, which is a user's code and may do anything.
"""

import json
import math
import os
import resource
import shutil

import pytest
import torch
from helpers import python, torchrun
from safetensors.torch import load_file

from trainer.checkpoint import lock, whole_checkpoints
from trainer.config import parse_config
from trainer.logger import read_lines

SABOTEUR = """
import os, signal, sys
from tasks import tiny

calls = 0

def score(golds, responses):
    global calls
    calls += 1
    step, rank, action = os.environ.get("SABOTAGE", "0 0 none").split()
    if (calls, os.environ["RANK"]) == (int(step), rank):
        if action == "inf":
            return [3e38 if i % 3 else 0.0 for i in range(len(golds))]  # finite, but their mean is not
        if action == "few":
            return [0.0]
        os.kill(os.getpid(), getattr(signal, action))
    return tiny.score(golds, responses)
"""
FLAGS = (
    "--preset tiny --total-steps 6 --prompts-per-step 8 --group-size 8 --epochs 4 --mini-batches 1 "
    "--sampler transformers --save-every 2 --reward saboteur:score"
).split()


def steer(name):
    """The flags of a schedule or of `track`; od's band is so narrow that it should turn within a few steps."""
    if name == "track":
        return ["--objective", "track"]
    return ["--schedule", name, *(["--od-ratio", 0.97] if name == "od" else [])]


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
        assert "stopped by SIGTERM after 4 steps; go on with --resume" in stopped.stderr
    monkeypatch.delenv("SABOTAGE")
    resumed = torchrun(
        "grpo.py", "--resume", tmp_path / "run", "--timeout-minutes", 30
    )  # other flags come from the run
    assert "changed on resume: timeout_minutes 60.0 -> 30.0" in resumed.stdout
    assert f"after {kept} of 6 steps" in resumed.stdout
    expected = metrics(undisturbed(schedule))
    assert metrics(tmp_path / "run") == expected and [line["step"] for line in expected] == list(range(6))
    if schedule == "od":  # the state matters: a schedule that lost it would begin with the entropy of step 2
        remembered = {line["schedule_state"]["h_init"] for line in expected}
        assert remembered == {expected[0]["entropy"]} != {expected[2]["entropy"]}
    assert same_weights(tmp_path / "run", undisturbed(schedule))
    assert sorted(p.name for p in (tmp_path / "run/checkpoints").iterdir())[-2:] == ["step-00004", "step-00006"]


def test_a_reward_function_that_fails_on_one_rank_costs_no_step(undisturbed, tmp_path, monkeypatch):
    monkeypatch.setenv("SABOTAGE", "4 1 few")
    failed = torchrun("grpo.py", *FLAGS, "--schedule", "id", "--output", tmp_path / "run", check=False)
    assert failed.returncode != 0 and "must return a list of one finite number" in failed.stderr
    assert f"stopped after 3 steps; go on with --resume {tmp_path / 'run'}" in failed.stderr
    monkeypatch.delenv("SABOTAGE")
    assert "after 3 of 6 steps" in torchrun("grpo.py", "--resume", tmp_path / "run").stdout
    assert metrics(tmp_path / "run") == metrics(undisturbed("id"))
    assert same_weights(tmp_path / "run", undisturbed("id"))


def test_resume_on_another_number_of_ranks_and_auto(tmp_path, monkeypatch):
    flags = [*FLAGS, "--schedule", "od", "--output", tmp_path / "run", "--resume", "auto"]
    monkeypatch.setenv("SABOTAGE", "4 0 SIGUSR1")
    torchrun("grpo.py", *flags, check=False)  # auto: there is nothing to resume, so it starts
    monkeypatch.delenv("SABOTAGE")
    assert "after 4 of 6 steps" in torchrun("grpo.py", *flags, ranks=1).stdout
    lines = metrics(tmp_path / "run")
    assert [line["step"] for line in lines] == list(range(6))
    # Other seeds from here on, and the same policy. A mean over n tokens of numbers in [0, ln V] has a standard error
    # of at most ln V / (2 √n), which is 0.11 here; a policy whose weights were lost would have H near ln V = 5.6.
    n = min(line["n_tokens"] for line in lines[3:5])
    assert abs(lines[4]["entropy"] - lines[3]["entropy"]) < 5 * 2**0.5 * math.log(259) / (2 * n**0.5) < 1


def test_a_half_written_checkpoint_and_metrics_line_are_not_used(undisturbed, tmp_path):
    torchrun("grpo.py", *FLAGS, "--schedule", "id", "--output", tmp_path / "run")
    run = tmp_path / "run"
    (run / "checkpoints/step-00006").rename(run / "checkpoints/step-00006.tmp")
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 6, "entr')
    torchrun("grpo.py", "--resume", run)
    assert metrics(run) == metrics(undisturbed("id")) and same_weights(run, undisturbed("id"))


@pytest.mark.parametrize("damage", ["truncated", "trainer.json"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_taken(undisturbed, tmp_path, damage):
    run = tmp_path / "run"
    shutil.copytree(undisturbed("id"), run)
    shutil.rmtree(run / "model")
    newest = run / "checkpoints/step-00006"
    if damage == "truncated":
        for shard in newest.glob("*.distcp"):
            shard.write_bytes(shard.read_bytes()[:1000])
    else:
        (newest / "trainer.json").write_text("{")
    done = torchrun("grpo.py", "--resume", run)
    assert f"{newest} is damaged" in done.stderr and "after 4 of 6 steps" in done.stdout
    assert metrics(run) == metrics(undisturbed("id")) and same_weights(run, undisturbed("id"))


def test_checkpoints_are_in_the_order_of_their_steps(tmp_path):
    for name in ("step-99980", "step-100000", "step-99990", "step-100010.tmp"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert [path.name for path in whole_checkpoints(tmp_path)] == ["step-99980", "step-99990", "step-100000"]


def test_a_run_directory_has_one_writer(tmp_path):
    held = lock(tmp_path / "run")
    with pytest.raises(ValueError, match=rf"another run is writing into .*process {os.getpid()} on"):
        lock(tmp_path / "run")
    held.close()
    lock(tmp_path / "run").close()
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="can't be written"):
        lock(tmp_path / "file" / "run")


@pytest.mark.parametrize("left, starts", [(".lock", True), ("config.tmp", True), ("notes.txt", False)])
def test_a_directory_that_a_kill_left_before_the_run_began_is_no_run(tmp_path, capsys, left, starts):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / left).touch()
    for flags in ([], ["--resume", "auto"]):
        if starts:
            assert parse_config(["--preset", "tiny", "--output", str(tmp_path / "run"), *flags]).resume is None
        else:
            with pytest.raises(SystemExit):
                parse_config(["--preset", "tiny", "--output", str(tmp_path / "run"), *flags])
            assert "run exists: name another one" in capsys.readouterr().err


FULL_DISK = """
import json, resource, signal, sys
from pathlib import Path
from trainer.config import parse_config
from trainer.distributed import init_distributed
from trainer.logger import Logger, read_lines

init_distributed()
directory = Path(sys.argv[1])
logger = Logger(parse_config(["--preset", "tiny"]), directory, 0)
line = {"entropy": 0.5, "reward": 0.5, "clip_frac_high": 0, "clip_frac_low": 0, "reasons": {}}
logger.log(line | {"step": 0})
size = (directory / "metrics.jsonl").stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, resource.RLIM_INFINITY))
logger.log(line | {"step": 1})
assert "File too large" in logger.flush()
assert [line["step"] for line in read_lines(directory / "metrics.jsonl")] == [0]
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
logger.log(line | {"step": 2})
assert logger.flush() is None
"""


def test_metrics_that_a_full_disk_refused_are_written_later(tmp_path):
    """A limit on the size of files stands in for the disk: it is reached in the middle of the second line."""
    done = python("-c", FULL_DISK, tmp_path)
    assert "metrics.jsonl can't be written (File too large): its lines are kept" in done.stdout + done.stderr
    assert [line["step"] for line in read_lines(tmp_path / "metrics.jsonl")] == [0, 1, 2]


def limited(limit: int, *flags):
    """A run whose files may not be larger: it stands in for a full disk."""
    limits = dict(preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    return python("grpo.py", *FLAGS, "--schedule", "static", *flags, check=False, **limits)


def test_a_full_disk_does_not_end_the_run_until_its_last_save(tmp_path):
    """The limit is too small for a checkpoint or a model's weights."""
    done = limited(300_000, "--output", tmp_path / "run")
    assert done.returncode == 1 and len(metrics(tmp_path / "run")) == 6
    assert done.stderr.count("going on, the one before it is kept") == 3
    assert not list((tmp_path / "run/checkpoints").glob("*"))
    assert "step-00006 could not be saved" in done.stderr and not (tmp_path / "run/curves.png").exists()


def test_a_disk_that_holds_no_tokenizer_is_noticed_before_the_run(tmp_path):
    done = limited(6_000, "--output", tmp_path / "run")
    assert done.returncode == 2 and not (tmp_path / "run").exists()
    assert "it could not be saved (File too large" in done.stderr and "Traceback" not in done.stderr


# --------------------------------------------------------------------------------------------------- flags on resume


@pytest.fixture
def saved(tmp_path, capsys):
    directory = tmp_path / "run"
    cfg = parse_config(["--preset", "tiny", "--schedule", "did", "--lr", "1e-5", "--output", str(directory)])
    directory.mkdir()
    (directory / "config.json").write_text(cfg.to_json())
    return directory


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
    assert flags[0][2:].replace("-", "_") in capsys.readouterr().err


@pytest.mark.parametrize(
    "text, message", [("[1]", "it is no object"), ('{"preset": "tiny"}', "schedule"), ("{", "can't be read")]
)
def test_resume_of_a_damaged_configuration_is_one_line(saved, text, message, capsys):
    (saved / "config.json").write_text(text)
    with pytest.raises(SystemExit) as stop:
        parse_config(["--resume", str(saved)])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error and len(error.splitlines()) == 1


def test_resume_of_nothing(tmp_path, capsys):
    with pytest.raises(SystemExit):
        parse_config(["--resume", str(tmp_path)])
    assert f"--resume {tmp_path}" in capsys.readouterr().err
    cfg = parse_config(["--resume", "auto", "--output", str(tmp_path / "new")])
    assert cfg.resume is None and cfg.output == str(tmp_path / "new")


# --------------------------------------------------------------------------------------------- numbers that go wrong


def test_advantages_that_are_not_finite_end_the_run_on_all_ranks_and_are_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("SABOTAGE", "2 1 inf")
    done = torchrun("grpo.py", *FLAGS, "--schedule", "static", "--output", tmp_path / "run", check=False)
    assert done.returncode == 1
    assert "numbers in advantages" in done.stderr and "step 1, phase" in done.stderr
    saved = torch.load(tmp_path / "run/bad-step-1/rollouts.pt", weights_only=False)
    assert not saved["advantages"].isfinite().all() and len(saved["rollouts"].responses) == 8 * 8
    assert all(tensor.isfinite().all() for tensor in load_file(tmp_path / "run/bad-step-1/model.safetensors").values())
    assert len(metrics(tmp_path / "run")) == 1


def test_a_gradient_that_is_not_finite_never_reaches_the_weights(tmp_path):
    """A learning rate of 1e38 makes the second optimizer step's activations overflow."""
    flags = [*FLAGS, "--schedule", "static", "--lr", "1e38", "--lr-warmup-steps", 0, "--total-steps", 1]
    done = torchrun("grpo.py", *flags, "--output", tmp_path / "run", check=False)
    assert done.returncode == 1
    assert "gradient norm nan" in done.stderr and "rank 0: " in done.stderr and "numbers in logp" in done.stderr
