"""Schedules of the clip thresholds over training: GRPO, clip-higher, ID, DID and OD (arXiv 2602.09782, section 4); and entropy on
a setpoint, `track`, which is this repository's own.

A schedule answers one question, once per step k = 0 … T−1: which two lines ε(p) = αp + β clip the ratio, above and below? Its
output is `(upper, lower)`, each a (slope α, intercept β). It needs the standard library only: to use it elsewhere, copy this file.

    schedule = make_schedule("id", total_steps=400)
    upper, lower = schedule(step, entropy)          # entropy: this step's mean policy entropy in nats (od and track look at it)
    gain = schedule.gain                            # u for `clipping.region_gains`, set by the call; 0 in every schedule but track
    state = schedule.state_dict()                   # small and JSON-able; od and track must be restored with it on resume

| schedule    | first phase, k ≤ φT: above ; below | second phase, k > φT: above ; below |
|-------------|------------------------------------|-------------------------------------|
| static      | ε ; ε                              | ε ; ε                               |
| clip-higher | 0.28 ; ε                           | 0.28 ; ε                            |
| upper       | U ; ε                              | U ; ε                               |
| lower       | ε ; M                              | ε ; M                               |
| id          | λU + (1−λ)ε ; ε                    | ε ; (1+λ)M − λε                     |
| did         | λε + (1−λ)U ; ε                    | U ; (1+λ)M − λε                     |
| od          | U ; ε while raising, ε ; M while lowering: a thermostat on the measured entropy |
| track       | ε ; ε and a gain u on the regions, from a controller that holds the measured entropy on a given curve |

λ = 1 − 2k/T at the paper's φ = 1/2: it falls from 1 to 0 in the first phase and from 0 to −1 in the second.
"""

import math

Line = tuple[float, float]  # (slope α, intercept β) of ε(p) = αp + β

EPS: Line = (0.0, 0.2)  # ε, PPO's constant threshold
HIGHER: Line = (0.0, 0.28)  # DAPO's clip-higher
U: Line = (-0.25, 0.5)  # the dynamic upper threshold, raises entropy
M: Line = (-0.13, 0.3)  # the dynamic lower threshold, lowers entropy


def mix(weight: float, a: Line, b: Line) -> Line:
    """weight·a + (1 − weight)·b, a line again."""
    return (weight * a[0] + (1 - weight) * b[0], weight * a[1] + (1 - weight) * b[1])


class Fixed:
    """The same two lines at every step: `static`, `clip-higher`, `upper`, `lower`."""

    gain = 0.0

    def __init__(self, upper: Line, lower: Line):
        self.lines = (upper, lower)

    def __call__(self, step: int, entropy: float) -> tuple[Line, Line]:
        return self.lines

    def state_dict(self) -> dict:
        return {}

    def load_state_dict(self, state: dict) -> None:
        if state:
            raise ValueError(f"a schedule without state was given {state}: it was saved by another schedule")


class TwoPhase(Fixed):
    """What ID and DID share: λ falls from 1 to 0 over the first `phase_share` of T steps, then from 0 to −1."""

    def __init__(self, total_steps: int, phase_share: float):
        self.first = phase_share * total_steps
        self.second = total_steps - self.first

    def lam(self, step: int) -> float:
        return 1 - step / self.first if step <= self.first else -(step - self.first) / self.second


class ID(TwoPhase):
    """Increase, then decrease: above from U to ε, then below from M to ε."""

    def __call__(self, step: int, entropy: float) -> tuple[Line, Line]:
        lam = self.lam(step)
        if step <= self.first:
            return mix(lam, U, EPS), EPS
        return EPS, mix(1 + lam, M, EPS)  # (1 + λ)M − λε


class DID(TwoPhase):
    """Decrease, increase, decrease: above from ε to U, then U kept while below goes from M to ε."""

    def __call__(self, step: int, entropy: float) -> tuple[Line, Line]:
        lam = self.lam(step)
        if step <= self.first:
            return mix(lam, EPS, U), EPS
        return U, mix(1 + lam, M, EPS)


