"""Rollouts: from prompts to responses with each sampled token's log-probability, by vLLM or by transformers alone.

Each rank has a sampler of its own (with --vllm-tp, neighbouring ranks share one), and hands it the trainer's new
weights with `sync`. Samplers keep no random state: a rollout is a function of the weights, the prompts and the `seed`
of its `generate`, so a run can be resumed without one.
"""

import logging
import os
import random
import warnings
from collections.abc import Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, DynamicCache, GenerationConfig
from transformers.generation import TopKLogitsWarper, TopPLogitsWarper

from trainer.distributed import print0
from trainer.model import load_model


@dataclass(frozen=True)
class Sampling:
    """How to sample: temperature, then top-k, then top-p. Raises ValueError for values outside their range."""

    max_new_tokens: int
    temperature: float = 1.0  # 0: greedy, with the log-probs of temperature 1
    top_p: float = 1.0  # 1: off
    top_k: int = 0  # 0: off

    def __post_init__(self):
        sensible = 0 <= self.temperature < np.inf and 0 < self.top_p <= 1 and self.top_k >= 0
        if self.max_new_tokens < 1 or not sensible:
            raise ValueError(f"{self}: give max_new_tokens >= 1, a finite temperature >= 0, 0 < top_p <= 1, top_k >= 0")


class Response(NamedTuple):
    token_ids: list[int]  # EOS included when the model wrote it
    logps: list[float]  # ln of each token's probability under the sampler: after temperature, top-k and top-p
    finished: bool  # False: cut off at max_new_tokens, or at the sampler's max_len


