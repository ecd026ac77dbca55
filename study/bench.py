"""Benchmarks: ratios of things measured side by side, in turns, in one process or one command. Each prints a table.

./torchrun.sh python -m study.bench update        # what moving thresholds, every method and the diagnostics cost
./torchrun.sh python -m study.bench logits        # log-probabilities in chunks against the plain way: time and memory
./torchrun.sh python -m study.bench padding       # tokens wasted by micro-batch plans
./torchrun.sh python -m study.bench rollout       # tokens per second of both samplers
./torchrun.sh python -m study.bench scaling       # step time and memory per rank, weight sync against model size
./torchrun.sh python -m study.bench trl           # whole steps against TRL's GRPOTrainer (pip install trl first)
"""

import argparse
import multiprocessing
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import torch.nn.functional as F
from torch.distributed.device_mesh import init_device_mesh
from tqdm import tqdm
from transformers import AutoConfig, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from clipping import EPS, M, U, region_masks
from grpo import group_advantages, make_batch, update
from logprobs import token_logp, token_stats
from methods import METHODS, Tokens, make_method
from sample import Sampling, make_sampler
from tasks import tiny
from trainer.batching import micro_batches, plan_micro_batches
from trainer.config import parse_config
from trainer.data import encode_problems, encode_prompt
from trainer.distributed import Phases, end_distributed, init_distributed
from trainer.logger import read_lines
from trainer.metrics import entropy_metrics, region_metrics
from trainer.model import load_model
from trainer.policy import build_policy, old_stats
from trainer.rollout import Environment, collect
from trainer.tokens import clipped_tokens

SCRATCH = Path("runs/bench")


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


def ratio(a: list[float], b: list[float]) -> str:
    """a / b, round by round."""
    return spread([x / y for x, y in zip(a, b, strict=True)])


def print_table(*rows: tuple) -> None:
    head, *rest = [" | ".join(map(str, row)) for row in rows]
    print(f"| {head} |\n" + "|---" * len(rows[0]) + "|\n" + "\n".join(f"| {row} |" for row in rest), flush=True)


# ------------------------------------------------------------------------------------------ clipping and diagnostics


