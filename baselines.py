"""What people use instead to steer entropy, or to clip: eight baselines, each a short section with its formula and source.

Notation as in clipping.py: r = π_θ(a|s) / π_old(a|s), Â the advantage, H entropy in nats; tensors hold one element per token, [N].
A baseline is a loss with the call shape of `clipping.clipped_surrogate` and, where it has one, a *plan*: numbers per token or a
coefficient, made once per rollout step from π_old and the whole batch. The originals take these statistics from the current policy
over one micro-batch; here the result must not depend on the micro-batch size or the number of ranks, and at the first update of a
step, where π_θ = π_old, the two agree but for the batch they are taken over.
"""

import math

import torch

from clipping import MAX_LOG_RATIO, Line, clipped_surrogate, threshold

OBJECTIVES = ("grpo", "entropy-bonus", "adaptive-bonus", "entropic", "clip-cov", "kl-cov", "ce-gppo", "gspo", "sapo")
CONTROLLED = ("adaptive-bonus", "entropic")  # they hold entropy on a target


def _ratio(old_logp: torch.Tensor, logp: torch.Tensor, response_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(log r, r), finite everywhere: masked positions may hold anything, NaN included, and r is clamped in log space."""
    log_ratio = torch.where(response_mask, logp - old_logp, 0.0)
    return log_ratio, log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def _result(loss, response_mask, log_ratio, clip_high=None, clip_low=None) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The masked loss and the sums of `clipped_surrogate`; clip_high and clip_low: bool, tokens whose gradient is cut (None: never)."""
    with torch.no_grad():
        none = torch.zeros((), dtype=torch.long, device=loss.device)
        sums = {
            "tokens": response_mask.sum(),
            "clip_high": none if clip_high is None else (response_mask & clip_high).sum(),
            "clip_low": none if clip_low is None else (response_mask & clip_low).sum(),
            "kl": (log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp() - 1 - log_ratio).sum(),
            "ratio_clamped": (log_ratio.abs() > MAX_LOG_RATIO).sum(),
        }
    return torch.where(response_mask, loss, 0.0), sums


# ------------------------------------------------------------------------------------------------- entropy bonus, fixed and adaptive
# J + c · mean H. Adaptive (Skywork-OR1, arXiv 2505.22312): after each step c ← max(0, c ± Δ), up where H is below the target, and
# the bonus is applied only while H is at or below it.

def entropy_bonus(old_logp, logp, advantages, response_mask, upper: Line, lower: Line, entropy: torch.Tensor, coefficient: float):
    """`entropy` [N]: H of the *current* policy with gradient (`clipping.token_logp_and_entropy`); `coefficient`: c, per nat."""
    loss, sums = clipped_surrogate(old_logp, logp, advantages, response_mask, upper, lower)
    return loss - coefficient * torch.where(response_mask, entropy, 0.0), sums


class AdaptiveBonus:
    """The coefficient c as a function of the measured entropy and its target (both in nats), called once per step."""

    def __init__(self, step_size: float = 0.005):
        self.step_size, self.coefficient = step_size, 0.0

    def __call__(self, entropy: float, target: float) -> float:
        applied = self.coefficient if entropy <= target else 0.0
        self.coefficient = max(0.0, self.coefficient + math.copysign(self.step_size, target - entropy))
        return applied

    def state_dict(self) -> dict:
        return {"coefficient": self.coefficient}

    def load_state_dict(self, state: dict) -> None:
        self.coefficient = state["coefficient"]


# ------------------------------------------------------------------------------------------------------ EntroPIC, arXiv 2511.15248
# e = H − H_target,  α = clip(K_p e + K_i Σ e, −1, 1).  Loss: GRPO's + α · mean over tokens with π > 0.95 of −r |Â|: too much entropy
# (α > 0) pushes confident tokens up, whatever their advantage, too little pushes them down; this term is not clipped.
# Departs: one e per rollout step, not one per micro-batch; and the tokens, and their number, are those with π_old > 0.95.

CONFIDENT = 0.95


def entropic_plan(old_logp: torch.Tensor, loss_mask: torch.Tensor) -> torch.Tensor:
    """[N]: on a confident token N_loss / N_confident, so that the caller's mean over the loss's tokens is one over confident tokens."""
    confident = (old_logp > math.log(CONFIDENT)) & loss_mask
    return confident.to(old_logp.dtype) * loss_mask.sum() / confident.sum().clamp(min=1)


def entropic(old_logp, logp, advantages, response_mask, upper: Line, lower: Line, plan: torch.Tensor, coefficient: float):
    """`plan` [N] of `entropic_plan`; `coefficient`: α of this step, from `EntroPIC`."""
    loss, sums = clipped_surrogate(old_logp, logp, advantages, response_mask, upper, lower)
    _, ratio = _ratio(old_logp, logp, response_mask)
    return loss - torch.where(response_mask, coefficient * plan * ratio * advantages.abs(), 0.0), sums


class EntroPIC:
    """α as a function of the measured entropy and its target (both in nats), called once per step."""

    def __init__(self, kp: float = 1.0, ki: float = 0.01):
        self.kp, self.ki, self.integral = kp, ki, 0.0

    def __call__(self, entropy: float, target: float) -> float:
        self.integral += entropy - target
        return max(-1.0, min(1.0, self.kp * (entropy - target) + self.ki * self.integral))

    def state_dict(self) -> dict:
        return {"integral": self.integral}

    def load_state_dict(self, state: dict) -> None:
        self.integral = state["integral"]


# ------------------------------------------------------------------------------------------- Clip-Cov and KL-Cov, arXiv 2505.22617
# cov_t = (Â_t − mean Â)(ln p_t − mean ln p) over the batch's tokens: what makes entropy fall, as ΔH ≈ −η Cov(ln π, π Â).
# Clip-Cov: GRPO without the gradient of a random share 2e-4 of the tokens, taken among those with cov in (1, 5).
# KL-Cov: −r Â, *not* clipped, + β |ln p − ln p_old| on the share 2e-3 (7B; 2e-4 for 32B) of the tokens with the largest cov.
# Departs: tokens are chosen once per rollout step, by π_old; so Clip-Cov cannot skip those that clipping has stopped already.

def covariance(old_logp: torch.Tensor, advantages: torch.Tensor, loss_mask: torch.Tensor) -> torch.Tensor:
    """[N] cov_t, −inf for tokens outside the loss, which have no part in the means either."""
    n = loss_mask.sum().clamp(min=1)
    centred = [torch.where(loss_mask, x - torch.where(loss_mask, x, 0.0).sum() / n, -math.inf) for x in (advantages, old_logp)]
    return torch.where(loss_mask, centred[0] * centred[1], -math.inf)


def clip_cov_weights(old_logp, advantages, loss_mask, generator: torch.Generator, share: float = 2e-4) -> torch.Tensor:
    """Each token's weight in GRPO's loss, [N]: 0 for the chosen ones, 1 elsewhere."""
    cov = covariance(old_logp, advantages, loss_mask)
    candidates = ((cov > 1) & (cov < 5)).nonzero().squeeze(1)
    number = max(1, int(share * int(loss_mask.sum())))
    weights = torch.ones_like(old_logp)
    weights[candidates[torch.randperm(len(candidates), generator=generator)[:number]]] = 0
    return weights


def kl_cov_plan(old_logp, advantages, loss_mask, share: float = 2e-3, beta: float = 1.0) -> torch.Tensor:
    """[N]: β on the tokens that are held back, 0 elsewhere."""
    number = min(int(loss_mask.sum()), max(1, int(share * int(loss_mask.sum()))))
    plan = torch.zeros_like(old_logp)
    plan[covariance(old_logp, advantages, loss_mask).topk(number).indices] = beta
    return plan


def kl_cov(old_logp, logp, advantages, response_mask, upper: Line, lower: Line, plan: torch.Tensor):
    """`plan` [N] of `kl_cov_plan`. The thresholds are not used."""
    log_ratio, ratio = _ratio(old_logp, logp, response_mask)
    return _result(-ratio * advantages + plan * log_ratio.abs(), response_mask, log_ratio)


# ------------------------------------------------------------------------------------------------------- CE-GPPO, arXiv 2509.20712
# r Â inside the bounds; a clipped token keeps a gradient, of the size it would have on the bound:
#     Â < 0, r < 1 − ε:  β₁ (1 − ε)/sg(r) · r Â        Â > 0, r > 1 + ε:  β₂ (1 + ε)/sg(r) · r Â        β₁ = .75 (7B) or .5 (1.5B), β₂ = 1

def ce_gppo(old_logp, logp, advantages, response_mask, upper: Line, lower: Line, beta_low: float = 0.75, beta_high: float = 1.0):
    """ε is the schedule's, above and below. `clip_high` and `clip_low` count the tokens beyond it, whose gradient is rescaled, not cut."""
    log_ratio, ratio = _ratio(old_logp, logp, response_mask)
    p = torch.where(response_mask, logp.detach(), 0.0).exp()
    low, high, frozen = 1 - threshold(p, lower), 1 + threshold(p, upper), ratio.detach()
    above, below = (advantages > 0) & (frozen > high), (advantages < 0) & (frozen < low)
    scale = torch.where(above, beta_high * high / frozen, torch.where(below, beta_low * low / frozen, 1.0))
    return _result(-scale * ratio * advantages, response_mask, log_ratio, above, below)


# ---------------------------------------------------------------------------------------------------------- GSPO, arXiv 2507.18071
# One ratio per response, s = exp(mean_t ln r_t), clipped to (1 − 3e-4, 1 + 4e-4); J = mean over responses of min(s Â, clip(s) Â).

def response_weights(lengths: list[int]) -> torch.Tensor:
    """[N] mean length / own length of each token's response: turns the caller's token mean into GSPO's and SAPO's mean over responses,
    exactly over the rollout batch and nearly over a mini-batch, whose mean length differs. lengths: tokens per response, summing to N."""
    lengths = torch.tensor(lengths)
    return (lengths.float().mean() / lengths).repeat_interleave(lengths)


def gspo(old_logp, logp, advantages, response_mask, upper: Line, lower: Line, lengths: list[int], eps_low=3e-4, eps_high=4e-4):
    """lengths: tokens of each response in this micro-batch, in order, summing to N. The thresholds are not used; Â must be the same
    for all tokens of a response."""
    log_ratio, _ = _ratio(old_logp, logp, response_mask)
    of = torch.arange(len(lengths), device=logp.device).repeat_interleave(torch.tensor(lengths, device=logp.device))  # [N] response number
    total = torch.zeros(len(lengths), dtype=logp.dtype, device=logp.device)
    mean = total.index_add(0, of, log_ratio) / total.index_add(0, of, response_mask.to(logp.dtype)).clamp(min=1)
    ratio = mean.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()[of]  # [N] s, the gradient of each token's share in it included
    surrogate = torch.minimum(ratio * advantages, ratio.clamp(1 - eps_low, 1 + eps_high) * advantages)
    above, below = (advantages > 0) & (ratio > 1 + eps_high), (advantages < 0) & (ratio < 1 - eps_low)
    return _result(-surrogate, response_mask, log_ratio, above, below)


# ---------------------------------------------------------------------------------------------------------- SAPO, arXiv 2511.20347
# A soft gate instead of a clip: J = mean over responses of mean_t (4/τ) σ(τ (r − 1)) Â, τ = 1.0 for Â > 0, 1.05 otherwise. At r = 1
# its slope in r is Â, as GRPO's.

def sapo(old_logp, logp, advantages, response_mask, upper: Line, lower: Line, tau_pos: float = 1.0, tau_neg: float = 1.05):
    """The thresholds are not used: nothing is ever clipped."""
    log_ratio, ratio = _ratio(old_logp, logp, response_mask)
    positive, negative = (4 / tau * torch.sigmoid(tau * (ratio - 1)) for tau in (tau_pos, tau_neg))
    return _result(-torch.where(advantages > 0, positive, negative) * advantages, response_mask, log_ratio)
