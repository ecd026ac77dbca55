"""The policy: a Hugging Face causal language model, sharded by FSDP2, that returns log-probabilities instead of
logits."""

from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from distributed import gather
from logprobs import token_logp
from rollout import MicroBatch


def full_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """A sharded tensor gathered, a collective; any other one as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def not_finite(policy: torch.nn.Module, **tensors: torch.Tensor) -> str:
    """Which of `tensors` and of the policy's gradients are not finite, rank by rank. A collective."""
    for name, parameter in policy.named_parameters():
        gradient = parameter.grad
        tensors[f"gradient of {name}"] = gradient.to_local() if isinstance(gradient, DTensor) else gradient
    bad = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    found = [f"rank {dist.get_rank()}: {len(bad)} tensors are not finite, first {bad[0]}"] if bad else []
    return "; ".join(gather(found))


class Policy(torch.nn.Module):
    """Wraps `lm` so that its output head runs inside the sharded root's forward, chunk by chunk, on response tokens
    alone. So the head's weights are gathered once per micro-batch, and [tokens, vocabulary] never exists whole."""

    def __init__(self, lm: PreTrainedModel, temperature: float, compute_dtype: torch.dtype, save_dtype: torch.dtype):
        super().__init__()
        head = lm.get_output_embeddings()
        text_config = lm.config.get_text_config()
        soft_cap = getattr(text_config, "final_logit_softcapping", None)
        if head is None or getattr(head, "bias", None) is not None or soft_cap:
            raise ValueError(
                f"{type(lm).__name__}: only plain linear output heads without bias and soft-capping are supported"
            )
        self.lm, self.temperature = lm, temperature
        self.compute_dtype, self.save_dtype = compute_dtype, save_dtype

    @property
    def device(self) -> torch.device:
        return self.lm.device

    def forward(self, batch: MicroBatch, function: Callable = token_logp):
        """`function` (token_logp, token_stats or token_logp_and_entropy of logprobs.py) of the batch's n response
        tokens."""
        # positions count 0, 1, 2 … from the left, as padding is on the right
        hidden = self.lm.base_model(
            batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
        ).last_hidden_state  # [B, L, D]
        return function(hidden[batch.predicts], batch.tokens, self.lm.get_output_embeddings().weight, self.temperature)

    def full_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """(name, whole tensor) of every weight in `compute_dtype`, which is the sampler's, one gathered at a time. A
        collective: every rank must exhaust it."""
        weights = self.state_dict()  # of self, the sharded root: it reshards first, self.lm would not
        for name, tensor in weights.items():
            tensor = tensor.to(self.compute_dtype)  # before gathering: half the traffic
            yield name.removeprefix("lm."), full_tensor(tensor)

    def save(self, directory: Path, tokenizer) -> None:
        """Write a Hugging Face model directory, in the dtype that the model came in. A collective; rank 0 writes."""
        full = get_model_state_dict(self, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
        if dist.get_rank() == 0:
            weights = {name.removeprefix("lm."): tensor.to(self.save_dtype) for name, tensor in full.items()}
            self.lm.save_pretrained(directory, state_dict=weights)
            self.lm.config.dtype = self.save_dtype  # save_pretrained wrote that of the weights in training, float32
            self.lm.config.save_pretrained(directory)
            tokenizer.save_pretrained(directory)
        dist.barrier()


def build_policy(model: str, mesh: DeviceMesh, temperature: float) -> Policy:
    """Load `model` on every rank in float32 and shard it over `mesh`, layer by layer.

    On GPUs it computes in bf16, with float32 weights and gradient reduction and with gradient checkpointing. On a CPU
    it computes in float32. One CPU process is not sharded: FSDP2's hooks would take a quarter of the tiny model's
    time."""
    on_gpu = mesh.device_type == "cuda"
    lm = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    if on_gpu:
        lm.gradient_checkpointing_enable({"use_reentrant": False})
    compute_dtype = torch.bfloat16 if on_gpu else torch.float32
    policy = Policy(lm, temperature, compute_dtype, AutoConfig.from_pretrained(model).dtype or torch.float32).train()
    if not on_gpu and mesh.size() == 1:
        return policy
    mixed = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if on_gpu else MixedPrecisionPolicy()
    for layer in lm.base_model.layers:
        fully_shard(layer, mesh=mesh, mp_policy=mixed)
    return fully_shard(policy, mesh=mesh, mp_policy=mixed)


# ------------------------------------------------------------------------------------------------------ will it fit?

GIB = 2**30


def training_memory(model: str, ranks: int, micro_batch_tokens: int, on_gpu: bool) -> dict[str, float]:
    """{part: bytes on each rank} while training `model` (directory or hub id), sharded over `ranks`."""
    config = AutoConfig.from_pretrained(model).get_text_config()
    with torch.device("meta"):
        lm = AutoModelForCausalLM.from_config(config)
    sizes = [sum(p.numel() for p in layer.parameters()) for layer in lm.base_model.layers]
    n, vocabulary = sum(p.numel() for p in lm.parameters()), config.vocab_size
    compute = 2 if on_gpu else 4  # bytes of a number in the forward pass
    layer = (
        micro_batch_tokens * compute * (8 * config.hidden_size + 3 * config.intermediate_size)
    )  # what one layer keeps for backward
    boundary = micro_batch_tokens * compute * config.hidden_size  # what checkpointing keeps of it
    return {
        "weights": 4 * n / ranks,
        "gradients": 4 * n / ranks,
        "optimizer": 8 * n / ranks,
        "gathered weights and gradients": 2
        * compute
        * (2 * max(sizes) + n - sum(sizes)),  # a layer, the next one, and the root
        "activations": layer + len(sizes) * boundary if on_gpu else len(sizes) * layer,
        "logits": 4 * 3 * 256 * vocabulary
        + 4 * vocabulary * config.hidden_size,  # of one chunk, and the head's gradient
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
        needs += [
            ("on each GPU for the update", sum(parts.values()), total),
            ("on each GPU during rollouts", resident + vllm_gpu_memory * total, total),
        ]
    else:
        needs += [
            ("of memory for the update on all ranks", ranks * (loading + sum(parts.values())), host)
        ]  # with the sampler's copy
    for what, need, have in needs:
        if need > have:
            raise ValueError(
                f"--model {model} needs about {need / GIB:.1f} GiB {what}, there are {have / GIB:.1f}: "
                f"use more GPUs, a smaller model or fewer --micro-batch-tokens ({describe(parts)} per rank)"
            )


def describe(parts: dict[str, float]) -> str:
    return ", ".join(f"{name} {size / GIB:.1f} GiB" for name, size in parts.items())