def bench_update(args: argparse.Namespace) -> None:
    """One rollout batch of the tiny preset, 16 optimizer steps of learning rate 0, so that every call does the same
    work."""
    cfg = parse_config(["--preset", "tiny", "--sampler", "transformers"])
    device = init_distributed(cfg.timeout_minutes)
    model = str(tiny.ensure_model())
    tokenizer = AutoTokenizer.from_pretrained(model)
    problems, _ = encode_problems(tiny.problems(100, seed=0), tokenizer, cfg.max_prompt_tokens)
    mesh = init_device_mesh(device.type, (1, 1), mesh_dim_names=("replicate", "shard"))
    policy = build_policy(load_model(model), mesh, cfg.temperature)
    sampler = make_sampler("transformers", model, device=device, dtype=torch.float32, max_len=80, seed=0)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=0.0, weight_decay=0.0)
    environment, phases = Environment(problems, tiny.score, tokenizer), Phases(cfg.timeout_minutes)
    rollouts, *_ = collect(cfg, environment, sampler, phases, 0, 0)
    columns = group_advantages(rollouts.rewards, cfg.group_size), rollouts.in_loss, torch.arange(len(rollouts.rewards))
    advantages, in_loss, response = map(rollouts.per_token, columns)
    old = old_stats(policy, rollouts, cfg.micro_batch_tokens)
    regions = region_masks(old.logp, old.entropy, advantages)
    tokens = Tokens(old.logp, old.entropy, advantages, in_loss, response, regions)
    run = SimpleNamespace(cfg=cfg, policy=policy, optimizer=optimizer, method=cfg.make_method())
    batch = make_batch(cfg, run.method, tokens, rollouts.sampler_logp, 0)

    def updated(upper, lower):
        update(run, rollouts, batch, 0, upper, lower)

    def updated_by(name: str) -> Callable[[], None]:
        """The same by another method; one with a target acts on the first step's entropy."""
        other = SimpleNamespace(cfg=cfg, policy=policy, optimizer=optimizer, method=make_method(name))
        other.method.observe(0, float(old.entropy.mean()))
        given = make_batch(cfg, other.method, tokens, rollouts.sampler_logp, 0)
        return lambda: update(other, rollouts, given, 0, EPS, EPS)

    @torch.no_grad()
    def logp_only():
        everything = torch.arange(len(rollouts.rewards))
        for inputs, *_ in micro_batches(rollouts, everything, cfg.micro_batch_tokens, device):
            policy(inputs)

    def diagnosed():
        old = old_stats(policy, rollouts, cfg.micro_batch_tokens)
        region_metrics(old, advantages, region_masks(old.logp, old.entropy, advantages))
        entropy_metrics(old.entropy, rollouts.lengths)

    # at learning rate 0 nothing is clipped: let every 20th token be, at each optimizer step
    numbers = torch.arange(len(advantages))
    side = (numbers % 20 == 0) * advantages.sign().to(torch.int8)

    def counted():
        clipped = torch.zeros(len(advantages), dtype=torch.int32)
        for _ in range(cfg.epochs):
            clipped.index_add_(0, numbers, side.int())
        clipped_tokens(cfg, 1, rollouts, tokens, clipped, tokenizer)

    contestants = {"static": lambda: updated(EPS, EPS), "id": lambda: updated(U, M)}
    contestants |= {"log-probabilities": logp_only, "with diagnostics": diagnosed, "which tokens": counted}
    contestants |= {"rollout": lambda: collect(cfg, environment, sampler, phases, 0, 0)}
    contestants |= {name: updated_by(name) for name in METHODS if name != "grpo"}
    seconds = side_by_side(contestants, args.repeats)
    step = [sum(parts) for parts in zip(seconds["static"], seconds["log-probabilities"], seconds["rollout"])]
    extra = [b - a for a, b in zip(seconds["log-probabilities"], seconds["with diagnostics"])]
    print_table(
        ("what", "median [range]"),
        ("update, static, s", spread(seconds["static"])),
        ("update, moving thresholds / static", ratio(seconds["id"], seconds["static"])),
        ("step without diagnostics, s", spread(step)),
        ("entropy, B and regions / that step", ratio(extra, step)),
        ("which tokens are clipped / that step", ratio(seconds["which tokens"], step)),
        *((f"update, {name} / static", ratio(seconds[name], seconds["static"])) for name in METHODS if name != "grpo"),
    )
    end_distributed()


# --------------------------------------------------------------------------------------------------- the logits wall


def plain_logp(hidden, tokens, head):
    return F.linear(hidden, head).float().log_softmax(-1).gather(-1, tokens[:, None]).squeeze(-1)


def plain_stats(hidden, tokens, head):
    log_p = F.linear(hidden, head).float().log_softmax(-1)
    p = log_p.exp()
    entropy = -(p * log_p).sum(-1)
    return log_p.gather(-1, tokens[:, None]).squeeze(-1), entropy, (p.square() * (log_p + entropy[:, None])).sum(-1)


def trl_stats(hidden, tokens, head):
    """(ln π, H) by the fused head of TRL's GRPOTrainer, which it computes whether it trains or not."""
    from trl.kernels import ChunkedLogProbFunction
    from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE

    chunk = _CHUNKED_LOGPROB_CHUNK_SIZE
    return ChunkedLogProbFunction.apply(hidden, head, None, tokens, 1.0, chunk, None, 1.0, ("entropy",))[:2]


def trl_logp(hidden, tokens, head):
    return trl_stats(hidden, tokens, head)[0]


