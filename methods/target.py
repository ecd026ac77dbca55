"""Entropy on a curve: the curve, and what all methods share that hold entropy on one."""

import math

from methods.base import Method

TARGETS = {  # multiples of the first step's entropy
    "level": "0:1,1:1",
    "up-down": "0:1,0.5:1.3,1:0.2",
    "down-up-down": "0:1,0.25:0.6,0.5:1.1,1:0.2",
    "waves": "0:1,0.2:0.4,0.35:0.72,0.5:0.3,0.65:0.48,0.8:0.2,0.9:0.28,1:0.2",
}


class Target:
    """The entropy wanted at step k of T: straight lines between knots, level before the first and after the last one.

    `text` is a name in TARGETS, or knots "fraction of T:multiple of the first step's entropy" such as
    "0:1,0.25:0.6,1:0.2". Raises ValueError for a text that is neither, which says what part of it is wrong.
    """

    def __init__(self, text: str, total_steps: int):
        self.total_steps, self.knots = total_steps, []
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
        return y0 * h_init


class TargetMethod(Method):
    """A method whose controller compares the measured entropy with a target once per step, and sets `output`, a number.

    A subclass implements `steer(entropy, aim)`, which returns the output. `memory` is the one number that it may
    carry from step to step; `start` is its first value. The state has to be restored on resume.
    """

    start = 0.0

    def __init__(self, target: Target):
        self.target, self.h_init, self.memory, self.output = target, None, self.start, None

    def observe(self, step: int, entropy: float) -> None:
        """Aims at the next step's target, which this step's update leads to. Raises ValueError unless H > 0."""
        if not 0 < entropy < math.inf:
            raise ValueError(f"a target needs the measured entropy at step {step}, a positive number, got {entropy}")
        if self.h_init is None:
            self.h_init = entropy
        self.output = self.steer(entropy, self.target(step + 1, self.h_init))

    def steer(self, entropy: float, aim: float) -> float:
        raise NotImplementedError

    def report(self, step: int) -> dict:
        return {"target": self.target(step, self.h_init), "controller": self.output}

    def state_dict(self) -> dict:
        return {"h_init": self.h_init, "memory": self.memory}

    def load_state_dict(self, state: dict) -> None:
        self.h_init, self.memory = state["h_init"], state["memory"]
