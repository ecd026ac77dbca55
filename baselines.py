"""What people use instead to steer entropy, or to clip: eight baselines, each a short section with its formula and source.

Notation as in clipping.py: r = π_θ(a|s) / π_old(a|s), Â the advantage, H entropy in nats; tensors hold one element per token, [N].
Each is a loss with the call shape of `clipping.clipped_surrogate`, some with a *plan* besides: a number per token, made once per step
from π_old and the whole batch, where the originals take the current policy and a micro-batch: no result may depend on those here.
"""

import math

import torch

from clipping import MAX_LOG_RATIO, Line, clipped_surrogate, threshold


def step_plan(objective, old_logp, advantages, loss_mask, lengths, coefficient: float, generator) -> tuple[torch.Tensor, torch.Tensor]:
    """(weights, plan), flat [N] over the rollout batch's tokens: `weights` multiply the loss, `plan` is an argument of it. lengths:
    tokens per response; coefficient: c of the two bonuses, α of EntroPIC; generator: draws Clip-Cov's tokens."""
    weights, plan = torch.ones_like(old_logp), torch.zeros_like(old_logp)
    match objective:
        case "entropy-bonus" | "adaptive-bonus": plan = torch.full_like(old_logp, coefficient)
        case "entropic": plan = coefficient * confident_share(old_logp, loss_mask)
        case "clip-cov": weights = clip_cov_weights(old_logp, advantages, loss_mask, generator)
        case "kl-cov": plan = kl_cov_plan(old_logp, advantages, loss_mask)
        case "gspo" | "sapo": weights = response_weights(lengths)
    return weights, plan  # fmt: skip


def token_loss(objective, old_logp, logp, advantages, response_mask, upper: Line, lower: Line, plan, lengths, entropy):
    """(loss [N], sums) of that objective, as `clipped_surrogate` returns them, on any whole responses of the batch. plan [N] and
    lengths: of these responses. entropy [N]: of the *current* policy with gradient, for the two bonuses; None for others."""
    args = (old_logp, logp, advantages, response_mask, upper, lower)
    bonus = (plan, entropy)
    extra = {"entropy-bonus": bonus, "adaptive-bonus": bonus, "entropic": (plan,), "kl-cov": (plan,), "gspo": (lengths,)}
    return LOSSES[objective](*args, *extra.get(objective, ()))


def _ratio(old_logp, logp, response_mask) -> tuple[torch.Tensor, torch.Tensor]:
    """(log r, r), finite everywhere: masked positions may hold anything, NaN included, and r is clamped in log space."""
    log_ratio = torch.where(response_mask, logp - old_logp, 0.0)
    return log_ratio, log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def _result(loss, response_mask, log_ratio, ratio, clip_high=False, clip_low=False) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The masked loss and the sums of `clipped_surrogate`; clip_high, clip_low: bool [N], whose gradient is cut."""
    sums = {
        "tokens": response_mask.sum(),
        "clip_high": (response_mask & clip_high).sum(),
        "clip_low": (response_mask & clip_low).sum(),
        "kl": (ratio - 1 - log_ratio).detach().sum(),
        "ratio_clamped": (log_ratio.abs() > MAX_LOG_RATIO).sum(),
    }
    return torch.where(response_mask, loss, 0.0), sums


class OnTarget:
    """What the two controllers share: the error in nats against a `schedules.Target`, and their state. Called once per step."""

    def __init__(self, target):
        self.target, self.h_init, self.value = target, None, 0.0

    def error(self, step: int, entropy: float) -> float:
        """H above (+) or below (−) the target that this step's update should lead to."""
        if self.h_init is None:
            self.h_init = entropy
        return entropy - self.target(step + 1, self.h_init)

    def state_dict(self) -> dict:
        return {"h_init": self.h_init, "value": self.value}

    def load_state_dict(self, state: dict) -> None:
        self.h_init, self.value = state["h_init"], state["value"]


# ------------------------------------------------------------------------------------------------- entropy bonus, fixed and adaptive
# J + c · mean H. Adaptive (Skywork-OR1, arXiv 2505.22312): after each step c ← max(0, c ± Δ), up where H is below the target, and
# the bonus is applied only while H is at or below it.
def entropy_bonus(old_logp, logp, advantages, response_mask, upper: Line, lower: Line, plan, entropy):
    """plan [N]: c, per nat. entropy [N]: from `clipping.token_logp_and_entropy`."""
    loss, sums = clipped_surrogate(old_logp, logp, advantages, response_mask, upper, lower)
    return loss - torch.where(response_mask, plan * entropy, 0.0), sums


