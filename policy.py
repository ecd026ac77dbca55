"""The policy: a Hugging Face causal language model, sharded by FSDP2, that returns log-probabilities instead of logits."""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from batching import MicroBatch
from clipping import token_logp


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A sharded tensor gathered, a collective; any other one as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


class Policy(torch.nn.Module):
    """Wraps `lm` so that its output head runs inside the sharded root's forward, chunk by chunk, on response tokens alone: the head's
    weights are gathered once per micro-batch, and [tokens, vocabulary] never exists whole."""

    def __init__(self, lm: PreTrainedModel, temperature: float, save_dtype: torch.dtype):
        super().__init__()
        head = lm.get_output_embeddings()
        text_config = lm.config.get_text_config()
        if head is None or getattr(head, "bias", None) is not None or getattr(text_config, "final_logit_softcapping", None):
            raise ValueError(f"{type(lm).__name__}: only plain linear output heads without bias and soft-capping are supported")
        self.lm, self.temperature = lm, temperature
        self.save_dtype = save_dtype

    def forward(self, batch: MicroBatch, function: Callable = token_logp):
        """`function` (token_logp, token_stats or token_logp_and_entropy of clipping.py) of the batch's N response tokens."""
        # positions count 0, 1, 2 … from the left, as padding is on the right
        hidden = self.lm.base_model(batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).last_hidden_state
        return function(hidden[batch.predicts], batch.tokens, self.lm.get_output_embeddings().weight, self.temperature)

    def full_tensors(self, dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
        """(name, whole tensor) of every weight, one gathered at a time, as `dtype`. A collective: every rank must exhaust it."""
        for name, tensor in self.state_dict().items():  # of self, the sharded root: it reshards first, self.lm would not
            tensor = tensor.to(dtype)  # before gathering: half the traffic
            yield name.removeprefix("lm."), whole(tensor)

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
    """Load `model` on every rank in float32 and shard it over `mesh`, layer by layer. On GPUs: bf16 compute, float32 weights and
    gradient reduction, gradient checkpointing; on a CPU float32 throughout, and not sharded where there is one process only: FSDP2's
    hooks would take a quarter of the tiny model's time."""
    on_gpu = mesh.device_type == "cuda"
    lm = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    if on_gpu:
        lm.gradient_checkpointing_enable({"use_reentrant": False})
    policy = Policy(lm, temperature, AutoConfig.from_pretrained(model).dtype or torch.float32).train()
    if not on_gpu and mesh.size() == 1:
        return policy
    mixed = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if on_gpu else MixedPrecisionPolicy()
    for layer in lm.base_model.layers:
        fully_shard(layer, mesh=mesh, mp_policy=mixed)
    return fully_shard(policy, mesh=mesh, mp_policy=mixed)
