"""Nothing that happens around a run loses its steps: pytest tests/test_lost.py

Real processes, whose log, terminal, clock or checkpoints fail.
"""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from helpers import HERE, environment, python

from rewards import load_reward
from tasks import tiny
from trainer.config import parse_config
from trainer.logger import checkpoints_lost

FLAGS = "--preset tiny --prompts-per-step 4 --group-size 4 --epochs 2 --sampler transformers --schedule static".split()
ODD = {  # what real models have in these files, and transformers loads but refuses to save
    "generation_config.json": {"do_sample": False, "temperature": 0.6, "eos_token_id": 1},
    "config.json": {"output_attentions": True},
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of two steps whose log is on a full disk, of a model whose own files can't be saved as they are."""
    directory = tmp_path_factory.mktemp("finished")
    shutil.copytree(tiny.ensure_model(), directory / "odd")
    for name, values in ODD.items():
        path = directory / "odd" / name
        path.write_text(json.dumps(json.loads(path.read_text()) | values))
    with open("/dev/full", "w") as full:
        log = dict(stdout=full, stderr=full, capture_output=False)
        python(
            *["grpo.py", *FLAGS, "--total-steps", 2, "--save-every", 1],
            *["--model", directory / "odd", "--output", directory / "run"],
            **log,
        )
    return directory


def test_a_log_on_a_full_disk_does_not_end_a_run(finished):
    assert len((finished / "run/metrics.jsonl").read_text().splitlines()) == 2
    assert (finished / "run/curves.png").exists() and (finished / "run/model/model.safetensors").exists()


def test_a_model_is_saved_with_the_files_that_it_came_with(finished):
    for name in ODD:
        assert (finished / "run/model" / name).read_bytes() == (finished / "odd" / name).read_bytes()


def test_steps_whose_checkpoints_are_gone_are_not_erased(finished, tmp_path):
    shutil.copytree(finished / "run", tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints")
    lines = (tmp_path / "run/metrics.jsonl").read_text()
    done = python("grpo.py", "--resume", tmp_path / "run", check=False)
    assert done.returncode == 2 and "has 2 steps in metrics.jsonl, and no checkpoint" in done.stderr
    assert (tmp_path / "run/metrics.jsonl").read_text() == lines


def test_which_runs_must_have_had_a_checkpoint(tmp_path):
    assert checkpoints_lost(tmp_path, 1, 20)  # the directory is made with the run
    (tmp_path / "checkpoints").mkdir()
    assert not checkpoints_lost(tmp_path, 20, 20)  # killed before its first one was whole
    assert checkpoints_lost(tmp_path, 21, 20)
    (tmp_path / "checkpoints/step-00003.damaged").mkdir()
    assert checkpoints_lost(tmp_path, 3, 20)


def test_ctrl_c_under_tee_saves(tmp_path):
    """Ctrl-C goes to every process of the terminal's foreground group: `tee` ends, and what the run prints is lost."""
    run, flags = tmp_path / "run", " ".join([*FLAGS, "--total-steps 1000 --output", str(tmp_path / "run")])
    command = f"{sys.executable} grpo.py {flags} 2>&1 | tee {tmp_path / 'log'}; exit ${{PIPESTATUS[0]}}"
    job = subprocess.Popen(
        ["bash", "-c", f"trap : INT; {command}"], cwd=HERE, env=environment(), start_new_session=True
    )
    while not (run / "metrics.jsonl").exists() or not (run / "metrics.jsonl").read_bytes():
        assert job.poll() is None, (tmp_path / "log").read_text()
        time.sleep(0.1)
    os.killpg(job.pid, signal.SIGINT)
    assert job.wait(timeout=200) == 128 + signal.SIGINT
    (checkpoint,) = (run / "checkpoints").iterdir()
    assert int(checkpoint.name[-5:]) == len((run / "metrics.jsonl").read_text().splitlines())


def test_a_reader_that_ends_and_an_ascii_terminal_do_not_end_a_run(tmp_path):
    flags = [*FLAGS, "--total-steps", "1", "--output", str(tmp_path / "run")]
    options = dict(cwd=HERE, env=environment() | {"PYTHONIOENCODING": "ascii"}, stderr=subprocess.STDOUT)
    job = subprocess.Popen([sys.executable, "grpo.py", *flags], stdout=subprocess.PIPE, **options)
    assert b"preset tiny" in job.stdout.readline()
    job.stdout.close()
    assert job.wait(timeout=200) == 0 and (tmp_path / "run/model/model.safetensors").exists()


SUSPENDED = """
import time
from trainer.distributed import Phases
phases = Phases(3 / 60)
print("started", flush=True)
with phases("update"):
    time.sleep(2)
"""


def test_a_suspended_process_did_not_hang():
    """Ctrl-Z, or the lid of a laptop: the clock goes on for longer than the limit, the process does not."""
    job = subprocess.Popen([sys.executable, "-c", SUSPENDED], cwd=HERE, env=environment(), stdout=subprocess.PIPE)
    job.stdout.readline()
    job.send_signal(signal.SIGSTOP)
    time.sleep(5)
    job.send_signal(signal.SIGCONT)
    assert job.wait(timeout=100) == 0


@pytest.mark.parametrize("error", [SystemExit(2), asyncio.CancelledError(), GeneratorExit()], ids=repr)
def test_whatever_a_reward_raises_is_an_error_that_the_run_survives(error, monkeypatch):
    def ends_itself(golds, responses):
        raise error

    monkeypatch.setattr(tiny, "ends_itself", ends_itself, raising=False)
    with pytest.raises(RuntimeError, match=type(error).__name__):
        load_reward("tasks.tiny:ends_itself")(["1"], ["2"])


def test_a_script_as_a_reward_is_refused(tmp_path, monkeypatch):
    (tmp_path / "script_reward.py").write_text("import argparse\nargparse.ArgumentParser().parse_args(['--x'])")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="script_reward:score can't be used .SystemExit"):
        load_reward("script_reward:score")


def test_a_path_that_no_model_can_be_saved_into_is_refused(capsys):
    with pytest.raises(SystemExit):
        parse_config(["--preset", "tiny", "--output", os.fsdecode(b"run-\xff")])
    assert "give a path that is UTF-8" in capsys.readouterr().err
