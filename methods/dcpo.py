"""DCPO (arXiv 2509.02333)."""

from methods.base import BoundedInPOld


class DCPO(BoundedInPOld):
    """Departure: this is the clip alone; advantages and averaging are GRPO's.

    r ≥ ½ + ½ √max(0, 1 − 4 ε_low/p_old) and r ≤ min(½ + ½ √(1 + 4 ε_high/p_old), 10), ε_low = 0.16, ε_high = 0.2."""

    eps_low, eps_high = 0.16, 0.2

    def bounds(self, p_old):
        low = 0.5 + 0.5 * (1 - 4 * self.eps_low / p_old).clamp(min=0).sqrt()
        return low, (0.5 + 0.5 * (1 + 4 * self.eps_high / p_old).sqrt()).clamp(max=10)
