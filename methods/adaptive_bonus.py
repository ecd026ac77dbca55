"""The adaptive entropy bonus of Skywork-OR1 (arXiv 2505.22312)."""

import math

import torch

from clipping import clipped_surrogate
from methods.target import TargetMethod


class AdaptiveBonus(TargetMethod):
    """J + c · mean H. After each step c ← max(0, c ± 0.005), up where H is below the target. The bonus is applied only
    while H is at or below the target. Departure: here the target may move, in the paper it is a constant."""

    needs_entropy = True
    step_size = 0.005

    def steer(self, entropy: float, aim: float) -> float:
        applied = self.memory if entropy <= aim else 0.0
        self.memory = max(0.0, self.memory - math.copysign(self.step_size, entropy - aim))
        return applied

    def loss(self, old_logp, logp, advantages, mask, upper, lower, marks=None, entropy=None):
        loss, side = clipped_surrogate(old_logp, logp, advantages, mask, upper, lower)
        return loss - torch.where(mask, self.output * entropy, 0.0), side
