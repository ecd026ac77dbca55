"""Entropy on a curve by weighing the four regions (ours)."""

import math

import torch

from methods.target import Target, TargetMethod


def region_weights(regions: torch.Tensor, gain: float) -> torch.Tensor:
    """float32 [*tokens]: 1 + u in E2 and E3, 1 − u in E1 and E4, else 1. `regions`: of `clipping.region_masks`."""
    e1, e2, e3, e4 = regions.float()
    return 1 + gain * (e2 + e3 - e1 - e4)


class Track(TargetMethod):
    """A PI controller sets a gain u. Tokens in E2 and E3 are weighted by 1 + u, those in E1 and E4 by 1 − u.

        e_k = ln(target(k + 1) / H_k)        u_k = clip(kp e_k + ki Σ e, −1, 1)        u > 0 asks for more entropy

    With u = 0 it is GRPO to the bit. A weight is never negative, so it leaves the bounds alone:
    min(w r Â, clip(r) w Â) = w min(r Â, clip(r) Â). The regions are those of the paper's rule. With the exact
    boundary f(a) = B the first-order change of entropy, Σ w · entropy_change, would never fall as u grows, for any
    batch. With the rule it may, because of E1 and E3.

    The target is that of the next step, which feeds its slope forward. The error is a ratio because u's effect on H is
    about proportional to H: ln H moves by b u in a step. b depends on the task and the learning rate. The loop is
    stable for (kp + ki / 2) b < 2, that is for b < 0.49. Its time constant is 1 / (kp b) steps. Its damping
    (kp / 2) sqrt(b / ki) is above 0.6 from b = 0.02 on. kp and ki were chosen for this range of b, not by runs. A large
    model at a small learning rate, say b = 0.02, lags by about a dozen steps. If H swings, lower kp; if it trails,
    raise kp.
    """

    def __init__(self, target: Target, kp: float = 4.0, ki: float = 0.2):
        super().__init__(target)
        self.kp, self.ki = kp, ki

    def steer(self, entropy: float, aim: float) -> float:
        error = math.log(aim / entropy)
        wanted = self.kp * error + self.ki * (self.memory + error)
        gain = max(-1.0, min(1.0, wanted))
        if gain == wanted:  # anti-windup: while u is at its limit the sum stands still, so |ki Σ e| ≤ 1
            self.memory += error
        return gain

    def weights(self, tokens, generator):
        return region_weights(tokens.regions, self.output)
