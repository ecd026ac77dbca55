"""docs/test_vectors.json against clipping.py, schedules.py and methods/. pytest tests/test_vectors.py

The file's numbers are made by make_test_vectors.py from the formulas, without this repository's code.
"""

import json
import math

import pytest
import torch
from make_test_vectors import FILE, vectors

from clipping import (
    CLIP_HIGHER,
    EPS,
    REGIONS,
    M,
    U,
    bound_in_p_old,
    clipped_surrogate,
    entropy_change,
    line_bounds,
    ratios,
    region_masks,
    threshold,
    token_term,
)
from logprobs import token_stats
from methods import Tokens, make_method
from methods.base import covariance
from methods.track import region_weights
from schedules import SCHEDULES, make_schedule

GIVEN = json.loads(FILE.read_text())
TOKENS, TOTAL = GIVEN["tokens"], GIVEN["total_steps"]
LINES = {"static": (EPS, EPS), "clip-higher": (CLIP_HIGHER, EPS), "U above, M below": (U, M)}
# fewer than a hundred roundings of 2^-53 lie between an input and a result, and |ln r| < 30 enlarges one by 30 at most
CLOSE = dict(rel=100 * 30 * 2.0**-53, abs=100 * 30 * 2.0**-53)


def column(key, dtype=torch.float64):
    return torch.tensor([math.nan if t[key] is None else t[key] for t in TOKENS], dtype=dtype)


MASK = column("mask", torch.bool)
OLD_LOGP, LOGP, ENTROPY, MEAN_F = (column(key) for key in ("old_logp", "logp", "entropy", "mean_f"))
ADVANTAGES = column("advantage")


def check(found: torch.Tensor, expected: list) -> None:
    """`found` of all tokens or of those in the mask, against as many numbers."""
    assert found.tolist() == pytest.approx(expected, **CLOSE)


def expected(*path) -> list:
    """One result of each token in the mask."""
    values = [t for t in TOKENS if t["mask"]]
    for key in path:
        values = [value[key] for value in values]
    return values


def leaves(value):
    """The numbers, texts and nulls in a tree of lists and dicts, in its order, with the keys among the texts."""
    if isinstance(value, dict):
        return [leaf for key, item in value.items() for leaf in (key, *leaves(item))]
    return sum(map(leaves, value), []) if isinstance(value, list | tuple) else [value]


def test_the_file_is_what_the_command_makes():
    found, made = leaves(GIVEN), leaves(vectors())
    assert [type(x) for x in found] == [type(x) for x in made]
    assert all(x == (pytest.approx(y, **CLOSE) if isinstance(y, float) else y) for x, y in zip(found, made))


def test_the_edges_are_there():
    counted = [t for t in TOKENS if t["mask"]]
    sides = {(pair, t["surrogate"][pair]["clip_side"]) for t in counted for pair in LINES}
    assert sides == {(pair, side) for pair in LINES for side in (-1, 0, 1)}
    assert {t["region"] for t in counted} == {*REGIONS, None}
    assert {t["region"] for t in counted if t["region"] != t["region_exact"]} == {"E1", "E3"}  # where the rule errs
    assert any(t["old_logp"] is None for t in TOKENS)
    for pair in LINES:  # p and p_old give one decision: the two forms of a bound are equivalent
        for t in counted:
            low, high = t["bounds_in_p_old"][pair]
            above, below = t["advantage"] > 0 and t["ratio"] > high, t["advantage"] < 0 and t["ratio"] < low
            assert t["surrogate"][pair]["clip_side"] == above - below, (pair, t["name"])


def test_states():
    for t in TOKENS:
        if t["mask"]:
            logits = torch.tensor([GIVEN["policies"][t["state"]]], dtype=torch.float64).log()
            stats = token_stats(logits, torch.tensor([t["action"]]))
            check(torch.cat(stats), [t["old_logp"], t["entropy"], t["mean_f"]])


