"""A rollout batch: prompts → responses → rewards. Every rank holds all of it."""

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.distributed as dist
from transformers import PreTrainedTokenizerBase

from rewards import Result, RewardError
from sample import Response, Sampler, Sampling
from trainer.config import Config
from trainer.data import batch_indices
from trainer.distributed import Phases, gather, my_share, seed_of

# nats, mean |ln π_old − ln π_sampler|; a sampler that is right gives about 1e-6 and 1e-2
SYNC_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05}


@dataclass
class Environment:
    """What asks the policy, and what rates its responses."""

    problems: list[dict]  # {"prompt_ids": of the prompt, "answer": the gold, ...}
    reward: Callable  # see rewards.py
    tokenizer: PreTrainedTokenizerBase


@dataclass
class Rollouts:
    """A rollout batch of R responses, N tokens in all, the same on every rank. A group's G responses are neighbours."""

    prompts: list[torch.Tensor]  # R tensors, int32 [prompt tokens]
    responses: list[torch.Tensor]  # R tensors, int32 [response tokens], EOS included where the model wrote it
    sampler_logp: torch.Tensor  # float32 [N], one response after the other: ln of each token's sampling probability
    rewards: torch.Tensor  # float32 [R]
    in_loss: torch.Tensor  # bool [R], False: left out of the loss, see --mask-truncated

    @cached_property
    def lengths(self) -> torch.Tensor:
        """[R] int64, tokens of each response."""
        return torch.tensor([len(response) for response in self.responses])

    @cached_property
    def total_lengths(self) -> list[int]:
        """Tokens of each response and its prompt."""
        return [len(prompt) + len(response) for prompt, response in zip(self.prompts, self.responses)]

    def per_token(self, per_response: torch.Tensor) -> torch.Tensor:
        """[R] -> [N]: each response's number at each of its tokens."""
        return per_response.repeat_interleave(self.lengths)


def collect(cfg: Config, environment: Environment, sampler: Sampler, phases: Phases, step: int, draws: int):
    """(rollouts, metrics, draws) of step `step`: `prompts_per_step` groups of G responses. A draw is a batch of prompts
    from the data; `draws` counts those of all steps so far, and is returned with this step's. A collective.

    With --dynamic-sampling n (DAPO, arXiv 2503.14476) there are draws until enough groups have rewards that differ, n
    at most. If there are still too few, groups of equal rewards fill the batch up. `metrics` are over all responses,
    those of dropped groups too: the mean reward of a selection says little about the policy. Raises RewardError.
    """
    problems, groups, n = environment.problems, [], 0
    differ = lambda group: len({result.reward for _, _, result in group}) > 1
    while n < cfg.dynamic_sampling and sum(map(differ, groups)) < cfg.prompts_per_step:
        drawn = [problems[i] for i in batch_indices(len(problems), cfg.prompts_per_step, draws + n, cfg.seed)]
        responses = respond(cfg, environment, sampler, phases, drawn, seed=(step, n))
        groups += [responses[i : i + cfg.group_size] for i in range(0, len(responses), cfg.group_size)]
        n += 1
    kept = sorted(groups, key=differ, reverse=True)[: cfg.prompts_per_step]
    problems, responses, results = zip(*(entry for group in kept for entry in group))
    rollouts = Rollouts(
        [torch.tensor(problem["prompt_ids"], dtype=torch.int32) for problem in problems],
        [torch.from_numpy(response.token_ids) for response in responses],
        torch.from_numpy(np.concatenate([response.logps for response in responses])),
        torch.tensor([result.reward for result in results]),
        torch.tensor([response.finished or not cfg.mask_truncated for response in responses]),
    )
    _, responses, results = zip(*(entry for group in groups for entry in group))
    total, reasons = len(results), [result.reason for result in results]
    metrics = {
        "reward": sum(result.reward for result in results) / total,
        "equal_reward_groups": 1 - sum(map(differ, groups)) / len(groups),
        "draws": n,
        "response_length": sum(len(response.token_ids) for response in responses) / total,
        "truncated": sum(not response.finished for response in responses) / total,
        "reasons": {reason: reasons.count(reason) / total for reason in sorted(set(reasons))},
    }
    return rollouts, metrics, draws + n


def respond(
    cfg: Config, environment: Environment, sampler: Sampler, phases: Phases, problems: list[dict], seed: tuple[int, int]
) -> list[tuple[dict, Response, Result]]:
    """G entries (problem, response, result) for each problem, on every rank: each rank samples and scores its share.
    Raises RewardError. A collective."""
    members = cfg.vllm_tp  # neighbouring ranks that hold one engine together are given the same prompts
    engine, member = divmod(dist.get_rank(), members)
    mine = my_share(problems, engine, dist.get_world_size() // members)
    with phases("rollout"):
        sampling = Sampling(cfg.max_response_tokens, cfg.temperature)
        prompts, seed = [problem["prompt_ids"] for problem in mine], seed_of(cfg.seed, "rollout", *seed, engine)
        groups = sampler.generate(prompts, cfg.group_size, sampling, seed)
    with phases("reward"):
        pairs = [(problem, response) for problem, group in zip(mine, groups, strict=True) for response in group]
        pairs = my_share(pairs, member, members)  # each neighbour scores and passes on its part
        texts = [environment.tokenizer.decode(r.token_ids, skip_special_tokens=True) for _, r in pairs]
        try:
            results, errors = environment.reward([problem["answer"] for problem, _ in pairs], texts), []
        except Exception as error:  # whatever a user's function may raise, on this rank alone
            results, errors = [], [f"{type(error).__name__}: {error}"]
            traceback.print_exc()
    with phases("gather"):
        if errors := gather(errors):
            raise RewardError(f"--reward {cfg.reward}: {errors[0]}")
        entries = []
        for (problem, response), result in zip(pairs, results, strict=True):
            # NumPy arrays: pickling as many tensors, or lists of as many numbers, takes seconds
            ids, logps = np.array(response.token_ids, np.int32), np.array(response.logps, np.float32)
            result = result._replace(answer=None)  # nobody needs it, and it may be any object
            entries.append((problem, response._replace(token_ids=ids, logps=logps), result))
        return gather(entries)


def overlong_penalty(lengths: torch.Tensor, max_length: int, buffer: int) -> torch.Tensor:
    """DAPO's soft length penalty (arXiv 2503.14476, eq. 13), [R] -> float32 [R]: 0 up to max_length − buffer tokens,
    then falling linearly to −1. A buffer of 0 means no penalty."""
    return ((max_length - buffer - lengths) / max(1, buffer)).clamp(max=0)


def sampler_mismatch(old_logp, sampler_logp, dtype: torch.dtype | None = None) -> dict[str, float]:
    """How far the trainer is from the sampler, over the tokens [N]: |ln π_old − ln π_sampler|, mean and max (nats), and
    an estimate of KL(π_sampler ‖ π_old). Raises RuntimeError if rounding in `dtype` does not explain the mean."""
    log_ratio = (old_logp - sampler_logp).double()
    mean = log_ratio.abs().mean().item()
    if dtype and mean > SYNC_TOLERANCE[dtype]:
        raise RuntimeError(
            f"the sampler is not the trainer: its log-probabilities are {mean:.1e} nats off on average, and "
            f"{SYNC_TOLERANCE[dtype]} are allowed; its weights or its cache are stale, or it computes this model in "
            "another way (--sampler transformers may work; --no-check-sync goes on regardless)"
        )
    kl = (log_ratio.expm1() - log_ratio).mean().item()
    return {"mean": mean, "max": log_ratio.abs().max().item(), "kl": kl}
