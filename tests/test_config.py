"""The command line: presets, and errors that are one line: pytest tests/test_config.py"""

import socket

import pytest
import torch
from helpers import environment, python
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trainer.config import Config, parse_config

FLAGS = sorted(Config.__dataclass_fields__)
VALUES = st.one_of(
    st.sampled_from(
        [
            "",
            "-1",
            "0",
            "1",
            "nan",
            "inf",
            "-inf",
            "1e400",
            "id",
            "od",
            "auto",
            "tiny",
            "none",
            "E1",
            "E9,",
            "true",
            "--seed",
            "\x00",
            "é",
            "[1]",
        ]
    ),
    st.integers().map(str),
    st.floats().map(str),
    st.text(max_size=8),
)


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    flags=st.lists(st.tuples(st.sampled_from([*FLAGS, "learning_rate", "top_p", ""]), VALUES), min_size=1, max_size=4)
)
def test_whatever_the_flags_it_is_a_configuration_or_one_error(flags, capsys):
    argv = ["--preset", "tiny", *(part for name, value in flags for part in (f"--{name}", value))]
    try:
        cfg = parse_config(argv)
    except SystemExit as stop:
        out, err = capsys.readouterr()
        assert stop.code == (0 if "usage" in out else 2)
        if stop.code == 2:
            message = err[err.index("error: ") :].rstrip("\n")
            assert "\n" not in message and len(message) < 500
    else:
        assert cfg.group_size >= 2 and cfg.total_steps >= 1 and 0 < cfg.phase_share < 1 and 0 < cfg.lr < float("inf")
        cfg.to_json()


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--mini-batches", "1", "--epochs", "1"], "every schedule does nothing"),
        (["--schedule", "oscillate"], "invalid choice: 'oscillate'"),
        (["--train-regions", "E2,E5"], "unknown region E5"),
        (["--group-size", "1"], "--group-size must be at least 2"),
        (["--phase-share", "1.0"], "phase_share"),
        (["--mini-batches", "7"], "--mini-batches 7 must divide"),
        (["--micro-batch-tokens", "10"], "--micro-batch-tokens 10"),
        (["--lr", "nan"], "--lr must be at least 1e-30"),
        (["--learning-rate", "1"], "--learning-rate"),
        (["--top-p", "0.9"], "--top-p 0.9"),
        (["--overlong-buffer", "100"], "--overlong-buffer 100 exceeds --max-response-tokens 14"),
        (["--vllm-gpu-memory", "1"], "--vllm-gpu-memory must be at least 0.01 and at most 0.99"),
        (["--objective", "kl-cov", "--schedule", "id"], "--objective kl-cov does not use the thresholds"),
        (["--objective", "track", "--target", "0:1,0.5"], "target: '0.5' is neither"),
        (["--weight-decay", "nan"], "--weight-decay must be"),
        (["--group-size", "1000000000000"], "--group-size must be at least 2 and at most 1000000000"),
        (["--timeout-minutes", "1e12"], "--timeout-minutes must be at least 0.001 and at most 100000"),
        (["--temperature", "1e-300"], "--temperature must be at least 0.01 and at most 100"),
        (["--seed", "-1"], "--seed must be at least 0 and at most"),
        (["--output", f"{__file__}/run"], "test_config.py can't be written"),
        (["--output", "."], "--output . exists"),
        (["--phase-share", "0.4", "--schedule", "od"], "--phase-share 0.4 has no effect"),
        (["--target", "up-down"], "--target up-down has no effect"),
        (["--entropy-bonus", "0.1"], "--entropy-bonus 0.1 has no effect"),
        (["--vllm-tp", "2", "--sampler", "transformers"], "--vllm-tp 2 has no effect"),
    ],
)
def test_a_bad_flag_is_one_line_that_names_it(flags, message, capsys):
    with pytest.raises(SystemExit) as stop:
        parse_config(["--preset", "tiny", *flags])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_flags_override_the_preset():
    cfg = parse_config(["--preset", "paper", "--lr", "5e-6", "--group_size", "16"])
    assert (cfg.lr, cfg.group_size, cfg.total_steps, cfg.model) == (5e-6, 16, 400, "Qwen/Qwen2.5-7B")


@pytest.mark.parametrize("gpus, ranks, preset", [(0, 1, "tiny"), (1, 1, "small"), (8, 8, "paper"), (1, 8, "paper")])
def test_the_preset_is_that_of_the_gpus(gpus, ranks, preset, monkeypatch):
    """The GPUs are made up. In the last case each of eight ranks sees its own alone."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setenv("WORLD_SIZE", str(ranks))
    cfg = parse_config([])
    assert cfg.preset == preset and cfg.schedule == ("od" if preset == "small" else "id")
    assert parse_config(["--objective", "clip-cov"]).schedule == "static"


def test_a_part_of_a_run_is_not_a_run(tmp_path, capsys):
    (tmp_path / "model").mkdir()
    (tmp_path / "metrics.jsonl").touch()
    with pytest.raises(SystemExit):
        parse_config(["--resume", str(tmp_path / "model")])
    assert f"is it --resume {tmp_path}?" in capsys.readouterr().err


def test_local_paths_are_kept_absolute_for_a_resume_from_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m").mkdir()
    (tmp_path / "d.jsonl").touch()
    cfg = parse_config(["--preset", "paper", "--model", "m", "--data", "d.jsonl"])
    assert (cfg.model, cfg.data) == (str(tmp_path / "m"), str(tmp_path / "d.jsonl"))
    assert parse_config(["--preset", "paper", "--model", "someone/m"]).model == "someone/m"


def test_variables_that_another_program_left(tmp_path):
    """WORLD_SIZE alone waited an hour for processes that nobody starts; an exported port may be taken."""
    script = "from trainer.distributed import *; steady_streams(); print(init_distributed(1))"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = str(taken.getsockname()[1])
        assert "cpu" in python("-c", script, env=environment() | {"MASTER_PORT": port}).stdout
    done = python("-c", script, check=False, env=environment() | {"WORLD_SIZE": "2"})
    assert "ValueError: WORLD_SIZE is 2 in the environment, without RANK and MASTER_ADDR and MASTER_PORT" in done.stderr