@pytest.mark.parametrize("pair", LINES)
def test_surrogate(pair):
    upper, lower = LINES[pair]
    logp = LOGP.clone().requires_grad_()
    loss, side = clipped_surrogate(OLD_LOGP, logp, ADVANTAGES, MASK, upper, lower)
    loss.sum().backward()
    for key, found in (("loss", loss), ("clip_side", side), ("gradient", logp.grad)):
        check(found, [t["surrogate"][pair][key] for t in TOKENS])
    assert loss.sum().item() / MASK.sum().item() == pytest.approx(GIVEN["mean_loss"][pair], **CLOSE)
    low, high = line_bounds(LOGP, MASK, upper, lower)
    old = OLD_LOGP.exp()
    for i, (in_p, side, line) in enumerate(((low, -1, lower), (high, 1, upper))):
        check(in_p[MASK], expected("bounds_in_p", pair, i))
        check(bound_in_p_old(old, line, side)[MASK], expected("bounds_in_p_old", pair, i))


def test_thresholds_and_regions():
    check(ratios(OLD_LOGP, LOGP, MASK)[1][MASK], expected("ratio"))
    check(threshold(LOGP.exp(), U)[MASK], expected("U(p)"))
    check(threshold(LOGP.exp(), M)[MASK], expected("M(p)"))
    old, entropy, mean_f, advantages = (x[MASK] for x in (OLD_LOGP, ENTROPY, MEAN_F, ADVANTAGES))
    check(token_term(old, entropy), expected("f"))
    check(entropy_change(old, entropy, mean_f, advantages), expected("entropy_change"))
    for masks, key in (
        (region_masks(old, entropy, advantages), "region"),
        (region_masks(old, entropy, advantages, mean_f), "region_exact"),
    ):
        names = [[name for name, is_in in zip(REGIONS, token) if is_in] for token in masks.T.tolist()]
        assert names == [[] if name is None else [name] for name in expected(key)]


def batch() -> Tokens:
    """The tokens in the mask, as the trainer gives them to a method."""
    old, entropy, advantages = OLD_LOGP[MASK], ENTROPY[MASK], ADVANTAGES[MASK]
    response, regions = column("response", torch.int64)[MASK], region_masks(old, entropy, advantages)
    return Tokens(old, entropy, advantages, MASK[MASK], response, regions)


def test_weights():
    weights = [t["weights"] for t in TOKENS if t["mask"]]
    for key in weights[0]:
        if key.startswith("track"):  # in float32, as in the trainer
            gain = float(key.partition("= ")[2])
            found = region_weights(batch().regions, gain).double()
            assert found.tolist() == pytest.approx([w[key] for w in weights], rel=2.0**-23)
        else:
            check(make_method(key).weights(batch(), None), [w[key] for w in weights])
    check(covariance(batch()), expected("covariance"))


@pytest.mark.parametrize("name", TOKENS[0]["methods"])
def test_methods(name):
    method = make_method(name, entropy_bonus=0.001)
    marks = torch.zeros_like(OLD_LOGP).masked_scatter(MASK, method.marks(batch()))
    entropy = column("entropy_now") if method.needs_entropy else None
    logp = LOGP.clone().requires_grad_()
    loss, side = method.loss(OLD_LOGP, logp, ADVANTAGES, MASK, EPS, EPS, marks, entropy)
    loss.sum().backward()
    for key, found in (("loss", loss), ("clip_side", side), ("gradient", logp.grad)):
        if key in TOKENS[0]["methods"][name]:
            check(found[MASK], expected("methods", name, key))


def test_schedules():
    assert {name.partition(",")[0] for name in GIVEN["schedules"]} == set(SCHEDULES)
    for name, lines in GIVEN["schedules"].items():
        name, _, option = name.partition(", ")
        option, _, value = option.partition(" ")
        schedule = make_schedule(name, TOTAL, **({option: float(value)} if option else {}))
        for step, (entropy, line) in enumerate(zip(GIVEN["measured_entropy"], lines)):
            found = [x for pair in schedule(step, entropy) for x in pair]
            assert found == pytest.approx(sum(line, []), **CLOSE), (name, step)


def test_track():
    method = make_method("track", "up-down", TOTAL)
    for step, (entropy, line) in enumerate(zip(GIVEN["measured_entropy"], GIVEN["track up-down"])):
        method.observe(step, entropy)
        found = method.report(step)
        assert [found["target"], found["controller"]] == pytest.approx([line["target"], line["gain"]], **CLOSE)
    assert len({line["gain"] for line in GIVEN["track up-down"]}) > 2  # within its limits and at them