class OD:
    """Oscillatory decay: raise entropy once it is down at τ_low, lower it once it is above τ_high, which itself decays to τ_low.

        τ_low = ratio · H_init        τ_high(k) = τ_low + (H_init − τ_low)(1 − k/T)
        s_k = 1 if H_k ≤ τ_low;  0 if H_k > τ_high(k);  else s_{k−1};   s_{−1} = 0

    At k = T the two meet. H_init is the first step's entropy unless given. The paper states ratio 0.2; its plot turns at a higher one.
    """

    gain = 0.0

    def __init__(self, total_steps: int, h_init: float | None = None, ratio: float = 0.2):
        self.total_steps, self.h_init, self.ratio = total_steps, h_init, ratio
        self.raising = False

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


TARGETS = {  # multiples of the first step's entropy: the shapes that the paper's schedules are named after
    "id": "0:1,0.5:1.3,1:0.2",
    "did": "0:1,0.25:0.6,0.5:1.1,1:0.2",
    "od": "0:1,0.2:0.4,0.35:0.72,0.5:0.3,0.65:0.48,0.8:0.2,0.9:0.28,1:0.2",
    "flat": "0:1,1:1",
}


class Target:
    """The entropy wanted at step k: straight lines between knots "fraction of T:entropy", level before the first and after the last.

    text: a name in TARGETS or knots such as "0:1,0.25:0.6,1:0.2". Entropies are multiples of H_init, the first step's entropy, or
    with `in_nats` absolute. Raises ValueError for a text that is neither, saying which part of it.
    """

    def __init__(self, text: str, total_steps: int, in_nats: bool = False):
        if in_nats and text in TARGETS:
            raise ValueError(f"target {text!r} is a shape in multiples of the first entropy: a target in nats needs knots, e.g. 0:0.5,1:0.1")
        self.total_steps, self.in_nats, self.knots = total_steps, in_nats, []
        for knot in TARGETS.get(text, text).split(","):
            fraction, colon, value = knot.partition(":")
            try:
                fraction, value = float(fraction), float(value)
            except ValueError:
                names = ", ".join(TARGETS)
                raise ValueError(f"target: {knot!r} is neither one of {names} nor a knot fraction:entropy such as 0.5:1.1") from None
            if not 0 <= fraction <= 1:
                raise ValueError(f"target: the fraction of the run in {knot!r} must lie between 0 and 1")
            if not 0 < value < math.inf:
                raise ValueError(f"target: the entropy in {knot!r} must be a positive number")
            if self.knots and fraction <= self.knots[-1][0]:
                raise ValueError(f"target: the fractions must increase, but {knot!r} follows {self.knots[-1][0]:g}")
            self.knots.append((fraction, value))

    def __call__(self, step: float, h_init: float) -> float:
        """The wanted entropy in nats. `step` may be a fraction of a step, and past the end."""
        now = step / self.total_steps
        (x0, y0), *rest = self.knots
        for x1, y1 in rest:
            if now < x1:
                y0 += (y1 - y0) * max(0.0, now - x0) / (x1 - x0)
                break
            x0, y0 = x1, y1
        return y0 if self.in_nats else y0 * h_init


