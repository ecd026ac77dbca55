"""What is optimised: GRPO's clipped surrogate, or one of the published ways to steer entropy.

The notation is that of clipping.py: r = π_θ(a|s) / π_old(a|s), Â the advantage, H the entropy in nats. Tensors hold one
element per token, [N]. The originals often look at the current policy and at one micro-batch. Here no result may depend
on the micro-batches: what depends on other tokens is computed once per step, from π_old, by `prepare_objective`.
"""

import math
from functools import partial

import torch

from clipping import Line, clip_side, clipped_at, clipped_surrogate, line_bounds, ratios, region_masks, region_weights
from logprobs import TokenStats


def prepare_objective(objective: str, old: TokenStats, advantages, loss_mask, control: float, generator):
    """(weights, coef), both float32 [N], of a rollout batch: each token's weight multiplies its loss, and its coef is a
    number that `token_loss` needs. `loss_mask` [N] marks the tokens that the loss is averaged over. `control` is what
    the controller returned at this step, or --entropy-coef. `old` has ln π_old, H and B. The torch.Generator draws
    Clip-Cov's tokens."""
    weights, coef = torch.ones_like(old.logp), torch.zeros_like(old.logp)
    match objective:
        case "track":
            weights = region_weights(region_masks(old.logp, old.entropy, advantages), control)
        case "entropy-bonus" | "adaptive-bonus":
            coef = torch.full_like(old.logp, control)
        case "entropic":
            coef = control * confident_share(old.logp, loss_mask)
        case "clip-cov":
            weights = clip_cov_weights(old.logp, advantages, loss_mask, generator)
        case "kl-cov":
            coef = top_share(covariance(old.logp, advantages, loss_mask), loss_mask, 2e-3).float()  # β = 1
        case "entrocraft":  # arXiv 2604.26326: above its band (−1) only Â > 0 is trained, below it (1) only Â < 0
            weights = (advantages * control <= 0).float()
        case "stare":  # arXiv 2606.19236, O1: the tenth of the tokens with the highest surprisal weighs W where Â > 0
            weights = torch.where((advantages > 0) & top_share(-old.logp, loss_mask, 0.1), control, weights)
        case "top-entropy":  # 80/20, arXiv 2506.01939: only the fifth of the tokens with the highest entropy
            weights = top_share(old.entropy, loss_mask, 0.2).float()
        case "nsr" | "w-reinforce":  # arXiv 2506.01347: what correct responses weigh; here with GRPO's Â and clip
            weights = torch.where(advantages > 0, 0.0 if objective == "nsr" else 0.1, weights)
    return weights, coef


def token_loss(objective: str, old_logp, logp, advantages, response_mask, upper: Line, lower: Line, coef, entropy):
    """(loss [N], side [N]) of `objective`, as `clipped_surrogate` returns them. `coef` [N] is `prepare_objective`'s.
    `entropy` [N] is the *current* policy's, with gradient; it is None but for the objectives in NEEDS_ENTROPY."""
    extra = {"coef": coef} if objective in NEEDS_COEF else {}
    extra |= {"entropy": entropy} if objective in NEEDS_ENTROPY else {}
    return LOSSES[objective](old_logp, logp, advantages, response_mask, upper, lower, **extra)


def entropy_bonus(old_logp, logp, advantages, response_mask, upper: Line, lower: Line, coef, entropy):
    """J + c · mean H, with `coef` = c per nat. The adaptive c is `controllers.AdaptiveBonus`. Departure, here and
    wherever a term is added: on GPUs the trainer multiplies the whole loss by the importance weights, this term too."""
    loss, side = clipped_surrogate(old_logp, logp, advantages, response_mask, upper, lower)
    return loss - torch.where(response_mask, coef * entropy, 0.0), side


def confident_share(old_logp: torch.Tensor, loss_mask: torch.Tensor) -> torch.Tensor:
    """[N] N_loss / N_confident on confident tokens, else 0, so that a mean over the rollout batch is one over them."""
    confident = (old_logp > math.log(0.95)) & loss_mask
    return confident.to(old_logp.dtype) * loss_mask.sum() / confident.sum().clamp(min=1)


def entropic(old_logp, logp, advantages, response_mask, upper: Line, lower: Line, coef):
    """EntroPIC (arXiv 2511.15248): GRPO's loss plus α · the mean of −r |Â| over the tokens with π > 0.95, which is not
    clipped. With too much entropy (α > 0) it pushes confident tokens up, whatever their advantage, and else down.
    `coef` is `controllers.EntroPIC`'s α times `confident_share`. Departure: the tokens are those with π_old > 0.95."""
    loss, side = clipped_surrogate(old_logp, logp, advantages, response_mask, upper, lower)
    _, ratio = ratios(old_logp, logp, response_mask)
    return loss - torch.where(response_mask, coef * ratio * advantages.abs(), 0.0), side


def covariance(old_logp: torch.Tensor, advantages: torch.Tensor, loss_mask: torch.Tensor) -> torch.Tensor:
    """[N] cov_t = (Â_t − mean Â)(ln p_t − mean ln p), the token's share of the covariance of ln π and Â that makes
    entropy fall, to first order (arXiv 2505.22617); −inf for tokens outside the loss, which have no part in the means.
    Clip-Cov and KL-Cov choose tokens by it. Departure: they are chosen once per step, by π_old."""
    n = loss_mask.sum().clamp(min=1)
    a, b = (x - torch.where(loss_mask, x, 0.0).sum() / n for x in (advantages, old_logp))
    return torch.where(loss_mask, a * b, -math.inf)