class Sampler:
    """What the trainer needs of a sampler:

        sampler = make_sampler("auto", model_dir, device=device, dtype=torch.bfloat16, max_len=4096, seed=0)
        groups = sampler.generate(prompts, 8, Sampling(max_new_tokens=2048), seed=step)  # groups[prompt][sample]
        sampler.sleep()  # the GPU's memory is the trainer's until the next sync
        ...              # change the weights
        sampler.sync(named_tensors)

    To sample with something else, subclass it and return it from `make_sampler`: call `__init__`, and implement
    `_generate` (`generate` without the checks) and `_load`, which copies in every (name, tensor) of an iterator.
    """

    def __init__(self, state_dict: dict[str, torch.Tensor], eos: list[int], max_len: int):
        """`state_dict`: what `sync` gets, by name and shape; `eos`: ids that end a response; `max_len`: of a row."""
        self.shapes = {name: tensor.shape for name, tensor in state_dict.items()}
        self.eos, self.max_len = eos, max_len
        self.ready = True  # False: no weights, or broken ones

    def generate(self, prompts: list[list[int]], n: int, sampling: Sampling, seed: int) -> list[list[Response]]:
        """`n` responses for each prompt (token ids), the same for the same arguments and weights; the caller's random
        state stays as it is. A row of max_len tokens is cut off there. ValueError: a prompt is empty or leaves no room
        for a token. RuntimeError: asleep, or a sync failed."""
        if not self.ready:
            raise RuntimeError("the sampler has no usable weights: it sleeps or its last sync failed; call sync first")
        lengths = [len(prompt) for prompt in prompts]
        if min(lengths, default=1) == 0:
            raise ValueError(f"prompt {lengths.index(0)} is empty: give it at least one token")
        if max(lengths, default=0) >= self.max_len:
            raise ValueError(f"a prompt of {max(lengths)} tokens leaves no room for an answer in {self.max_len}")
        return self._generate(prompts, n, sampling, seed) if prompts else []

    def sync(self, named_tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Take over the trainer's weights: (name, whole tensor) of its state dict, tied ones too, in any dtype. All
        ranks exhaust the iterator, which may gather. ValueError: one is unknown, repeated, missing or misshapen."""
        self.ready, missing = False, set(self.shapes)

        def checked():
            for name, tensor in named_tensors:
                if name not in missing:
                    raise ValueError(f"sync: weight {name} " + ("came twice" if name in self.shapes else "is unknown"))
                if tensor.shape != (mine := self.shapes[name]):
                    raise ValueError(f"sync: {name} is {list(tensor.shape)}, the sampler's is {list(mine)}")
                missing.remove(name)
                yield name, tensor

        self._load(checked())
        if missing:
            raise ValueError(f"sync: {len(missing)} weights are missing, {min(missing)} for one: pass all of them")
        self.ready = True

    def sleep(self) -> None:
        """On a GPU, which is the trainer's too: give all memory back, weights included, until the next `sync`."""

    def close(self) -> None:
        """The last call, from `distributed.end_distributed`: vLLM takes the process group down with its engine."""


class VllmSampler(Sampler):
    """vLLM inside this process, one engine per rank. Under torchrun the process group must exist before, and building
    is a collective. Without a process group it makes one of its own. The arguments are those of `make_sampler`."""

    def __init__(self, model_dir, *, device, dtype, max_len, seed, tp, gpu_memory, max_num_seqs):
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the engine in this process
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        if device.type == "cpu":
            os.environ["TORCHDYNAMO_DISABLE"] = "1"  # tiny models: compiling takes longer than it saves
            logging.getLogger("torch._library.triton").setLevel(logging.ERROR)  # "Triton not available"
        from vllm import LLM

        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model_dir))
        super().__init__(model.state_dict(), eos_ids(model_dir), max_len)
        self.device = device
        options = dict(seed=seed, max_model_len=max_len, max_num_seqs=max_num_seqs, tensor_parallel_size=tp)
        options["distributed_executor_backend"] = "external_launcher" if dist.is_initialized() else None
        options |= CPU_OPTIONS if device.type == "cpu" else GPU_OPTIONS | {"gpu_memory_utilization": gpu_memory}
        overwritten = {name: os.environ.get(name) for name in ("LOCAL_WORLD_SIZE", "LD_PRELOAD")}  # by LLM()
        with seeded(seed, device), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # vLLM's own
            self.llm = LLM(str(model_dir), dtype=dtype, use_tqdm_on_load=False, **OPTIONS, **options)
        for name, value in overwritten.items():
            os.environ.pop(name, None)
            os.environ.update({} if value is None else {name: value})

    def _generate(self, prompts, n, sampling, seed):
        from vllm import SamplingParams

        # Keys and values that are left from old weights would be used. Those of current ones would change how requests
        # are batched, and so the random numbers they get.
        if not self.llm.reset_prefix_cache():
            raise RuntimeError("vLLM did not reset its prefix cache: some of it is still in use")
        how = dict(temperature=sampling.temperature, top_p=sampling.top_p, top_k=sampling.top_k)
        until = dict(max_tokens=sampling.max_new_tokens, stop_token_ids=self.eos)
        params = SamplingParams(n=n, **how, **until, detokenize=False, logprobs=0, flat_logprobs=True)
        with seeded(seed, self.device):
            requests = self.llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)
        completed = lambda o: Response(list(o.token_ids), list(o.logprobs.logprobs), o.token_ids[-1] in self.eos)
        return [[completed(output) for output in request.outputs] for request in requests]

    def _load(self, named_tensors):
        self._wake("weights")
        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": named_tensors})
        self._wake("kv_cache")  # only now: a sync needs some memory of its own

    def _wake(self, tag):  # does nothing where nothing sleeps
        torch.cuda.empty_cache()
        self.llm.wake_up(tags=[tag])

    def sleep(self):
        if self.device.type == "cuda":  # level 1 would keep a copy of weights that are old by then
            self.ready = False
            self.llm.sleep(level=2)

    def close(self):
        self.llm.llm_engine.engine_core.shutdown()


OPTIONS = dict(logprobs_mode="processed_logprobs", skip_tokenizer_init=True, disable_log_stats=True)
CPU_OPTIONS = dict(enforce_eager=True, kv_cache_memory_bytes=256 << 20)
# Ran on one GPU, with vLLM 0.26 (study/results/gpu). The head in float32: bf16 logits would put ln p 0.01 nats off.
GPU_OPTIONS = dict(enable_sleep_mode=True, hf_overrides={"head_dtype": "float32"})

ATTENTION = {"full_attention", "sliding_attention", "chunked_attention"}


