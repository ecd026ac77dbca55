"""Clip thresholds that depend on a token's probability, and the entropy regions E1-E4.

Chen et al., *Flexible Entropy Control in RLVR with a Gradient-Preserving Perspective*, arXiv 2602.09782. This file needs torch and
nothing else: to use it in another trainer, copy it. Everything works on tensors of any (equal) shape, one element per token.

Notation: s is the state (prompt and prefix), a the sampled token, p = π_θ(a|s) its current probability, r = π_θ(a|s) / π_old(a|s), Â the
advantage, H the entropy of π(·|s) in nats. A threshold ε(p) = αp + β is a `Line` (α, β); PPO's constant ε is the line (0, ε).

    J = E[ min( r Â, clip(r, 1 − ε_low(p), 1 + ε_high(p)) Â ) ]
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F

Line = tuple[float, float]  # (slope α, intercept β) of ε(p) = αp + β

DYNAMIC_UPPER: Line = (-0.25, 0.5)  # the paper's H(p): rare tokens may grow further than likely ones, so entropy rises
DYNAMIC_LOWER: Line = (-0.13, 0.3)  # the paper's M(p): rare tokens may shrink further than likely ones, so entropy falls

MAX_LOG_RATIO = 20.0  # e^20 is far outside any clip range, and finite in every dtype


# ---------------------------------------------------------------------------------------------- thresholds and the surrogate

def threshold(p: torch.Tensor, line: Line) -> torch.Tensor:
    """ε(p) = αp + β for probabilities `p`, any shape."""
    slope, intercept = line
    return slope * p + intercept


def upper_bound(p_old: torch.Tensor, line: Line) -> torch.Tensor:
    """The largest unclipped ratio, given the *old* probability: r ≤ 1 + ε(r p_old) ⇔ r ≤ (1 + β) / (1 − α p_old)."""
    slope, intercept = line
    return (1 + intercept) / (1 - slope * p_old)


def lower_bound(p_old: torch.Tensor, line: Line) -> torch.Tensor:
    """The smallest unclipped ratio, given the *old* probability: r ≥ 1 − ε(r p_old) ⇔ r ≥ (1 − β) / (1 + α p_old)."""
    slope, intercept = line
    return (1 - intercept) / (1 + slope * p_old)


def clipped_surrogate(
    old_logp: torch.Tensor,  # log π_old(a|s), no gradient
    logp: torch.Tensor,  # log π_θ(a|s), with gradient
    advantages: torch.Tensor,  # Â, one value per token
    response_mask: torch.Tensor,  # bool, True where a token counts
    upper: Line,  # ε_high(p), binds where Â > 0
    lower: Line,  # ε_low(p), binds where Â < 0
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The PPO-clip objective with thresholds that are lines in p (section 3 of the paper), as a loss to minimise.

    Returns the loss of each token (0 where masked out; the caller divides by its token count, once, over all ranks) and *sums* over
    the masked tokens: `tokens`; `clip_high` / `clip_low`, tokens whose gradient is cut (Â > 0 above the upper bound, Â < 0 below the
    lower one); `kl`, the k3 estimate of KL(π_old ‖ π_θ) in nats; `ratio_clamped`, tokens with |log r| > MAX_LOG_RATIO.
    Sums add up over micro-batches and ranks; clip_frac_high = Σ clip_high / Σ tokens.
    """
    log_ratio = torch.where(response_mask, logp - old_logp, 0.0)  # masked positions may hold anything, NaN included
    ratio = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    p = torch.where(response_mask, logp.detach(), 0.0).exp()  # detached: a bound is a number, not a path for gradient
    low, high = 1 - threshold(p, lower), 1 + threshold(p, upper)
    surrogate = torch.minimum(ratio * advantages, ratio.clamp(low, high) * advantages)
    loss = torch.where(response_mask, -surrogate, 0.0)

    with torch.no_grad():
        metrics = {
            "tokens": response_mask.sum(),
            "clip_high": (response_mask & (advantages > 0) & (ratio > high)).sum(),
            "clip_low": (response_mask & (advantages < 0) & (ratio < low)).sum(),
            "kl": (ratio - 1 - log_ratio).sum(),
            "ratio_clamped": (log_ratio.abs() > MAX_LOG_RATIO).sum(),
        }
    return loss, metrics


