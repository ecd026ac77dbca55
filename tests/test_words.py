"""The words task: its rewards, and that any causal language model can be given to it: pytest tests/test_words.py"""

import json
import math
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
        (" gently glides along the", True),
        (" Gently glides", True),
        (", green, grows", True),
        ("'s tale is told to", True),  # told, to
        (" is the the same", False),  # twice the same word
        (" The the same", False),
        (" is one gold green", True),
        (" gold is green", False),  # not side by side
        (" green", False),
        ("", False),
        (" 11 12 13", False),
    ],
)
def test_right_are_two_different_words_side_by_side_with_the_same_letter(response, right):
    (result,) = words.score(["an alliteration"], [response])
    assert (result.reward, result.reason) == ((1.0, "correct") if right else (0.0, "wrong"))


def test_the_coin_is_fair_and_knows_nothing_of_the_response():
    """Of 4,000 tosses half are paid, to within four standard errors, among the right responses and the wrong ones; the
    reasons stay those of `score`."""
    responses = [" gold grows", " is green"] * 2000
    results = words.coin([""] * 4000, responses)
    assert [result.reason for result in results] == [result.reason for result in words.score([""] * 4000, responses)]
    for kind in (results[::2], results[1::2]):
        assert abs(sum(result.reward for result in kind) / 2000 - 0.5) < 4 * 0.5 / math.sqrt(2000)


def test_the_same_batch_gets_the_same_tosses_and_another_one_others():
    responses = [f" word {i}" for i in range(200)]
    assert words.coin([""] * 200, responses) == words.coin([""] * 200, responses)
    assert words.coin([""] * 200, responses) != words.coin([""] * 200, [*responses[:-1], " another"])


def test_any_model_can_be_trained_on_it(tmp_path):
    """With the built-in model, as none can be downloaded here."""
    out = tmp_path / "task"
    subprocess.run(
        [sys.executable, "-m", "tasks.words", "--model", str(tiny.ensure_model()), "--output", str(out)],
        cwd=HERE,
        check=True,
    )
    rows = [json.loads(line) for line in (out / "data.jsonl").read_text().splitlines()]
    assert len(rows) == len(words.NOUNS) and rows[5]["problem"] == "The river"
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.decode(encode_prompt(tokenizer, rows[0]["problem"])) == "The cat"
    for reward in ("score", "coin"):
        torchrun(
            "grpo.py",
            *("--preset", "tiny", "--sampler", "transformers", "--model", out, "--data", out / "data.jsonl"),
            *("--reward", f"tasks.words:{reward}", "--max-response-tokens", 4, "--prompts-per-step", 4),
            *("--total-steps", 1, "--output", tmp_path / reward),
            ranks=1,
        )
        (line,) = map(json.loads, (tmp_path / reward / "metrics.jsonl").read_text().splitlines())
        assert line["reasons"]["wrong"] > 0.9
        assert (
            (0.2 < line["reward"] < 0.8)
            if reward == "coin"
            else (line["reward"] == line["reasons"].get("correct", 0.0))
        )
