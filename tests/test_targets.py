"""Targets and the controllers that hold entropy on them: pytest tests/test_targets.py"""

import json
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from methods import METHODS, ON_TARGET, TARGETS, Target
from methods.adaptive_bonus import AdaptiveBonus
from methods.entrocraft import Entrocraft
from methods.entropic import EntroPIC
from methods.repo_r import REPOR
from methods.stare import Stare
from methods.track import Track


def at(method, step: int, entropy: float) -> float:
    """What the controller makes of the entropy of a step."""
    method.observe(step, entropy)
    return method.output


def aiming_at(method: type, nats: float):
    """The method with a level target of that entropy."""
    made = method(Target("0:1", 100))
    made.h_init = nats
    return made


def test_targets_by_hand():
    target = Target("0:1,0.25:0.6,0.5:1.1,1:0.2", total_steps=8)
    assert [target(k, 2.0) for k in (0, 1, 2, 3, 4, 6, 8)] == pytest.approx([2, 1.6, 1.2, 1.7, 2.2, 1.3, 0.4])
    assert target(9, 2.0) == target(8, 2.0)  # level after the last knot
    late = Target("0.5:0.8,0.75:0.4", total_steps=8)
    assert [late(k, 1.0) for k in (0, 4, 5, 6, 8)] == pytest.approx([0.8, 0.8, 0.6, 0.4, 0.4])  # and before the first
    assert [Target("0.5:0.7", 10)(k, 2.0) for k in (0, 10)] == [1.4, 1.4]


@pytest.mark.parametrize("name", TARGETS)
def test_named_targets_start_where_the_run_does(name):
    target = Target(name, total_steps=400)
    assert target(0, 0.37) == 0.37
    assert all(0.2 * 0.37 - 1e-12 <= target(k, 0.37) <= 1.3 * 0.37 + 1e-12 for k in range(401))


@pytest.mark.parametrize(
    "text, message",
    [
        ("wobble", "'wobble' is neither one of level, up-down, down-up-down, waves nor"),
        ("", "'' is neither"),
        ("0:1,0.5", "'0.5' is neither"),
        ("0:1,0.5:high", "'0.5:high' is neither"),
        ("0:1;1:0.5", "'0:1;1:0.5' is neither"),
        ("0:1,1.5:0.2", "fraction of the run in '1.5:0.2'"),
        ("nan:1", "fraction of the run in 'nan:1'"),
        ("0:1,1:0", "entropy in '1:0'"),
        ("0:1,1:nan", "entropy in '1:nan'"),
        ("0:inf", "entropy in '0:inf'"),
        ("0:1,0.5:1,0.5:2", "'0.5:2' follows 0.5"),
        ("0:1,0.5:1,0.25:2", "'0.25:2' follows 0.5"),
    ],
)
def test_target_errors_name_what_was_found(text, message):
    with pytest.raises(ValueError, match=message):
        Target(text, 10)


def track(total_steps=200, target="level", **gains) -> Track:
    return Track(Target(target, total_steps), **gains)


def test_track_by_hand():
    controller = track(10, "0:1,1:0.5", kp=2.0, ki=0.1)
    first = math.log(0.95)  # the update at step k leads to the entropy of step k + 1
    assert at(controller, 0, 0.4) == pytest.approx(2 * first + 0.1 * first)
    second = math.log(0.9 * 0.4 / 0.3)
    assert at(controller, 1, 0.3) == pytest.approx(2 * second + 0.1 * (first + second))
    assert controller.state_dict() == pytest.approx({"h_init": 0.4, "memory": first + second})


def plant(controller, steps, authority, drift=-0.01, floor=0.15):
    """A policy reduced to its entropy, in nats: ln H falls by itself and moves by `authority` · u a step, down to a
    floor. Returns (H, u) of each step."""
    history, entropy = [], 0.4
    for step in range(steps):
        gain = at(controller, step, entropy)
        history.append((entropy, gain))
        entropy = max(floor, entropy * math.exp(authority * gain + drift))
    return history


@pytest.mark.parametrize("authority", [0.03, 0.1, 0.3, 0.4])
@pytest.mark.parametrize("level", [0.6, 1.0, 1.4])
def test_on_a_first_order_plant_entropy_settles_on_a_level_target(authority, level):
    off = [math.log(h / 0.4 / level) for h, _ in plant(track(300, f"0:{level}"), 300, authority, floor=0)]
    # at full gain against the drift, then three time constants
    arrival = math.ceil(3 / (4 * authority) + abs(off[0]) / (authority - 0.01))
    assert max(map(abs, off[arrival:])) < 0.1  # no overshoot beyond a tenth
    assert (
        max(map(abs, off[200:])) < 1e-3
    )  # and no error left: P alone would stay off by drift / (kp b), 8% at b = 0.03


