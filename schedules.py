"""Schedules of the clip thresholds over training (arXiv 2602.09782: its strategies ID, DID and OD, and others).

A schedule answers one question at each step k = 0 … T−1: which two lines ε(p) = αp + β clip the ratio?

    schedule = make_schedule("id", total_steps=400)
    upper, lower = schedule(step, entropy)     # `entropy`: this step's mean, in nats; only od looks at it
    state = schedule.state_dict()              # small and JSON-able; od has to be restored with it on resume

ε, U and M are the lines of clipping.py. upper-const, lower-const and id-up are controls and not the paper's: U's and
M's widths without their dependence on p, and ID without its second phase.
"""

import math
from typing import NamedTuple

from clipping import CLIP_HIGHER, EPS, Line, M, U


def mix(weight: float, a: Line, b: Line) -> Line:
    """weight · a + (1 − weight) · b, which is a line again, and exactly a where both are a."""
    return a if a == b else (weight * a[0] + (1 - weight) * b[0], weight * a[1] + (1 - weight) * b[1])


Lines = tuple[Line, Line]  # above, below


class Phase(NamedTuple):
    """The lines at its first step and at its last one. Between them they move on a straight line."""

    start: Lines
    end: Lines


class Schedule:
    """Two phases. The lines, above ; below, at step k of T, with λ = 1 − 2k/T, are

              first half, λ from 1 to 0      second half, λ from 0 to −1
        id    λU + (1−λ)ε ; ε                ε ; (1+λ)M − λε
        did   λε + (1−λ)U ; ε                U ; (1+λ)M − λε

    The start of a phase has the weight λ, or in the second phase 1 + λ. If the first phase is another share φ of the
    run than the paper's half, λ falls to 0 at k = φT on one straight line, and then to −1 on another. A schedule in
    FIXED has the same lines all the time. There is no state."""

    def __init__(self, phases: tuple[Phase, Phase], total_steps: int, phase_share: float):
        self.phases, self.first = phases, phase_share * total_steps
        self.second = total_steps - self.first

    def __call__(self, step: int, entropy: float) -> tuple[Line, Line]:
        if step <= self.first:
            weight, (start, end) = 1 - step / self.first, self.phases[0]
        else:
            weight, (start, end) = 1 - (step - self.first) / self.second, self.phases[1]
        return mix(weight, start[0], end[0]), mix(weight, start[1], end[1])

    def state_dict(self) -> dict:
        return {}

    def load_state_dict(self, state: dict) -> None:
        if state:
            raise ValueError(f"a schedule without state was given {state}: it was saved by another schedule")


class OD(Schedule):
    """Oscillatory decay: raise entropy once it is down at τ_low, and lower it once it is above τ_high.

        τ_low = ratio · H_init        τ_high(k) = τ_low + (H_init − τ_low)(1 − k/T)
        H_k ≤ τ_low: raise        H_k > τ_high(k): lower        otherwise: what step k − 1 did, or at k = 0 lower
        raise: U above, ε below        lower: ε above, M below

    At k = T the two levels meet. H_init is the first step's entropy. The paper states the ratio 0.2, but its plot turns
    up earlier. So the ratio is an option.
    """

    def __init__(self, total_steps: int, ratio: float):
        self.total_steps, self.ratio = total_steps, ratio
        self.h_init, self.raising = None, False

    def __call__(self, step: int, entropy: float) -> tuple[Line, Line]:
        if not math.isfinite(entropy):
            raise ValueError(f"schedule od needs the measured entropy at step {step}, got {entropy}")
        if self.h_init is None:
            self.h_init = entropy
        low = self.ratio * self.h_init
        high = low + (self.h_init - low) * (1 - step / self.total_steps)
        if entropy <= low:
            self.raising = True
        elif entropy > high:
            self.raising = False
        return (U, EPS) if self.raising else (EPS, M)

    def state_dict(self) -> dict:
        return {"raising": self.raising, "h_init": self.h_init}

    def load_state_dict(self, state: dict) -> None:
        self.raising, self.h_init = state["raising"], state["h_init"]


FIXED: dict[str, Lines] = {
    "static": (EPS, EPS),
    "clip-higher": (CLIP_HIGHER, EPS),
    "upper": (U, EPS),
    "lower": (EPS, M),
    "upper-const": ((0.0, U[1]), EPS),
    "lower-const": (EPS, (0.0, M[1])),
}
TWO_PHASE = {
    "id": (Phase((U, EPS), (EPS, EPS)), Phase((EPS, M), (EPS, EPS))),
    "id-up": (Phase((U, EPS), (EPS, EPS)), Phase((EPS, EPS), (EPS, EPS))),  # id's control, without its second phase
    "did": (Phase((EPS, EPS), (U, EPS)), Phase((U, M), (U, EPS))),
}
SCHEDULES = (*FIXED, *TWO_PHASE, "od")


def make_schedule(name: str, total_steps: int, phase_share: float = 0.5, od_ratio: float = 0.2) -> Schedule:
    """The schedule called `name`, for a run of `total_steps` (the paper's T) rollout batches.

    `phase_share` is φ, the first phase's share of T in id, id-up and did. `od_ratio` is od's τ_low / H_init. Raises
    ValueError, which names what is out of range.
    """
    if name not in SCHEDULES:
        raise ValueError(f"unknown schedule {name!r}: choose one of {', '.join(SCHEDULES)}")
    if total_steps < 1:
        raise ValueError(f"total_steps must be at least 1, got {total_steps}")
    for option, share in (("phase_share", phase_share), ("od_ratio", od_ratio)):
        if not 0 < share < 1:
            raise ValueError(f"{option} must lie strictly between 0 and 1, got {share}")
    if name == "od":
        return OD(total_steps, od_ratio)
    phases = TWO_PHASE[name] if name in TWO_PHASE else (Phase(FIXED[name], FIXED[name]),) * 2
    return Schedule(phases, total_steps, phase_share)
