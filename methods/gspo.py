"""GSPO (arXiv 2507.18071)."""

import torch

from clipping import clipped_at, ratios
from methods.base import Method, mean_over_responses


class GSPO(Method):
    """All tokens of a response have one ratio, the geometric mean of theirs, which PPO's clip bounds; the objective is
    a mean over responses:

        s = exp(mean ln r)        min(s Â, clip(s, 1 − ε_low, 1 + ε_high) Â)        ε_low = 3e-4, ε_high = 4e-4

    Â is one number per response. Departure: see `base.mean_over_responses`. A token that is not trained has no part in
    s, nor has a FILLER, which may repeat a response of the same micro-batch.
    """

    uses_thresholds = False
    eps_low, eps_high = 3e-4, 4e-4

    def weights(self, tokens, generator):
        return mean_over_responses(tokens)

    def marks(self, tokens):
        return tokens.response

    def loss(self, old_logp, logp, advantages, mask, upper, lower, marks=None, entropy=None):
        log_ratio, _ = ratios(old_logp, logp, mask)
        responses, which = marks.unique(return_inverse=True)
        sums = log_ratio.new_zeros(2, len(responses))
        total, count = sums.index_add(1, which, torch.stack([log_ratio, mask.to(log_ratio.dtype)]))
        log_s = (total / count.clamp(min=1))[which]  # [n]
        low, high = 1 - self.eps_low, 1 + self.eps_high
        return clipped_at(torch.zeros_like(log_s), log_s, advantages, mask, low, high)
