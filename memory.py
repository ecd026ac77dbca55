"""Will it fit? What training a model takes on each rank, part by part, before anything is loaded.

    python memory.py Qwen/Qwen2.5-7B --gpus 8        # the parts, without running anything

Sharded parts are divided by the ranks of a node. Weights, gradients and AdamW's two moments are float32 (16 bytes a parameter); on a
GPU the computation is in bfloat16 with gradient checkpointing. Activations are an estimate, the rest is counted.
"""

import argparse

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


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Estimate the memory that training takes on each GPU.")
    parser.add_argument("model", help="hub id or directory")
    parser.add_argument("--gpus", type=int, default=8, help="of a node: weights are sharded over them")
    parser.add_argument("--micro-batch-tokens", type=int, default=16384)
    args = parser.parse_args()
    parts = training_memory(args.model, args.gpus, args.micro_batch_tokens, on_gpu=True)
    for name, size in parts.items():
        print(f"{size / GIB:8.2f} GiB  {name}")
    print(f"{sum(parts.values()) / GIB:8.2f} GiB  in all, on each GPU")
