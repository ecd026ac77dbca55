"""GRPO, in the parts that other methods replace, and what several of them share.

    method = make_method("track", "up-down", total_steps=400)
    ...                                                           # once per rollout batch of N response tokens:
    method.observe(step, entropy)                                 # the batch's mean entropy, in nats
    weights = method.weights(tokens, generator)                   # [N], each multiplies a token's loss
    marks = method.marks(tokens)                                  # [N], a number per token for the method's own loss
    ...                                                           # once per micro-batch of n of these tokens:
    loss, side = method.loss(old_logp, logp, advantages, mask, upper, lower, marks, entropy)

The notation is that of clipping.py. The originals often look at the current policy and at one micro-batch. Here no
result may depend on how tokens are cut into micro-batches: what depends on other tokens is computed once per rollout
batch, from π_old, by `weights` and `marks`.
"""

import math
from dataclasses import dataclass

import torch

from clipping import Line, clipped_at, clipped_surrogate


@dataclass
class Tokens:
    """The N response tokens of a rollout batch under π_old, before the first update. All are [N] but `regions`."""

    logp: torch.Tensor  # ln π_old(a|s)
    entropy: torch.Tensor  # H, nats
    advantages: torch.Tensor  # Â
    in_loss: torch.Tensor  # bool, the tokens that the loss is averaged over
    response: torch.Tensor  # int64, which response of the batch a token belongs to
    regions: torch.Tensor  # bool [4, N], E1 to E4 by the paper's rule, see `clipping.region_masks`


class Method:
    """GRPO with the schedule's thresholds: every weight is 1, and the loss is `clipping.clipped_surrogate`."""

    uses_thresholds = True  # False: the method clips in another way, so no schedule but static goes with it
    needs_entropy = False  # True: `loss` gets the *current* policy's entropy [n] with gradient, in nats

    def observe(self, step: int, entropy: float) -> None:
        """Looks at the mean entropy of rollout batch `step`, in nats; methods/target.py does."""

    def weights(self, tokens: Tokens, generator: torch.Generator | None) -> torch.Tensor:
        """[N], what each token's loss is multiplied by. A token of weight 0 is not trained. `generator`: for methods
        that choose tokens at random."""
        return torch.ones_like(tokens.logp)

    def marks(self, tokens: Tokens) -> torch.Tensor:
        """[N], one number per token for the method's own `loss`, which gets those of its tokens."""
        return torch.zeros_like(tokens.logp)

    def loss(self, old_logp, logp, advantages, mask, upper: Line, lower: Line, marks=None, entropy=None):
        """(loss, side) as `clipping.clipped_surrogate` returns them."""
        return clipped_surrogate(old_logp, logp, advantages, mask, upper, lower)

    def report(self, step: int) -> dict:
        """The target at this step (nats) and the controller's output, for the log; None where there is none."""
        return {"target": None, "controller": None}

    def state_dict(self) -> dict:
        return {}

    def load_state_dict(self, state: dict) -> None:
        pass


class BoundedInPOld(Method):
    """PPO's clip at bounds of the ratio that depend on p_old = π_old(a|s). The thresholds are not used."""

    uses_thresholds = False

    def bounds(self, p_old: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(low, high) of the ratio."""
        raise NotImplementedError

    def loss(self, old_logp, logp, advantages, mask, upper: Line, lower: Line, marks=None, entropy=None):
        p_old = torch.where(mask, old_logp, 0.0).exp()
        return clipped_at(old_logp, logp, advantages, mask, *self.bounds(p_old))


def top_share(values: torch.Tensor, in_loss: torch.Tensor, share: float) -> torch.Tensor:
    """bool [N]: the `share` of the loss's tokens with the highest values, at least one of them."""
    n, chosen = int(in_loss.sum()), torch.zeros_like(in_loss)
    highest = torch.where(in_loss, values, -math.inf).topk(min(n, max(1, int(share * n)))).indices
    return chosen.index_fill(0, highest, True)


def mean_over_responses(tokens: Tokens) -> torch.Tensor:
    """[N] mean length / own length of a token's response, counted in tokens of the loss: weights that turn the loss's
    mean over tokens into a mean over responses of the mean over their tokens. Departure of those who use it: it is that
    mean over the rollout batch as a whole, and over a mini-batch only nearly, as its mean length differs a little."""
    lengths = tokens.response[tokens.in_loss].bincount(minlength=int(tokens.response.max()) + 1)  # [R]
    mean = tokens.in_loss.sum().to(tokens.logp.dtype) / (lengths > 0).sum().clamp(min=1)
    return (mean / lengths.clamp(min=1))[tokens.response]


def covariance(tokens: Tokens) -> torch.Tensor:
    """[N] cov_t = (Â_t − mean Â)(ln p_t − mean ln p), the token's share of the covariance of ln π and Â that makes
    entropy fall, to first order (arXiv 2505.22617); −inf for tokens outside the loss, which have no part in the means.
    Clip-Cov and KL-Cov choose tokens by it. Departure: they are chosen once per rollout batch, by π_old."""
    n = tokens.in_loss.sum().clamp(min=1)
    a, b = (x - torch.where(tokens.in_loss, x, 0.0).sum() / n for x in (tokens.advantages, tokens.logp))
    return torch.where(tokens.in_loss, a * b, -math.inf)
