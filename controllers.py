"""Controllers: each looks at the measured entropy once per step and returns one number that holds entropy on a target.

    target = Target("0:1,0.5:1.3,1:0.2", total_steps=400)
    controller = Track(target)
    gain = controller(step, entropy)          # `entropy`: this step's mean policy entropy in nats
    state = controller.state_dict()           # small and JSON-able; it has to be restored on resume

`CONTROLLERS` says which `--objective` uses which controller.
"""

import math

TARGETS = {  # multiples of the first step's entropy: the shapes that the paper's schedules are named after
    "id": "0:1,0.5:1.3,1:0.2",
    "did": "0:1,0.25:0.6,0.5:1.1,1:0.2",
    "od": "0:1,0.2:0.4,0.35:0.72,0.5:0.3,0.65:0.48,0.8:0.2,0.9:0.28,1:0.2",
    "flat": "0:1,1:1",
}


class Target:
    """The entropy wanted at step k: straight lines between knots, level before the first and after the last one.

    `text` is a name in TARGETS, or knots "fraction of T:entropy" such as "0:1,0.25:0.6,1:0.2". The entropies are
    multiples of H_init, the first step's entropy, or with `in_nats` absolute. Raises ValueError for a text that is
    neither, which says what part of it is wrong.
    """

    def __init__(self, text: str, total_steps: int, in_nats: bool = False):
        if in_nats and text in TARGETS:
            raise ValueError(f"target {text!r} is a shape in multiples of the first entropy: in nats, give knots")
        self.total_steps, self.in_nats, self.knots = total_steps, in_nats, []
        for knot in TARGETS.get(text, text).split(","):
            fraction, _, value = knot.partition(":")
            try:
                fraction, value = float(fraction), float(value)
            except ValueError:
                names = ", ".join(TARGETS)
                raise ValueError(f"target: {knot!r} is neither one of {names} nor a knot such as 0.5:1.1") from None
            if not 0 <= fraction <= 1:
                raise ValueError(f"target: the fraction of the run in {knot!r} must lie between 0 and 1")
            if not 0 < value < math.inf:
                raise ValueError(f"target: the entropy in {knot!r} must be a positive number")
            if self.knots and fraction <= self.knots[-1][0]:
                raise ValueError(f"target: the fractions must increase, but {knot!r} follows {self.knots[-1][0]:g}")
            self.knots.append((fraction, value))

    def __call__(self, step: int, h_init: float) -> float:
        """The wanted entropy in nats. After the last knot, past the end of the run too, it stays level."""
        now = step / self.total_steps
        (x0, y0), *rest = self.knots
        for x1, y1 in rest:
            if now < x1:
                y0 += (y1 - y0) * max(0.0, now - x0) / (x1 - x0)
                break
            x0, y0 = x1, y1
        return y0 if self.in_nats else y0 * h_init


class Controller:
    """What all controllers share: the target, H_init, and `memory`, the number that is carried from step to step."""

    start = 0.0  # of the memory

    def __init__(self, target: Target):
        self.target, self.h_init, self.memory = target, None, self.start

    def aim(self, step: int, entropy: float) -> float:
        """The entropy wanted at the next step, which this step's update leads to. Raises ValueError unless H > 0."""
        if not 0 < entropy < math.inf:
            raise ValueError(f"a target needs the measured entropy at step {step}, a positive number, got {entropy}")
        if self.h_init is None:
            self.h_init = entropy
        return self.target(step + 1, self.h_init)

    def state_dict(self) -> dict:
        return {"h_init": self.h_init, "memory": self.memory}

    def load_state_dict(self, state: dict) -> None:
        self.h_init, self.memory = state["h_init"], state["memory"]


class Track(Controller):
    """A PI controller that holds entropy on a target curve by u, the gain of `clipping.region_weights` (ours).

        e_k = ln(target(k + 1) / H_k)        u_k = clip(kp e_k + ki Σ e, −1, 1)        u > 0 asks for more entropy

    The target is that of the next step, which feeds its slope forward. The error is a ratio because u's effect on H is
    about proportional to H: ln H moves by b u in a step. b depends on the task and the learning rate.

    The defaults are kp = 4 and ki = 0.2. The loop is stable for (kp + ki / 2) b < 2, that is for b < 0.49. Its time
    constant is 1 / (kp b) steps. Its damping (kp / 2) sqrt(b / ki) is above 0.6 from b = 0.02 on. A large model at a
    small learning rate, say b = 0.02, lags by about a dozen steps. If H swings, lower kp; if it trails, raise kp.
    """

    def __init__(self, target: Target, kp: float = 4.0, ki: float = 0.2):
        for name, value in (("track_kp", kp), ("track_ki", ki)):
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} must be a finite number that is not negative, got {value}")
        super().__init__(target)
        self.kp, self.ki = kp, ki

    def __call__(self, step: int, entropy: float) -> float:
        error = math.log(self.aim(step, entropy) / entropy)
        wanted = self.kp * error + self.ki * (self.memory + error)
        gain = max(-1.0, min(1.0, wanted))
        if gain == wanted:  # anti-windup: while u is at its limit the sum stands still, so |ki Σ e| ≤ 1
            self.memory += error
        return gain


class AdaptiveBonus(Controller):
    """The coefficient c of J + c · mean H (Skywork-OR1, arXiv 2505.22312). After each step c ← max(0, c ± Δ), up where
    H is below the target. The bonus is applied only while H is at or below the target."""

    step_size = 0.005

    def __call__(self, step: int, entropy: float) -> float:
        error = entropy - self.aim(step, entropy)
        applied = self.memory if error <= 0 else 0.0
        self.memory = max(0.0, self.memory - math.copysign(self.step_size, error))
        return applied


class EntroPIC(Controller):
    """α = clip(K_p e + K_i Σ e, −1, 1) with e = H − target (arXiv 2511.15248), for `objectives.entropic`. The paper has
    one e per micro-batch, this has one per rollout step."""

    kp, ki = 1.0, 0.01

    def __call__(self, step: int, entropy: float) -> float:
        error = entropy - self.aim(step, entropy)
        self.memory += error
        return max(-1.0, min(1.0, self.kp * error + self.ki * self.memory))


class Entrocraft(Controller):
    """Which responses are trained: −1 if H is above the band around the target, 1 if it is below, 0 inside (arXiv
    2604.26326). The band is ± 1/13 of the target, as in the paper's example of 0.6 to 0.7."""

    def __call__(self, step: int, entropy: float) -> float:
        target = self.aim(step, entropy)
        return float(entropy < target * 12 / 13) - float(entropy > target * 14 / 13)


class Stare(Controller):
    """W, the weight of the least likely tokens with Â > 0, moves by α = 0.01 within [1, 1.5], up while H is below the
    target and down otherwise. It starts at the paper's fixed weight 1.1. Above the target W = 1 (arXiv 2606.19236)."""

    start = 1.1

    def __call__(self, step: int, entropy: float) -> float:
        below = entropy < self.aim(step, entropy)
        weight = self.memory
        self.memory = max(1.0, min(1.5, weight + (0.01 if below else -0.01)))
        return weight if below else 1.0


CONTROLLERS = {  # by the objective that uses them
    "track": Track,
    "adaptive-bonus": AdaptiveBonus,
    "entropic": EntroPIC,
    "entrocraft": Entrocraft,
    "stare": Stare,
}
