"""The policy: a Hugging Face causal language model, sharded by FSDP2, that returns log-probabilities, not logits."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from logprobs import CHUNK, TokenStats, token_logp, token_stats
from trainer.batching import MicroBatch, collate, micro_batches
from trainer.distributed import gather, print0
from trainer.model import Description, describe, dropouts, first_line, one_line
from trainer.rollout import Rollouts


def full_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """A sharded tensor gathered, a collective; any other one as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


class Policy(torch.nn.Module):
    """Wraps `lm` so that its output head runs inside the sharded root's forward, chunk by chunk, on response tokens
    alone. So the head's weights are gathered once per micro-batch, and [tokens, vocabulary] never exists whole."""

    def __init__(self, lm: PreTrainedModel, temperature: float, compute_dtype: torch.dtype, description: Description):
        """`description`: what the model came with, with which `save` writes it."""
        super().__init__()
        self.lm, self.temperature, self.compute_dtype, self.description = lm, temperature, compute_dtype, description
        self.chunk = 1024 if compute_dtype == torch.bfloat16 else CHUNK  # tokens whose logits exist at a time

    def forward(self, batch: MicroBatch, function: Callable = token_logp):
        """`function` (token_logp, token_stats or token_logp_and_entropy) of the batch's n response tokens.

        There is no attention mask. Padding is on the right and attention is causal, so a response never sees it, and a
        mask would keep attention off its flash kernel."""
        hidden = self.lm.base_model(batch.input_ids, use_cache=False).last_hidden_state  # [batch, width, D]
        head = self.lm.get_output_embeddings().weight
        return function(hidden[batch.predicts], batch.tokens, head, self.temperature, self.chunk)

    def full_tensors(self, dtype: torch.dtype | None = None) -> Iterator[tuple[str, torch.Tensor]]:
        """(name, whole tensor) of every weight in `dtype`, by default the sampler's `compute_dtype`, one gathered at a
        time. A collective: every rank must exhaust it."""
        for name, tensor in self.state_dict().items():  # of the root, which reshards first; self.lm would not
            tensor = tensor.to(dtype or self.compute_dtype)  # before gathering: half the traffic
            yield name.removeprefix("lm."), full_tensor(tensor)

    def save(self, directory: Path, tokenizer) -> str | None:
        """Rank 0 writes a Hugging Face model, with the configuration and dtype that it came in, under its name only
        when it is whole. Returns on every rank why that was impossible, None if it was not. A collective."""
        dtype, first, errors = self.description.dtype, dist.get_rank() == 0, []
        weights = {name: tensor.cpu() for name, tensor in self.full_tensors(dtype) if first}  # gathered on all ranks
        if first:
            scratch = directory.with_name(f"{directory.name}.tmp")
            try:
                shutil.rmtree(scratch, ignore_errors=True)  # of a save that was cut short
                self.lm.save_pretrained(scratch, state_dict=weights)
                self.description.write(scratch, tokenizer)  # save_pretrained wrote the config of the one in training
                shutil.rmtree(directory, ignore_errors=True)
                scratch.rename(directory)
            except Exception as error:  # of a full disk, which safetensors reports in its own way
                errors = [f"{directory} could not be saved: {first_line(error)}"]
        return next(iter(gather(errors)), None)


@torch.no_grad()
def old_stats(policy: Policy, rollouts: Rollouts, micro_batch_tokens: int) -> TokenStats:
    """ln π_old, H and B of all response tokens under the current weights, float32 [N] on every rank. A collective."""
    device, everything = policy.lm.device, torch.arange(len(rollouts.responses))
    stats = torch.zeros(3, len(rollouts.sampler_logp), device=device)
    for inputs, tokens, is_real in micro_batches(rollouts, everything, micro_batch_tokens, device):
        found = torch.stack(policy(inputs, token_stats))  # [3, n]
        stats[:, tokens[is_real]] = found[:, is_real]
    dist.all_reduce(stats)  # a token is 0 on all ranks but one
    return TokenStats(*stats)


def require_supported(model: str, config: PretrainedConfig, device: torch.device) -> None:
    """Raises ValueError for a model that is more than a language model, and for a GPU without bfloat16. What is left
    is compared with the model's own forward pass, in `require_same`."""
    if config.get_text_config() is not config:  # the sampler and the saved model would name its weights in other ways
        raise ValueError(
            f"--model {model} is {config.model_type}, which reads more than text: give a model of text alone"
        )
    if device.type == "cuda" and (capability := torch.cuda.get_device_capability(device)) < (8, 0):  # T4, V100 ...
        raise ValueError(
            f"{torch.cuda.get_device_name(device)} does not compute in bfloat16: a GPU of compute capability 8.0 or "
            f"more is needed (A100, A10, L4, RTX 30 and later), this one has {capability[0]}.{capability[1]}"
        )


