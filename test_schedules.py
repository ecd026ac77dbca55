"""Schedules against tables worked out by hand: pytest test_schedules.py"""

import ast
import json
import math
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import clipping
import schedules
from schedules import EPS, HIGHER, SCHEDULES, M, Target, U, make_schedule

# T = 8. Written out from the paper's table with λ = 1 − 2k/8; rows k = 0, T/4, T/2, T/2 + 1, 3T/4, T.
STEPS = (0, 2, 4, 5, 6, 8)
TABLE = {
    "static": [((0, 0.2), (0, 0.2))] * 6,
    "clip-higher": [((0, 0.28), (0, 0.2))] * 6,
    "upper": [((-0.25, 0.5), (0, 0.2))] * 6,
    "lower": [((0, 0.2), (-0.13, 0.3))] * 6,
    "id": [
        ((-0.25, 0.5), (0, 0.2)),  # λ = 1: U
        ((-0.125, 0.35), (0, 0.2)),  # λ = 1/2
        ((0, 0.2), (0, 0.2)),  # λ = 0: ε
        ((0, 0.2), (-0.0975, 0.275)),  # λ = −1/4: 3/4 M + 1/4 ε
        ((0, 0.2), (-0.065, 0.25)),  # λ = −1/2
        ((0, 0.2), (0, 0.2)),  # λ = −1
    ],
    "did": [
        ((0, 0.2), (0, 0.2)),
        ((-0.125, 0.35), (0, 0.2)),
        ((-0.25, 0.5), (0, 0.2)),
        ((-0.25, 0.5), (-0.0975, 0.275)),
        ((-0.25, 0.5), (-0.065, 0.25)),
        ((-0.25, 0.5), (0, 0.2)),
    ],
}


def assert_lines(actual, expected):
    assert [*actual[0], *actual[1]] == pytest.approx([*expected[0], *expected[1]], abs=1e-12)


@pytest.mark.parametrize("name", TABLE)
def test_table(name):
    schedule = make_schedule(name, total_steps=8)
    for step, expected in zip(STEPS, TABLE[name]):
        assert_lines(schedule(step, 0.4), expected)


def test_phase_share_moves_the_border_and_ends_in_the_same_place():
    schedule = make_schedule("id", total_steps=10, phase_share=0.3)
    assert_lines(schedule(0, 0.4), (U, EPS))
    assert_lines(schedule(3, 0.4), (EPS, EPS))  # k = φT: λ = 0
    assert_lines(schedule(5, 0.4), (EPS, (-0.13 * 5 / 7, 0.2 + 0.1 * 5 / 7)))  # λ = −2/7
    assert_lines(schedule(10, 0.4), (EPS, EPS))


RAISE, LOWER = (U, EPS), (EPS, M)


@pytest.mark.parametrize("step, entropy, before, expected", [
    # T = 10, H_init = 1, ratio 0.2: τ_low = 0.2, τ_high = 1 − 0.08 k
    (0, 1.0, False, LOWER),  # the first step: H = τ_high is not above it, and s starts at 0
    (5, 0.61, False, LOWER),  # above τ_high = 0.6
    (5, 0.61, True, LOWER),
    (5, 0.60, True, RAISE),  # a tie with τ_high changes nothing
    (5, 0.60, False, LOWER),
    (5, 0.40, True, RAISE),  # in between: as before
    (5, 0.40, False, LOWER),
    (5, 0.21, False, LOWER),
    (5, 0.20, False, RAISE),  # a tie with τ_low turns
    (5, 0.10, False, RAISE),
    (10, 0.20, False, RAISE),  # at T the two thresholds meet
    (10, 0.21, True, LOWER),
])  # fmt: skip
def test_od_transitions(step, entropy, before, expected):
    schedule = make_schedule("od", total_steps=10)
    schedule(0, 1.0)
    schedule.raising = before
    assert schedule(step, entropy) == expected