class AdaptiveBonus(OnTarget):
    """The coefficient c from the measured entropy."""

    step_size = 0.005

    def __call__(self, step: int, entropy: float) -> float:
        error = self.error(step, entropy)
        applied = self.value if error <= 0 else 0.0
        self.value = max(0.0, self.value - math.copysign(self.step_size, error))
        return applied


# ------------------------------------------------------------------------------------------------------ EntroPIC, arXiv 2511.15248
# e = H − target,  α = clip(K_p e + K_i Σ e, −1, 1).  Loss: GRPO's + α · mean of −r |Â| over tokens with π > 0.95, not clipped: too
# much entropy (α > 0) pushes confident tokens up, whatever their advantage, too little pushes them down.
# Departs: one e per rollout step, not one per micro-batch; the tokens, and their number, are those with π_old > 0.95.
def confident_share(old_logp: torch.Tensor, loss_mask: torch.Tensor) -> torch.Tensor:
    """[N] N_loss / N_confident on confident tokens, else 0: it turns the caller's mean into one over confident tokens."""
    confident = (old_logp > math.log(0.95)) & loss_mask
    return confident.to(old_logp.dtype) * loss_mask.sum() / confident.sum().clamp(min=1)


def entropic(old_logp, logp, advantages, response_mask, upper: Line, lower: Line, plan):
    """plan [N]: α · `confident_share`."""
    loss, sums = clipped_surrogate(old_logp, logp, advantages, response_mask, upper, lower)
    _, ratio = _ratio(old_logp, logp, response_mask)
    return loss - torch.where(response_mask, plan * ratio * advantages.abs(), 0.0), sums


class EntroPIC(OnTarget):
    """α from the measured entropy."""

    kp, ki = 1.0, 0.01

    def __call__(self, step: int, entropy: float) -> float:
        error = self.error(step, entropy)
        self.value += error
        return max(-1.0, min(1.0, self.kp * error + self.ki * self.value))


# ------------------------------------------------------------------------------------------- Clip-Cov and KL-Cov, arXiv 2505.22617
# cov_t = (Â_t − mean Â)(ln p_t − mean ln p) over the batch's tokens: what makes entropy fall, as ΔH ≈ −η Cov(ln π, π Â).
# Clip-Cov: GRPO without the gradient of a random share 2e-4 of the tokens, taken among those with cov in (1, 5).
# KL-Cov: −r Â, *not* clipped, + β |ln p − ln p_old| on the share 2e-3 (7B; 2e-4 for 32B) of the tokens with the largest cov.
# Departs: tokens are chosen once per rollout step, by π_old; so Clip-Cov cannot skip those that clipping has stopped already.
def covariance(old_logp: torch.Tensor, advantages: torch.Tensor, loss_mask: torch.Tensor) -> torch.Tensor:
    """[N] cov_t, −inf for tokens outside the loss, which have no part in the means either."""
    a, b = (x - torch.where(loss_mask, x, 0.0).sum() / loss_mask.sum().clamp(min=1) for x in (advantages, old_logp))
    return torch.where(loss_mask, a * b, -math.inf)


def clip_cov_weights(old_logp, advantages, loss_mask, generator: torch.Generator, share: float = 2e-4) -> torch.Tensor:
    """[N]: 0 on the chosen tokens, 1 elsewhere: weights of GRPO's loss."""
    cov, weights = covariance(old_logp, advantages, loss_mask), torch.ones_like(old_logp)
    candidates = ((cov > 1) & (cov < 5)).nonzero().squeeze(1)
    chosen = torch.randperm(len(candidates), generator=generator)[: max(1, int(share * int(loss_mask.sum())))]
    weights[candidates[chosen]] = 0
    return weights


def kl_cov_plan(old_logp, advantages, loss_mask, share: float = 2e-3, beta: float = 1.0) -> torch.Tensor:
    """[N]: β on the tokens that are held back, 0 elsewhere."""
    n, plan = int(loss_mask.sum()), torch.zeros_like(old_logp)
    plan[covariance(old_logp, advantages, loss_mask).topk(min(n, max(1, int(share * n)))).indices] = beta
    return plan


