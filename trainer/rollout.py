"""A rollout batch: prompts → responses → rewards on every rank, and how its rows are cut into micro-batches. A *row*
is one response with its prompt. Every rank holds all of them and computes the same plan of micro-batches, so that none
waits in a collective that another one skips.
"""

import traceback
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist

from rewards import Result, RewardError
from sample import Completion, Sampling
from trainer.data import batch_indices
from trainer.distributed import gather, my_share, seed_of

# nats, mean |ln π_old − ln π_sampler|; a sampler that is right gives about 1e-6 and 1e-2
SYNC_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05}


@dataclass
class Rollouts:
    """A rollout batch of R rows and N response tokens, the same on every rank. The G rows of a group are neighbours."""

    prompts: list[torch.Tensor]  # R tensors, int32 [prompt tokens]
    responses: list[torch.Tensor]  # R tensors, int32 [response tokens], EOS included where the model wrote it
    sampler_logp: torch.Tensor  # float32 [N], row after row: ln of the probability that each token was sampled with
    rewards: torch.Tensor  # float32 [R]
    finished: torch.Tensor  # bool [R], False: cut off at the length limit

    @property
    def lengths(self) -> torch.Tensor:
        """[R] int64, the response tokens of each row."""
        return torch.tensor([len(response) for response in self.responses])

    @property
    def row_tokens(self) -> list[int]:
        """Prompt and response tokens of each row."""
        return [len(prompt) + len(response) for prompt, response in zip(self.prompts, self.responses)]

    def per_token(self, per_row: torch.Tensor) -> torch.Tensor:
        """[R] -> [N]: each row's number at each of its response tokens."""
        return per_row.repeat_interleave(self.lengths)


# ----------------------------------------------------------------------------------- prompts -> responses -> rewards


def collect(run, step: int) -> tuple[Rollouts, dict]:
    """(rollouts, metrics): `prompts_per_step` groups of G responses. `run`, a `run.Run`, counts in `draws` how many
    batches of prompts it has drawn from its data. A collective.

    With --dynamic-sampling n (DAPO, arXiv 2503.14476) batches are drawn until enough groups have rewards that differ, n
    at most. If there are still too few, groups of equal rewards fill the batch up. `metrics` are over all responses,
    those of dropped groups too: the mean reward of a selection says little about the policy. Raises RewardError.
    """
    cfg, n_problems, groups, attempts = run.cfg, len(run.problems), [], 0
    differ = lambda group: len({result.reward for _, _, result in group}) > 1
    while attempts < cfg.dynamic_sampling and sum(map(differ, groups)) < cfg.prompts_per_step:
        drawn = batch_indices(n_problems, cfg.prompts_per_step, run.draws + attempts, cfg.seed)
        rows = sample_rows(run, [run.problems[i] for i in drawn], (step, attempts))
        groups += [rows[i : i + cfg.group_size] for i in range(0, len(rows), cfg.group_size)]
        attempts += 1
    kept = sorted(groups, key=differ, reverse=True)[: cfg.prompts_per_step]
    asked, completions, results = zip(*(row for group in kept for row in group))
    rollouts = Rollouts(
        [torch.tensor(problem["prompt_ids"], dtype=torch.int32) for problem in asked],
        [torch.from_numpy(c.token_ids) for c in completions],
        torch.from_numpy(np.concatenate([c.logps for c in completions])),
        torch.tensor([result.reward for result in results]),
        torch.tensor([c.finished for c in completions]),
    )
    _, completions, results = zip(*(row for group in groups for row in group))
    n, reasons = len(results), [result.reason for result in results]
    metrics = {
        "reward": sum(result.reward for result in results) / n,
        "equal_reward_groups": 1 - sum(map(differ, groups)) / len(groups),
        "sampling_attempts": attempts,
        "response_length": sum(len(c.token_ids) for c in completions) / n,
        "truncated": sum(not c.finished for c in completions) / n,
        "reasons": {reason: reasons.count(reason) / n for reason in sorted(set(reasons))},
    }
    run.draws += attempts
    return rollouts, metrics


def sample_rows(run, batch: list[dict], draw: tuple[int, int]) -> list[tuple[dict, Completion, Result]]:
    """G rows (problem, completion, result) for each problem of `batch`, on every rank: each rank samples and scores its
    share. `draw` is for the seed. Raises RewardError."""
    cfg, phases = run.cfg, run.phases
    members = cfg.vllm_tp  # neighbouring ranks that hold one engine together are given the same prompts
    engine, member = divmod(dist.get_rank(), members)
    mine = my_share(batch, engine, dist.get_world_size() // members)
    with phases("rollout"):
        sampling = Sampling(cfg.max_response_tokens, cfg.temperature)
        seed = seed_of(cfg.seed, "rollout", *draw, engine)
        groups = run.sampler.generate([p["prompt_ids"] for p in mine], cfg.group_size, sampling, seed)
    with phases("reward"):
        answered = [(problem, c) for problem, group in zip(mine, groups, strict=True) for c in group]
        answered = my_share(answered, member, members)  # each neighbour scores and passes on its part
        texts = run.tokenizer.batch_decode([c.token_ids for _, c in answered], skip_special_tokens=True)
        try:
            results, errors = run.reward([problem["answer"] for problem, _ in answered], texts), []
        except Exception as error:  # whatever a user's function may raise, on this rank alone
            results, errors = [], [f"{type(error).__name__}: {error}"]
            traceback.print_exc()
    with phases("gather"):
        if errors := gather(errors):
            raise RewardError(f"--reward {cfg.reward}: {errors[0]}")
        rows = []
        for (problem, c), result in zip(answered, results, strict=True):
            # NumPy arrays: pickling as many tensors, or lists of as many numbers, takes seconds
            c = c._replace(token_ids=np.array(c.token_ids, np.int32), logps=np.array(c.logps, np.float32))
            rows.append((problem, c, result._replace(answer=None)))  # nobody needs it, and it may be any object
        return gather(rows)


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