@pytest.mark.parametrize("extreme, floor", [(0.05, 0.15), (40.0, 0.0)], ids=["too low", "too high"])
def test_after_a_saturated_stretch_it_settles_without_windup(extreme, floor):
    """Half of the run on a target out of reach: u sits at its limit. Back on one that can be reached it must turn at
    once, and not shoot past it; with the error summed up all the while it would stay at the limit for dozens of steps
    more."""
    controller = track(400, f"0:1,0.01:{extreme},0.5:{extreme},0.51:1,1:1")
    history = plant(controller, 400, authority=0.025, floor=floor)
    limit = -1 if extreme < 1 else 1
    assert all(u == limit for _, u in history[20:200])
    assert history[204][1] == -limit
    off = [math.log(h / 0.4) for h, _ in history[204:]]
    reached = next(k for k, x in enumerate(off) if x * off[0] <= 0)
    assert max(map(abs, off[reached:])) < 0.1 and max(map(abs, off[-20:])) < 0.02


@settings(deadline=None)  # a busy machine is not a failure
@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=60), st.floats(0, 20), st.floats(1e-3, 5))
def test_the_gain_and_the_part_of_the_integral_in_it_never_leave_their_range(entropies, kp, ki):
    controller = track(60, "waves", kp=kp, ki=ki)
    for step, entropy in enumerate(entropies):
        assert abs(at(controller, step, entropy)) <= 1 and abs(ki * controller.memory) <= 1 + 1e-9


ALL_ON_TARGET = [METHODS[name] for name in ON_TARGET]


@pytest.mark.parametrize("controller", ALL_ON_TARGET)
@pytest.mark.parametrize("entropy", [float("nan"), float("inf"), 0.0])
def test_an_entropy_that_is_not_a_positive_number_is_refused(controller, entropy):
    with pytest.raises(ValueError, match="entropy at step 3"):
        controller(Target("level", 10)).observe(3, entropy)


def test_adaptive_bonus_moves_by_a_fixed_step_and_is_off_above_the_target():
    bonus = aiming_at(AdaptiveBonus, 0.3)
    applied = [at(bonus, k, h) for k, h in enumerate((0.2, 0.2, 0.25, 0.4, 0.2))]
    assert applied == pytest.approx([0.0, 0.005, 0.01, 0.0, 0.01])  # above the target: not applied, and c falls
    for k in range(10):
        bonus.observe(k, 0.5)
    assert bonus.memory == 0  # never negative: it can only raise entropy


def test_entropic_controller():
    errors, method = [0.5, 0.5, -0.1, 0.0], aiming_at(EntroPIC, 1.0)
    want = [min(1, max(-1, e + 0.01 * sum(errors[: k + 1]))) for k, e in enumerate(errors)]
    assert [at(method, k, 1.0 + e) for k, e in enumerate(errors)] == pytest.approx(want)
    assert [at(aiming_at(EntroPIC, 5.0), 0, h) for h in (0.1, 9.0)] == [-1, 1]


def test_entrocraft_has_a_band_of_a_thirteenth_on_either_side():
    method = aiming_at(Entrocraft, 0.65)
    assert [at(method, k, h) for k, h in enumerate((0.59, 0.61, 0.65, 0.69, 0.71))] == [1, 0, 0, 0, -1]


def test_stare_moves_its_weight_by_a_hundredth_and_uses_it_below_the_target():
    method = aiming_at(Stare, 0.5)
    assert [at(method, k, h) for k, h in enumerate((0.4, 0.4, 0.6, 0.4))] == pytest.approx([1.1, 1.11, 1.0, 1.11])
    assert [at(method, k, 0.4) for k in range(60)][-1] == pytest.approx(1.5)
    for k in range(80):
        method.observe(k, 0.6)
    assert at(method, 81, 0.4) == pytest.approx(1.0)


def test_repo_r_doubles_and_halves_its_coefficient_and_turns_its_sign_at_the_lower_end():
    method = aiming_at(REPOR, 0.5)
    applied = [at(method, k, h) for k, h in enumerate((0.4, 0.4, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6, 0.4, 0.4))]
    down = [1e-3 / 2**k for k in range(4)]  # the next, 6e-5, would lie below the least
    assert applied == pytest.approx([1e-3, 2e-3, 4e-3, 2e-3, *down, -1e-4, -2e-4, -1e-4])
    assert method.memory == 1e-4  # and back
    for entropy, most in ((0.4, 0.05), (0.6, -0.05)):
        assert [at(method, k, entropy) for k in range(30)][-1] == most


@pytest.mark.parametrize("controller", ALL_ON_TARGET)
def test_a_controller_aims_at_the_next_step_and_restored_in_the_middle_goes_on_the_same(controller):
    rng = random.Random(1)
    entropies = [0.4 * rng.uniform(0.3, 1.4) for _ in range(40)]
    method, aims = controller(Target("0:1,1:0.2", 8)), []
    method.steer = lambda entropy, aim: aims.append(aim)
    method.observe(0, 0.5)
    assert aims == pytest.approx([0.9 * 0.5]) and method.report(0)["target"] == 0.5
    for cut in (1, 7, 39):
        undisturbed, first, second = (controller(Target("down-up-down", 40)) for _ in range(3))
        want = [at(undisturbed, k, h) for k, h in enumerate(entropies)]
        got = [at(first, k, h) for k, h in enumerate(entropies[:cut])]
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        assert got + [at(second, k, h) for k, h in enumerate(entropies[cut:], cut)] == want
    fresh = controller(Target("down-up-down", 40))
    assert [at(fresh, k, entropies[k]) for k in range(20, 40)] != want[20:]  # so the state matters
