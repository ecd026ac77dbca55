"""A rollout batch: prompts -> responses -> rewards, on every rank, in the shape that the update needs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist

from config import Config
from data import batch_indices
from distributed import Phases, gather, my_share, seed_of
from sample import Sampler, Sampling


class Row(NamedTuple):
    """One response, with what is known of it before the trainer has looked at it."""

    prompt: torch.Tensor  # int32 [prompt tokens]
    response: torch.Tensor  # int32 [response tokens], EOS included where the model wrote it
    sampler_logp: torch.Tensor  # float32 [response tokens], ln of the probability it was sampled with
    reward: float  # the scorer's
    reason: str  # the scorer's, e.g. "no_box"
    finished: bool  # False: cut off at the length limit


@dataclass
class Rollouts:
    """A rollout batch, the same on every rank: one entry per response ("row"), the G rows of a group next to each other."""

    prompts: list[torch.Tensor]
    responses: list[torch.Tensor]
    sampler_logp: list[torch.Tensor]
    rewards: list[float]
    reasons: list[str]
    finished: list[bool]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each response."""
        return [len(response) for response in self.responses]


def collect(
    sampler: Sampler, reward: Callable, tokenizer, problems: list[dict], cfg: Config, step: int, draws: int, phases: Phases
) -> tuple[Rollouts, dict, int]:
    """(rollouts, metrics, draws): `prompts_per_step` groups of G responses, and how many batches of prompts the run has drawn now.

    With --dynamic-sampling n (DAPO, arXiv 2503.14476) batches are drawn until enough groups have rewards that differ, n at most;
    if there are still too few, groups of equal rewards, which have no advantage, fill the batch up. `metrics` are over all responses,
    dropped ones too: among the kept ones about half would be right, whatever the policy. A collective.
    """
    sampling = Sampling(cfg.max_response_tokens, cfg.temperature)
    rank, members = dist.get_rank(), cfg.vllm_tp  # neighbours that hold one engine together are given the same prompts
    engines, engine = dist.get_world_size() // members, rank // members
    rows, useful, attempts = [], [], 0
    while attempts < cfg.dynamic_sampling and len(useful) < cfg.prompts_per_step:
        batch = [problems[i] for i in batch_indices(len(problems), cfg.prompts_per_step, draws + attempts, cfg.seed)]
        with phases("rollout"):
            mine = my_share(batch, engine, engines)
            seed = seed_of(cfg.seed, "rollout", step, attempts, engine)
            groups = sampler.generate([p["prompt_ids"] for p in mine], cfg.group_size, sampling, seed)
        with phases("reward"):
            answered = [(problem, completion) for problem, group in zip(mine, groups, strict=True) for completion in group]
            answered = my_share(answered, rank % members, members)  # each neighbour scores and passes on its part
            texts = tokenizer.batch_decode([c.token_ids for _, c in answered], skip_special_tokens=True)
            results = reward([problem["answer"] for problem, _ in answered], texts)
        with phases("gather"):
            rows += gather([
                Row(torch.tensor(p["prompt_ids"], dtype=torch.int32), torch.tensor(c.token_ids, dtype=torch.int32),
                    torch.tensor(c.logps), r.reward, r.reason, c.finished)
                for (p, c), r in zip(answered, results, strict=True)
            ])  # fmt: skip
        groups = [rows[i : i + cfg.group_size] for i in range(0, len(rows), cfg.group_size)]
        useful = [group for group in groups if len({row.reward for row in group}) > 1]
        attempts += 1
    equal = [group for group in groups if len({row.reward for row in group}) == 1]
    kept = (useful + equal)[: cfg.prompts_per_step]
    rollouts = Rollouts(*map(list, zip(*[row for group in kept for row in group])))
    return rollouts, rollout_metrics(rows, attempts, len(equal) / len(groups)), draws + attempts


def rollout_metrics(rows: list[Row], attempts: int, equal_groups: float) -> dict:
    n, reasons = len(rows), [row.reason for row in rows]
    return {
        "reward": sum(row.reward for row in rows) / n,
        "equal_reward_groups": equal_groups,
        "sampling_attempts": attempts,
        "response_length": sum(len(row.response) for row in rows) / n,
        "truncated": sum(not row.finished for row in rows) / n,
        "reasons": {reason: reasons.count(reason) / n for reason in sorted(set(reasons))},
    }


def overlong_penalty(length: int, max_length: int, buffer: int) -> float:
    """DAPO's soft length penalty (arXiv 2503.14476, eq. 13): 0 up to max_length − buffer tokens, then falling linearly to −1."""
    return min(0.0, (max_length - buffer - length) / buffer) if buffer else 0.0


def importance_weights(old_logp: torch.Tensor, sampler_logp: torch.Tensor, lengths: list[int], level: str, cap: float) -> torch.Tensor:
    """min(π_old / π_sampler, cap) of each token, flat [N]: the two differ by rounding (bf16, other kernels), and the loss is an
    expectation under the sampler's policy. `level`: "token"; "sequence", where the ratio is that of the whole response; "none": 1."""
    if level == "none":
        return torch.ones_like(old_logp)
    log_ratio = old_logp - sampler_logp
    if level == "sequence":
        log_ratio = torch.cat([part.sum().expand(len(part)) for part in log_ratio.split(lengths)])
    return log_ratio.exp().clamp(max=cap)


def sampler_mismatch(old_logp: torch.Tensor, sampler_logp: torch.Tensor) -> dict[str, float]:
    """How far the trainer is from the policy that really sampled, over the sampled tokens: |log π_old − log π_sampler|, mean and max
    (nats), and the k3 estimate of KL(π_sampler ‖ π_old). With float32 on both sides about 1e-6, with bf16 about 1e-2."""
    log_ratio = (old_logp - sampler_logp).double()
    return {
        "mean": log_ratio.abs().mean().item(),
        "max": log_ratio.abs().max().item(),
        "kl": (log_ratio.expm1() - log_ratio).mean().item(),
    }
