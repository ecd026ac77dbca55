"""EntroPIC (arXiv 2511.15248)."""

import math

import torch

from clipping import clipped_surrogate, ratios
from methods.target import TargetMethod


class EntroPIC(TargetMethod):
    """GRPO's loss plus α · the mean of −r |Â| over the tokens with π > 0.95, which is not clipped. With too much
    entropy (α > 0) it pushes confident tokens up, whatever their advantage, and else down.

        e = H − target        α = clip(K_p e + K_i Σ e, −1, 1)        K_p = 1, K_i = 0.01

    Departures: the paper has one e per micro-batch, this has one per rollout batch; the tokens are those with
    π_old > 0.95.
    """

    kp, ki = 1.0, 0.01

    def steer(self, entropy: float, aim: float) -> float:
        error = entropy - aim
        self.memory += error
        return max(-1.0, min(1.0, self.kp * error + self.ki * self.memory))

    def marks(self, tokens):
        """N_loss / N_confident on confident tokens, else 0: a mean over the loss's tokens is one over them."""
        confident = (tokens.logp > math.log(0.95)) & tokens.in_loss
        return confident.to(tokens.logp.dtype) * tokens.in_loss.sum() / confident.sum().clamp(min=1)

    def loss(self, old_logp, logp, advantages, mask, upper, lower, marks=None, entropy=None):
        loss, side = clipped_surrogate(old_logp, logp, advantages, mask, upper, lower)
        _, ratio = ratios(old_logp, logp, mask)
        return loss - torch.where(mask, self.output * marks * ratio * advantages.abs(), 0.0), side
