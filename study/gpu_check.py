"""What one GPU can settle about the GPU path: kernels, the cost of a new shape, equality with float32, speed and
memory.

    python -m study.gpu_check                   # a GPU of 80 GB: a few minutes; without a GPU toy sizes, as a test
    python -m study.gpu_check --layers 4        # fewer layers of Qwen2.5-7B's shape, for a smaller GPU

It prints a table to paste into an issue, and writes it with the card's name to results/gpu-CARD.json. **No card has
been measured yet.** It needs no network and no vLLM. The trainer as a whole is checked by

    torchrun --nproc_per_node 1 grpo.py --preset tiny --sampler transformers --total-steps 6 --save-every 3 --output RUN
    torchrun --nproc_per_node 1 grpo.py --resume RUN
"""

import argparse
import json
import os
import subprocess
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.distributed.device_mesh import init_device_mesh
from transformers import Qwen2Config, Qwen2ForCausalLM

from logprobs import token_stats
from study.memory import GIB
from trainer.batching import MicroBatch, collate
from trainer.distributed import end_distributed, init_distributed
from trainer.model import load_model
from trainer.policy import Policy, build_policy, full_tensor

RESULTS = Path(__file__).parent / "results"
PEAK = 989e12  # bf16 operations per second of an H100 or H200
QWEN = dict(vocab_size=152064, hidden_size=3584, intermediate_size=18944, num_attention_heads=28, num_key_value_heads=4)
SMALL = dict(vocab_size=2000, hidden_size=256, intermediate_size=512, num_attention_heads=4, num_key_value_heads=2)


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(call, repeats: int = 3) -> float:
    call()
    synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    synchronize()
    return (time.perf_counter() - start) / repeats


def save_model(directory: Path, shape: dict, layers: int) -> str:
    torch.manual_seed(0)
    config = Qwen2Config(**shape, num_hidden_layers=layers, max_position_embeddings=16384, dtype="bfloat16")
    Qwen2ForCausalLM(config).to(torch.bfloat16).save_pretrained(directory)
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
    path = save_model(directory, SMALL, 4)
    reference = Policy(load_model(path), 1.0, torch.float32, None).train()
    batch = make_batch(6, 300, SMALL["vocab_size"], torch.device("cpu"))
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


def check_speed(device: torch.device, mesh, directory: Path, layers: int) -> dict:
    """One rank of the trainer on `layers` layers: a new shape's cost, MFU, peak memory, and the weights' way out."""
    on_gpu = device.type == "cuda"
    shape = QWEN if on_gpu else SMALL
    path = save_model(directory, shape, layers)
    policy = build_policy(load_model(path), mesh, 1.0)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-6, fused=True)
    # without embeddings
    count = sum(p.numel() for p in policy.parameters()) - shape["vocab_size"] * shape["hidden_size"]
    found = {}
    first, again = [], []
    for i in range(20 if on_gpu else 3):  # 20 micro-batches whose shapes are all different, as in training
        batch = make_batch(3, (1024 if on_gpu else 40) + 13 * i, shape["vocab_size"], device, seed=i)
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
        batch = make_batch(rows, length, shape["vocab_size"], device)
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        took = seconds(lambda batch=batch: policy(batch).sum().backward())
        policy.zero_grad()
        attention = 4 * shape["hidden_size"] * length / 2 * layers  # per token, forward, causal
        done = 3 * (2 * count + attention) * batch.input_ids.numel() / took
        name = f"{rows} rows of {length} tokens"
        found[f"{name}: TFLOP/s"], found[f"{name}: MFU"] = done / 1e12, done / PEAK
        if on_gpu:
            found[f"{name}: peak GiB"] = torch.cuda.max_memory_allocated() / GIB
    found["optimizer step, s"] = seconds(optimizer.step, 1)
    found["weights to the sampler, s"] = seconds(lambda: [None for _ in policy.full_tensors()], 1)
    return found


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="gpu_check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=7, help="layers of Qwen2.5-7B's shape (%(default)s)")
    parser.add_argument("--output", type=Path, default=RESULTS, help="directory of the JSON file")
    args = parser.parse_args(argv)
    device = init_distributed(10)
    os.environ.setdefault("LOCAL_WORLD_SIZE", "1")
    mesh = init_device_mesh(device.type, (1, 1), mesh_dim_names=("replicate", "shard"))
    card = torch.cuda.get_device_name() if device.type == "cuda" else "CPU, toy sizes"
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    found = {"card": card, "commit": commit.stdout.strip(), "torch": torch.__version__, "layers": args.layers}
    with tempfile.TemporaryDirectory() as scratch:
        found |= check_kernels(device)
        found |= check_equality(device, mesh, Path(scratch, "small"))
        found |= check_speed(device, mesh, Path(scratch, "large"), args.layers)
    print("| what | measured |\n|---|---|")
    for name, value in found.items():
        print(f"| {name} | {f'{value:.4g}' if isinstance(value, float) else value} |")
    if device.type == "cuda":
        path = args.output / f"gpu-{card.replace(' ', '-')}.json"
        path.write_text(json.dumps(found, indent=2) + "\n")
        print(path)
    end_distributed()


if __name__ == "__main__":
    main()