# ------------------------------------------------------------------------------------------------------ entropy and the regions

def token_term(logp: torch.Tensor, entropy: torch.Tensor) -> torch.Tensor:
    """f(a) = p_a (ln p_a + H): the sampled token's own term in ⟨∇_z L, ∇_z H⟩ = −Â r [f(a) − B]."""
    return logp.exp() * (logp + entropy)


def entropy_change(logp: torch.Tensor, entropy: torch.Tensor, baseline: torch.Tensor, advantages: torch.Tensor) -> torch.Tensor:
    """−Â [f(a) − B], the inner product above at r = 1: the first-order change of H (nats) per unit of a gradient step on the logits of
    this one state. Positive: the token pushes entropy up. In a network parameters are shared, so there it is a tendency, not a law."""
    return -advantages * (token_term(logp, entropy) - baseline)


def region_masks(
    logp: torch.Tensor, entropy: torch.Tensor, advantages: torch.Tensor, baseline: torch.Tensor | None = None
) -> torch.Tensor:
    """Which region each token is in: bool [4, *tokens], rows E1, E2, E3, E4 (disjoint; a tie or Â = 0 is in none).

        E1  expected token,   Â > 0: entropy falls        E2  surprising token, Â > 0: entropy rises
        E3  expected token,   Â < 0: entropy rises        E4  surprising token, Â < 0: entropy falls

    `baseline=None` is the paper's rule: expected means surprisal −ln p_a < H, that is f(a) > 0. With `baseline` B it is the exact
    boundary f(a) > B. B ≥ 0, so the rule is exact for E2 and E4 and errs, where 0 < f(a) < B, only for E1 and E3.
    """
    margin = logp + entropy if baseline is None else token_term(logp, entropy) - baseline
    expected, surprising = margin > 0, margin < 0
    good, bad = advantages > 0, advantages < 0
    return torch.stack([expected & good, surprising & good, expected & bad, surprising & bad])


def region_gains(masks: torch.Tensor, gain: float) -> torch.Tensor:
    """Each token's weight in the objective, [*tokens] float32, from `region_masks` and u = `gain` in [−1, 1]: 1 + u in E2 and E3,
    1 − u in E1 and E4, 1 elsewhere. u > 0 turns entropy up, u < 0 down, u = 0 is plain GRPO to the bit (this repository).

    It multiplies a token's loss: a weight w ≥ 0 leaves the bounds alone, as min(w r Â, clip(r) w Â) = w min(r Â, clip(r) Â).
    With the exact boundary Σ w · entropy_change never falls as u grows, for any batch; with the rule it may, in E1 and E3.
    """
    e1, e2, e3, e4 = masks.float()
    return 1 + gain * (e2 + e3 - e1 - e4)


# ---------------------------------------------------- log-probabilities and entropy without a [tokens, vocabulary] float32 tensor

class TokenStats(NamedTuple):
    logp: torch.Tensor  # [N] ln π(a|s)
    entropy: torch.Tensor  # [N] H, nats
    baseline: torch.Tensor  # [N] B = Σ_x p_x² (ln p_x + H) = E_{x~p}[f(x)]


def _logits(hidden: torch.Tensor, head: torch.Tensor | None, temperature: float) -> torch.Tensor:
    logits = hidden if head is None else F.linear(hidden, head)
    return logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature  # float32 for bf16, float64 stays


