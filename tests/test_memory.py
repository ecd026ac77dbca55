"""The memory estimate: pytest tests/test_memory.py"""

import importlib.util
import json
from argparse import Namespace

import pytest
import torch
from helpers import python
from transformers import AutoModelForCausalLM, Qwen2Config

from study.memory import GIB, main, micro_batches, step_time, training_memory
from trainer.policy import check_memory
from trainer.rollout import SYNC_TOLERANCE

CPU = torch.device("cpu")
needs_vllm = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed here")


def config(directory, hidden, layers):
    """A model's directory without weights: the estimate comes before they are loaded."""
    Qwen2Config(
        vocab_size=1000,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=1,
        tie_word_embeddings=False,
    ).save_pretrained(directory)
    return str(directory)


def test_counted_parts_are_those_of_the_real_model(tmp_path):
    model = config(tmp_path, 128, 3)
    lm = AutoModelForCausalLM.from_config(Qwen2Config.from_pretrained(model))
    optimizer = torch.optim.AdamW(lm.parameters())
    lm(torch.tensor([[1, 2]])).logits.sum().backward()
    optimizer.step()
    bytes_of = lambda tensors: sum(t.numel() * t.element_size() for t in tensors)
    parts = training_memory(model, 4, 100, on_gpu=True)
    assert 4 * parts["weights"] == bytes_of(lm.parameters())
    assert 4 * parts["gradients"] == bytes_of(p.grad for p in lm.parameters())
    moments = [value for state in optimizer.state.values() for name, value in state.items() if name != "step"]
    assert 4 * parts["optimizer"] == bytes_of(moments)
    more = training_memory(model, 8, 100, on_gpu=True)
    assert more["weights"] == parts["weights"] / 2 and more["activations"] == parts["activations"]


def test_a_model_that_cannot_fit_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"needs about \d+\.\d GiB of memory to load it in each process, there are"):
        check_memory(config(tmp_path, 16384, 80), 2, CPU, 0.5)


def test_a_small_model_fits(tmp_path):
    check_memory(config(tmp_path, 64, 2), 2, CPU, 0.5)


def test_step_time_scales_as_the_work_does(tmp_path):
    model = config(tmp_path, 128, 3)
    work = dict(rows=64, prompt_tokens=10, response_tokens=90, updates=2, micro_batch_tokens=1000)
    rates = dict(decode_rate=100, tflops=1e-6, gpu_gbytes=1, node_gbytes=1)
    a = Namespace(**work, **rates)
    n = sum(p.numel() for p in AutoModelForCausalLM.from_config(Qwen2Config.from_pretrained(model)).parameters())
    rollout, old, update, gather, between, sync, rest = step_time(model, 8, 1, a).values()
    planned, padding = micro_batches(a, 32, 8)
    assert rollout == 64 * 90 / (100 * 8)
    assert old == pytest.approx(2 * n * 6400 / (1 - padding) / (1e6 * 8)) and update == pytest.approx(4 * old)
    assert (
        gather == pytest.approx(2 * planned * 8 * n / 1e9) and between == 0 and sync == pytest.approx(0.3 + 2 * n / 1e9)
    )
    two = list(step_time(model, 8, 2, a).values())
    assert two[0] == pytest.approx(rollout / 2) and two[4] > 0
    assert 0 <= padding < 0.5 and 1 <= planned <= 4  # 32 rows on 8 ranks are 4 a rank


def qwen(directory, width, inner, layers, heads, kv_heads, tied):
    """Qwen2.5's shape, of one size or another."""
    Qwen2Config(
        vocab_size=151936,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        tie_word_embeddings=tied,
    ).save_pretrained(directory)
    return str(directory)


def test_the_step_that_was_measured(tmp_path):
    """study/results/gpu: 256 responses of 512 tokens, 157,000 tokens with their prompts, 1.5B's shape on one H200."""
    model = qwen(tmp_path, 1536, 8960, 28, 12, 2, True)
    work = dict(rows=256, prompt_tokens=101, response_tokens=512, updates=4, micro_batch_tokens=16384)
    a = Namespace(**work, decode_rate=0.0, tflops=0.0, gpu_gbytes=200.0, node_gbytes=25.0)
    rollout, old, update, gather, _, sync, rest = step_time(model, 1, 1, a).values()
    assert 4 < rollout < 8 and 9 < old + update < 11.5 and gather == 0 and 0.2 < sync < 0.35
    assert 15 < rollout + old + update + sync + rest < 21


def test_the_memory_that_was_measured(tmp_path):
    """study/results/gpu: 7 layers of 7B's shape took 34.9 GiB, AdamW without its moments, the head without p kept."""
    parts = training_memory(qwen(tmp_path, 3584, 18944, 7, 28, 4, False), 1, 16380, on_gpu=True)
    counted = sum(parts.values()) - parts["optimizer"] - list(parts.values())[-1]
    assert 34.9 < counted / GIB < 1.2 * 34.9


def test_a_bad_model_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main([str(tmp_path / "nothing")])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.startswith("memory: error: ") and len(error.splitlines()) == 1


@pytest.mark.parametrize("sampler", ["transformers", pytest.param("vllm", marks=needs_vllm)])
def test_the_gpu_check_runs_at_toy_size_on_a_cpu(sampler, tmp_path):
    done = python("-m", "study.gpu_check", "--commit", "abc", "--output", tmp_path, *["--vllm"] * (sampler == "vllm"))
    cells = [line.strip("| ").split(" | ") for line in done.stdout.splitlines() if line.startswith("| ")]
    values = {name: value for name, value in cells}
    assert values["card"] == "CPU, toy sizes" and float(values["cosine of the gradients"]) > 0.999
    for head in ("ours, p kept", "ours, p recomputed", "plain"):
        assert float(values[f"head, {head}: mean \\|Δ ln p\\| against float32"]) < 1e-5
    phases = "rollout reward gather sleep save old_stats update sync between step".split()
    of_steps = [json.loads(values[f"{phase}, s, the last three steps"]) for phase in phases]
    assert all(len(steps) == 3 for steps in of_steps)
    for *parts, step in zip(*of_steps):
        assert sum(parts) == pytest.approx(step, abs=0.0005 * len(phases))  # rounded to .001 each
    assert max(json.loads(values["mean \\|ln π_old − ln π_sampler\\|, nats"])) < SYNC_TOLERANCE[torch.float32]
    assert not list(tmp_path.iterdir())  # results are of GPUs only
