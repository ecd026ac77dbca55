"""The presets' paths on files as others ship them: a Qwen2.5-shaped model trains on DAPO and is evaluated on AIME
(paper), or on GSM8K (small)."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from helpers import environment, python, torchrun
from test_data import BOXED_PREFIX, BOXED_SUFFIX, CHATML, CHINESE_SUFFIX, dapo_row
from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

from tasks import tiny

SMALL = "--total-steps 2 --prompts-per-step 4 --group-size 4 --max-prompt-tokens 256 --max-response-tokens 8"
SMALL += " --mini-batches 2 --micro-batch-tokens 1024 --save-every 1 --sampler transformers --lr 1e-3"
REWARD = """
import rewards

def score(golds, responses):  # a random model is never correct, so something else has to tell its responses apart
    return [r._replace(reward=r.reward + len(c) % 2) for r, c in zip(rewards.score(golds, responses), responses)]
"""


def save_random_qwen(path):
    """Qwen2.5's architecture, chat format and generation settings; random weights, one token per byte."""
    tokenizer = tiny.make_tokenizer()
    tokenizer.chat_template = CHATML
    end = tokenizer.eos_token_id
    torch.manual_seed(0)
    sizes = dict(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2
    )
    config = Qwen2Config(vocab_size=len(tokenizer) + 37, eos_token_id=end, pad_token_id=tokenizer.pad_token_id, **sizes)
    model = Qwen2ForCausalLM(config)
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=0.7, top_p=0.8, top_k=20, repetition_penalty=1.05, eos_token_id=[end]
    )
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)


def save_rows(path, rows):
    pq.write_table(pa.Table.from_pylist(rows), path)


def test_train_on_dapo_and_evaluate_on_aime(tmp_path, monkeypatch):
    save_random_qwen(tmp_path / "qwen")
    questions = [f"What is {i} more than $\\frac{{{i}}}{{2}}$?" for i in range(12)]
    rows = [dapo_row(question, str(i)) for i, question in enumerate(questions)]
    for row, question in zip(rows, questions[:8]):
        row["prompt"][0]["content"] = BOXED_PREFIX + question + BOXED_SUFFIX
    rows[8]["prompt"][0]["content"] = "等于几?" + CHINESE_SUFFIX
    save_rows(tmp_path / "dapo.parquet", rows)
    save_rows(tmp_path / "aime.parquet", [dapo_row(question, "025") for question in questions[:3]] * 32)
    (tmp_path / "my_reward.py").write_text(REWARD)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    train = ["grpo.py", "--preset", "paper", "--model", tmp_path / "qwen", "--data", tmp_path / "dapo.parquet"]
    train += ["--reward", "my_reward:score", "--output", tmp_path / "run", *SMALL.split()]
    said = torchrun(*train).stdout
    assert "12 problems from" in said and "0 dropped as longer than 256 tokens" in said
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in metrics] == [0, 1]
    assert all(line["grad_norm"] > 0 and set(line["reasons"]) <= {"no_box", "unclosed"} for line in metrics)

    benchmark = f"aime={tmp_path / 'aime.parquet'}"
    evaluate = ["evaluate.py", "--model", tmp_path / "run" / "model", "--benchmarks", benchmark, "--samples", 2]
    said = torchrun(
        *evaluate, "--max-new-tokens", 8, "--sampler", "transformers", "--output", tmp_path / "results"
    ).stdout
    assert "aime: 3 problems from 96 rows: 93 repeats" in said
    assert "3 questions × 2 responses" in said

    save_rows(tmp_path / "dapo.parquet", rows[::-1])  # the same problems in another order: another run
    refused = python(*train, "--resume", tmp_path / "run", check=False, env=environment())
    assert refused.returncode != 0
    assert "are not those that this run began with" in refused.stderr + refused.stdout


def test_train_on_gsm8k_and_evaluate_on_it(tmp_path, monkeypatch):
    save_random_qwen(tmp_path / "qwen")
    rows = [{"question": f"{i} + 1000?", "answer": f"<<{i}+1000={i + 1000}>>\n#### 1,{i:03}"} for i in range(12)]
    save_rows(tmp_path / "gsm8k.parquet", rows)
    (tmp_path / "my_reward.py").write_text(REWARD)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    train = ["grpo.py", "--preset", "small", "--model", tmp_path / "qwen", "--data", tmp_path / "gsm8k.parquet"]
    said = torchrun(*train, "--reward", "my_reward:score", "--output", tmp_path / "run", *SMALL.split(), ranks=1).stdout
    assert "preset small on 1 CPU processes: schedule od" in said and "12 problems from" in said
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(metrics) == 2 and all(line["grad_norm"] > 0 for line in metrics)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["od_ratio"] == 0.5

    command = next(line for line in said.splitlines() if line.startswith("score")).split()[2:]  # as it is printed
    command[command.index("gsm8k")] = f"gsm8k={tmp_path / 'gsm8k.parquet'}"
    command[command.index("1024")] = "8"
    said = python(*command, "--sampler", "transformers", "--output", tmp_path / "results").stdout
    assert "24 questions × 4 responses" in said  # 12 of each model