class HFSampler(Sampler):
    """transformers alone, wherever the trainer runs: a plain decoding loop over a batch padded on the left."""

    def __init__(self, model_dir, *, device: torch.device, dtype: torch.dtype, max_len: int, max_rows: int = 256):
        """`max_rows`: sequences decoded at once; their KV cache is what takes memory."""
        self.model = load_model(model_dir, dtype).to(device).eval()
        super().__init__(self.model.state_dict(), eos_ids(model_dir), max_len)
        self.device, self.max_rows = device, max_rows

    def _generate(self, prompts, n, sampling, seed):
        generator = torch.Generator(self.device).manual_seed(seed)
        rows, done = [prompt for prompt in prompts for _ in range(n)], []
        for i in range(0, len(rows), self.max_rows):
            done += self._decode(rows[i : i + self.max_rows], sampling, generator)
        return [done[i : i + n] for i in range(0, len(done), n)]

    @torch.inference_mode()
    def _decode(self, prompts: list[list[int]], sampling: Sampling, generator: torch.Generator) -> list[Response]:
        limits = torch.tensor([min(sampling.max_new_tokens, self.max_len - len(p)) for p in prompts])  # [n]
        n, width, steps, limits = len(prompts), max(map(len, prompts)), int(limits.max()), limits.to(self.device)
        eos = torch.tensor(self.eos, device=self.device)
        inputs = torch.tensor([[0] * (width - len(p)) + p for p in prompts], device=self.device)  # [n, width]
        mask = torch.tensor([[0] * (width - len(p)) + [1] * (len(p) + steps) for p in prompts], device=self.device)
        positions = (mask.cumsum(1) - 1).clamp(min=0)  # [n, width + steps], as mask
        tokens, logps = inputs.new_zeros(n, steps), torch.zeros(n, steps, device=self.device)
        rows = torch.arange(n, device=self.device)  # those in the batch
        going = torch.ones_like(rows, dtype=torch.bool)  # those of them without an EOS
        cache, start = DynamicCache(config=self.model.config), 0
        for t in range(steps):
            end = width + t
            context = dict(attention_mask=mask[rows, :end], position_ids=positions[rows, start:end])
            logits = self.model(inputs, **context, past_key_values=cache, logits_to_keep=1).logits[:, -1]
            logp = sampling_logp(logits, sampling)  # [rows, vocabulary]
            if sampling.temperature:
                inputs = torch.multinomial(logp.exp(), 1, generator=generator)  # [rows, 1]
            else:
                inputs = logp.argmax(1, keepdim=True)
            tokens[rows, t], logps[rows, t] = inputs[:, 0], logp.gather(1, inputs)[:, 0]
            going &= ~torch.isin(inputs[:, 0], eos) & (t + 1 < limits[rows])
            if not going.any():
                break
            if going.sum() <= 0.75 * len(rows):  # drop finished rows, but not a few at a time: it copies the cache
                cache.batch_select_indices(going)
                rows, inputs, going = rows[going], inputs[going], going[going]
            start = end
        ended = torch.isin(tokens, eos) & (torch.arange(steps, device=self.device) < limits[:, None])
        lengths = torch.where(ended.any(1), ended.int().argmax(1) + 1, limits)  # what follows means nothing
        done = zip(tokens.tolist(), logps.tolist(), lengths.tolist(), ended.any(1).tolist())
        return [Response(ids[:length], logp[:length], finished) for ids, logp, length, finished in done]

    def sleep(self):
        if self.device.type == "cuda":
            self.ready = False
            self.model.to("cpu")
            torch.cuda.empty_cache()

    @torch.no_grad()
    def _load(self, named_tensors):
        self.model.to(self.device)
        weights = self.model.state_dict()
        for name, tensor in named_tensors:
            weights[name].copy_(tensor)


