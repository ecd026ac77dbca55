"""What a step logs: the keys of metrics.jsonl, and the sums behind the clip fractions and the regions.

metrics.jsonl has one line per step. A share or a mean is over all response tokens of the step, or over all responses,
on all ranks. Entropies and log-probabilities are in nats.

    step                       k, from 0
    entropy                    mean entropy H of the policy that sampled, per token
    entropy_quantiles          of the tokens' entropies: p10, p50 (the median), p90
    entropy_by_place           mean entropy of the first_quarter and of the last_quarter of each response's tokens
    reward                     mean reward of all responses that were sampled
    reasons                    share of the responses with each verdict of the reward function, e.g. correct, no_box
    equal_reward_groups        share of the groups whose rewards are all equal, which teach nothing
    draws                      batches of prompts that were drawn for this step (--dynamic-sampling)
    response_length            mean tokens of a response
    truncated                  share of the responses that were cut off at the length limit
    overlong_penalty           mean of the length penalty (--overlong-buffer)
    clip_frac_high             share of the trained tokens beyond the upper bound, where GRPO's gradient is 0, over all
                               optimizer steps; trained are those in the loss whose weight is not 0
    clip_frac_low              the same at the lower bound
    clipped                    of the tokens clipped above: their mean p_old (clip_high_p) and their share in E2
                               (clip_high_E2); of those clipped below: clip_low_p, and their share in E4 (clip_low_E4)
    most_clipped               the token that is clipped most often on one side: `token`, its `share` of all the `times`
                               that any token was clipped; tokens.jsonl has more, see tokens.py
    kl                         estimate of KL(π_old ‖ π_θ), the mean of r − 1 − ln r, over all optimizer steps
    ratio_clamped              tokens with |log r| > 20, over all optimizer steps: should be 0
    grad_norm                  mean gradient norm before it was scaled down
    sampler_mismatch           |ln π_old − ln π_sampler|: mean and max; kl: estimate of KL(π_sampler ‖ π_old), as above
    importance_weight          mean of the weights min(π_old / π_sampler, cap); 1 where they are not used
    importance_capped          share of the tokens whose weight is the cap
    lr                         learning rate
    upper, lower               this step's thresholds ε(p) = αp + β, as [α, β]
    target                     the target curve at this step, to be compared with `entropy`; null without a controller,
                               which aims at the next step's value
    controller                 what the controller returned (track: the gain u); null without one
    schedule_state             what the schedule remembers (od: whether it raises entropy, and H_init)
    regions_rule               share of the tokens in E1 … E4 by the paper's rule; the rest has Â = 0
    regions_exact              the same by the exact boundary f(a) = B
    predicted_entropy_change   each region's part of the first-order change of entropy, per unit step on the logits
    n_tokens                   response tokens in the batch
    seconds                    seconds of each phase, between phases, and of the whole step, which is their sum. What
                               follows a step's line (beginning a checkpoint) is counted in the next line
    memory                     GiB of rank 0's GPU in use, by anyone, when each phase ends: the allocator gives back
                               nothing in a phase, so it is that phase's peak. After `sleep` it is what the trainer
                               holds, with free_after_sleep beside it. null without a GPU
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist

from clipping import MAX_LOG_RATIO, REGIONS, entropy_change, ratios, region_masks
from logprobs import TokenStats


def region_metrics(old: TokenStats, advantages: torch.Tensor, regions: torch.Tensor) -> dict:
    """The regions of a rollout batch of N tokens. Per region: its share of the tokens, by the paper's rule (`regions`,
    bool [4, N]) and by the exact boundary, and its part of the predicted entropy change (nats per token, for a unit
    step on the logits)."""
    exact = region_masks(old.logp, old.entropy, advantages, old.mean_f)
    change = entropy_change(old.logp, old.entropy, old.mean_f, advantages)  # [N]
    n = len(advantages)
    return {
        "regions_rule": dict(zip(REGIONS, (regions.sum(1).double() / n).tolist())),
        "regions_exact": dict(zip(REGIONS, (exact.sum(1).double() / n).tolist())),
        "predicted_entropy_change": dict(zip(REGIONS, ((regions * change.double()).sum(1) / n).tolist())),
    }


def entropy_metrics(entropy: torch.Tensor, lengths: torch.Tensor) -> dict:
    """How the entropies [N] of a rollout batch's tokens (nats) are distributed: over all, and along the responses, of
    `lengths` [R]. A quantile is the entropy of one token. Each response has a token in each quarter."""
    n, ordered = len(entropy), entropy.sort().values
    quantiles = {f"p{percent}": ordered[(n - 1) * percent // 100].item() for percent in (10, 50, 90)}
    length = lengths.repeat_interleave(lengths)  # [N], each token's response's
    place = torch.arange(n) - (lengths.cumsum(0) - lengths).repeat_interleave(lengths)  # [N], from 0
    quarters = {"first_quarter": 4 * place < length, "last_quarter": 4 * (place + 1) > 3 * length}
    means = {name: entropy[of.to(entropy.device)].double().mean().item() for name, of in quarters.items()}
    return {"entropy_quantiles": quantiles, "entropy_by_place": means}


@dataclass
class UpdateSums:
    """Sums over the trained tokens of an update, which add up over micro-batches and ranks: float64 scalars."""

    tokens: torch.Tensor = 0
    high: torch.Tensor = 0  # tokens clipped above
    low: torch.Tensor = 0
    high_p: torch.Tensor = 0  # p_old of those clipped above
    low_p: torch.Tensor = 0
    high_E2: torch.Tensor = 0  # those of them in E2
    low_E4: torch.Tensor = 0
    kl: torch.Tensor = 0
    ratio_clamped: torch.Tensor = 0

    @classmethod
    @torch.no_grad()
    def of(cls, old_logp, logp, trained, side, surprising) -> "UpdateSums":
        """Of n tokens, of which `trained` [n] marks those that count. `side` is `clipping.clip_side`, and `surprising`
        marks the tokens of E2 and E4."""
        log_ratio, ratio = ratios(old_logp, logp, trained)
        p_old = torch.where(trained, old_logp, 0.0).exp()
        high, low = side > 0, side < 0
        kl, clamped = ratio - 1 - log_ratio, log_ratio.abs() > MAX_LOG_RATIO
        columns = (trained, high, low, p_old * high, p_old * low, surprising & high, surprising & low, kl, clamped)
        return cls(*(column.sum(dtype=torch.float64) for column in columns))

    def __add__(self, other: "UpdateSums") -> "UpdateSums":
        return UpdateSums(*(a + b for a, b in zip(vars(self).values(), vars(other).values())))

    def reduce(self) -> "UpdateSums":
        """The sums over all ranks. A collective."""
        sums = torch.stack(list(vars(self).values()))
        dist.all_reduce(sums)
        return UpdateSums(*sums)

    def metrics(self) -> dict:
        """What an update did to its tokens; each sum is divided once."""
        tokens, high, low = (count.clamp(min=1) for count in (self.tokens, self.high, self.low))
        clipped = {"high_p": self.high_p / high, "low_p": self.low_p / low}
        clipped |= {"high_E2": self.high_E2 / high, "low_E4": self.low_E4 / low}
        return {
            "clip_frac_high": (self.high / tokens).item(),
            "clip_frac_low": (self.low / tokens).item(),
            "clipped": {f"clip_{name}": share.item() for name, share in clipped.items()},
            "kl": (self.kl / tokens).item(),
            "ratio_clamped": int(self.ratio_clamped),
        }
