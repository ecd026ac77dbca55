r"""A pretrained language model on a rule with many right answers and free tokens: alliteration.

    python -m tasks.words --output runs/words-task        # SmolLM2-135M-Instruct, or --model; and data.jsonl
    python grpo.py --preset tiny --model runs/words-task --data runs/words-task/data.jsonl --reward tasks.words:score \
        --sampler transformers --schedule id --max-response-tokens 8 --prompts-per-step 4 --group-size 8 \
        --mini-batches 4 --epochs 1 --lr 1e-4

Prompt: The river. Response: eight tokens, right if two different words side by side begin with the same letter, as
"gently glides". The model starts with three in ten right and an entropy of 3.7 nats. As in the paper's runs, and
unlike in tasks/tiny.py, nothing was trained for the task, and nearly all of a large vocabulary is rare.

The control is --reward tasks.words:coin, which tosses a coin for each response. It teaches nothing, so only chance and
the clip move the policy.
"""

import argparse
import json
import random
import re
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

from rewards import Result

NOUNS = (
    "cat dog king queen house river mountain doctor teacher farmer soldier ship train city village garden forest ocean "
    "storm winter summer child mother father brother sister friend stranger letter book song story machine engine "
    "window door street bridge"
).split()  # each is one token of SmolLM2


def score(golds: list, responses: list) -> list[Result]:
    """Reward 1 for a right response, for --reward tasks.words:score. The golds are not looked at."""
    words = [re.findall("[a-z]+", response.lower()) for response in responses]
    right = [any(a[0] == b[0] and a != b for a, b in zip(found, found[1:])) for found in words]
    return [Result(float(ok), "correct" if ok else "wrong", None) for ok in right]


def coin(golds: list, responses: list) -> list[Result]:
    """Reward 0 or 1 by chance, for --reward tasks.words:coin; the reasons are those of `score`. The same batch of
    responses gets the same rewards, so that a resumed run is the same."""
    toss = random.Random(repr(responses))
    return [result._replace(reward=float(toss.random() < 0.5)) for result in score(golds, responses)]


def build(model: str, out: Path) -> None:
    """Saves the model, its tokenizer with a chat template that is the bare prompt, and data.jsonl in `out`."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = "{{ messages[-1]['content'] }}"  # without --data's usual request for a \boxed answer
    tokenizer.save_pretrained(out)
    AutoModelForCausalLM.from_pretrained(model).save_pretrained(out)
    rows = [{"problem": f"The {noun}", "answer": "an alliteration"} for noun in NOUNS]
    (out / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description="The words task: a pretrained model, its tokenizer and data.jsonl in one directory."
    )
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct", help="hub id or directory")
    parser.add_argument("--output", type=Path, default=Path("runs/words-task"), help="what to build")
    args = parser.parse_args()
    build(args.model, args.output)
    print(f"{args.output}: ready")