def test_od_starts_from_the_first_entropy_it_sees_or_the_one_given():
    schedule = make_schedule("od", total_steps=10)
    assert schedule(0, 0.5) == LOWER and schedule.h_init == 0.5
    assert schedule(1, 0.11) == LOWER and schedule(2, 0.1) == RAISE and schedule(3, 0.3) == RAISE
    given = make_schedule("od", total_steps=10, od_h_init=1.0, od_ratio=0.5)
    assert given(0, 0.5) == RAISE and given.h_init == 1.0


def test_od_restored_in_the_middle_of_a_leg_goes_on_the_same():
    entropies = [0.4, 0.3, 0.2, 0.08, 0.15, 0.2, 0.3, 0.2, 0.1, 0.05]
    whole = make_schedule("od", total_steps=10)
    expected = [whole(k, h) for k, h in enumerate(entropies)]
    first, second = make_schedule("od", total_steps=10), make_schedule("od", total_steps=10)
    got = [first(k, h) for k, h in enumerate(entropies[:5])]
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert got + [second(k, h) for k, h in enumerate(entropies[5:], 5)] == expected
    assert RAISE in expected and LOWER in expected


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("share", [0.3, 0.5, 0.6])
def test_thresholds_stay_between_the_lines_that_are_mixed(name, share):
    schedule = make_schedule(name, total_steps=40, phase_share=share)
    for step in range(41):
        for line, ends in zip(schedule(step, 0.3), ((EPS, U, HIGHER), (EPS, M))):
            for p in (0.0, 0.3, 1.0):
                value, bounds = line[0] * p + line[1], [slope * p + intercept for slope, intercept in ends]
                assert min(bounds) - 1e-12 <= value <= max(bounds) + 1e-12


