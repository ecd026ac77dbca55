"""KL-Cov (arXiv 2505.22617)."""

import torch

from clipping import ratios
from methods.base import Method, covariance, top_share


class KLCov(Method):
    """−r Â, *not* clipped, plus β |ln p − ln p_old| on the share 2e-3 (7B; 2e-4 for 32B) of the tokens with the largest
    cov, see `base.covariance`, which also states a departure. β = 1."""

    uses_thresholds = False
    share, beta = 2e-3, 1.0

    def marks(self, tokens):
        return top_share(covariance(tokens), tokens.in_loss, self.share).to(tokens.logp.dtype)

    def loss(self, old_logp, logp, advantages, mask, upper, lower, marks=None, entropy=None):
        log_ratio, ratio = ratios(old_logp, logp, mask)
        loss = -ratio * advantages + self.beta * marks * log_ratio.abs()
        return torch.where(mask, loss, 0.0), torch.zeros_like(mask, dtype=torch.int8)
