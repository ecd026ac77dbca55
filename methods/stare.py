"""STARE, its objective O1 (arXiv 2606.19236)."""

import torch

from methods.base import top_share
from methods.target import TargetMethod


class Stare(TargetMethod):
    """Tokens with Â > 0 among the tenth with the highest surprisal weigh W. W moves by α = 0.01 within [1, 1.5], up
    while H is below the target and down otherwise. It starts at the paper's fixed weight 1.1. Above the target the
    weight is 1."""

    start = 1.1

    def steer(self, entropy: float, aim: float) -> float:
        below, weight = entropy < aim, self.memory
        self.memory = max(1.0, min(1.5, weight + (0.01 if below else -0.01)))
        return weight if below else 1.0

    def weights(self, tokens, generator):
        surprising = top_share(-tokens.logp, tokens.in_loss, 0.1)
        return torch.where((tokens.advantages > 0) & surprising, self.output, torch.ones_like(tokens.logp))
