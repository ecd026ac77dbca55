"""80/20 (arXiv 2506.01939; in TRL `top_entropy_quantile`)."""

from methods.base import Method, top_share


class TopEntropy(Method):
    """Only the fifth of the tokens with the highest entropy is trained. Departure: they are chosen once per rollout
    batch, by π_old; TRL chooses in each micro-batch, by the current policy."""

    def weights(self, tokens, generator):
        return top_share(tokens.entropy, tokens.in_loss, 0.2).to(tokens.logp.dtype)
