r"""A second built-in task, one in which the clip thresholds bind on a transformer: many right answers, a heavy-tailed
vocabulary.

    python -m study.zipf --output runs/zipf-task          # the model, warm-started in half a minute, and data.jsonl
    python grpo.py --preset tiny --model runs/zipf-task --data runs/zipf-task/data.jsonl --reward study.zipf:noisy
    --schedule id \
        --max-response-tokens 3 --prompts-per-step 8 --group-size 32 --mini-batches 1 --epochs 16 --lr 1e-4
    python -m study.zipf --measure runs/tiny-id-seed0/model   # pass@k over all prompts

Prompt: three digits. Response: three symbols out of 93. At each position half of the symbols are right, which half is a
sum of the three digits' own tables, and a response is right when all three are: one in eight at the start. The start
policy imitates a Zipf law (exponent 2.5) that the prompt bends a little, entropy 1.1 nats: a few symbols take most of
the mass, most symbols are rare.

In `tiny.py` randomness is error, so learning the task and losing entropy are one. Here a policy may be right in 47^3
ways, or in one: its entropy is what the update makes of it. `noisy` pays a right response with probability 3/4 and a
wrong one with 1/4, as an unreliable verifier would: so the update pushes rare tokens about at random, and what the
thresholds let through decides.
"""

import argparse
import functools
import json
import random
from pathlib import Path

import torch
from tqdm import trange
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from evaluate import pass_at_k
from rewards import Result
from tiny import make_tokenizer

SYMBOLS = [chr(code) for code in range(33, 127) if chr(code) != "\\"]
LENGTH, EXPONENT, PROMPTS = 3, 2.5, range(100, 1000)
STEPS, BATCH, LEARNING_RATE = 600, 256, 4e-3


@functools.cache
def tables() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """For each prompt (log-probabilities that the model imitates, which symbols are right): [LENGTH, symbols] each."""
    generator = torch.Generator().manual_seed(7)
    bend, score = torch.randn(2, 3, 10, LENGTH, len(SYMBOLS), generator=generator)  # of each digit at each place
    zipf = -EXPONENT * torch.arange(1, len(SYMBOLS) + 1).log()
    teacher, right = {}, {}
    for prompt in map(str, PROMPTS):
        digits = range(3), list(map(int, prompt))
        teacher[prompt] = (zipf + bend[digits].sum(0) / 3**0.5).log_softmax(-1)
        scores = score[digits].sum(0)
        right[prompt] = scores >= scores.median(-1, keepdim=True).values
    return teacher, right


def clean(golds: list, completions: list) -> list[Result]:
    """Reward 1 for a right response, for --reward study.zipf:clean. A gold is the prompt itself."""
    _, right = tables()
    results = []
    for gold, completion in zip(golds, completions, strict=True):
        symbols = [SYMBOLS.index(c) if c in SYMBOLS else None for c in completion]
        good = len(symbols) == LENGTH and all(s is not None and right[str(gold)][i, s] for i, s in enumerate(symbols))
        results.append(Result(float(good), "correct" if good else "wrong", completion))
    return results


def noisy(golds: list, completions: list) -> list[Result]:
    """The same, paid with probability 3/4 if right and 1/4 if wrong; reason "correct" still says what is right."""
    return [r._replace(reward=float(random.random() < (0.75 if r.reward else 0.25))) for r in clean(golds, completions)]


def build(out: Path) -> None:
    """Saves model, tokenizer and data.jsonl in `out`. The same every time."""
    tokenizer = make_tokenizer()
    teacher, _ = tables()
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(
        Qwen2Config(  # as tiny.py's
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=192,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=64,
            tie_word_embeddings=True,
            initializer_range=0.05,
            dtype="float32",
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    symbol_ids = torch.tensor([tokenizer(symbol)["input_ids"][0] for symbol in SYMBOLS])
    prompt_ids = {prompt: tokenizer(prompt)["input_ids"] for prompt in teacher}
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, STEPS, pct_start=0.1, cycle_momentum=False)
    rng = random.Random(0)
    for _ in trange(STEPS, desc="warm start of the zipf model", unit="step"):
        prompts = rng.choices(list(teacher), k=BATCH)
        p = torch.stack([teacher[prompt] for prompt in prompts]).exp()
        symbols = torch.multinomial(p.flatten(0, 1), 1).view(BATCH, LENGTH)
        responses = torch.cat([symbol_ids[symbols], torch.full((BATCH, 1), tokenizer.eos_token_id)], dim=1)
        ids = torch.cat([torch.tensor([prompt_ids[prompt] for prompt in prompts]), responses], dim=1)
        labels = torch.cat([torch.full((BATCH, ids.shape[1] - LENGTH - 1), -100), responses], dim=1)
        loss = model(input_ids=ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / "data.jsonl").write_text(
        "".join(json.dumps({"problem": prompt, "answer": prompt}) + "\n" for prompt in teacher)
    )


@torch.no_grad()
def measure(model_directory: Path, samples: int = 32) -> dict[str, float]:
    """{"correct", "pass@8", "pass@32"} over all prompts, `samples` responses to each at temperature 1."""
    tokenizer, model = (
        AutoTokenizer.from_pretrained(model_directory),
        AutoModelForCausalLM.from_pretrained(model_directory),
    )
    _, right = tables()
    prompts = tokenizer(list(right), return_tensors="pt")
    torch.manual_seed(0)
    ids = model.generate(**prompts, do_sample=True, top_k=0, max_new_tokens=LENGTH, num_return_sequences=samples)[
        :, -LENGTH:
    ]
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
    results = clean([prompt for prompt in right for _ in range(samples)], texts)
    correct = torch.tensor([result.reward for result in results]).view(len(right), samples).sum(1).int().tolist()
    passed = {k: sum(pass_at_k(samples, c, k) for c in correct) / len(correct) for k in (1, 8, 32)}
    return {"correct": passed[1], "pass@8": passed[8], "pass@32": passed[32]}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description="The zipf task: model, tokenizer and data.jsonl in one directory; pass@k of a model."
    )
    parser.add_argument("--output", type=Path, default=Path("runs/zipf-task"), help="what to build")
    parser.add_argument("--measure", type=Path, help="model directory to measure, instead of building")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.measure:
        print(json.dumps(measure(args.measure)))
    else:
        build(args.output)
        print(f"{args.output}: ready")
