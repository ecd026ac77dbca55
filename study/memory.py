"""Will it fit, and how long will a step take? Part by part, before anything is loaded.

    python -m study.memory Qwen/Qwen2.5-7B --gpus 8        # both, from rates that you can replace by your machine's

Sharded parts are divided by the ranks of a node. Weights, gradients and AdamW's two moments are float32 (16 bytes a
parameter); on a GPU the computation is in bfloat16 with gradient checkpointing. Activations are an estimate, the rest
is counted.
"""

import argparse
import math

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from policy import GIB, training_memory


def step_time(model: str, gpus: int, nodes: int, a: argparse.Namespace) -> dict[str, float]:
    """{part: seconds of one step} of `nodes` × `gpus`, nothing overlapping: each part is its work divided by the rate
    assumed in `a`."""
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
        f"gathering weights, {micro_batches} micro-batches": micro_batches
        * (2 * 2 * n + 4 * n)
        / within,  # bf16 twice, gradients once
        "gradients between nodes": micro_batches * 2 * 4 * n / gpus / between
        if nodes > 1
        else 0.0,  # each rank its shard
        "weights to the sampler": 2 * n / within,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description="Memory on each GPU, and seconds of a step, under the assumptions that the flags show."
    )
    parser.formatter_class = argparse.ArgumentDefaultsHelpFormatter
    parser.add_argument("model", help="hub id or directory")
    parser.add_argument("--gpus", type=int, default=8, help="of a node: weights are sharded over them")
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--micro-batch-tokens", type=int, default=16384)
    parser.add_argument("--rows", type=int, default=512 * 8, help="responses in a rollout batch")
    parser.add_argument("--prompt-tokens", type=float, default=150, help="mean length of prompts")
    parser.add_argument("--response-tokens", type=float, default=1000, help="mean length of responses")
    parser.add_argument("--updates", type=int, default=16, help="optimizer steps on a rollout batch")
    parser.add_argument(
        "--padding", type=float, default=0.04, help="share of padded tokens, see python -m study.bench padding"
    )
    parser.add_argument(
        "--decode-rate", type=float, default=3000, help="response tokens per second and GPU while sampling"
    )
    parser.add_argument(
        "--tflops", type=float, default=350, help="10^12 bf16 operations per second and GPU that the update reaches"
    )
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
