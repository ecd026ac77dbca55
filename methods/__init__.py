"""Every published way to steer entropy, or to clip, that `--objective` knows: one method, one file.

    name           arXiv       what it does, beside GRPO                                               file
    grpo           2402.03300  PPO's clip with the schedule's thresholds, and Â from a group's rewards base.py
    track          ours        weighs the four regions, to hold entropy on a target                    track.py
    adaptive-bonus 2505.22312  entropy bonus with a coefficient that follows a target                  adaptive_bonus.py
    entropic       2511.15248  pushes confident tokens up or down, to hold a target                    entropic.py
    entrocraft     2604.26326  trains correct or wrong responses only, outside a band around a target  entrocraft.py
    stare          2606.19236  weighs surprising tokens of correct responses, by a target              stare.py
    repo-r         2603.11682  scales Â by ln p, with a coefficient that follows a target              repo_r.py
    clip-cov       2505.22617  drops a few of the tokens that make entropy fall most                   clip_cov.py
    kl-cov         2505.22617  no clip; a penalty holds those tokens back                              kl_cov.py
    top-entropy    2506.01939  trains the fifth of the tokens with the highest entropy                 top_entropy.py
    nsr            2506.01347  trains wrong responses only                                             nsr.py
    w-reinforce    2506.01347  correct responses weigh a tenth                                         nsr.py
    entropy-bonus              adds c · H to the objective                                             entropy_bonus.py
    ce-gppo        2509.20712  clipped tokens keep a scaled gradient                                   ce_gppo.py
    cispo          2506.13585  caps r as a weight of ln π: no token loses its gradient                 cispo.py
    dppo-tv        2602.04879  clips where |p − p_old| is too large                                    dppo.py
    dppo-kl        2602.04879  clips where a divergence of p from p_old is too large                   dppo.py
    dcpo           2509.02333  bounds of r that are wide for rare tokens                               dcpo.py
    bandpo         2603.04918  bounds of r by χ² between π and π_old                                   bandpo.py
    gspo           2507.18071  clips the ratio of a whole response                                     gspo.py
    sapo           2511.20347  fades the gradient out instead of clipping it                           sapo.py

A file holds the method's formula, source, constants and departures, and its controller if it has one. It imports torch,
clipping.py and what this folder shares: base.py (GRPO itself) and target.py (entropy on a curve). To use one in another
trainer, copy it into a folder methods/ whose __init__.py is empty, together with clipping.py beside that folder, and in
it base.py and, for a method on a target, target.py too.
"""

from methods.adaptive_bonus import AdaptiveBonus
from methods.bandpo import BandPO
from methods.base import Method, Tokens
from methods.ce_gppo import CEGPPO
from methods.cispo import CISPO
from methods.clip_cov import ClipCov
from methods.dcpo import DCPO
from methods.dppo import DPPOKL, DPPOTV
from methods.entrocraft import Entrocraft
from methods.entropic import EntroPIC
from methods.entropy_bonus import EntropyBonus
from methods.gspo import GSPO
from methods.kl_cov import KLCov
from methods.nsr import NSR, WReinforce
from methods.repo_r import REPOR
from methods.sapo import SAPO
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
    "repo-r": REPOR,
    # other losses and weights
    "clip-cov": ClipCov,
    "top-entropy": TopEntropy,
    "nsr": NSR,
    "w-reinforce": WReinforce,
    "entropy-bonus": EntropyBonus,
    "kl-cov": KLCov,
    "ce-gppo": CEGPPO,
    "dppo-tv": DPPOTV,
    "dppo-kl": DPPOKL,
    "dcpo": DCPO,
    "bandpo": BandPO,
    "cispo": CISPO,
    "gspo": GSPO,
    "sapo": SAPO,
}
ON_TARGET = tuple(name for name, method in METHODS.items() if issubclass(method, TargetMethod))


def make_method(name: str, target: str = "level", total_steps: int = 1, entropy_bonus: float = 0.001) -> Method:
    """The method called `name`, for a run of `total_steps` rollout batches. `target`: see `target.Target`, for those in
    ON_TARGET; `entropy_bonus`: the c of entropy-bonus. Raises ValueError for a target that can't be read."""
    method = METHODS[name]
    if name in ON_TARGET:
        return method(Target(target, total_steps))
    return method(entropy_bonus) if method is EntropyBonus else method()
