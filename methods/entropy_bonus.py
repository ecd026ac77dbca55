"""The entropy bonus, as old as policy gradients."""

import torch

from clipping import clipped_surrogate
from methods.base import Method


class EntropyBonus(Method):
    """J + c · mean H, with c per nat; H is the current policy's. Departure, here and wherever a term is added: on GPUs
    the trainer multiplies the whole loss by the importance weights, this term too."""

    needs_entropy = True

    def __init__(self, bonus: float = 0.001):
        self.bonus = bonus

    def loss(self, old_logp, logp, advantages, mask, upper, lower, marks=None, entropy=None):
        loss, side = clipped_surrogate(old_logp, logp, advantages, mask, upper, lower)
        return loss - torch.where(mask, self.bonus * entropy, 0.0), side
