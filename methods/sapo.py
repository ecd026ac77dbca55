"""SAPO (arXiv 2511.20347)."""

import torch

from clipping import ratios
from methods.base import Method, mean_over_responses


class SAPO(Method):
    """A soft gate instead of a clip: the gradient fades as r leaves 1, where it is that of r Â. The objective is a mean
    over responses of the mean over their tokens:

        (4 / τ) σ(τ (r − 1)) Â        τ = 1 where Â > 0, else 1.05

    Departure: see `base.mean_over_responses`.
    """

    uses_thresholds = False
    tau_positive, tau_negative = 1.0, 1.05

    def weights(self, tokens, generator):
        return mean_over_responses(tokens)

    def loss(self, old_logp, logp, advantages, mask, upper, lower, marks=None, entropy=None):
        _, ratio = ratios(old_logp, logp, mask)
        tau = torch.full_like(ratio, self.tau_positive).where(advantages > 0, self.tau_negative)
        gate = 4 / tau * torch.sigmoid(tau * (ratio - 1))
        return torch.where(mask, -gate * advantages, 0.0), torch.zeros_like(mask, dtype=torch.int8)