@pytest.mark.parametrize("arguments, message", [
    (dict(name="oscillate"), "unknown schedule 'oscillate'"),
    (dict(name="id", phase_share=1.0), "phase_share"),
    (dict(name="od", od_ratio=0.0), "od_ratio"),
    (dict(name="od", od_h_init=-1.0), "od_h_init"),
    (dict(name="id", total_steps=0), "total_steps"),
])  # fmt: skip
def test_errors_name_what_is_wrong(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_schedule(**({"total_steps": 10} | arguments))


def test_od_refuses_an_entropy_that_is_not_a_number():
    with pytest.raises(ValueError, match="entropy at step 3"):
        make_schedule("od", total_steps=10)(3, float("nan"))


def test_state_of_another_schedule_is_refused():
    with pytest.raises(ValueError, match="another schedule"):
        make_schedule("id", total_steps=10).load_state_dict({"raising": True, "h_init": 0.4})


def test_two_files_to_copy():
    """schedules.py needs the standard library, clipping.py torch too; each has the paper's constants, and they agree."""
    for module, allowed in ((schedules, {"math"}), (clipping, {"torch", "typing"})):
        tree = ast.parse(Path(module.__file__).read_text())
        imports = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
        imports += [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        assert {name.split(".")[0] for name in imports} <= allowed
    assert (clipping.DYNAMIC_UPPER, clipping.DYNAMIC_LOWER) == (U, M)


# ------------------------------------------------------------------------------------------------------------- entropy on a setpoint

def test_targets_by_hand():
    target = Target("0:1,0.25:0.6,0.5:1.1,1:0.2", total_steps=8)
    assert [target(k, 2.0) for k in (0, 1, 2, 3, 4, 6, 8)] == pytest.approx([2, 1.6, 1.2, 1.7, 2.2, 1.3, 0.4])
    assert target(9, 2.0) == target(8, 2.0)  # level after the last knot
    late = Target("0.5:0.8,0.75:0.4", total_steps=8)
    assert [late(k, 1.0) for k in (0, 4, 5, 6, 8)] == pytest.approx([0.8, 0.8, 0.6, 0.4, 0.4])  # and before the first
    assert [Target("0:0.3,1:0.1", 10, in_nats=True)(k, 99.0) for k in (0, 5, 10)] == pytest.approx([0.3, 0.2, 0.1])
    assert [Target("0.5:0.7", 10)(k, 2.0) for k in (0, 10)] == [1.4, 1.4]


@pytest.mark.parametrize("name", schedules.TARGETS)
def test_named_targets_start_where_the_run_does(name):
    target = Target(name, total_steps=400)
    assert target(0, 0.37) == 0.37
    assert all(0.2 * 0.37 - 1e-12 <= target(k, 0.37) <= 1.3 * 0.37 + 1e-12 for k in range(401))


@pytest.mark.parametrize("text, in_nats, message", [
    ("wobble", False, "'wobble' is neither one of id, did, od, flat nor"),
    ("", False, "'' is neither"),
    ("0:1,0.5", False, "'0.5' is neither"),
    ("0:1,0.5:high", False, "'0.5:high' is neither"),
    ("0:1;1:0.5", False, "'0:1;1:0.5' is neither"),
    ("0:1,1.5:0.2", False, "fraction of the run in '1.5:0.2'"),
    ("nan:1", False, "fraction of the run in 'nan:1'"),
    ("0:1,1:0", False, "entropy in '1:0'"),
    ("0:1,1:nan", False, "entropy in '1:nan'"),
    ("0:inf", False, "entropy in '0:inf'"),
    ("0:1,0.5:1,0.5:2", False, "'0.5:2' follows 0.5"),
    ("0:1,0.5:1,0.25:2", False, "'0.25:2' follows 0.5"),
    ("did", True, "'did' is a shape in multiples"),
])  # fmt: skip
def test_target_errors_name_what_was_found(text, in_nats, message):
    with pytest.raises(ValueError, match=message):
        make_schedule("track", total_steps=10, target=text, target_nats=in_nats)


def track(total_steps=200, **options):
    return make_schedule("track", total_steps=total_steps, **options)


def test_track_by_hand():
    schedule = track(10, target="0:1,1:0.5", track_kp=2.0, track_ki=0.1)
    assert schedule(0, 0.4) == (EPS, EPS)
    first = math.log(0.95)  # the update at step k leads to the entropy of step k + 1
    assert schedule.gain == pytest.approx(2 * first + 0.1 * first)
    schedule(1, 0.3)
    second = math.log(0.9 * 0.4 / 0.3)
    assert schedule.gain == pytest.approx(2 * second + 0.1 * (first + second))
    assert schedule.state_dict() == pytest.approx({"h_init": 0.4, "integral": first + second})


@pytest.mark.parametrize("actuator, gain, lines", [
    ("gains", 0.4, (EPS, EPS)),
    ("bounds", 0.0, ((-0.125, 0.35), EPS)),  # |u| / gain_max = 1/2: half U above
    ("both", 0.4, ((-0.125, 0.35), EPS)),
])  # fmt: skip
def test_actuators(actuator, gain, lines):
    schedule = track(target="flat", track_kp=1.0, track_ki=0.0, gain_max=0.8, actuator=actuator)
    schedule(0, 1.0)
    assert_lines(schedule(1, math.exp(-0.4)), lines)
    assert schedule.gain == pytest.approx(gain)
    below = (EPS, (-0.065, 0.25)) if actuator != "gains" else (EPS, EPS)
    assert_lines(schedule(2, math.exp(0.4)), below)  # u = −0.4: half M below
    assert schedule.gain == pytest.approx(-gain)


@pytest.mark.parametrize("name", [name for name in SCHEDULES if name != "track"])
def test_every_other_schedule_leaves_the_gain_at_0(name):
    schedule = make_schedule(name, total_steps=10)
    for step, entropy in enumerate([0.4, 0.01, 0.9]):
        schedule(step, entropy)
        assert schedule.gain == 0


def plant(schedule, steps, authority, drift=-0.01, floor=0.15):
    """A policy reduced to its entropy, in nats: ln H falls by itself and moves by `authority` · u a step, down to a floor. Returns
    (H, u) of each step."""
    history, entropy = [], 0.4
    for step in range(steps):
        schedule(step, entropy)
        history.append((entropy, schedule.gain))
        entropy = max(floor, entropy * math.exp(authority * schedule.gain + drift))
    return history


@pytest.mark.parametrize("authority", [0.03, 0.1, 0.3, 0.4])
@pytest.mark.parametrize("level", [0.6, 1.0, 1.4])
def test_on_a_first_order_plant_entropy_settles_on_a_level_target(authority, level):
    off = [math.log(h / 0.4 / level) for h, _ in plant(track(300, target=f"0:{level}"), 300, authority, floor=0)]
    arrival = math.ceil(3 / (4 * authority) + abs(off[0]) / (authority - 0.01))  # at full gain against the drift, then three time constants
    assert max(map(abs, off[arrival:])) < 0.1  # no overshoot beyond a tenth
    assert max(map(abs, off[200:])) < 1e-3  # and no error left: P alone would stay off by drift / (kp b), 8% at b = 0.03


@pytest.mark.parametrize("extreme, floor", [(0.05, 0.15), (40.0, 0.0)], ids=["too low", "too high"])
def test_after_a_saturated_stretch_it_settles_without_windup(extreme, floor):
    """Half of the run on a target out of reach: u sits at its limit. Back on one that can be reached it must turn at once, and not
    shoot past it; with the error summed up all the while it would stay at the limit for dozens of steps more."""
    schedule = track(400, target=f"0:1,0.01:{extreme},0.5:{extreme},0.51:1,1:1")
    history = plant(schedule, 400, authority=0.025, floor=floor)
    limit = -1 if extreme < 1 else 1
    assert all(u == limit for _, u in history[20:200])
    assert history[204][1] == -limit
    off = [math.log(h / 0.4) for h, _ in history[204:]]
    reached = next(k for k, x in enumerate(off) if x * off[0] <= 0)
    assert max(map(abs, off[reached:])) < 0.1 and max(map(abs, off[-20:])) < 0.02


@settings(deadline=None)  # a busy machine is not a failure
@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=60), st.floats(0.1, 1), st.floats(0, 20), st.floats(1e-3, 5))
def test_the_gain_and_the_part_of_the_integral_in_it_never_leave_their_range(entropies, gain_max, kp, ki):
    schedule = track(60, target="od", gain_max=gain_max, track_kp=kp, track_ki=ki)
    for step, entropy in enumerate(entropies):
        schedule(step, entropy)
        assert abs(schedule.gain) <= gain_max and abs(ki * schedule.integral) <= gain_max * (1 + 1e-9)


