"""CISPO (arXiv 2506.13585)."""

import torch

from clipping import clip_side, ratios
from methods.base import Method


class CISPO(Method):
    """−min(r, cap) Â ln π, where min(r, cap) is a number without gradient: no token loses its gradient. The paper clips
    r from below as well, but says that it does so at no number that binds, and prints none for the cap. 5 is ScaleRL's
    (arXiv 2510.13786), and TRL's advice. A token with Â > 0 above the cap counts as clipped.
    """

    uses_thresholds = False
    cap = 5.0

    def loss(self, old_logp, logp, advantages, mask, upper, lower, marks=None, entropy=None):
        _, ratio = ratios(old_logp, logp.detach(), mask)
        loss = -ratio.clamp(max=self.cap) * advantages * torch.where(mask, logp, 0.0)
        return torch.where(mask, loss, 0.0), clip_side(ratio, advantages, mask, 0.0, self.cap)