class Track:
    """A PI controller that holds the measured entropy on a target curve by weighting the entropy regions (this repository).

        e_k = ln(target(k + 1) / H_k)        u_k = clip(kp e_k + ki Σ e, −gain_max, gain_max)        u > 0 asks for more entropy

    The target is that of the next step, which is what this step's update leads to: feed-forward of the target's slope. The error is
    a ratio because u's effect on H is about proportional to H: measured on the built-in tiny model, u = 1 moves H by 0.12 H_init in
    one step where H = 0.4 H_init, by 0.29 at H_init and 0.41 at 1.2 H_init. So ln H moves by b u in a step, with one b ≈ 0.3 all along.

    The defaults kp = 4, ki = 0.2 by b: stable for kp b < 2, that is b < 0.5; time constant 1 / (kp b) steps; damping
    (kp / 2) sqrt(b / ki) > 0.6 from b = 0.02 on. A large model at a small learning rate, say b = 0.02, trails by a dozen of its
    hundreds of steps. Where H swings about the target, lower kp; where it trails too far behind, raise it.

    actuator "gains": u is `gain`, for `clipping.region_gains`, and both thresholds are ε. "bounds": the paper's thresholds in closed
    loop: u > 0 blends ε → U above, u < 0 blends ε → M below, by |u| / gain_max. "both": both.
    """

    def __init__(self, target: Target, kp: float, ki: float, gain_max: float, actuator: str):
        self.target, self.kp, self.ki, self.gain_max, self.actuator = target, kp, ki, gain_max, actuator
        self.h_init, self.integral, self.gain = None, 0.0, 0.0

    def __call__(self, step: int, entropy: float) -> tuple[Line, Line]:
        if not 0 < entropy < math.inf:
            raise ValueError(f"schedule track needs the measured entropy at step {step}, a positive number, got {entropy}")
        if self.h_init is None:
            self.h_init = entropy
        error = math.log(self.target(step + 1, self.h_init) / entropy)
        wanted = self.kp * error + self.ki * (self.integral + error)
        u = max(-self.gain_max, min(self.gain_max, wanted))
        if u == wanted:  # anti-windup: no summing up at the limit, so |ki Σ e| never exceeds gain_max, and alone cannot hold u there
            self.integral += error
        self.gain = u if self.actuator != "bounds" else 0.0
        share = u / self.gain_max if self.actuator != "gains" else 0.0
        return mix(max(0.0, share), U, EPS), mix(max(0.0, -share), M, EPS)

    def state_dict(self) -> dict:
        return {"integral": self.integral, "h_init": self.h_init}

    def load_state_dict(self, state: dict) -> None:
        self.integral, self.h_init = state["integral"], state["h_init"]


SCHEDULES = ("static", "clip-higher", "upper", "lower", "id", "did", "od", "track")
ACTUATORS = ("gains", "bounds", "both")


def make_schedule(
    name: str,
    total_steps: int,
    phase_share: float = 0.5,
    od_h_init: float | None = None,
    od_ratio: float = 0.2,
    target: str = "flat",
    target_nats: bool = False,
    track_kp: float = 4.0,
    track_ki: float = 0.2,
    gain_max: float = 1.0,
    actuator: str = "gains",
):
    """The schedule called `name`, for a run of `total_steps` (the paper's T) rollout batches.

    phase_share: φ, the first phase's share of T in id and did. od_h_init (nats; None: the first step's entropy) and od_ratio
    (τ_low / H_init): od's two unknowns. The rest is track's: `target` and `target_nats` as in Target, the others as in Track.
    Raises ValueError naming what is out of range.
    """
    if name not in SCHEDULES:
        raise ValueError(f"unknown schedule {name!r}: choose one of {', '.join(SCHEDULES)}")
    if total_steps < 1:
        raise ValueError(f"total_steps must be at least 1, got {total_steps}")
    if not 0 < phase_share < 1:
        raise ValueError(f"phase_share must lie strictly between 0 and 1, got {phase_share}")
    if not 0 < od_ratio < 1:
        raise ValueError(f"od_ratio must lie strictly between 0 and 1, got {od_ratio}")
    if od_h_init is not None and not od_h_init > 0:
        raise ValueError(f"od_h_init must be a positive entropy in nats, got {od_h_init}")
    if not 0 < gain_max <= 1:
        raise ValueError(f"gain_max must be above 0 and at most 1, or a region's weight would turn negative; got {gain_max}")
    for constant, value in (("track_kp", track_kp), ("track_ki", track_ki)):
        if not 0 <= value < math.inf:
            raise ValueError(f"{constant} must be a finite number that is not negative, got {value}")
    if actuator not in ACTUATORS:
        raise ValueError(f"unknown actuator {actuator!r}: choose one of {', '.join(ACTUATORS)}")
    if name == "id":
        return ID(total_steps, phase_share)
    if name == "did":
        return DID(total_steps, phase_share)
    if name == "od":
        return OD(total_steps, od_h_init, od_ratio)
    if name == "track":
        return Track(Target(target, total_steps, target_nats), track_kp, track_ki, gain_max, actuator)
    return Fixed(*{"static": (EPS, EPS), "clip-higher": (HIGHER, EPS), "upper": (U, EPS), "lower": (EPS, M)}[name])
