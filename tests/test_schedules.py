"""Schedules against tables worked out by hand: pytest tests/test_schedules.py"""

import ast
import json
from pathlib import Path

import pytest

import schedules
from clipping import CLIP_HIGHER, EPS, M, U
from schedules import SCHEDULES, make_schedule

# T = 8. Written out from the paper's table with λ = 1 − 2k/8; rows k = 0, T/4, T/2, T/2 + 1, 3T/4, T.
STEPS = (0, 2, 4, 5, 6, 8)
TABLE = {
    "static": [((0, 0.2), (0, 0.2))] * 6,
    "clip-higher": [((0, 0.28), (0, 0.2))] * 6,
    "upper": [((-0.25, 0.5), (0, 0.2))] * 6,
    "lower": [((0, 0.2), (-0.13, 0.3))] * 6,
    "upper-const": [((0, 0.5), (0, 0.2))] * 6,
    "lower-const": [((0, 0.2), (0, 0.3))] * 6,
    "id-up": [((-0.25, 0.5), (0, 0.2)), ((-0.125, 0.35), (0, 0.2)), *[((0, 0.2), (0, 0.2))] * 4],
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


@pytest.mark.parametrize(
    "step, entropy, before, expected",
    [
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
    ],
)
def test_od_transitions(step, entropy, before, expected):
    schedule = make_schedule("od", total_steps=10)
    schedule(0, 1.0)
    schedule.raising = before
    assert schedule(step, entropy) == expected


def test_od_starts_from_the_first_entropy_it_sees():
    schedule = make_schedule("od", total_steps=10)
    assert schedule(0, 0.5) == LOWER and schedule.h_init == 0.5
    assert schedule(1, 0.11) == LOWER and schedule(2, 0.1) == RAISE and schedule(3, 0.3) == RAISE
    early = make_schedule("od", total_steps=10, od_ratio=0.5)
    assert early(0, 0.5) == LOWER and early(1, 0.25) == RAISE


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
        for line, ends in zip(schedule(step, 0.3), ((EPS, U, CLIP_HIGHER, (0, 0.5)), (EPS, M, (0, 0.3)))):
            for p in (0.0, 0.3, 1.0):
                value, bounds = line[0] * p + line[1], [slope * p + intercept for slope, intercept in ends]
                assert min(bounds) - 1e-12 <= value <= max(bounds) + 1e-12


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(name="oscillate"), "unknown schedule 'oscillate'"),
        (dict(name="id", phase_share=1.0), "phase_share"),
        (dict(name="od", od_ratio=0.0), "od_ratio"),
        (dict(name="id", total_steps=0), "total_steps"),
    ],
)
def test_errors_name_what_is_wrong(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_schedule(**({"total_steps": 10} | arguments))


def test_od_refuses_an_entropy_that_is_not_a_number():
    with pytest.raises(ValueError, match="entropy at step 3"):
        make_schedule("od", total_steps=10)(3, float("nan"))


def test_state_of_another_schedule_is_refused():
    with pytest.raises(ValueError, match="another schedule"):
        make_schedule("id", total_steps=10).load_state_dict({"raising": True, "h_init": 0.4})


def imports_of(file: Path) -> set[str]:
    """The modules that a file imports, whole names."""
    nodes = list(ast.walk(ast.parse(file.read_text())))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return names | {node.module for node in nodes if isinstance(node, ast.ImportFrom)}


def test_files_to_copy():
    """What each file needs beside it, so that it can be copied into another trainer."""
    root = Path(schedules.__file__).parent
    allowed = {
        "clipping.py": {"torch"},
        "logprobs.py": {"torch", "typing", "collections.abc", "functools", "itertools"},
        "schedules.py": {"math", "typing", "clipping"},
        "methods/base.py": {"math", "dataclasses", "torch", "clipping"},
        "methods/target.py": {"math", "methods.base"},
    }
    for file in root.glob("methods/*.py"):
        mine = {"math", "torch", "clipping", "methods.base", "methods.target"}
        allowed.setdefault(str(file.relative_to(root)), mine)
    del allowed["methods/__init__.py"]  # it lists them all
    for file, names in allowed.items():
        assert imports_of(root / file) <= names, file
        shared = file in ("methods/base.py", "methods/target.py") or not file.startswith("methods/")
        assert shared or len((root / file).read_text().splitlines()) <= 60, file


def test_imports_run_downwards():
    """grpo.py and evaluate.py are imported by nothing that they stand on, and no folder by what it stands on."""
    root, below = (
        Path(schedules.__file__).parent,
        {"trainer": set(), "tasks": {"trainer"}, "methods": {"trainer", "tasks"}},
    )
    for folder, forbidden in below.items():
        for file in root.glob(f"{folder}/*.py"):
            tops = {name.split(".")[0] for name in imports_of(file)}
            assert not tops & (forbidden | {"grpo", "evaluate", "study", "integrations"}), file
