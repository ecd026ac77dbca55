"""BandPO with the χ² divergence (arXiv 2603.04918)."""

from methods.base import BoundedInPOld


class BandPO(BoundedInPOld):
    """The ratios r that a token can have within χ²(π, π_old) ≤ δ, if all others change alike, and within 0 ≤ p ≤ 1:

        r ≥ max(0, 1 − w)        r ≤ min(1 + w, 1/p_old)        w = √(δ (1 − p_old) / p_old)        δ = 0.05

    δ is that of the paper's experiments, most of which are with the KL divergence, whose bounds have no closed form.
    With total variation the bounds would be DPPO-TV's.
    """

    delta = 0.05

    def bounds(self, p_old):
        width = (self.delta * (1 / p_old - 1)).clamp(min=0).sqrt()
        return (1 - width).clamp(min=0), (1 + width).minimum(1 / p_old)
