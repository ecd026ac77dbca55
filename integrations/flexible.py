"""What every integration shares: the thresholds and weights of one rollout batch, and the state behind them.

    control = EntropyControl("id", total_steps=rollout_batches(optimizer_steps=6400, per_batch=16))
    for step in range(control.total_steps):
        ...                                                 # sample, reward, Â; ln π_old and H of every token
        (upper, lower), weights, report = control.decide(step, old_logp, entropy, advantages, mask)
        ...                                                 # optimizer steps on weights · the loss of clipped_surrogate

This file needs torch, and of this repository clipping.py, schedules.py and methods/.
"""

import torch
import torch.distributed as dist

from clipping import Line, region_masks
from methods import Tokens, make_method
from schedules import make_schedule


def rollout_batches(optimizer_steps: int, per_batch: int) -> int:
    """T, the number of rollout batches in a run of `optimizer_steps`, of which each batch gets `per_batch`.

    Trainers count optimizer steps, the paper's k and T count rollout batches. With the wrong T a schedule fails
    silently: ID, for instance, never reaches its second phase. Raises ValueError if a schedule could do nothing, or
    if the last rollout batch would be cut short."""
    if per_batch < 2:
        raise ValueError(
            "there is one optimizer step per rollout batch: every ratio is 1, nothing is clipped, and no schedule does"
            " anything. Take several optimizer steps per rollout batch"
        )
    if optimizer_steps < 1 or optimizer_steps % per_batch:
        raise ValueError(
            f"{optimizer_steps} optimizer steps are no whole number of rollout batches of {per_batch} optimizer steps"
        )
    return optimizer_steps // per_batch


class EntropyControl:
    """The schedule of the clip thresholds and, if there is a target, the method `track` that weights the regions.

    `schedule` is a name in schedules.SCHEDULES, `total_steps` the paper's T in rollout batches. `target` is an
    entropy curve as `methods.Target` reads it, for instance "up-down"; without it every weight is 1.
    `options` are those of `make_schedule`. Raises ValueError for whatever these refuse."""

    def __init__(self, schedule: str, total_steps: int, target: str | None = None, **options):
        self.schedule = make_schedule(schedule, total_steps, **options)
        self.method = make_method("track", target, total_steps) if target else make_method("grpo")
        self.total_steps = total_steps
        self.identity = {"schedule": schedule, "total_steps": total_steps, "target": target} | options

    def decide(
        self,
        step: int,  # k = 0 … T−1
        old_logp: torch.Tensor,  # [B, L] ln π_old(a|s) of this rank's tokens, before the first update, without gradient
        entropy: torch.Tensor,  # [B, L] H of π_old(·|s) in nats, in float32: bfloat16 is too coarse for it
        advantages: torch.Tensor,  # [B, L] or [B, 1]
        mask: torch.Tensor,  # [B, L] bool or int, nonzero where a token counts
    ) -> tuple[tuple[Line, Line], torch.Tensor, dict[str, float]]:
        """((upper, lower), weights, report) of the rollout batch of step k. Call it once per rollout batch, on every
        rank.

        The entropy is the mean over the tokens of all ranks, from one all-reduce if there is a process group, so all
        ranks decide alike. `weights` [B, L] multiply the loss of each token, or Â, which is the same, since they are
        not negative. Without a target they are 1. `report` holds the numbers to plot. Raises ValueError for a step
        outside of 0 … T−1."""
        if not 0 <= step < self.total_steps:
            raise ValueError(f"step {step} lies outside of the {self.total_steps} rollout batches of this run")
        mask = mask.bool()
        counted = entropy[mask].cpu().double()  # float64 is not to be had on every device
        sums = torch.tensor([counted.sum(), len(counted)], dtype=torch.float64)
        if dist.is_available() and dist.is_initialized():
            sums = sums.to(entropy.device)
            dist.all_reduce(sums)
        total, tokens = sums.tolist()
        if not tokens:
            raise ValueError(f"no token of step {step} counts: the mask is empty on every rank")
        mean = total / tokens
        upper, lower = self.schedule(step, mean)
        report = {"entropy": mean, "upper_slope": upper[0], "upper_intercept": upper[1]}
        report |= {"lower_slope": lower[0], "lower_intercept": lower[1]}
        self.method.observe(step, mean)
        if (found := self.method.report(step))["target"] is not None:
            report |= {"gain": found["controller"], "target": found["target"]}
        regions = region_masks(old_logp, entropy, advantages)
        tokens = Tokens(old_logp, entropy, advantages, mask, response=None, regions=regions)
        return (upper, lower), self.method.weights(tokens, generator=None), report

    def state_dict(self) -> dict:
        """Small and JSON-able, the same on every rank."""
        states = {"schedule": self.schedule.state_dict(), "method": self.method.state_dict()}
        return {"identity": self.identity} | states

    def load_state_dict(self, state: dict) -> None:
        """Raises ValueError if the state is that of another schedule, another T or another target."""
        if state["identity"] != self.identity:
            raise ValueError(
                f"the checkpoint is that of a run with {state['identity']}, and this run has {self.identity}"
            )
        self.schedule.load_state_dict(state["schedule"])
        self.method.load_state_dict(state["method"])