@torch.no_grad()
def require_same(policy: Policy, model: str) -> None:
    """Raises ValueError unless the policy's ln p are those of the model's own forward pass, row by row without padding.

    So whatever a model does beyond "last hidden state times output head" is refused: soft caps, scales, biases,
    dropout, attention that is not causal. Float32 rounding makes 1e-5 nats of difference."""
    lm, vocabulary = policy.lm, policy.lm.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(0)
    texts = [torch.randint(vocabulary, (length,), generator=generator) for length in (24, 9)]
    try:
        ours = policy.train()(collate([ids[:4] for ids in texts], [ids[4:] for ids in texts]))
        lm.eval()
        theirs = []
        for ids in texts:
            logp = (lm(ids[None]).logits[0, 3:-1].float() / policy.temperature).log_softmax(-1)
            theirs.append(logp.gather(1, ids[4:, None]).squeeze(1))
        difference = (ours - torch.cat(theirs)).abs().max().item()
    except Exception as error:  # whatever an architecture that does not fit may raise
        raise ValueError(f"--model {model}: {type(lm).__name__} can't be trained here ({first_line(error)})") from None
    policy.train()
    if not difference < 1e-3:  # NaN too
        raise ValueError(
            f"--model {model}: {type(lm).__name__} can't be trained here: its own log-probabilities are "
            f"{difference:.2g} nats off those of its last hidden state times its output head, the policy's"
        )


def decoder_layers(lm: PreTrainedModel) -> torch.nn.ModuleList:
    return max((m for m in lm.base_model.modules() if isinstance(m, torch.nn.ModuleList)), key=len)


def build_policy(lm: PreTrainedModel, mesh: DeviceMesh, temperature: float) -> Policy:
    """The policy of a model from `load_model`, sharded over `mesh`, layer by layer. Raises ValueError for a model that
    is not what the policy takes it for.

    On GPUs it computes in bf16, with float32 weights and gradient reduction and with gradient checkpointing. On a CPU
    it computes in float32. One CPU process is not sharded: FSDP2's hooks take a quarter of the tiny model's time."""
    on_gpu, model = mesh.device_type == "cuda", lm.name_or_path
    if off := dropouts(AutoConfig.from_pretrained(model)):
        print0("off in training: " + ", ".join(f"{name} {value}" for name, value in off.items()))
    compute_dtype = torch.bfloat16 if on_gpu else torch.float32
    policy = Policy(lm, temperature, compute_dtype, describe(model))
    require_same(policy, model)
    if on_gpu:
        lm.gradient_checkpointing_enable({"use_reentrant": False})
    if not on_gpu and mesh.size() == 1:
        return policy
    mixed = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if on_gpu else MixedPrecisionPolicy()
    for layer in decoder_layers(lm):
        fully_shard(layer, mesh=mesh, mp_policy=mixed)
    return fully_shard(policy, mesh=mesh, mp_policy=mixed)


def check_memory(model: str, ranks: int, device: torch.device, vllm_gpu_memory: float) -> None:
    """Raises ValueError if `ranks` processes can't load the model on this machine, or can't keep what lasts: weights,
    gradients and AdamW's two moments in float32, sharded, beside the sampler. What an update takes on top is seen in
    the first step; `python -m study.memory` estimates it."""
    with one_line(model), torch.device("meta"):
        lm = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model).get_text_config())
    n, host = lm.num_parameters(), psutil.virtual_memory().available
    needs = [("of memory to load it in each process", 4 * n * ranks, host, "fewer processes")]
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        kept = 16 * n / ranks + vllm_gpu_memory * total
        needs.append(("on each GPU during rollouts", kept, total, "more GPUs, less --vllm-gpu-memory"))
    else:
        needs.append(
            ("of memory to train, with a sampler in each process", (16 + 4 * ranks) * n, host, "fewer processes")
        )
    for what, need, have, advice in needs:
        if need > have:
            raise ValueError(
                f"--model {model} needs about {need / 2**30:.1f} GiB {what}, there are {have / 2**30:.1f}: "
                f"use {advice} or a smaller model"
            )