@torch.no_grad()
def token_stats(
    hidden: torch.Tensor, tokens: torch.Tensor, head: torch.Tensor | None = None, temperature: float = 1.0, chunk: int = 256
) -> TokenStats:
    """ln π(a|s), H and B of N tokens in one pass, `chunk` tokens at a time, without gradient.

    hidden [N, D] with the output head [V, D], or head=None and `hidden` [N, V] the logits themselves; tokens [N] int64.
    """
    out = []
    for h, a in zip(hidden.split(chunk), tokens.split(chunk)):
        log_p = _logits(h, head, temperature).log_softmax(-1)  # [chunk, V]
        logp = log_p.gather(-1, a[:, None]).squeeze(-1)
        log_p.clamp_(min=torch.finfo(log_p.dtype).min)  # a forbidden token has logit −inf: 0 · ln 0 must be 0, not NaN
        p = log_p.exp()
        p_log_p = log_p.mul_(p)
        entropy = -p_log_p.sum(-1)
        baseline = (p * p_log_p).sum(-1) + entropy * p.square().sum(-1)
        out.append((logp, entropy, baseline))
    return TokenStats(*(torch.cat(column) for column in zip(*out)))


class _TokenLogp(torch.autograd.Function):
    """ln softmax(hidden @ headᵀ / τ)[a], recomputing each chunk's logits in backward instead of keeping them; with `want_entropy`
    also H, whose gradient in the logits is −p (ln p + H)."""

    @staticmethod
    def forward(ctx, hidden, tokens, head, temperature, chunk, want_entropy):
        logp, log_z, entropy = [], [], []
        for h, a in zip(hidden.split(chunk), tokens.split(chunk)):
            logits = _logits(h, head, temperature)
            log_z.append(logits.logsumexp(-1))
            logp.append(logits.gather(-1, a[:, None]).squeeze(-1) - log_z[-1])
            if want_entropy:
                log_p = logits.sub_(log_z[-1][:, None]).clamp_(min=torch.finfo(logits.dtype).min)  # as in token_stats
                entropy.append(-(log_p.exp() * log_p).sum(-1))
        entropy = torch.cat(entropy) if want_entropy else None
        ctx.save_for_backward(hidden, tokens, head, torch.cat(log_z), entropy)
        ctx.temperature, ctx.chunk = temperature, chunk
        return torch.cat(logp), entropy

    @staticmethod
    def backward(ctx, grad, grad_entropy):
        hidden, tokens, head, log_z, entropy = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden)
        # chunks are added up in float32: a bf16 sum over chunks would depend on the chunk size
        want_head = ctx.needs_input_grad[2]
        grad_head = torch.zeros_like(head, dtype=torch.promote_types(head.dtype, torch.float32)) if want_head else None
        for i in range(0, len(tokens), ctx.chunk):
            j = i + ctx.chunk
            log_p = _logits(hidden[i:j], head, ctx.temperature).sub_(log_z[i:j, None])
            d = log_p.exp().neg_()  # −p
            if entropy is not None:
                entropy_d = log_p.clamp_(min=torch.finfo(d.dtype).min).add_(entropy[i:j, None]).mul_(d)  # −p (ln p + H)
            d.scatter_add_(-1, tokens[i:j, None], torch.ones_like(d[:, :1]))  # 1[x = a] − p
            d.mul_(grad[i:j, None] / ctx.temperature)
            if entropy is not None:
                d += entropy_d.mul_(grad_entropy[i:j, None] / ctx.temperature)
            d = d.to(hidden.dtype)
            grad_hidden[i:j] = d if head is None else d @ head
            if want_head:
                grad_head += d.T @ hidden[i:j]
        return grad_hidden, None, grad_head.to(head.dtype) if want_head else None, None, None, None


def token_logp(
    hidden: torch.Tensor, tokens: torch.Tensor, head: torch.Tensor | None = None, temperature: float = 1.0, chunk: int = 256
) -> torch.Tensor:
    """ln π(a|s) of N tokens with gradient to `hidden` and `head`; arguments as in `token_stats`. Keeps [N] numbers for backward."""
    return _TokenLogp.apply(hidden, tokens, head, temperature, chunk, False)[0]


def token_logp_and_entropy(
    hidden: torch.Tensor, tokens: torch.Tensor, head: torch.Tensor | None = None, temperature: float = 1.0, chunk: int = 256
) -> tuple[torch.Tensor, torch.Tensor]:
    """(ln π(a|s), H), both [N] and with gradient: what an entropy bonus needs. Memory as `token_logp`, one more chunk in backward."""
    return _TokenLogp.apply(hidden, tokens, head, temperature, chunk, True)
