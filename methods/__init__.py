"""Every published way to steer entropy that `--objective` knows: one method, one file.

A file holds the method's formula, source, constants and departures, and its controller if it has one. It imports torch,
clipping.py and what this folder shares: base.py (GRPO itself) and target.py (entropy on a curve). To use one in another
trainer, copy it with these three files.
"""

from methods.adaptive_bonus import AdaptiveBonus
from methods.base import Method, Tokens
from methods.ce_gppo import CEGPPO
from methods.clip_cov import ClipCov
from methods.dcpo import DCPO
from methods.dppo import DPPOTV
from methods.entrocraft import Entrocraft
from methods.entropic import EntroPIC
from methods.entropy_bonus import EntropyBonus
from methods.kl_cov import KLCov
from methods.nsr import NSR, WReinforce
from methods.stare import Stare
from methods.target import TARGETS, Target, TargetMethod
from methods.top_entropy import TopEntropy
from methods.track import Track

__all__ = ["METHODS", "ON_TARGET", "TARGETS", "Method", "Target", "TargetMethod", "Tokens", "make_method"]

METHODS: dict[str, type[Method]] = {
    "grpo": Method,
    # entropy on a curve
    "track": Track,
    "adaptive-bonus": AdaptiveBonus,
    "entropic": EntroPIC,
    "entrocraft": Entrocraft,
    "stare": Stare,
    # other losses and weights
    "clip-cov": ClipCov,
    "top-entropy": TopEntropy,
    "nsr": NSR,
    "w-reinforce": WReinforce,
    "entropy-bonus": EntropyBonus,
    "kl-cov": KLCov,
    "ce-gppo": CEGPPO,
    "dppo-tv": DPPOTV,
    "dcpo": DCPO,
}
ON_TARGET = tuple(name for name, method in METHODS.items() if issubclass(method, TargetMethod))


def make_method(name: str, target: str = "level", total_steps: int = 1, entropy_bonus: float = 0.001) -> Method:
    """The method called `name`, for a run of `total_steps` rollout batches. `target`: see `target.Target`, for those in
    ON_TARGET; `entropy_bonus`: the c of entropy-bonus. Raises ValueError for a target that can't be read."""
    method = METHODS[name]
    if name in ON_TARGET:
        return method(Target(target, total_steps))
    return method(entropy_bonus) if method is EntropyBonus else method()
