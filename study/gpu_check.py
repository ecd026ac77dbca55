"""What one GPU settles about the GPU path: kernels, equality with float32, the head against TRL's and a plain one, the
trainer's parts one by one, and whole steps of the trainer with every phase's time and memory.

    python -m study.gpu_check --shape 1.5b --vllm     # a GPU of 80 GB: some minutes; a toy on a machine without one
    python -m study.gpu_check --shape 0.5b            # a GPU of 24 GB; without vLLM, by the transformers sampler

Weights are random, and made on the GPU. It needs no network, and up to 40 GB of disk for a checkpoint. It prints a
table to paste into an issue, and writes it to results/gpu/gpu_check-CARD-SHAPE.json. An earlier version has run on an
H200 (results/gpu); **this one has run on a CPU only**.
"""

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F
from torch.distributed.device_mesh import init_device_mesh
from transformers import Qwen2Config, Qwen2ForCausalLM

import logprobs
from logprobs import token_logp, token_logp_and_entropy, token_stats
from rewards import Result
from study.bench import plain_logp, trl_logp
from study.memory import GIB
from tasks import tiny
from trainer.batching import MicroBatch, collate
from trainer.distributed import end_distributed, init_distributed
from trainer.logger import read_lines
from trainer.model import load_model
from trainer.policy import Policy, build_policy, full_tensor

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "study" / "results" / "gpu"
PEAK = 989e12  # bf16 operations per second of an H100 or H200
COLUMNS = "hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads vocab_size".split()
SHAPES = {  # Qwen2.5's; of 7B a quarter of the layers, which one GPU can train
    "toy": (256, 512, 2, 4, 2, 2000),
    "0.5b": (896, 4864, 24, 14, 2, 151936),
    "1.5b": (1536, 8960, 28, 12, 2, 151936),
    "7b-slice": (3584, 18944, 7, 28, 4, 152064),
}


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(call, repeats: int = 3) -> float:
    """The least of `repeats` calls, after one of warm-up."""
    call()
    took = []
    for _ in range(repeats):
        synchronize()
        start = time.perf_counter()
        call()
        synchronize()
        took.append(time.perf_counter() - start)
    return min(took)


def peak_gib(call) -> float:
    """What `call` takes at its peak beyond what there is before it; 0 without a GPU."""
    if not torch.cuda.is_available():
        return 0.0
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    return (torch.cuda.max_memory_allocated() - before) / GIB


def save_model(directory: Path, shape: str) -> str:
    """A random model of this shape with a tokenizer, made on the GPU, which takes a second for what a CPU needs
    minutes."""
    torch.manual_seed(0)
    tokenizer = tiny.make_tokenizer()
    ids = dict(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, bos_token_id=None)
    tied = dict(tie_word_embeddings=shape != "7b-slice", max_position_embeddings=16384, dtype="bfloat16")
    config = Qwen2Config(**dict(zip(COLUMNS, SHAPES[shape])), **tied, **ids)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        Qwen2ForCausalLM(config).to(torch.bfloat16).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return str(directory)


