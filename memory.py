"""Will it fit, and how long will a step take? Part by part, before anything is loaded.

    python memory.py Qwen/Qwen2.5-7B --gpus 8        # both, from rates that you can replace by your machine's

Sharded parts are divided by the ranks of a node. Weights, gradients and AdamW's two moments are float32 (16 bytes a parameter); on a
GPU the computation is in bfloat16 with gradient checkpointing. Activations are an estimate, the rest is counted.
"""

import argparse
import math

import psutil
import torch
from transformers import AutoConfig, AutoModelForCausalLM

GIB = 2**30


def training_memory(model: str, ranks: int, micro_batch_tokens: int, on_gpu: bool) -> dict[str, float]:
    """{part: bytes on each rank} while training `model` (directory or hub id), sharded over `ranks`."""
    config = AutoConfig.from_pretrained(model).get_text_config()
    with torch.device("meta"):
        lm = AutoModelForCausalLM.from_config(config)
    sizes = [sum(p.numel() for p in layer.parameters()) for layer in lm.base_model.layers]
    n, vocabulary = sum(p.numel() for p in lm.parameters()), config.vocab_size
    compute = 2 if on_gpu else 4  # bytes of a number in the forward pass
    layer = micro_batch_tokens * compute * (8 * config.hidden_size + 3 * config.intermediate_size)  # what one layer keeps for backward
    boundary = micro_batch_tokens * compute * config.hidden_size  # what checkpointing keeps of it
    return {
        "weights": 4 * n / ranks,
        "gradients": 4 * n / ranks,
        "optimizer": 8 * n / ranks,
        "gathered weights and gradients": 2 * compute * (2 * max(sizes) + n - sum(sizes)),  # a layer, the next one, and the root
        "activations": layer + len(sizes) * boundary if on_gpu else len(sizes) * layer,
        "logits": 4 * 3 * 256 * vocabulary + 4 * vocabulary * config.hidden_size,  # of one chunk, and the head's gradient
    }


def check_memory(model: str, ranks: int, micro_batch_tokens: int, device: torch.device, vllm_gpu_memory: float) -> None:
    """Raises ValueError, with the parts, if training or loading can't fit on this machine with `ranks` processes."""
    on_gpu = device.type == "cuda"
    parts = training_memory(model, ranks, micro_batch_tokens, on_gpu)
    loading = parts["weights"] * ranks  # every rank loads the whole model in float32
    host = psutil.virtual_memory().available
    needs = [("of host memory for loading on all ranks", ranks * loading, host)]
    if on_gpu:
        total = torch.cuda.get_device_properties(device).total_memory
        resident = parts["weights"] + parts["gradients"] + parts["optimizer"]
        needs += [("on each GPU for the update", sum(parts.values()), total),
                  ("on each GPU during rollouts", resident + vllm_gpu_memory * total, total)]  # fmt: skip
    else:
        needs += [("of memory for the update on all ranks", ranks * (loading + sum(parts.values())), host)]  # with the sampler's copy
    for what, need, have in needs:
        if need > have:
            raise ValueError(
                f"--model {model} needs about {need / GIB:.1f} GiB {what}, there are {have / GIB:.1f}: use more GPUs, a smaller model or "
                f"fewer --micro-batch-tokens ({describe(parts)} per rank)"
            )


def describe(parts: dict[str, float]) -> str:
    return ", ".join(f"{name} {size / GIB:.1f} GiB" for name, size in parts.items())


def step_time(model: str, gpus: int, nodes: int, a: argparse.Namespace) -> dict[str, float]:
    """{part: seconds of one step} of `nodes` × `gpus`, nothing overlapping: each part is its work divided by the rate assumed in `a`."""
    with torch.device("meta"):
        lm = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model).get_text_config())
    n, all_gpus = sum(p.numel() for p in lm.parameters()), gpus * nodes
    responses = a.rows * a.response_tokens
    tokens = (responses + a.rows * a.prompt_tokens) / (1 - a.padding)
    flops = 1e12 * a.tflops * all_gpus
    micro_batches = a.updates * max(1, math.ceil(tokens / all_gpus / a.updates / a.micro_batch_tokens))
    within, between = 1e9 * a.gpu_gbytes, 1e9 * a.node_gbytes
    return {
        "rollout": responses / (a.decode_rate * all_gpus),
        "old log-probabilities: 2 FLOPs a parameter and token": 2 * n * tokens / flops,
        "update: 8, of which 2 are recomputed": 8 * n * tokens / flops,
        f"gathering weights, {micro_batches} micro-batches": micro_batches * (2 * 2 * n + 4 * n) / within,  # bf16 twice, gradients once
        "gradients between nodes": micro_batches * 2 * 4 * n / gpus / between if nodes > 1 else 0.0,  # each rank its shard
        "weights to the sampler": 2 * n / within,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Memory on each GPU, and seconds of a step, under the assumptions that the flags show.")
    parser.formatter_class = argparse.ArgumentDefaultsHelpFormatter
    parser.add_argument("model", help="hub id or directory")
    parser.add_argument("--gpus", type=int, default=8, help="of a node: weights are sharded over them")
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--micro-batch-tokens", type=int, default=16384)
    parser.add_argument("--rows", type=int, default=512 * 8, help="responses in a rollout batch")
    parser.add_argument("--prompt-tokens", type=float, default=150, help="mean length of prompts")
    parser.add_argument("--response-tokens", type=float, default=1000, help="mean length of responses")
    parser.add_argument("--updates", type=int, default=16, help="optimizer steps on a rollout batch")
    parser.add_argument("--padding", type=float, default=0.04, help="share of padded tokens, see bench.py padding")
    parser.add_argument("--decode-rate", type=float, default=3000, help="response tokens per second and GPU while sampling")
    parser.add_argument("--tflops", type=float, default=350, help="10^12 bf16 operations per second and GPU that the update reaches")
    parser.add_argument("--gpu-gbytes", type=float, default=200, help="GB per second of a collective within a node")
    parser.add_argument("--node-gbytes", type=float, default=25, help="GB per second and GPU between nodes")
    args = parser.parse_args()
    parts = training_memory(args.model, args.gpus, args.micro_batch_tokens, on_gpu=True)
    for name, size in parts.items():
        print(f"{size / GIB:8.2f} GiB  {name}")
    print(f"{sum(parts.values()) / GIB:8.2f} GiB  in all, on each GPU\n")
    seconds = step_time(args.model, args.gpus, args.nodes, args)
    for name, value in seconds.items():
        print(f"{value:8.1f} s    {name}")
    print(f"{sum(seconds.values()):8.1f} s    a step, if nothing overlaps")
