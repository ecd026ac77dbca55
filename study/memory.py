"""Will it fit, and how long will a step take? Part by part, before anything is loaded.

    python -m study.memory Qwen/Qwen2.5-7B --gpus 8        # both, from rates that you can replace by your machine's

Sharded parts are divided by the ranks of a node. Weights, gradients and AdamW's two moments are float32 (16 bytes a
parameter); on a GPU the computation is in bfloat16 with gradient checkpointing. The activations are an estimate, the
rest is counted. The number of micro-batches is the planner's, for log-normal response lengths.

The rates are those measured on one H200 (results/gpu). There steps of 256 responses of 512 tokens took 15 to 21 s with
Qwen2.5-1.5B's shape, and 17 s are computed here from what its parts took; 7 layers of 7B's shape took 34.9 GiB without
AdamW's moments, and 39 are computed. **Nothing of several GPUs was measured.** `python -m study.gpu_check` measures
another card.
"""

import argparse
import math

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from logprobs import CHUNK
from trainer.batching import plan_micro_batches
from trainer.policy import decoder_layers

GIB = 2**30
# 10^12 bf16 operations a second, those that are recomputed counted: of a whole step (old statistics and update) of
# Qwen2.5-1.5B's width; and at 7B's width of micro-batches alone, an MFU of .37 of 989 without the recomputed ones
TFLOPS = {1536: 240.0, 3584: 490.0}
# tokens/s of 256 sequences at once with 1.5B parameters (19,000 to 33,000). A larger model decodes more slowly as its
# weights are more to read, which is computed; a smaller one was not measured, and is taken for no faster
DECODE_RATE, DECODE_PARAMETERS = 26_000.0, 1.54e9
START = 100  # seconds before the first step, half of them vLLM's
CARD = 80e9  # bytes of memory


def training_memory(model: str, ranks: int, micro_batch_tokens: int, on_gpu: bool) -> dict[str, float]:
    """{part: bytes on each rank} while training `model` (directory or hub id), sharded over `ranks`."""
    config = AutoConfig.from_pretrained(model).get_text_config()
    with torch.device("meta"):
        lm = AutoModelForCausalLM.from_config(config)
    sizes = [sum(p.numel() for p in layer.parameters()) for layer in decoder_layers(lm)]
    n, vocabulary = sum(p.numel() for p in lm.parameters()), config.vocab_size
    compute = 2 if on_gpu else 4  # bytes of a number in the forward pass
    width, inner, tokens = config.hidden_size, config.intermediate_size, micro_batch_tokens
    layer = tokens * compute * (8 * width + 3 * inner)  # kept for backward
    boundary = tokens * compute * width  # what checkpointing keeps of a layer
    root = n - sum(sizes)  # embeddings, last norm and head
    parts = {
        "weights": 4 * n / ranks,
        "gradients": 4 * n / ranks,
        "optimizer": 8 * n / ranks,
        # of a layer, the next one, and the root
        "gathered weights and gradients": 2 * compute * (2 * max(sizes) + root),
        "activations": layer + len(sizes) * boundary if on_gpu else len(sizes) * layer,
        # a chunk's, and the head's gradient; see `logprobs._keeps` for what is kept for the backward pass
        "logits": (6 * 1024 if on_gpu else 12 * CHUNK) * vocabulary + 4 * vocabulary * width,
    }
    if on_gpu:  # gradients are reduced in float32, and norms and rotations are computed in it
        parts["float32 copies of gathered gradients"] = 4 * (max(sizes) + root)
        parts["float32 copies of activations"] = copies = tokens * 4 * (4 * width + inner)
        kept = 2 * tokens * vocabulary  # freed before the layer's activations are computed again
        kept = max(0, kept - layer - copies) if kept <= CARD / 16 else 0
        parts["probabilities kept for the backward pass, beyond a layer's activations"] = kept
    return parts


def micro_batches(a: argparse.Namespace, rows: int, ranks: int) -> tuple[int, float]:
    """(micro-batches, share of padding) of `rows` rows on `ranks` ranks, by the trainer's own planner."""
    sigma = 0.8
    mean = np.log(a.response_tokens) - sigma**2 / 2
    lengths = np.random.default_rng(0).normal(mean, sigma, rows)
    lengths = [
        int(a.prompt_tokens + length) for length in np.exp(lengths).clip(1, a.micro_batch_tokens - a.prompt_tokens)
    ]
    plan = plan_micro_batches(lengths, ranks, a.micro_batch_tokens)
    padded = (
        sum(len(shares[0]) * max(lengths[i] for share in shares for i in share if i >= 0) for shares in plan) * ranks
    )
    return len(plan), 1 - sum(lengths) / padded


