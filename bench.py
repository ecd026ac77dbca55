"""Benchmarks: ratios of things measured side by side, alternating, in one process.

    ./torchrun.sh python bench.py rollout       # tokens per second of both samplers
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from tqdm import tqdm
from transformers import AutoConfig, AutoTokenizer

import tiny
from data import encode_prompt
from grpo import CACHE
from sample import Sampling, make_sampler


def side_by_side(contestants: dict[str, Callable[[], None]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each call, in turns, so that whatever else the machine does hits all alike; one round of warm-up."""
    seconds = {name: [] for name in contestants}
    for i in tqdm(range(repeats + 1), desc="rounds", leave=False):
        for name, call in contestants.items():
            start = time.perf_counter()
            call()
            if i:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def spread(values: list[float]) -> str:
    """Median and range."""
    return f"{statistics.median(values):.4g} [{min(values):.4g}, {max(values):.4g}]"


def bench_rollout(args: argparse.Namespace) -> None:
    """Whole rollouts of 32 prompts × 8 responses of the tiny task, every token sampled at temperature 1."""
    model, device = str(tiny.ensure_model(CACHE)), torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer, dtype = AutoTokenizer.from_pretrained(model), torch.bfloat16 if device.type == "cuda" else torch.float32
    prompts = [encode_prompt(tokenizer, problem["problem"]) for problem in tiny.problems(32, seed=0)]
    made, calls = {}, {}
    for kind in ("vllm", "transformers"):
        sampler = make_sampler(kind, model, device=device, dtype=dtype, max_len=AutoConfig.from_pretrained(model).max_position_embeddings, seed=0)

        def call(kind=kind, sampler=sampler):
            groups = sampler.generate(prompts, 8, Sampling(64), seed=len(made.setdefault(kind, [])))
            made[kind].append(sum(len(completion.token_ids) for group in groups for completion in group))

        calls[kind] = call
    seconds = side_by_side(calls, args.repeats)
    rates = {kind: [n / s for n, s in zip(made[kind][1:], seconds[kind])] for kind in calls}
    print("| sampler | tokens per second: median [range] |\n|---|---|")
    for kind, rate in rates.items():
        print(f"| {kind} | {spread(rate)} |")
    print(f"| transformers / vllm | {spread([a / b for a, b in zip(rates['transformers'], rates['vllm'])])} |")


BENCHMARKS = {"rollout": bench_rollout}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Benchmarks, each prints a table.")
    parser.add_argument("benchmark", choices=BENCHMARKS)
    parser.add_argument("--repeats", type=int, default=10, help="rounds that are measured")
    args = parser.parse_args()
    torch.set_num_threads(1)
    BENCHMARKS[args.benchmark](args)
