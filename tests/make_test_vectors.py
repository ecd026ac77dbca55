"""Makes docs/test_vectors.json, numbers to check a port against: ./torchrun.sh python tests/make_test_vectors.py

Every number is computed here in float64 from the formula written out, with nothing of this repository and no torch.
tests/test_vectors.py holds clipping.py, schedules.py and methods/ against the file.
"""

import json
import math
from pathlib import Path

FILE = Path(__file__).parent.parent / "docs" / "test_vectors.json"

EPS, CLIP_HIGHER, U, M = (0.0, 0.2), (0.0, 0.28), (-0.25, 0.5), (-0.13, 0.3)
PAIRS = {"static": (EPS, EPS), "clip-higher": (CLIP_HIGHER, EPS), "U above, M below": (U, M)}
GAINS = (-1.0, -0.3, 0.0, 0.5, 1.0)
BONUS = 0.001

POLICIES = {  # π_old(·|s) of five states
    "half": [0.5, 0.25, 0.125, 0.125],
    "tail": [0.6, 0.2, 0.1, 0.05, 0.03, 0.019, 0.001],
    "wide": [0.5, 0.2] + [0.01] * 30,
    "sure": [0.999999, 1e-6],
    "near": [0.999, 0.001 - 1e-12, 1e-12],
}
ADVANTAGES = [1.5, -0.5, 0.0, -1.2, 0.8]  # of each response
TOKENS = [  # (what is special, state, a, ratio r or None where masked, response)
    ("within all bounds", "half", 0, 1.1, 0),
    ("rare, above all bounds", "tail", 6, 3.0, 0),
    ("above ε, below U", "half", 2, 1.3, 0),
    ("shrunk with Â > 0: not clipped", "half", 1, 0.5, 0),
    ("below all bounds", "half", 3, 0.5, 1),
    ("below ε, above M", "tail", 3, 0.75, 1),
    ("likely: below M, above ε", "near", 0, 0.801, 1),
    ("grown with Â < 0: not clipped", "half", 1, 1.8, 1),
    ("Â = 0", "half", 0, 1.0, 2),
    ("Â = 0, far above", "tail", 1, 2.0, 2),
    ("masked, NaN", None, None, None, 2),
    ("E3 by the rule, but f(a) < B", "wide", 1, 0.95, 3),
    ("E4", "wide", 5, 0.9, 3),
    ("ln r > 20 with Â < 0: held at e^20", "near", 2, 0.9e12, 3),
    ("p_old near 1, Â < 0", "sure", 0, 0.9, 3),
    ("masked, NaN", None, None, None, 3),
    ("ln r > 20 with Â > 0", "near", 2, 0.9e12, 4),
    ("ln r < -20 with Â > 0: held at e^-20", "sure", 0, 1e-12, 4),
    ("p_old near 1, Â > 0", "sure", 0, 1.0000005, 4),
    ("E1 by the rule, but f(a) < B", "wide", 1, 1.05, 4),
    ("above DCPO's cap of 10", "tail", 6, 11.0, 4),
]

TOTAL = 10  # T of the schedules and of the controller
ENTROPY = [1.0, 0.9, 0.15, 0.5, 0.95, 0.7, 0.4, 0.19, 0.35, 0.5]  # measured at each step; od turns three times


def token_inputs(name, state, a, r, response) -> dict:
    """What a trainer knows of a token. null stands for NaN. `entropy_now` is H of the current policy, any number."""
    inputs = {"name": name, "response": response, "advantage": ADVANTAGES[response], "mask": r is not None}
    if r is None:
        return inputs | dict.fromkeys(("old_logp", "logp", "entropy", "mean_f", "entropy_now"))
    pi = POLICIES[state]
    entropy = -sum(p * math.log(p) for p in pi)
    return inputs | {
        "state": state,
        "action": a,
        "old_logp": math.log(pi[a]),
        "logp": math.log(r * pi[a]),
        "entropy": entropy,
        "mean_f": sum(p * p * (math.log(p) + entropy) for p in pi),
        "entropy_now": 0.9 * entropy,
    }


def surrogate(r, low, high, advantage, moves: bool) -> dict:
    """−min(r Â, clip(r, low, high) Â), its clip side, and its derivative in ln π, which is 0 where ln r is held."""
    side = 1 if advantage > 0 and r > high else -1 if advantage < 0 and r < low else 0
    return {
        "loss": 0.0 - min(r * advantage, max(low, min(high, r)) * advantage),
        "clip_side": side,
        "gradient": 0.0 - r * advantage if side == 0 and moves else 0.0,
    }


