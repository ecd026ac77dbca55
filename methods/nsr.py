"""NSR and W-REINFORCE (both arXiv 2506.01347; "NSR" is also the name of another method, arXiv 2605.22703)."""

import torch

from methods.base import Method


class NSR(Method):
    """Negative sample reinforcement: only wrong responses are trained. Departure: with GRPO's Â and clip."""

    weight_of_correct = 0.0

    def weights(self, tokens, generator):
        return torch.where(tokens.advantages > 0, self.weight_of_correct, torch.ones_like(tokens.logp))


class WReinforce(NSR):
    """Correct responses weigh a tenth."""

    weight_of_correct = 0.1