def step_time(model: str, gpus: int, nodes: int, a: argparse.Namespace) -> dict[str, float]:
    """{part: seconds of one step} of `nodes` × `gpus`, nothing overlapping: each part is its work divided by the rate
    in `a`, or where that is 0 by the one measured at the nearest size."""
    config = AutoConfig.from_pretrained(model).get_text_config()
    with torch.device("meta"):
        lm = AutoModelForCausalLM.from_config(config)
    n, ranks = sum(p.numel() for p in lm.parameters()), gpus * nodes
    per_update, padding = micro_batches(a, math.ceil(a.rows / a.updates), ranks)
    updates = a.updates * per_update
    responses = a.rows * a.response_tokens
    tokens = (responses + a.rows * a.prompt_tokens) / (1 - padding)
    tflops = a.tflops or TFLOPS[min(TFLOPS, key=lambda width: abs(width - config.hidden_size))]
    decode_rate = a.decode_rate or DECODE_RATE * min(1.0, DECODE_PARAMETERS / n)
    flops = 1e12 * tflops * ranks
    within, between = 1e9 * a.gpu_gbytes, 1e9 * a.node_gbytes
    return {
        "rollout": responses / (decode_rate * ranks),
        "old log-probabilities: 2 FLOPs a parameter and token": 2 * n * tokens / flops,
        "update: 8, of which 2 are recomputed": 8 * n * tokens / flops,
        # bf16 weights twice, float32 gradients once
        f"gathering weights, {updates} micro-batches": updates * (2 * 2 * n + 4 * n) / within if ranks > 1 else 0.0,
        # each rank its shard
        "gradients between nodes": updates * 2 * 4 * n / gpus / between if nodes > 1 else 0.0,
        "weights to the sampler": 0.3 + 2 * n / within,  # measured: 0.2 to 0.3 s, and no less for a tiny model
        "the sampler's sleep and all else": 1.5,  # measured
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="memory", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for flag, default, text in (
        ("--gpus", 8, "GPUs of a node: weights are sharded over them"),
        ("--nodes", 1, "nodes: weights are replicated between them"),
        ("--micro-batch-tokens", 16384, "padded tokens per forward/backward on each rank"),
        ("--rows", 4096, "responses in a rollout batch"),
        ("--prompt-tokens", 150, "mean length of prompts"),
        ("--response-tokens", 1000, "mean length of responses"),
        ("--updates", 16, "optimizer steps on a rollout batch"),
        ("--decode-rate", 0.0, "response tokens per second and GPU while sampling; 0: as measured"),
        ("--tflops", 0.0, "10^12 bf16 operations per second and GPU, recomputed ones too; 0: as measured"),
        ("--gpu-gbytes", 200.0, "GB per second of a collective within a node"),
        ("--node-gbytes", 25.0, "GB per second and GPU between nodes"),
    ):
        parser.add_argument(flag, type=type(default), default=default, help=f"{text} ({default})")
    parser.add_argument("model", help="hub id or directory")
    a = parser.parse_args(argv)
    try:
        parts = training_memory(a.model, a.gpus, a.micro_batch_tokens, on_gpu=True)
        seconds = step_time(a.model, a.gpus, a.nodes, a)
    except (OSError, ValueError) as error:
        parser.exit(2, f"memory: error: {str(error).splitlines()[0]}\n")
    for name, size in parts.items():
        print(f"{size / GIB:8.2f} GiB  {name}")
    print(f"{sum(parts.values()) / GIB:8.2f} GiB  in all, on each GPU")
    host = a.gpus * parts["weights"] * a.gpus  # every rank loads the whole model in float32
    print(f"{host / GIB:8.2f} GiB  of host memory on a node while all ranks load\n")
    for name, value in seconds.items():
        print(f"{value:8.1f} s    {name}")
    print(f"{sum(seconds.values()):8.1f} s    a step, if nothing overlaps; the first after about {START} s")


if __name__ == "__main__":
    main()