def sampling_logp(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """[rows, vocabulary] -> ln of the probabilities that tokens are sampled with, float32; -inf for what is cut off."""
    logits = logits.float() / (sampling.temperature or 1.0)
    if sampling.top_k:
        logits = TopKLogitsWarper(sampling.top_k)(None, logits)
    if sampling.top_p < 1:
        logits = TopPLogitsWarper(sampling.top_p)(None, logits)
    return logits.log_softmax(1)


def eos_ids(model_dir) -> list[int]:
    """The ids that end a response: the generation config's, else the model config's, else the tokenizer's; and the one
    that ends a turn in the chat template, after which a base model might write on. Raises ValueError if none is."""
    tokenizer, config = AutoTokenizer.from_pretrained(model_dir), AutoConfig.from_pretrained(model_dir)
    try:
        generation = GenerationConfig.from_pretrained(model_dir)
    except OSError:  # no generation_config.json
        generation = config
    sources = (generation, config, config.get_text_config(), tokenizer)
    eos = next((found for source in sources if (found := getattr(source, "eos_token_id", None)) is not None), None)
    if eos is None:
        raise ValueError(f"{model_dir} names no end-of-sequence token: set eos_token_id in its generation_config.json")
    ids = eos if isinstance(eos, list) else [eos]
    return ids + [i for i in turn_end(tokenizer) if i not in ids]


def turn_end(tokenizer) -> list[int]:
    """The special token that the chat template writes right after an assistant's turn, if there is one."""
    if not tokenizer.chat_template:
        return []
    marks = "one turn", "another turn"
    turns = [{"role": role, "content": mark} for role, mark in zip(("user", "assistant"), marks)]
    try:
        _, found, rest = tokenizer.apply_chat_template(turns, tokenize=False).rpartition(marks[1])
    except Exception:  # a template may refuse an assistant's turn, or be broken, which `data.encode_prompt` says
        return []
    first = tokenizer(rest, add_special_tokens=False)["input_ids"][:1] if found else []
    return [i for i in first if i in tokenizer.all_special_ids or i in tokenizer.added_tokens_decoder]


@contextmanager
def seeded(seed: int, device: torch.device):
    """vLLM draws from Python's, NumPy's and torch's global generators: seed them, then put the old states back."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[] if device.type == "cpu" else [device], device_type=device.type):
        random.seed(seed), np.random.seed(seed % 2**32), torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python), np.random.set_state(numpy)


def make_sampler(kind, model_dir, *, device, dtype, max_len, seed, tp=1, gpu_memory=0.6, max_num_seqs=256) -> Sampler:
    """A sampler for the causal language model in `model_dir` (or of that hub id), with the weights it has there.

    kind: "vllm", "transformers", or "auto": vLLM where it can be imported. Says on rank 0 which one it is, and why.
    max_len: of prompt and response together. seed: of vLLM's engine; responses depend on `generate`'s alone. tp:
    neighbouring ranks that hold one vLLM engine together and must be given the same prompts and seeds. gpu_memory:
    vLLM's share of each GPU's memory, which must be free now. max_num_seqs: sequences that are decoded at once.
    """
    if kind not in ("auto", "vllm", "transformers"):
        raise ValueError(f'sampler is {kind!r}: use "auto", "vllm" or "transformers"')
    why, config, reason = "asked for", AutoConfig.from_pretrained(model_dir).get_text_config(), None
    if others := set(getattr(config, "layer_types", None) or ()) - ATTENTION:  # Qwen3.5, Jamba, LFM2 ...
        reason = f"vLLM's sync of layers of {' and '.join(sorted(others))} was never tried"
    elif any(getattr(config, name, None) for name in ("num_experts", "num_local_experts", "n_routed_experts")):
        reason = "vLLM misreads the experts' weights at a sync"  # seen in 0.32
    if reason and kind == "vllm":
        raise ValueError(f"--sampler vllm: {reason}; use --sampler transformers")
    if reason:
        kind, why = "transformers", reason
    if kind == "auto":
        try:
            import vllm

            kind, why = "vllm", f"version {vllm.__version__} is installed"
        except ImportError as error:
            kind, why = "transformers", f"vLLM cannot be imported: {error}"
    print0(f"sampler: {kind} ({why})")
    common = dict(device=device, dtype=dtype, max_len=max_len)
    if kind == "vllm":
        return VllmSampler(model_dir, **common, seed=seed, tp=tp, gpu_memory=gpu_memory, max_num_seqs=max_num_seqs)
    if tp > 1:
        raise ValueError(f"--vllm-tp {tp} needs the vllm sampler, this is {kind}")
    return HFSampler(model_dir, **common, max_rows=max_num_seqs)