def logits_once(function: Callable, backward: bool, n: int, vocab: int, width: int):
    """In a process of its own, whose peak memory is its own: (seconds, peak bytes beyond inputs and gradients, gradient
    of hidden or None)."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    hidden = torch.randn(n, width).requires_grad_(backward)
    head = (torch.randn(vocab, width) / width**0.5).requires_grad_(backward)
    tokens, weight = torch.randint(vocab, (n,)), torch.randn(n)
    if backward:
        hidden.grad, head.grad = torch.zeros_like(hidden), torch.zeros_like(head)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    with torch.set_grad_enabled(backward):
        out = function(hidden, tokens, head)
        if backward:
            (out * weight).sum().backward()
    seconds = time.perf_counter() - start
    peak = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    return seconds, peak, hidden.grad.numpy() if backward else None


def bench_logits(args: argparse.Namespace) -> None:
    trained = {"plain": plain_logp, "chunks": token_logp}
    looked_at = {"plain": plain_stats, "chunks": token_stats}
    try:
        import trl  # noqa: F401

        trained["TRL"], looked_at["TRL, without B"] = trl_logp, trl_stats
    except ImportError:
        print("TRL is not installed: left out")
    fresh = multiprocessing.get_context("spawn")  # a new process each time: out of memory is an error here
    contestants = {"forward and backward of ln π": (True, trained), "ln π, H, B, no gradient": (False, looked_at)}
    for what, (backward, functions) in contestants.items():
        found = {name: [] for name in functions}
        for _ in tqdm(range(args.repeats), desc=what, leave=False):
            for name, function in functions.items():
                with ProcessPoolExecutor(1, fresh) as pool:
                    once = pool.submit(logits_once, function, backward, args.tokens, args.vocab, args.width)
                    found[name].append(once.result())
        rows, (plain_seconds, plain_peaks, plain_grads) = [], zip(*found["plain"])
        for name, runs in found.items():
            seconds, peaks, grads = zip(*runs)
            error = max(float(np.abs(a - b).max()) for a, b in zip(grads, plain_grads)) if backward else ""
            extra = f"{statistics.median(peaks) / 2**30:.2f}"
            rows.append((name, spread(seconds), ratio(seconds, plain_seconds), extra, ratio(peaks, plain_peaks), error))
        print_table((what, "seconds", "/ plain", "extra GiB", "/ plain", "largest difference of a gradient"), *rows)


# ----------------------------------------------------------------------------------------------------------- padding


def bench_padding(args: argparse.Namespace) -> None:
    """Log-normal response lengths (median 900, σ = 0.8, at most 8192) and prompts of 150 tokens, 8 ranks, 20 draws."""
    head = ("rows planned at once", "fixed micro-batches of 4", "sorted, as full as 16,384 tokens allow", "ours")
    rows = [(*head, "micro-batches: fixed, full, ours")]
    for what, n in {"an optimizer step, 256": 256, "log π_old, 4096": 4096}.items():
        wasted = []
        for seed in range(20):
            lengths = 150 + np.exp(np.random.default_rng(seed).normal(np.log(900), 0.8, n)).clip(30, 8192).astype(int)
            sorted_down = np.sort(lengths)[::-1]
            full, start = [], 0
            while start < n // 8:  # 8 ranks: every 8th row
                size = max(1, 16384 // sorted_down[8 * start])
                full.append(sorted_down[8 * start : 8 * (start + size)].reshape(-1, 8).T)
                start += size
            fixed = list(lengths.reshape(-1, 8, 4))
            plan = plan_micro_batches(lengths.tolist(), 8, 16384)
            ours = [[lengths[list(share)] for share in micro_batch] for micro_batch in plan]
            padded = [sum(len(row) * max(row) for batch in plan for row in batch) for plan in (fixed, full, ours)]
            wasted.append([*(1 - lengths.sum() / total for total in padded), len(fixed), len(full), len(ours)])
        *shares, a, b, c = np.median(wasted, axis=0)
        rows.append((what, *(f"{100 * share:.1f}% wasted" for share in shares), f"{a:.0f}, {b:.0f}, {c:.0f}"))
    print_table(*rows)


# -------------------------------------------------------------------------------------------------- rollout, scaling


def bench_rollout(args: argparse.Namespace) -> None:
    """Whole rollouts of 32 prompts × 8 responses of the tiny task, every token sampled at temperature 1."""
    model, device = str(tiny.ensure_model()), torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer, dtype = AutoTokenizer.from_pretrained(model), torch.bfloat16 if device.type == "cuda" else torch.float32
    prompts = [encode_prompt(tokenizer, problem["problem"]) for problem in tiny.problems(32, seed=0)]
    max_len = AutoConfig.from_pretrained(model).max_position_embeddings
    made, calls = {}, {}
    for kind in ("vllm", "transformers"):
        sampler = make_sampler(kind, model, device=device, dtype=dtype, max_len=max_len, seed=0)

        def call(kind=kind, sampler=sampler):
            groups = sampler.generate(prompts, 8, Sampling(64), seed=len(made.setdefault(kind, [])))
            made[kind].append(sum(len(completion.token_ids) for group in groups for completion in group))

        calls[kind] = call
    seconds = side_by_side(calls, args.repeats)
    rates = {kind: [n / s for n, s in zip(made[kind][1:], seconds[kind])] for kind in calls}
    print_table(
        ("sampler", "tokens per second: median [range]"),
        *((kind, spread(rate)) for kind, rate in rates.items()),
        ("transformers / vllm", ratio(rates["transformers"], rates["vllm"])),
    )


def random_model(width: int, layers: int) -> Path:
    """A Qwen2 model of random weights with the tiny task's tokenizer, on disk."""
    path = SCRATCH / f"model-{width}-{layers}"
    if not path.exists():
        tokenizer = tiny.make_tokenizer()
        sizes = dict(hidden_size=width, intermediate_size=3 * width, num_hidden_layers=layers)
        sizes |= dict(num_attention_heads=width // 32, num_key_value_heads=width // 32, max_position_embeddings=256)
        tokens = dict(bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
        tokens |= dict(vocab_size=len(tokenizer), tie_word_embeddings=True)
        config = Qwen2Config(dtype="float32", **sizes, **tokens)
        Qwen2ForCausalLM(config).save_pretrained(path)
        tokenizer.save_pretrained(path)
    return path


def grpo_run(name: str, ranks: int, *flags: str) -> tuple[list[dict], float]:
    """(the steps' seconds without the first, which warms up; peak GiB of the largest process) of a run of grpo.py."""
    out = SCRATCH / name
    shutil.rmtree(out, ignore_errors=True)
    launch = f"-m torch.distributed.run --nproc-per-node={ranks} --standalone grpo.py"
    same = "--preset tiny --schedule static --sampler transformers --save-every 1000"
    argv = [sys.executable, *launch.split(), *same.split(), "--output", str(out), *flags]
    subprocess.run(argv, check=True, capture_output=True)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 2**30  # of all children so far: grow only
    return [line["seconds"] for line in read_lines(out / "metrics.jsonl")[1:]], peak


def bench_scaling(args: argparse.Namespace) -> None:
    rows = [("model", "ranks", "step, s", "update, s", "rollout, s", "peak GiB of a process")]
    for width, layers in ((64, 2), (256, 6)):
        model = random_model(width, layers)
        millions = sum(p.numel() for p in Qwen2ForCausalLM.from_pretrained(model).parameters()) / 1e6
        for ranks in (2, 1):  # the smaller processes first, as the peak of all children only grows
            flags = f"--model {model} --data tiny --total-steps {args.repeats + 1} --max-response-tokens 24"
            seconds, peak = grpo_run(f"scaling-{width}-{ranks}", ranks, *flags.split())
            times = (spread([s[key] for s in seconds]) for key in ("step", "update", "rollout"))
            rows.append((f"{millions:.1f}M", ranks, *times, f"{peak:.2f}"))
    print_table(*rows)

    device, rows = init_distributed(60), [("parameters", "sampler", "sync, ms", "MB per second")]
    mesh, made = init_device_mesh(device.type, (1, 1), mesh_dim_names=("replicate", "shard")), []
    for width, layers in ((64, 2), (256, 6), (768, 10)):
        model = str(random_model(width, layers))
        policy = build_policy(load_model(model), mesh, 1.0)
        n = sum(p.numel() for p in policy.parameters())
        samplers = {
            kind: make_sampler(kind, model, device=device, dtype=torch.float32, max_len=128, seed=0)
            for kind in ("transformers", "vllm")
        }
        made += samplers.values()  # a vLLM engine that is dropped would take the process group down
        calls = {kind: lambda s=s: s.sync(policy.full_tensors()) for kind, s in samplers.items()}
        for kind, seconds in side_by_side(calls, args.repeats).items():
            rate = f"{4e-6 * n / statistics.median(seconds):.0f}"
            rows.append((f"{n / 1e6:.1f}M", kind, spread([1000 * s for s in seconds]), rate))
    print_table(*rows)
    end_distributed(*made)


# --------------------------------------------------------------------------------------------------------------- TRL


def trl_steps(rollouts: int) -> dict[str, list[float]]:
    """Seconds of each rollout batch with its 16 updates, the first left out, and of its phases, in TRL's
    GRPOTrainer."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    model, problems = str(tiny.ensure_model()), tiny.problems(tiny.TRAIN, seed=0)
    data = Dataset.from_list([{"prompt": row["problem"], "answer": row["answer"]} for row in problems])

    def reward(completions, answer, **_):
        return [result.reward for result in tiny.score(answer, completions)]

    config = dict(output_dir=str(SCRATCH / "trl"), report_to="none", save_strategy="no", logging_steps=1000)
    config |= dict(use_cpu=True, bf16=False, gradient_checkpointing=False, disable_tqdm=True, seed=0)
    config |= dict(per_device_train_batch_size=256, num_generations=16, steps_per_generation=1, num_iterations=16)
    config |= dict(max_steps=16 * rollouts, max_completion_length=12, temperature=1.0, top_p=1.0, top_k=0)
    config |= dict(learning_rate=2e-4, lr_scheduler_type="constant", weight_decay=0.1, max_grad_norm=1.0)
    config, tokenizer = GRPOConfig(beta=0.0, loss_type="dapo", **config), AutoTokenizer.from_pretrained(model)
    columns = dict(train_dataset=data, processing_class=tokenizer)
    trainer = GRPOTrainer(model, reward_funcs=reward, args=config, **columns)
    marks, phases = [], {}

    def timed(owner, name, mark=False):
        inner = getattr(owner, name)

        def call(*a, **k):
            start = time.perf_counter()
            if mark:
                marks.append(start)
            out = inner(*a, **k)
            phases.setdefault(name, []).append(time.perf_counter() - start)
            return out

        setattr(owner, name, call)

    timed(trainer, "_generate_and_score_completions", mark=True)
    for name in ("_generate", "_calculate_rewards", "_get_per_token_logps_and_entropies", "training_step"):
        timed(trainer, name)
    trainer.train()
    marks.append(time.perf_counter())
    steps = [b - a for a, b in zip(marks, marks[1:])]
    return {"step": steps[1:]} | {name: [sum(values) / rollouts] for name, values in phases.items()}


def bench_trl(args: argparse.Namespace) -> None:
    """16 prompts × 16 responses of the tiny model, 16 AdamW updates on all of them, as the tiny preset has it;
    transformers sampling, one process, one thread."""
    ours, theirs, phases = [], [], []
    for _ in range(args.rounds):
        seconds, _ = grpo_run("trl-ours", 1, "--total-steps", str(args.repeats + 1))
        ours += [s["step"] for s in seconds]
        phases.append({key: statistics.median(s[key] for s in seconds) for key in seconds[0]})
        found = trl_steps(args.repeats + 1)
        theirs += found.pop("step")
    rates = [("this", spread([256 / s for s in ours])), ("TRL", spread([256 / s for s in theirs]))]
    rates += [("this / TRL", f"{statistics.median(theirs) / statistics.median(ours):.2f}")]
    print_table(("trainer", "samples per second: median [range]"), *rates)
    rows = [(f"this: {k}", f"{v:.3f}") for k, v in phases[-1].items()]
    rows += [(f"TRL: {k}", f"{v[0]:.3f}") for k, v in found.items()]
    print_table(("phase of a step, last round", "seconds"), *rows)


BENCHMARKS = {name[6:]: value for name, value in list(globals().items()) if name.startswith("bench_")}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmark", choices=BENCHMARKS)
    parser.add_argument("--repeats", type=int, default=10, help="rounds, or steps, that are measured (10)")
    parser.add_argument("--rounds", type=int, default=2, help="trl: how often the two trainers take turns (2)")
    parser.add_argument("--tokens", type=int, default=8192, help="logits: N (8192)")
    parser.add_argument("--vocab", type=int, default=151936, help="logits: V (151936)")
    parser.add_argument("--width", type=int, default=896, help="logits: hidden size (896)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    SCRATCH.mkdir(parents=True, exist_ok=True)
    BENCHMARKS[args.benchmark](args)