def clip_cov_weights(old_logp, advantages, loss_mask, generator: torch.Generator, share: float = 2e-4) -> torch.Tensor:
    """[N] Clip-Cov's weights of GRPO's loss: 0 on a random share of the tokens, taken among those with cov in (1, 5),
    and 1 on all others. Departure: it cannot skip those that clipping has stopped already."""
    cov, weights = covariance(old_logp, advantages, loss_mask), torch.ones_like(old_logp)
    candidates = ((cov > 1) & (cov < 5)).nonzero().squeeze(1)
    chosen = torch.randperm(len(candidates), generator=generator)[: max(1, int(share * int(loss_mask.sum())))]
    weights[candidates[chosen]] = 0
    return weights


def kl_cov(old_logp, logp, advantages, response_mask, upper: Line, lower: Line, coef):
    """KL-Cov is −r Â, *not* clipped, plus β |ln p − ln p_old| on the share 2e-3 (7B; 2e-4 for 32B) of the tokens with
    the largest cov. `coef` is β on those, 0 elsewhere. The thresholds are not used."""
    log_ratio, ratio = ratios(old_logp, logp, response_mask)
    loss = -ratio * advantages + coef * log_ratio.abs()
    return torch.where(response_mask, loss, 0.0), torch.zeros_like(response_mask, dtype=torch.int8)


def ce_gppo(old_logp, logp, advantages, response_mask, upper: Line, lower: Line):
    """CE-GPPO (arXiv 2509.20712). Inside the schedule's bounds the objective is r Â. A token beyond them counts as
    clipped, but keeps a gradient, that of the bound, scaled: for Â < 0 it is β₁ (1 − ε)/r₀ · r Â, for Â > 0 it is
    β₂ (1 + ε)/r₀ · r Â, where r₀ is r as a number without gradient. β₁ = 0.75 (7B) or 0.5 (1.5B), β₂ = 1."""
    _, ratio = ratios(old_logp, logp, response_mask)
    (low, high), frozen = line_bounds(logp, response_mask, upper, lower), ratio.detach()
    side = clip_side(frozen, low, high, advantages, response_mask)
    scale = torch.where(side > 0, high / frozen, torch.where(side < 0, 0.75 * low / frozen, 1.0))
    return torch.where(response_mask, -scale * ratio * advantages, 0.0), side


def dppo_bounds(p_old: torch.Tensor, delta: float = 0.15) -> tuple[torch.Tensor, torch.Tensor]:
    """(low, high) of DPPO with total variation (arXiv 2602.04879): the gradient of r Â stops where Â > 0 and p − p_old
    > δ, or where Â < 0 and p − p_old < −δ. As a bound that is r ≤ 1 + δ/p_old. δ = 0.15, as in verl."""
    return 1 - delta / p_old, 1 + delta / p_old


def dcpo_bounds(p_old: torch.Tensor, low: float = 0.16, high: float = 0.2) -> tuple[torch.Tensor, torch.Tensor]:
    """(low, high) of DCPO (arXiv 2509.02333), PPO's clip with r ≥ ½ + ½ √max(0, 1 − 4 ε_low/p_old) and
    r ≤ min(½ + ½ √(1 + 4 ε_high/p_old), 10)."""
    root = (1 - 4 * low / p_old).clamp(min=0).sqrt()
    return 0.5 + 0.5 * root, (0.5 + 0.5 * (1 + 4 * high / p_old).sqrt()).clamp(max=10)


def clipped_in_p_old(bounds, old_logp, logp, advantages, response_mask, upper: Line, lower: Line):
    """PPO's clip at `bounds(p_old)`. The thresholds are not used."""
    p_old = torch.where(response_mask, old_logp, 0.0).exp()
    return clipped_at(*bounds(p_old), old_logp, logp, advantages, response_mask)


def top_share(values: torch.Tensor, loss_mask: torch.Tensor, share: float) -> torch.Tensor:
    """bool [N]: the `share` of the loss's tokens with the highest values, at least one of them."""
    n, chosen = int(loss_mask.sum()), torch.zeros_like(loss_mask)
    highest = torch.where(loss_mask, values, -math.inf).topk(min(n, max(1, int(share * n)))).indices
    return chosen.index_fill(0, highest, True)


WEIGHTED_GRPO = ("grpo", "track", "clip-cov", "entrocraft", "stare", "top-entropy", "nsr", "w-reinforce")
LOSSES = dict.fromkeys(WEIGHTED_GRPO, clipped_surrogate) | {
    "entropy-bonus": entropy_bonus,
    "adaptive-bonus": entropy_bonus,
    "entropic": entropic,
    "kl-cov": kl_cov,
    "ce-gppo": ce_gppo,
    "dppo-tv": partial(clipped_in_p_old, dppo_bounds),
    "dcpo": partial(clipped_in_p_old, dcpo_bounds),
}
NEEDS_COEF = ("entropy-bonus", "adaptive-bonus", "entropic", "kl-cov")
NEEDS_ENTROPY = ("entropy-bonus", "adaptive-bonus")
OWN_CLIP = ("kl-cov", "dppo-tv", "dcpo")  # they do not use the thresholds
