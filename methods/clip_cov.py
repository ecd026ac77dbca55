"""Clip-Cov (arXiv 2505.22617)."""

import torch

from methods.base import Method, covariance


class ClipCov(Method):
    """GRPO without the gradient of a random 2e-4 of the tokens, taken among those with cov in (1, 5), see
    `base.covariance`. Departure: it cannot skip those that clipping has stopped already."""

    share = 2e-4

    def weights(self, tokens, generator):
        cov, weights = covariance(tokens), torch.ones_like(tokens.logp)
        candidates = ((cov > 1) & (cov < 5)).nonzero().squeeze(1)
        n = max(1, int(self.share * int(tokens.in_loss.sum())))
        weights[candidates[torch.randperm(len(candidates), generator=generator)[:n]]] = 0
        return weights