def kl_cov(old_logp, logp, advantages, response_mask, upper: Line, lower: Line, plan):
    """plan [N]: `kl_cov_plan`. The thresholds are not used: nothing is clipped."""
    log_ratio, ratio = _ratio(old_logp, logp, response_mask)
    return _result(-ratio * advantages + plan * log_ratio.abs(), response_mask, log_ratio, ratio)


# ------------------------------------------------------------------------------------------------------- CE-GPPO, arXiv 2509.20712
# r Â inside the bounds; a clipped token keeps a gradient, that of the bound scaled: Â < 0 and r < 1 − ε: β₁ (1 − ε)/sg(r) · r Â;
# Â > 0 and r > 1 + ε: β₂ (1 + ε)/sg(r) · r Â.  β₁ = 0.75 (7B) or 0.5 (1.5B), β₂ = 1.
def ce_gppo(old_logp, logp, advantages, response_mask, upper: Line, lower: Line, beta_low: float = 0.75, beta_high: float = 1.0):
    """ε is the schedule's. clip_high and clip_low count the tokens beyond it, whose gradient is scaled, not cut."""
    log_ratio, ratio = _ratio(old_logp, logp, response_mask)
    p = torch.where(response_mask, logp.detach(), 0.0).exp()
    low, high, frozen = 1 - threshold(p, lower), 1 + threshold(p, upper), ratio.detach()
    above, below = (advantages > 0) & (frozen > high), (advantages < 0) & (frozen < low)
    scale = torch.where(above, beta_high * high / frozen, torch.where(below, beta_low * low / frozen, 1.0))
    return _result(-scale * ratio * advantages, response_mask, log_ratio, ratio, above, below)


# ---------------------------------------------------------------------------------------------------------- GSPO, arXiv 2507.18071
# One ratio per response, s = exp(mean_t ln r_t), clipped to (1 − 3e-4, 1 + 4e-4); J = mean over responses of min(s Â, clip(s) Â).
def response_weights(lengths: list[int]) -> torch.Tensor:
    """[N] mean length / own length of each token's response: turns the caller's mean over tokens into GSPO's and SAPO's mean over
    responses, exactly over the rollout batch, nearly over a mini-batch, whose mean length differs a little."""
    lengths = torch.tensor(lengths)
    return (lengths.float().mean() / lengths).repeat_interleave(lengths)


def gspo(old_logp, logp, advantages, response_mask, upper: Line, lower: Line, lengths, eps_low: float = 3e-4, eps_high: float = 4e-4):
    """lengths: tokens of each response here, in order, summing to N. Â must be one per response; the thresholds are not used."""
    log_ratio, ratio = _ratio(old_logp, logp, response_mask)
    lengths = torch.tensor(lengths, device=logp.device)
    response = torch.arange(len(lengths), device=logp.device).repeat_interleave(lengths)  # [N], which one a token is in
    total, count = log_ratio.new_zeros(2, len(lengths)).index_add(1, response, torch.stack([log_ratio, response_mask.to(log_ratio)]))
    s = (total / count.clamp(min=1)).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()[response]
    surrogate = torch.minimum(s * advantages, s.clamp(1 - eps_low, 1 + eps_high) * advantages)
    above, below = (advantages > 0) & (s > 1 + eps_high), (advantages < 0) & (s < 1 - eps_low)
    return _result(-surrogate, response_mask, log_ratio, ratio, above, below)


# ---------------------------------------------------------------------------------------------------------- SAPO, arXiv 2511.20347
# A soft gate for a clip: J = mean over responses of mean_t (4/τ) σ(τ (r − 1)) Â, τ = 1.0 for Â > 0, else 1.05; its slope at r = 1 is Â.
def sapo(old_logp, logp, advantages, response_mask, upper: Line, lower: Line, tau_pos: float = 1.0, tau_neg: float = 1.05):
    """The thresholds are not used: nothing is clipped."""
    log_ratio, ratio = _ratio(old_logp, logp, response_mask)
    positive, negative = (4 / tau * torch.sigmoid(tau * (ratio - 1)) for tau in (tau_pos, tau_neg))
    return _result(-torch.where(advantages > 0, positive, negative) * advantages, response_mask, log_ratio, ratio)


LOSSES = {"grpo": clipped_surrogate, "entropy-bonus": entropy_bonus, "adaptive-bonus": entropy_bonus, "entropic": entropic,
          "clip-cov": clipped_surrogate, "kl-cov": kl_cov, "ce-gppo": ce_gppo, "gspo": gspo, "sapo": sapo}  # fmt: skip