def test_track_restored_in_the_middle_goes_on_the_same():
    rng = random.Random(1)
    entropies = [0.4 * rng.uniform(0.3, 1.4) for _ in range(40)]

    def go(schedule, steps):
        return [(schedule(k, entropies[k]), schedule.gain) for k in steps]

    for cut in (1, 7, 39):
        whole, first, second = (track(40, target="did", actuator="both") for _ in range(3))
        want = go(whole, range(40))
        got = go(first, range(cut))
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        assert got + go(second, range(cut, 40)) == want
    fresh = track(40, target="did", actuator="both")
    assert go(fresh, range(20, 40)) != want[20:]  # so the state matters


@pytest.mark.parametrize("arguments, message", [
    (dict(gain_max=0.0), "gain_max"),
    (dict(gain_max=1.5), "gain_max"),
    (dict(track_kp=-1.0), "track_kp"),
    (dict(track_ki=float("nan")), "track_ki"),
    (dict(actuator="weights"), "unknown actuator 'weights'"),
])  # fmt: skip
def test_track_errors_name_what_is_wrong(arguments, message):
    with pytest.raises(ValueError, match=message):
        track(**arguments)


@pytest.mark.parametrize("entropy", [float("nan"), float("inf"), 0.0])
def test_track_refuses_an_entropy_that_is_not_a_positive_number(entropy):
    with pytest.raises(ValueError, match="entropy at step 3"):
        track()(3, entropy)
