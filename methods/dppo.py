"""DPPO, by total variation and by KL divergence (both arXiv 2602.04879).

The gradient of r Â stops where π has moved too far from π_old on this token, in the direction that Â asks for. Only two
outcomes are looked at, the sampled token and all others together. Departure: the original compares with the sampler's
probability μ, also in r, and bounds the drift of sampling from training as well; this compares with π_old.
"""

import torch

from clipping import clip_side, ratios
from methods.base import BoundedInPOld, Method


class DPPOTV(BoundedInPOld):
    """Too far is p − p_old > δ where Â > 0, and p − p_old < −δ where Â < 0. As a bound that is r ≤ 1 + δ/p_old and
    r ≥ 1 − δ/p_old. δ = 0.15 is verl's; prime-rl and SkyRL have 0.2."""

    delta = 0.15

    def bounds(self, p_old):
        return 1 - self.delta / p_old, 1 + self.delta / p_old


class DPPOKL(Method):
    """Too far is D > δ = 0.05, the divergence of the two outcomes; there the loss is 0:

    D = p_old ln(p_old / p) + (1 − p_old) ln((1 − p_old) / (1 − p))
    """

    uses_thresholds = False
    delta = 0.05
    tiny = 1e-8  # the least 1 − p, below what float32 can tell from 0

    def loss(self, old_logp, logp, advantages, mask, upper, lower, marks=None, entropy=None):
        log_ratio, ratio = ratios(old_logp, logp, mask)
        p_old, p = (torch.where(mask, x.detach(), 0.0).exp() for x in (old_logp, logp))
        others = (1 - p_old).clamp(min=self.tiny) / (1 - p).clamp(min=self.tiny)
        far = (1 - p_old) * others.log() - p_old * log_ratio.detach() > self.delta
        side = clip_side(ratio.detach(), advantages, mask & far, 1.0, 1.0)
        return torch.where(mask & (side == 0), -ratio * advantages, 0.0), side
