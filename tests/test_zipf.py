"""The zipf task: its reward against its tables, its model against its teacher: pytest tests/test_zipf.py"""

import json
import math
import random

import pytest
import torch
from helpers import torchrun
from transformers import AutoModelForCausalLM, AutoTokenizer

from metrics import read_lines
from study import zipf


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    out = tmp_path_factory.mktemp("zipf") / "task"
    zipf.build(out)
    return out


def spell(prompt: str, want: bool) -> str:
    """A response whose symbols are all right, or all wrong."""
    _, right = zipf.tables()
    return "".join(zipf.SYMBOLS[int((row == want).nonzero()[0])] for row in right[prompt])


def test_half_of_the_symbols_are_right_and_a_response_is_when_all_its_symbols_are():
    _, right = zipf.tables()
    assert all(0.5 <= mask.float().mean() < 0.52 for mask in right.values())  # 93 symbols: 47 of them
    for prompt in ("100", "555", "999"):
        good, bad = spell(prompt, True), spell(prompt, False)
        answers = [good, bad, good[:-1] + bad[-1], bad[0] + good[1:], good[:-1], good + good[-1], "", "é" * zipf.LENGTH]
        assert [result.reward for result in zipf.clean([prompt] * len(answers), answers)] == [1, 0, 0, 0, 0, 0, 0, 0]
    assert zipf.clean([100], [spell("100", True)])[0].reward == 1  # data files may hold the gold as a number


def test_noisy_pays_three_quarters_and_one_quarter_and_keeps_the_truth():
    random.seed(0)
    for want, rate in ((True, 0.75), (False, 0.25)):
        results = zipf.noisy(["123"] * 4000, [spell("123", want)] * 4000)
        assert abs(sum(r.reward for r in results) / 4000 - rate) < 4 * math.sqrt(0.75 * 0.25 / 4000)
        assert {r.reason for r in results} == {"correct" if want else "wrong"}


def test_the_model_imitates_the_teacher(task):
    tokenizer, model = AutoTokenizer.from_pretrained(task), AutoModelForCausalLM.from_pretrained(task)
    teacher, _ = zipf.tables()
    prompts = list(teacher)[::10]
    with torch.no_grad():
        logits = model(**tokenizer(prompts, return_tensors="pt")).logits[:, -1]
    p = logits.softmax(-1)[:, [tokenizer(symbol)["input_ids"][0] for symbol in zipf.SYMBOLS]]
    assert p.sum(-1).min() > 0.95  # symbols, and nothing else
    mean = torch.stack([teacher[prompt][0] for prompt in prompts]).exp().mean(0)
    assert (p.mean(0) - mean).abs().max() < 0.05


def test_measure_is_the_mean_over_prompts_and_does_not_fall_with_k(task):
    found = zipf.measure(task, samples=32)
    assert 0.02 < found["correct"] < found["pass@8"] < found["pass@32"] <= 1
    assert found == zipf.measure(task, samples=32)


def test_the_trainer_takes_the_task(task, tmp_path):
    torchrun(
        "grpo.py",
        "--preset",
        "tiny",
        "--sampler",
        "transformers",
        "--model",
        task,
        "--data",
        task / "data.jsonl",
        "--reward",
        "study.zipf:noisy",
        "--max-response-tokens",
        3,
        "--prompts-per-step",
        4,
        "--group-size",
        8,
        "--total-steps",
        2,
        "--output",
        tmp_path / "run",
        ranks=1,
    )
    lines = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert len(lines) == 2 and set(lines[0]["reasons"]) <= {"correct", "wrong"}
    assert json.loads((task / "data.jsonl").read_text().splitlines()[0]) == {"problem": "100", "answer": "100"}
