"""The words task: its reward, and that any causal language model can be given to it: pytest tests/test_words.py"""

import json
import subprocess
import sys

import pytest
from helpers import HERE, torchrun
from transformers import AutoTokenizer

from tasks import tiny, words
from trainer.data import encode_prompt


@pytest.mark.parametrize(
    "response, right",
    [
        ('banana".', True),
        ("Bee, and", True),
        ('bee"', True),
        ("bee and", False),
        ("bee", False),
        ('be"', False),
        (' bee"', False),
        ('cow"', False),
        ("", False),
        ('b-b".', False),
        ('"bee"', False),
    ],
)
def test_right_is_a_closed_word_with_that_letter(response, right):
    (result,) = words.score(["b"], [response])
    assert (result.reward, result.reason) == ((1.0, "correct") if right else (0.0, "wrong"))


def test_golds_and_responses_must_match():
    with pytest.raises(ValueError):
        words.score(["a", "b"], ["apple."])


def test_any_model_can_be_trained_on_it(tmp_path):
    """With the built-in model, as none can be downloaded here."""
    out = tmp_path / "task"
    subprocess.run(
        [sys.executable, "-m", "tasks.words", "--model", str(tiny.ensure_model()), "--output", str(out)],
        cwd=HERE,
        check=True,
    )
    rows = [json.loads(line) for line in (out / "data.jsonl").read_text().splitlines()]
    assert len(rows) == 130 and {"problem": 'An adjective that begins with Z is "', "answer": "z"} in rows
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.decode(encode_prompt(tokenizer, rows[0]["problem"])) == 'A word that begins with A is "'
    torchrun(
        "grpo.py",
        "--preset",
        "tiny",
        "--sampler",
        "transformers",
        "--model",
        out,
        "--data",
        out / "data.jsonl",
        "--reward",
        "tasks.words:score",
        "--max-response-tokens",
        4,
        "--prompts-per-step",
        4,
        "--total-steps",
        1,
        "--output",
        tmp_path / "run",
        ranks=1,
    )
    (line,) = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    assert json.loads(line)["reasons"]["wrong"] > 0.9
