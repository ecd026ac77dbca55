r"""A pretrained language model on a task with many right answers: a word that begins with a given letter.

    python -m tasks.words --output runs/words-task        # SmolLM2-135M-Instruct, or --model; and data.jsonl
    python grpo.py --preset tiny --model runs/words-task --data runs/words-task/data.jsonl --reward tasks.words:score \
        --sampler transformers --schedule id --max-response-tokens 4 --prompts-per-step 8 --group-size 8 \
        --mini-batches 1 --epochs 4 --lr 1e-5

Prompt: A word that begins with B is ". Response: four tokens, right if they begin with a closed word, as `banana".`, of
three letters or more of which the first is that letter; nobody checks the spelling. The model starts with one right in
seven and an entropy of 4.3 nats, 5.9 in the first token. As in the paper's runs, and unlike in tasks/tiny.py,
nothing was trained for the task, and nearly all of a large vocabulary is rare.
"""

import argparse
import json
import re
import string
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

from rewards import Result

KINDS = ("word", "noun", "verb", "name", "adjective")


def score(golds: list, responses: list) -> list[Result]:
    """Reward 1 for a right response, for --reward tasks.words:score. A gold is the letter."""
    words = [re.match(r'([A-Za-z]{3,})[".,]', response) for response in responses]
    answers = [word[1].lower() if word else None for word in words]
    right = [answer is not None and answer[0] == gold for gold, answer in zip(golds, answers, strict=True)]
    return [Result(float(ok), "correct" if ok else "wrong", answer) for ok, answer in zip(right, answers)]


def build(model: str, out: Path) -> None:
    """Saves the model, its tokenizer with a chat template that is the bare prompt, and data.jsonl in `out`."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = "{{ messages[-1]['content'] }}"  # without --data's usual request for a \boxed answer
    tokenizer.save_pretrained(out)
    AutoModelForCausalLM.from_pretrained(model).save_pretrained(out)
    rows = [
        {"problem": f'A{"n" * (kind[0] in "aeiou")} {kind} that begins with {letter} is "', "answer": letter.lower()}
        for letter in string.ascii_uppercase
        for kind in KINDS
    ]
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