NOTHING = {"loss": 0.0, "clip_side": 0, "gradient": 0.0}


def token_results(t: dict) -> dict:
    """What follows from one token alone. A masked token has no loss, no clip side and no region."""
    if not t["mask"]:
        return {
            "surrogate": dict.fromkeys(PAIRS, NOTHING),
            "methods": dict.fromkeys(("ce-gppo", "dcpo", "dppo-tv", "entropy-bonus"), NOTHING),
        }
    advantage, log_ratio = t["advantage"], t["logp"] - t["old_logp"]
    p, p_old, r = math.exp(t["logp"]), math.exp(t["old_logp"]), math.exp(max(-20.0, min(20.0, log_ratio)))
    moves, margin, f = abs(log_ratio) <= 20, t["old_logp"] + t["entropy"], p_old * (t["old_logp"] + t["entropy"])

    def region(expected: bool):
        if advantage == 0:
            return None
        return ("E1" if expected else "E2") if advantage > 0 else ("E3" if expected else "E4")

    rule, direction = region(margin > 0), {"E1": -1, "E2": 1, "E3": 1, "E4": -1, None: 0}
    bounds = {pair: (1 - low[0] * p - low[1], 1 + high[0] * p + high[1]) for pair, (high, low) in PAIRS.items()}
    static = surrogate(r, *bounds["static"], advantage, moves)
    kept = {1: bounds["static"][1], -1: 0.75 * bounds["static"][0], 0: r}[static["clip_side"]]
    cap_low = 0.5 + 0.5 * math.sqrt(max(0.0, 1 - 4 * 0.16 / p_old))
    cap_high = min(10.0, 0.5 + 0.5 * math.sqrt(1 + 4 * 0.2 / p_old))
    return {
        "p": p,
        "p_old": p_old,
        "ratio": r,
        "U(p)": U[0] * p + U[1],
        "M(p)": M[0] * p + M[1],
        "bounds_in_p": {pair: list(pair_bounds) for pair, pair_bounds in bounds.items()},
        "bounds_in_p_old": {  # the same bounds solved for r: r ≤ 1 + ε(r p_old) ⇔ r ≤ (1 + β) / (1 − α p_old)
            pair: [(1 - low[1]) / (1 + low[0] * p_old), (1 + high[1]) / (1 - high[0] * p_old)]
            for pair, (high, low) in PAIRS.items()
        },
        "surrogate": {pair: surrogate(r, *bounds[pair], advantage, moves) for pair in PAIRS},
        "f": f,
        "entropy_change": -advantage * (f - t["mean_f"]),
        "region": rule,
        "region_exact": region(f > t["mean_f"]),
        "weights": {f"track, u = {u:g}": 1 + u * direction[rule] for u in GAINS}
        | {"nsr": float(advantage <= 0), "w-reinforce": 0.1 if advantage > 0 else 1.0},
        "methods": {  # with static's thresholds, where a method uses them
            "ce-gppo": static | {"loss": 0.0 - kept * advantage, "gradient": 0.0 - kept * advantage * moves},
            "dcpo": surrogate(r, cap_low, cap_high, advantage, moves),
            "dppo-tv": surrogate(r, 1 - 0.15 / p_old, 1 + 0.15 / p_old, advantage, moves),
            "entropy-bonus": static | {"loss": static["loss"] - BONUS * t["entropy_now"]},
        },
    }


def add_batch_results(tokens: list[dict]) -> None:
    """What depends on the other tokens of the rollout batch: the covariance, and who is among the highest."""
    counted = [t for t in tokens if t["mask"]]
    mean = {key: sum(t[key] for t in counted) / len(counted) for key in ("advantage", "old_logp")}
    for t in counted:
        t["covariance"] = math.prod(t[key] - mean[key] for key in mean)
    by_entropy = sorted(counted, key=lambda t: -t["entropy"])[: int(0.2 * len(counted))]
    (by_covariance,) = sorted(counted, key=lambda t: -t["covariance"])[:1]  # 2e-3 of so few tokens: at least one
    for t in counted:
        t["weights"]["top-entropy"] = float(t in by_entropy)
        log_ratio = t["logp"] - t["old_logp"]
        marked = float(t is by_covariance)
        t["methods"]["kl-cov"] = {"loss": -t["ratio"] * t["advantage"] + marked * abs(log_ratio), "clip_side": 0}


