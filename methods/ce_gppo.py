"""CE-GPPO (arXiv 2509.20712)."""

import torch

from clipping import clip_side, line_bounds, ratios
from methods.base import Method


class CEGPPO(Method):
    """Inside the schedule's bounds the objective is r Â. A token beyond them counts as clipped, but keeps a gradient,
    that of the bound, scaled. r₀ is r as a number without gradient:

        Â < 0: β₁ (1 − ε_low) / r₀ · r Â        Â > 0: β₂ (1 + ε_high) / r₀ · r Â        β₁ = 0.75, β₂ = 1

    β₁ is the paper's for 7B; for 1.5B it has 0.5.
    """

    beta1, beta2 = 0.75, 1.0

    def loss(self, old_logp, logp, advantages, mask, upper, lower, marks=None, entropy=None):
        _, ratio = ratios(old_logp, logp, mask)
        (low, high), frozen = line_bounds(logp, mask, upper, lower), ratio.detach()
        side = clip_side(frozen, advantages, mask, low, high)
        scale = torch.where(side > 0, self.beta2 * high / frozen, torch.where(side < 0, self.beta1 * low / frozen, 1.0))
        return torch.where(mask, -scale * ratio * advantages, 0.0), side