def make_batch(rows: int, length: int, vocabulary: int, device: torch.device, seed: int = 0) -> MicroBatch:
    """Rows of about `length` tokens, the first quarter of which is the prompt."""
    generator = torch.Generator().manual_seed(seed)
    texts = [
        torch.randint(vocabulary, (length - i * 7 % max(2, length // 8),), generator=generator) for i in range(rows)
    ]
    prompt = max(1, length // 4)
    return collate([t[:prompt] for t in texts], [t[prompt:] for t in texts]).to(device)


def check_kernels(device: torch.device) -> dict:
    """Which kernel attention takes as the trainer calls it: without a mask, causal, grouped queries."""
    backends = {-1: "error", 0: "math", 1: "flash", 2: "efficient", 3: "cudnn", 4: "other"}
    q, k, v = (
        torch.randn(2, heads, 512, 128, device=device, dtype=torch.bfloat16, requires_grad=True) for heads in (28, 4, 4)
    )
    choice = torch._fused_sdp_choice(q, k, v, None, 0.0, True, enable_gqa=True)
    return {"attention kernel": backends[int(choice)]}


def check_equality(device: torch.device, mesh, directory: Path) -> dict:
    """The trainer's bf16 policy against the same weights in float32: ln p, gradient, and π_old against π_θ."""
    path = save_model(directory, "toy")
    reference = Policy(load_model(path), 1.0, torch.float32, None).train()
    batch = make_batch(6, 300, SHAPES["toy"][-1], torch.device("cpu"))
    expected = reference(batch)
    (-expected.mean()).backward()
    policy = build_policy(load_model(path), mesh, 1.0)
    logp = policy(batch.to(device))
    (-logp.mean()).backward()
    gradients = [
        torch.cat([full_tensor(p.grad).double().cpu().flatten() for p in model.parameters()])
        for model in (reference, policy)
    ]
    with torch.no_grad():
        old = policy(batch.to(device), token_stats).logp
    return {
        "mean |Δ ln p| against float32, nats": (logp.detach().cpu() - expected.detach()).abs().mean().item(),
        "cosine of the gradients": F.cosine_similarity(*gradients, dim=0).item(),
        "largest |ln π_old − ln π_θ| before an update, nats": (old - logp.detach()).abs().max().item(),
    }


def check_head(device: torch.device, shape: str) -> dict:
    """ln π of N tokens: this repository's head, TRL's if it is installed, and a plain one."""
    n, width, vocabulary = 8192 if device.type == "cuda" else 64, SHAPES[shape][0], SHAPES[shape][-1]
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    make = lambda *size: torch.randn(*size, device=device)
    hidden, head, weight = make(n, width).to(dtype), (make(vocabulary, width) / width**0.5).to(dtype), make(n)
    tokens = torch.randint(vocabulary, (n,), device=device)
    parts = zip(hidden.split(512), tokens.split(512))
    exact = torch.cat([plain_logp(h.float(), a, head.float()) for h, a in parts])
    ours = lambda *inputs: token_logp(*inputs, chunk=1024)
    contestants = {
        "ours, p kept": (ours, True),
        "ours, p recomputed": (ours, False),
        "ours with entropy, p kept": (lambda *inputs: sum(token_logp_and_entropy(*inputs, chunk=1024)), True),
        "plain": (plain_logp, False),
    }
    with contextlib.suppress(ImportError):
        import trl  # noqa: F401

        contestants["TRL, with entropy"] = (trl_logp, False)
    found, leaves = {}, (hidden.requires_grad_(), head.requires_grad_())

    def train(function):
        torch.autograd.grad((function(hidden, tokens, head) * weight).sum(), leaves)

    @torch.no_grad()
    def forward(function):
        return function(hidden, tokens, head)

    for name, (function, kept) in contestants.items():
        with mock.patch.object(logprobs, "_keeps", lambda *_, kept=kept: kept):  # whatever the card's size
            found[f"head, {name}: forward and backward, ms"] = 1000 * seconds(lambda f=function: train(f))
            found[f"head, {name}: peak GiB"] = peak_gib(lambda f=function: train(f))
        if "with entropy, p" not in name:  # the sum of two
            error = (forward(function) - exact).abs().mean().item()
            found[f"head, {name}: mean |Δ ln p| against float32"] = error
    found["head, TRL: forward, ms"] = (
        1000 * seconds(lambda: forward(trl_logp)) if "TRL, with entropy" in contestants else "no TRL"
    )
    found["head, ours: ln π, H and B, no gradient, ms"] = 1000 * seconds(
        lambda: token_stats(hidden, tokens, head, chunk=1024)
    )
    return found


def check_parts(device: torch.device, mesh, path: str, shape: str) -> dict:
    """One rank of the trainer: a new shape's cost, old statistics and update apart, AdamW, and the weights' way out."""
    on_gpu, (width, _, layers, *_, vocabulary) = device.type == "cuda", SHAPES[shape]
    policy = build_policy(load_model(path), mesh, 1.0)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-6, fused=True)
    count = sum(p.numel() for p in policy.parameters())
    if shape == "7b-slice":  # not tied: the input embeddings multiply nothing
        count -= vocabulary * width
    found, first, again = {}, [], []
    for i in range(20 if on_gpu else 3):  # micro-batches whose shapes are all different, as in training
        batch = make_batch(3, (1024 if on_gpu else 40) + 13 * i, vocabulary, device, seed=i)
        for times in (first, again):
            synchronize()
            start = time.perf_counter()
            policy(batch).sum().backward()
            synchronize()
            times.append(time.perf_counter() - start)
            policy.zero_grad()
    middle = len(first) // 2
    found["a new shape costs, ms"] = 1000 * (sorted(first)[middle] - sorted(again)[middle])
    for rows, length in ((14, 1170), (4, 4096), (1, 10240)) if on_gpu else ((2, 60),):
        batch, name = make_batch(rows, length, vocabulary, device), f"{rows} rows of {length} tokens"
        tokens, attention = batch.input_ids.numel(), 4 * width * length / 2 * layers  # per token, forward, causal
        update = lambda batch=batch: policy(batch).sum().backward()
        took = seconds(update)
        found[f"{name}: update, s"] = took
        found[f"{name}: update, MFU of {PEAK / 1e12:.0f} TFLOP/s"] = 3 * (2 * count + attention) * tokens / took / PEAK
        policy.zero_grad()
        found[f"{name}: update, peak GiB beyond weights"] = peak_gib(update)
        policy.zero_grad()
        with torch.no_grad():
            found[f"{name}: old statistics, s"] = seconds(lambda batch=batch: policy(batch, token_stats))
    update()  # without gradients a step of AdamW would do nothing
    found["AdamW's step, s"] = seconds(optimizer.step)
    found["gathering weights for the sampler, s"] = seconds(lambda: [None for _ in policy.full_tensors()])
    return found


def parity(golds: list, responses: list[str]) -> list[Result]:
    """A reward that tells a random model's responses apart."""
    return [Result(float(len(c) % 2), "odd" if len(c) % 2 else "even", None) for c in responses]


def check_steps(path: str, scratch: Path, shape: str, sampler: str, steps: int = 5) -> dict:
    """Whole steps of grpo.py, in a process of its own that has the GPU to itself: 256 responses of 512 tokens."""
    data, run = scratch / "rows.jsonl", scratch / "run"
    rows = [{"problem": f"{i} + {i} = ? " + "Think. " * (i % 16), "answer": str(2 * i)} for i in range(64)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    size = "--prompts-per-step 32 --max-prompt-tokens 256 --max-response-tokens 512 --micro-batch-tokens 16384"
    if shape == "toy":
        size = "--prompts-per-step 4 --max-prompt-tokens 256 --max-response-tokens 16 --micro-batch-tokens 1024"
    flags = f"--preset small --group-size 8 --mini-batches 4 --total-steps {steps} --sampler {sampler} {size}"
    if sampler == "vllm":
        flags += " --vllm-gpu-memory 0.4"  # beside 7b-slice's moments
    named = ["--model", path, "--data", str(data), "--output", str(run), "--reward", "study.gpu_check:parity"]
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, str(ROOT / "grpo.py"), *flags.split(), *named], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    took = time.perf_counter() - start
    if done.returncode:
        return {f"steps with {sampler}": f"failed with exit code {done.returncode}"}
    lines = read_lines(run / "metrics.jsonl")
    found = {f"start and end of the run ({sampler}), s": took - sum(line["seconds"]["step"] for line in lines)}
    found["response tokens per second of rollout"] = [
        round(line["n_tokens"] / line["seconds"]["rollout"]) for line in lines
    ]
    found["mean |ln π_old − ln π_sampler|, nats"] = [round(line["sampler_mismatch"]["mean"], 6) for line in lines]
    for phase in lines[-1]["seconds"]:
        found[f"{phase}, s, the last three steps"] = [round(line["seconds"][phase], 3) for line in lines[-3:]]
    for phase in lines[-1]["memory"] or ():
        found[f"{phase}, GiB in use"] = [round(line["memory"][phase], 2) for line in lines]
    return found


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="gpu_check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    on_gpu = torch.cuda.is_available()
    git = subprocess.run(
        ["git", "-C", ROOT, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    parser.add_argument("--shape", choices=SHAPES, default="7b-slice" if on_gpu else "toy", help="(%(default)s)")
    parser.add_argument("--vllm", action="store_true", help="whole steps with vLLM instead of transformers' sampler")
    parser.add_argument("--commit", default=git.stdout.strip(), help="of this repository, where git can't tell it")
    parser.add_argument("--output", type=Path, default=RESULTS, help="directory of the JSON file")
    args = parser.parse_args(argv)
    if not args.commit:
        parser.error("git can't tell the commit here: give it with --commit")
    card = torch.cuda.get_device_name() if on_gpu else "CPU, toy sizes"
    found = {"card": card, "commit": args.commit, "torch": torch.__version__, "shape": args.shape}
    with tempfile.TemporaryDirectory() as scratch:
        path = save_model(Path(scratch, "model"), args.shape)
        if on_gpu:
            torch.cuda.empty_cache()
        steps = check_steps(path, Path(scratch), args.shape, "vllm" if args.vllm else "transformers")
        device = init_distributed(10)
        mesh = init_device_mesh(device.type, (1, 1), mesh_dim_names=("replicate", "shard"))
        found |= check_kernels(device)
        found |= check_equality(device, mesh, Path(scratch, "small"))
        found |= check_head(device, args.shape)
        found |= check_parts(device, mesh, path, args.shape) | steps
    print("| what | measured |\n|---|---|")
    for name, value in found.items():
        print(f"| {name.replace('|', chr(92) + '|')} | {f'{value:.4g}' if isinstance(value, float) else value} |")
    if on_gpu:
        path = args.output / f"gpu_check-{card.replace(' ', '-')}-{args.shape}.json"
        path.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n")
        print(path)
    end_distributed()


if __name__ == "__main__":
    main()