def schedule_lines() -> dict:
    """The lines (upper, lower) of each schedule at the steps 0 … T−1, each [slope, intercept]."""

    def between(weight, a, b):
        return [weight * a[0] + (1 - weight) * b[0], weight * a[1] + (1 - weight) * b[1]]

    def two_phases(first, second, share=0.5):
        lines, switch = [], share * TOTAL
        for k in range(TOTAL):
            λ = 1 - k / switch if k <= switch else -(k - switch) / (TOTAL - switch)
            lines.append(first(λ) if k <= switch else second(λ))
        return lines

    def oscillating(ratio):
        lines, raising, floor = [], False, ratio * ENTROPY[0]
        for k, entropy in enumerate(ENTROPY):
            ceiling = floor + (ENTROPY[0] - floor) * (1 - k / TOTAL)
            raising = True if entropy <= floor else False if entropy > ceiling else raising
            lines.append((U, EPS) if raising else (EPS, M))
        return lines

    def fixed(upper, lower):
        return [(upper, lower)] * TOTAL

    def shrinking(λ):
        return EPS, between(1 + λ, M, EPS)

    return {
        "static": fixed(EPS, EPS),
        "clip-higher": fixed(CLIP_HIGHER, EPS),
        "upper": fixed(U, EPS),
        "lower": fixed(EPS, M),
        "upper-const": fixed((0.0, 0.5), EPS),
        "lower-const": fixed(EPS, (0.0, 0.3)),
        "id": two_phases(lambda λ: (between(λ, U, EPS), EPS), shrinking),
        "id, phase_share 0.3": two_phases(lambda λ: (between(λ, U, EPS), EPS), shrinking, 0.3),
        "id-up": two_phases(lambda λ: (between(λ, U, EPS), EPS), lambda λ: (EPS, EPS)),
        "did": two_phases(lambda λ: (between(λ, EPS, U), EPS), lambda λ: (U, between(1 + λ, M, EPS))),
        "od": oscillating(0.2),
        "od, od_ratio 0.5": oscillating(0.5),
    }


def track_gains() -> list[dict]:
    """Target and gain of track with the target up-down, 0:1,0.5:1.3,1:0.2, and ENTROPY as measured."""

    def aim(k):
        x = k / TOTAL
        return ENTROPY[0] * (1 + 0.6 * x if x < 0.5 else 1.3 - 2.2 * (x - 0.5))

    gains, total = [], 0.0
    for k, entropy in enumerate(ENTROPY):
        error = math.log(aim(k + 1) / entropy)
        wanted = 4 * error + 0.2 * (total + error)
        gain = max(-1.0, min(1.0, wanted))
        if gain == wanted:
            total += error
        gains.append({"target": aim(k), "gain": gain})
    return gains


def vectors() -> dict:
    tokens = [token_inputs(*row) for row in TOKENS]
    for t in tokens:
        t |= token_results(t)
    add_batch_results(tokens)
    counted = sum(t["mask"] for t in tokens)
    return {
        "about": [
            "Numbers to check a port against, in float64. Made by tests/make_test_vectors.py, where each formula is.",
            "Entropies in nats, logarithms natural, null for NaN. A line is [slope, intercept] of a threshold in p.",
            "Bounds are [low, high] of the ratio. `gradient` is the derivative of the token's loss in its ln π.",
            "The ratio is e^(ln r) with ln r held within ±20, where the gradient is 0.",
            "Regions are those of π_old. `weights` multiply a token's loss. `mean_loss` is over the mask's tokens.",
        ],
        "policies": POLICIES,
        "tokens": tokens,
        "mean_loss": {pair: sum(t["surrogate"][pair]["loss"] for t in tokens) / counted for pair in PAIRS},
        "total_steps": TOTAL,
        "measured_entropy": ENTROPY,
        "schedules": schedule_lines(),
        "track up-down": track_gains(),
    }


def main() -> None:
    def text(value, depth: int) -> str:  # one line a token, a schedule, a step
        if depth == 0 or not isinstance(value, dict | list) or not value:
            return json.dumps(value, ensure_ascii=False)
        opening, closing = "{}" if isinstance(value, dict) else "[]"
        rows = value.items() if isinstance(value, dict) else enumerate(value)
        label = (lambda key: f"{json.dumps(key)}: ") if isinstance(value, dict) else (lambda key: "")
        return f"{opening}\n" + ",\n".join(label(key) + text(row, depth - 1) for key, row in rows) + f"\n{closing}"

    FILE.write_text(text(vectors(), 2) + "\n")


if __name__ == "__main__":
    main()
