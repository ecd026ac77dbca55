"""DPPO with total variation (arXiv 2602.04879)."""

from methods.base import BoundedInPOld


class DPPOTV(BoundedInPOld):
    """The gradient of r Â stops where Â > 0 and p − p_old > δ, or where Â < 0 and p − p_old < −δ. As a bound that is
    r ≤ 1 + δ/p_old and r ≥ 1 − δ/p_old. δ = 0.15 is verl's; prime-rl and SkyRL have 0.2. Departure: the original
    compares with the sampler's probability, this with π_old."""

    delta = 0.15

    def bounds(self, p_old):
        return 1 - self.delta / p_old, 1 + self.delta / p_old
