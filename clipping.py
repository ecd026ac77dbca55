"""Clip thresholds that depend on a token's probability, the clipped surrogate, and the entropy regions E1 to E4.

The source is Chen et al., *Flexible Entropy Control in RLVR with a Gradient-Preserving Perspective*, arXiv 2602.09782.
This file needs torch and nothing else. To use it in another trainer, copy it together with schedules.py.

Every function works on tensors of any shape, with one element per token. The notation is the paper's:

    s, a    the state (prompt and prefix) and the sampled token
    p       π_θ(a|s), the current probability of the sampled token
    r       π_θ(a|s) / π_old(a|s), the ratio to the probability at rollout time
    Â       the advantage of the token
    H       the entropy of π(·|s), in nats
    f(a)    p (ln p + H), which is −∂H/∂z_a for the logit z_a, and B = E_{x~π}[f(x)], its mean
    ε(p)    a threshold, always a line αp + β: the pair (α, β) is a `Line`. PPO's constant ε is the line (0, ε)

    J = E[ min( r Â,  clip(r, 1 − ε_low(p), 1 + ε_high(p)) Â ) ]
"""

import torch

Line = tuple[float, float]  # (slope α, intercept β) of ε(p) = αp + β

EPS: Line = (0.0, 0.2)  # ε: the constant threshold of PPO and GRPO
CLIP_HIGHER: Line = (0.0, 0.28)  # the upper threshold of DAPO's clip-higher
U: Line = (-0.25, 0.5)  # the paper's H(p), the dynamic upper threshold: rare tokens may grow further than likely ones
M: Line = (-0.13, 0.3)  # M(p), the dynamic lower threshold: rare tokens may shrink further than likely ones

REGIONS = ("E1", "E2", "E3", "E4")
MAX_LOG_RATIO = 20.0  # e^20 lies far above every bound that is a line in p, and it is finite in float32 and bfloat16


# -------------------------------------------------------------------------------------------------------- the surrogate


def threshold(p: torch.Tensor, line: Line) -> torch.Tensor:
    """ε(p) = αp + β of the probabilities `p`, in any shape."""
    slope, intercept = line
    return slope * p + intercept


def ratios(old_logp: torch.Tensor, logp: torch.Tensor, response_mask: torch.Tensor):
    """(log r, r), which are 0 and 1 where masked, although a masked position may hold anything, NaN included. r is
    finite: it is computed from log r within ± MAX_LOG_RATIO. The log r that is returned is not clamped."""
    log_ratio = torch.where(response_mask, logp - old_logp, 0.0)
    return log_ratio, log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def bound_in_p_old(p_old: torch.Tensor, line: Line, side: int) -> torch.Tensor:
    """The bound of the ratio as a function of p_old, which is exact: with `side` 1 the upper one, because
    r ≤ 1 + ε(r p_old) ⇔ r ≤ (1 + β) / (1 − α p_old), and with −1 the lower one, (1 − β) / (1 + α p_old)."""
    slope, intercept = line
    return (1 + side * intercept) / (1 - side * slope * p_old)


def line_bounds(logp, response_mask, upper: Line, lower: Line) -> tuple[torch.Tensor, torch.Tensor]:
    """(low, high), the bounds of each token's ratio at its current p, without gradient."""
    p = torch.where(response_mask, logp.detach(), 0.0).exp()
    return 1 - threshold(p, lower), 1 + threshold(p, upper)


def clip_side(ratio, advantages, response_mask, low, high) -> torch.Tensor:
    """int8: 1 where Â > 0 and r > `high`, −1 where Â < 0 and r < `low`, else 0. There PPO's clip cuts the gradient."""
    above, below = (advantages > 0) & (ratio > high), (advantages < 0) & (ratio < low)
    return (above.to(torch.int8) - below.to(torch.int8)) * response_mask


def clipped_at(old_logp, logp, advantages, response_mask, low: torch.Tensor, high: torch.Tensor):
    """`clipped_surrogate` for any bounds of the ratio, one pair a token, without gradient."""
    _, ratio = ratios(old_logp, logp, response_mask)
    surrogate = torch.minimum(ratio * advantages, ratio.clamp(low, high) * advantages)
    return torch.where(response_mask, -surrogate, 0.0), clip_side(ratio, advantages, response_mask, low, high)


def clipped_surrogate(
    old_logp: torch.Tensor,  # ln π_old(a|s), without gradient
    logp: torch.Tensor,  # ln π_θ(a|s), with gradient
    advantages: torch.Tensor,  # Â, one value per token
    response_mask: torch.Tensor,  # bool, True where a token counts
    upper: Line,  # ε_high(p), which binds where Â > 0
    lower: Line,  # ε_low(p), which binds where Â < 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """The PPO-clip objective with thresholds that are lines in p, as a loss to minimise. Returns each token's loss and
    its `clip_side`, both 0 where a token does not count. The caller divides the sum of the losses by the number of
    tokens, once, over all ranks."""
    return clipped_at(old_logp, logp, advantages, response_mask, *line_bounds(logp, response_mask, upper, lower))


# ----------------------------------------------------------------------------------------- entropy and the four regions


def token_term(logp: torch.Tensor, entropy: torch.Tensor) -> torch.Tensor:
    """f(a) = p_a (ln p_a + H), the sampled token's own term in ⟨∇_z L, ∇_z H⟩ = −Â r [f(a) − B], where L = r Â."""
    return logp.exp() * (logp + entropy)


def entropy_change(logp, entropy, mean_f, advantages) -> torch.Tensor:
    """−Â [f(a) − B], the inner product ⟨∇_z L, ∇_z H⟩ at r = 1, where `mean_f` is B = E_{x~π}[f(x)].

    It is the first-order change of H, in nats, per unit of a gradient step on the logits z of this one state. If it is
    positive, the token pushes entropy up. In a network, whose states share parameters, this is often true, not always.
    """
    return -advantages * (token_term(logp, entropy) - mean_f)


def region_masks(logp, entropy, advantages, mean_f: torch.Tensor | None = None) -> torch.Tensor:
    """The region of each token: bool [4, *tokens], rows REGIONS. A token with a tie or with Â = 0 is in none.

        E1  expected token,   Â > 0: entropy falls        E2  surprising token, Â > 0: entropy rises
        E3  expected token,   Â < 0: entropy rises        E4  surprising token, Â < 0: entropy falls

    Without `mean_f` this is the paper's rule: a token is expected if its surprisal −ln p_a is below H, so f(a) > 0.
    With `mean_f`, which is B, it is the exact boundary f(a) > B. As B ≥ 0, the rule is exact for E2 and E4; for E1 and
    E3 it is wrong where 0 < f(a) < B.
    """
    margin = logp + entropy if mean_f is None else token_term(logp, entropy) - mean_f
    expected, surprising = margin > 0, margin < 0
    positive, negative = advantages > 0, advantages < 0
    return torch.stack([expected & positive, surprising & positive, expected & negative, surprising & negative])
