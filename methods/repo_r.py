"""REPO-R (arXiv 2603.11682, appendix D.2)."""

from methods.target import TargetMethod


class REPOR(TargetMethod):
    """GRPO with an advantage that leans against entropy's fall. Weights multiply Â, and none is negative:

        Â > 0: max(0, 1 − ζ ln p_old)        Â < 0: max(0, 1 + ζ ln p_old)        10⁻⁴ ≤ |ζ| ≤ 0.05

    With ζ > 0 rare tokens gain more where Â > 0, and lose less where Â < 0. After each step ζ moves up where H is below
    the target, and down otherwise: |ζ| doubles or halves within its range, and at the lower end ζ changes its sign. It
    starts at 10⁻³, which is SkyRL's. Departures: p_old for the probability of the current policy. The paper's target is
    the first step's entropy; it is any curve here, as for all controllers of this folder.
    """

    start = 1e-3
    least, most = 1e-4, 0.05

    def steer(self, entropy: float, aim: float) -> float:
        zeta, up = self.memory, 1.0 if entropy < aim else -1.0
        ahead = zeta * up  # positive where ζ has the wanted sign already
        ahead = min(2 * ahead, self.most) if ahead > 0 else ahead / 2
        self.memory = up * (ahead if abs(ahead) >= self.least else self.least)
        return zeta

    def weights(self, tokens, generator):
        return (1 - self.output * tokens.logp * tokens.advantages.sign()).clamp(min=0)
