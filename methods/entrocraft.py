"""Entrocraft (arXiv 2604.26326)."""

from methods.target import TargetMethod


class Entrocraft(TargetMethod):
    """Above a band around the target only responses with Â > 0 are trained, below it only those with Â < 0, inside it
    all. The band is ± 1/13 of the target, as in the paper's example of 0.6 to 0.7. Output: −1 above, 1 below, else
    0."""

    def steer(self, entropy: float, aim: float) -> float:
        return float(entropy < aim * 12 / 13) - float(entropy > aim * 14 / 13)

    def weights(self, tokens, generator):
        return (tokens.advantages * self.output <= 0).to(tokens.logp.dtype)
