"""Each method against its formula written out token by token in plain Python, float64: pytest tests/test_methods.py"""

import math
import random
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import methods
from clipping import clipped_surrogate, region_masks
from methods import METHODS, ON_TARGET, Tokens, make_method

UPPER, LOWER = (-0.25, 0.5), (0.0, 0.2)
PER_RESPONSE = 10  # tokens of each


def tokens_of(old_logp, advantages, mask, entropy=None) -> Tokens:
    """Every other token is surprising, unless the entropy is given."""
    surprising = torch.arange(len(old_logp)) % 2 == 0
    entropy = -old_logp + torch.where(surprising, -0.1, 0.1) if entropy is None else entropy
    response = torch.arange(len(old_logp)) // PER_RESPONSE
    return Tokens(old_logp, entropy, advantages, mask, response, region_masks(old_logp, entropy, advantages))


def made(name, output=0.5):
    """The method, which has seen an entropy of half a nat. What its controller makes of it is replaced by `output`."""
    method = make_method(name, "level", 10, 0.5)
    if name in ON_TARGET:
        method.output = output
    return method


def whole(name, output=0.5, seed=0):
    """The method as the trainer calls it: a function with the call shape of clipped_surrogate."""

    def function(old_logp, logp, advantages, mask, upper, lower):
        method, tokens = made(name, output), tokens_of(old_logp, advantages, mask)
        weights = method.weights(tokens, torch.Generator().manual_seed(seed))
        entropy = -2 * logp  # any entropy will do
        args = old_logp, logp, advantages, mask, upper, lower
        loss, side = method.loss(*args, method.marks(tokens), entropy)
        return loss * weights, side

    return function


def batch(seed: int = 0, n: int = 500, spread: float = 0.4):
    """(old_logp, logp with gradient, advantages, mask), float64; the advantage changes sign half-way, one masked token
    in five."""
    g = torch.Generator().manual_seed(seed)
    old_logp = -torch.rand(n, generator=g, dtype=torch.float64) * 3
    logp = (old_logp + spread * torch.randn(n, generator=g, dtype=torch.float64)).clamp(max=-1e-9).requires_grad_()
    advantages = torch.where(torch.arange(n) < n // 2, 0.7, -1.2).double()
    return old_logp, logp, advantages, torch.rand(n, generator=g) < 0.8


def loss_and_gradient(function, old_logp, logp, advantages, mask):
    loss, side = function(old_logp, logp, advantages, mask, UPPER, LOWER)
    return loss.detach(), torch.autograd.grad(loss.sum(), logp)[0], side


def plain(formula, old_logp, logp, advantages, mask):
    """Loss and derivative in ln p of each token from formula(old, new, Â) in plain floats, the derivative by central
    differences."""
    rows = zip(old_logp.tolist(), logp.tolist(), advantages.tolist(), mask.tolist())
    h, losses, slopes = 1e-6, [], []
    for old, new, a, counts in rows:
        losses.append(formula(old, new, a, new) if counts else 0.0)
        slopes.append((formula(old, new + h, a, new) - formula(old, new - h, a, new)) / (2 * h) if counts else 0.0)
    return torch.tensor(losses, dtype=torch.float64), torch.tensor(slopes, dtype=torch.float64)


def assert_same(function, formula, args):
    loss, gradient, side = loss_and_gradient(function, *args)
    want, slope = plain(formula, *args)
    torch.testing.assert_close(loss, want, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(gradient, slope, atol=1e-7, rtol=1e-6)
    return side


def test_the_table_of_methods_has_each_with_its_file_and_its_papers_number():
    rows = [line.split() for line in methods.__doc__.splitlines() if line.endswith(".py")]
    assert {row[0]: row[-1] for row in rows} == {
        name: method.__module__.removeprefix("methods.") + ".py" for name, method in METHODS.items()
    }
    for name, number, *_ in rows:
        source = sys.modules[METHODS[name].__module__].__doc__
        assert number in source or name in ("grpo", "entropy-bonus"), name


# ------------------------------------------------------------------------------------------------------ the formulas


def grpo(old, new, a, frozen):
    r, p = math.exp(new - old), math.exp(frozen)
    return -min(r * a, min(max(r, 1 - 0.2), 1 + 0.5 - 0.25 * p) * a)


def test_the_plain_formula_of_grpo_agrees_with_clipped_surrogate():
    side = assert_same(clipped_surrogate, grpo, batch())
    assert (side == 1).sum() > 20 and (side == -1).sum() > 20


def test_ce_gppo():
    def formula(old, new, a, frozen):
        r, sg, p = math.exp(new - old), math.exp(frozen - old), math.exp(frozen)
        low, high = 1 - 0.2, 1 + 0.5 - 0.25 * p
        if a < 0 and sg < low:
            return -0.75 * low / sg * r * a
        if a > 0 and sg > high:
            return -1.0 * high / sg * r * a
        return -r * a

    side = assert_same(made("ce-gppo").loss, formula, batch())
    assert (side == 1).sum() > 20 and (side == -1).sum() > 20


def test_ce_gppo_gives_a_clipped_token_the_gradient_it_has_on_the_bound():
    old, advantages, mask = torch.full((2,), -2.0), torch.tensor([1.0, -1.0]), torch.ones(2, dtype=torch.bool)
    logp = (old + torch.tensor([3.0, 0.1]).log()).requires_grad_()
    loss, _ = made("ce-gppo").loss(old, logp, advantages, mask, (0.0, 0.2), (0.0, 0.2))
    torch.testing.assert_close(torch.autograd.grad(loss.sum(), logp)[0], torch.tensor([-1.2, 0.75 * 0.8]))


def test_kl_cov():
    old, logp, advantages, mask = args = batch()
    method, tokens = made("kl-cov"), tokens_of(old, advantages, mask)
    method.share, method.beta = 0.05, 0.3
    kept = mask.nonzero().squeeze(1).tolist()
    mean_a, mean_l = (sum(x[i].item() for i in kept) / len(kept) for x in (advantages, old))
    by_cov = sorted(kept, key=lambda i: -(advantages[i].item() - mean_a) * (old[i].item() - mean_l))
    marks = method.marks(tokens)
    assert set(marks.nonzero().squeeze(1).tolist()) == set(by_cov[: int(0.05 * len(kept))])
    loss, gradient, side = loss_and_gradient(lambda *a: method.loss(*a, marks), *args)
    for i in range(len(old)):
        r, change = math.exp(logp[i].item() - old[i].item()), logp[i].item() - old[i].item()
        beta = 0.3 if marks[i] else 0.0
        want = -r * advantages[i].item() + beta * abs(change) if mask[i] else 0.0
        slope = -r * advantages[i].item() + beta * math.copysign(1, change) if mask[i] else 0.0
        assert (loss[i].item(), gradient[i].item()) == pytest.approx((want, slope), abs=1e-12)
    assert (side == 0).all()  # nothing is cut, however large r


def clip_cov(old, advantages, mask, share, seed=1):
    """bool [N], the tokens that Clip-Cov drops."""
    method = made("clip-cov")
    method.share = share
    return method.weights(tokens_of(old, advantages, mask), torch.Generator().manual_seed(seed)) == 0


def test_clip_cov_drops_a_random_share_among_covariances_between_1_and_5():
    generator = torch.Generator().manual_seed(0)
    old = -torch.rand(20_000, generator=generator, dtype=torch.float64) * 8
    advantages = torch.randn(20_000, generator=generator, dtype=torch.float64)
    mask = torch.rand(20_000, generator=generator) < 0.9
    dropped = clip_cov(old, advantages, mask, 0.01)
    assert dropped.sum() == int(0.01 * mask.sum()) and mask[dropped].all()
    cov = (advantages - advantages[mask].mean()) * (old - old[mask].mean())
    assert (cov[dropped] > 1).all() and (cov[dropped] < 5).all()
    assert torch.equal(clip_cov(old, advantages, mask, 0.01), dropped)  # the seed decides, so every rank agrees
    assert not torch.equal(clip_cov(old, advantages, mask, 0.01, seed=2), dropped)


def test_clip_cov_with_fewer_candidates_than_its_share_drops_them_all():
    old, advantages = torch.tensor([-0.1, -4.0, -0.1, -4.0]), torch.tensor([1.0, -1.0, 0.0, 0.0])
    dropped = clip_cov(old, advantages, torch.ones(4, dtype=torch.bool), share=0.9)
    assert dropped.tolist() == [True, True, False, False]  # cov = 1.95, 1.95, 0, 0


def test_dppo_tv():
    def formula(old, new, a, frozen):
        moved = math.exp(frozen) - math.exp(old)
        if (a > 0 and moved > 0.15) or (a < 0 and moved < -0.15):
            return -(1 + math.copysign(0.15, a) / math.exp(old)) * a  # a constant: the gradient stops
        return -math.exp(new - old) * a

    side = assert_same(made("dppo-tv").loss, formula, batch(spread=0.8))
    assert (side == 1).sum() > 20 and (side == -1).sum() > 20


def test_dcpo():
    def formula(old, new, a, frozen):
        r, p_old = math.exp(new - old), math.exp(old)
        low = 0.5 + 0.5 * math.sqrt(max(0, 1 - 4 * 0.16 / p_old))
        high = min(0.5 + 0.5 * math.sqrt(1 + 4 * 0.2 / p_old), 10)
        return -min(r * a, min(max(r, low), high) * a)

    side = assert_same(made("dcpo").loss, formula, batch(spread=0.8))
    assert (side == 1).sum() > 20 and (side == -1).sum() > 20


def test_dppo_kl():
    def formula(old, new, a, frozen):
        q, p = math.exp(old), math.exp(frozen)
        d = q * math.log(q / p) + (1 - q) * math.log((1 - q) / (1 - p))
        if d > 0.05 and (p > q if a > 0 else p < q):
            return 0.0
        return -math.exp(new - old) * a

    side = assert_same(made("dppo-kl").loss, formula, batch(spread=0.8))
    assert (side == 1).sum() > 20 and (side == -1).sum() > 20


def test_dppo_kl_where_a_probability_is_1():
    """D is infinite towards p = 1, and small from there to a likely token; at p = p_old = 1 it is 0."""
    old = torch.tensor([0.5, 1.0, 1.0, 1.0]).log()
    logp, advantages = torch.tensor([1.0, 0.97, 0.9, 1.0]).log(), torch.tensor([1.0, -1.0, -1.0, -1.0])
    _, side = made("dppo-kl").loss(old, logp, advantages, torch.ones(4, dtype=torch.bool), UPPER, LOWER)
    assert side.tolist() == [1, 0, -1, 0]  # D = ln(1 / 0.97) = 0.03 and ln(1 / 0.9) = 0.11


def test_bandpo():
    def formula(old, new, a, frozen):
        r, q = math.exp(new - old), math.exp(old)
        width = math.sqrt(0.05 * (1 - q) / q)
        return -min(r * a, min(max(r, 1 - width, 0), 1 + width, 1 / q) * a)

    side = assert_same(made("bandpo").loss, formula, batch(spread=0.8))
    assert (side == 1).sum() > 20 and (side == -1).sum() > 20


def test_bandpos_bounds_are_where_chi_squared_is_delta_or_the_probabilities_end():
    """χ²(π, π_old) = Σ (π − π_old)² / π_old, with everything but the token scaled alike."""
    others = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    for q in (0.001, 0.03, 0.3, 0.7, 0.94, 0.98, 1.0):
        for ratio in (bound.item() for bound in made("bandpo").bounds(torch.tensor(q, dtype=torch.float64))):
            moved = torch.cat([torch.tensor([q * ratio - q]), others * (q - q * ratio)])
            chi_squared = (moved**2 / torch.cat([torch.tensor([q]), others * (1 - q)])).nansum().item()
            inside = 1e-9 < q * ratio < 1 - 1e-9
            assert chi_squared == pytest.approx(0.05) if inside else chi_squared <= 0.05 and 0 <= q * ratio <= 1


def test_cispo():
    old, logp, advantages, mask = args = batch(spread=1.2)
    loss, gradient, side = loss_and_gradient(made("cispo").loss, *args)
    for i in range(len(old)):
        r = math.exp(logp[i].item() - old[i].item())
        a = advantages[i].item() if mask[i] else 0.0
        want = -min(r, 5.0) * a
        assert (loss[i].item(), gradient[i].item()) == pytest.approx((want * logp[i].item(), want), abs=1e-12)
        assert side[i] == (r > 5 and a > 0)
    assert side.sum() > 5 and ((logp - old).exp() < 0.2).sum() > 5  # no lower bound


def responses_of(mask):
    """The numbers of each response's tokens in the loss, for those that have any."""
    numbers = range(len(mask))
    found = [[i for i in numbers if i // PER_RESPONSE == k and mask[i]] for k in range(len(mask) // PER_RESPONSE)]
    return [tokens for tokens in found if tokens]


def test_gspo():
    """With its weights the mean over tokens is the mean over responses; slopes by central differences of that."""
    old, logp, advantages, mask = args = batch(n=200, spread=2e-3)
    mask[:PER_RESPONSE] = False  # a response outside the loss is not counted
    responses = responses_of(mask)
    loss, gradient, side = loss_and_gradient(whole("gspo"), *args)

    def formula(new):
        total = 0.0
        for tokens in responses:
            s = math.exp(sum(new[i] - old[i].item() for i in tokens) / len(tokens))
            a = advantages[tokens[0]].item()
            total -= min(s * a, min(max(s, 1 - 3e-4), 1 + 4e-4) * a)
        return total / len(responses)

    new, n, h = logp.tolist(), int(mask.sum()), 1e-6
    assert loss.sum().item() / n == pytest.approx(formula(new), abs=1e-14)
    for i in range(len(new)):
        up, down = ([x + sign * h * (i == j) for j, x in enumerate(new)] for sign in (1, -1))
        assert gradient[i].item() / n == pytest.approx((formula(up) - formula(down)) / (2 * h), abs=1e-8)
    assert {1, 0, -1} == set(side.tolist())
    for tokens in responses:  # a response is clipped as a whole
        assert len(set(side[tokens].tolist())) == 1


def test_a_filler_has_no_part_in_gspos_ratio():
    """In a micro-batch a masked copy of a response stands beside it, with the same number."""
    old, logp, advantages, mask = batch(n=20, spread=1e-3)
    method = made("gspo")
    marks = method.marks(tokens_of(old, advantages, mask))
    loss, side = method.loss(old, logp, advantages, mask, UPPER, LOWER, marks)
    twice = [torch.cat([x, x[:PER_RESPONSE]]) for x in (old, logp, advantages, mask, marks)]
    twice[3][20:] = False
    with_filler, sides = method.loss(*twice[:4], UPPER, LOWER, twice[4])
    torch.testing.assert_close(with_filler[:20], loss, atol=0, rtol=0)
    assert (with_filler[20:] == 0).all() and torch.equal(sides[:20], side)


def test_sapo():
    def formula(old, new, a, frozen):
        tau = 1.0 if a > 0 else 1.05
        return -4 / tau / (1 + math.exp(-tau * (math.exp(new - old) - 1))) * a

    side = assert_same(made("sapo").loss, formula, batch(spread=0.8))
    assert (side == 0).all()


@pytest.mark.parametrize("name", ["gspo", "sapo"])
def test_their_mean_over_tokens_is_a_mean_over_responses(name):
    old, _, advantages, mask = batch()
    mask[:PER_RESPONSE] = False
    weights = made(name).weights(tokens_of(old, advantages, mask), None).tolist()
    found = responses_of(mask)
    for tokens in found:
        assert sum(weights[i] for i in tokens) == pytest.approx(int(mask.sum()) / len(found))
        assert len({weights[i] for i in tokens}) == 1


def weights_of(name, output=0.0):
    old, _, advantages, mask = batch()
    tokens = tokens_of(old, advantages, mask, entropy=-1.7 * old.flip(0))
    return tokens, made(name, output).weights(tokens, torch.Generator())


@pytest.mark.parametrize("number, trained", [(-1.0, (1, 0)), (0.0, (1, 1)), (1.0, (0, 1))])
def test_entrocraft_trains_correct_responses_above_its_band_and_wrong_ones_below(number, trained):
    tokens, weights = weights_of("entrocraft", number)
    assert torch.equal(weights, torch.where(tokens.advantages > 0, *map(float, trained)).double())


def test_stare_weighs_the_tenth_of_the_most_surprising_tokens_where_the_advantage_is_positive():
    tokens, weights = weights_of("stare", 1.3)
    kept = sorted(tokens.in_loss.nonzero().squeeze(1).tolist(), key=lambda i: tokens.logp[i].item())
    surprising, positive = set(kept[: int(0.1 * len(kept))]), tokens.advantages > 0
    assert weights.tolist() == [1.3 if i in surprising and positive[i] else 1.0 for i in range(len(weights))]


def test_top_entropy_trains_a_fifth_of_the_tokens():
    tokens, weights = weights_of("top-entropy")
    kept = sorted(tokens.in_loss.nonzero().squeeze(1).tolist(), key=lambda i: -tokens.entropy[i].item())
    assert set(weights.nonzero().squeeze(1).tolist()) == set(kept[: int(0.2 * len(kept))])


@pytest.mark.parametrize("name, weight", [("nsr", 0.0), ("w-reinforce", 0.1)])
def test_negative_samples_weigh_more(name, weight):
    tokens, weights = weights_of(name)
    assert weights.tolist() == [weight if a > 0 else 1.0 for a in tokens.advantages]


@pytest.mark.parametrize("zeta", [-0.05, 0.0, 0.05, 0.5])
def test_repo_r_multiplies_the_advantage(zeta):
    tokens, weights = weights_of("repo-r", zeta)
    logp, advantages = tokens.logp.tolist(), tokens.advantages.tolist()
    want = [max(0, a * (1 - zeta * x)) if a > 0 else -max(0, -a * (1 + zeta * x)) for x, a in zip(logp, advantages)]
    assert (weights * tokens.advantages).tolist() == pytest.approx(want, abs=1e-15)
    assert (weights == 0).any() == (zeta == 0.5)  # never negative


@pytest.mark.parametrize("gain", [-1.0, -0.4, 0.0, 0.7, 1.0])
def test_track_weighs_the_regions(gain):
    tokens, weights = weights_of("track", gain)
    sign = {(True, True): -1, (False, True): 1, (True, False): 1, (False, False): -1}  # E1, E2, E3, E4
    expected = (tokens.logp + tokens.entropy > 0).tolist()
    want = [1 + gain * sign[e, a > 0] for e, a in zip(expected, tokens.advantages.tolist())]
    assert weights.tolist() == pytest.approx(want, abs=1e-6)


@pytest.mark.parametrize("name", ["entropy-bonus", "adaptive-bonus"])
def test_entropy_bonus(name):
    old, logp, advantages, mask = args = batch()
    entropy = (logp * -1.7).detach().requires_grad_()
    loss, _ = made(name).loss(*args, UPPER, LOWER, None, entropy)  # c = 0.5
    want, _ = plain(grpo, *args)
    torch.testing.assert_close(loss.detach(), want - 0.5 * entropy.detach() * mask, atol=1e-12, rtol=0)
    assert torch.equal(torch.autograd.grad(loss.sum(), entropy)[0], -0.5 * mask.double())  # it raises H


def test_entropic():
    old, logp, advantages, mask = args = batch(spread=0.02)
    method = made("entropic", -0.6)
    marks = method.marks(tokens_of(old, advantages, mask))
    confident = [i for i in range(len(old)) if mask[i] and math.exp(old[i].item()) > 0.95]
    assert 3 < len(confident) < 30
    loss, gradient, _ = loss_and_gradient(lambda *a: method.loss(*a, marks), *args)
    base, slope = plain(grpo, *args)
    ratio = (logp - old).exp().detach()
    n = int(mask.sum())
    mean = sum(-ratio[i].item() * abs(advantages[i].item()) for i in confident) / len(confident)
    assert loss.sum().item() / n == pytest.approx(base.sum().item() / n - 0.6 * mean, abs=1e-12)
    for i in confident:  # too little entropy, α < 0: confident tokens are pushed down, whatever the sign of Â
        extra = 0.6 * ratio[i].item() * abs(advantages[i].item()) * n / len(confident)
        assert gradient[i].item() - slope[i].item() == pytest.approx(extra, rel=1e-5)


# --------------------------------------------------------------------------------------------- what others got wrong


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("junk", [float("nan"), float("inf"), -float("inf")])
def test_masked_tokens_contribute_nothing_whatever_they_hold(name, junk):
    old, logp, advantages, mask = batch(n=40)
    _, clean, side = loss_and_gradient(whole(name), old, logp, advantages, mask)
    dirty = logp.detach().clone()
    dirty[~mask] = junk
    loss, gradient, dirty_side = loss_and_gradient(whole(name), old, dirty.requires_grad_(), advantages, mask)
    assert (loss[~mask] == 0).all() and torch.equal(gradient, clean)
    assert torch.equal(dirty_side, side)


@pytest.mark.parametrize("name", METHODS)
def test_nothing_but_masked_tokens_is_zero_not_nan(name):
    old, logp, advantages, mask = batch(n=10)
    loss, gradient, side = loss_and_gradient(whole(name), old, logp, advantages, torch.zeros_like(mask))
    assert (loss == 0).all() and (gradient == 0).all() and (side == 0).all()


@pytest.mark.parametrize("name", METHODS)
def test_weights_and_marks_of_an_empty_loss_are_finite(name):
    old, _, advantages, mask = batch(n=10)
    tokens, method = tokens_of(old, advantages, torch.zeros_like(mask)), made(name)
    assert method.weights(tokens, torch.Generator()).isfinite().all() and method.marks(tokens).isfinite().all()


def test_nobody_is_confident():
    tokens = tokens_of(torch.full((3,), -1.0), torch.ones(3), torch.ones(3, dtype=torch.bool))
    assert (made("entropic").marks(tokens) == 0).all()


@pytest.mark.parametrize("name", METHODS)
def test_an_insane_ratio_is_clamped(name):
    logp = torch.tensor([-1.0, -1.0, -300.0, -1.0], requires_grad=True)
    old, advantages, mask = (
        torch.tensor([-200.0, -1.0, -1.0, -1.0]),
        torch.tensor([-1.0, -1.0, 1.0, 1.0]),
        torch.ones(4, dtype=torch.bool),
    )
    loss, gradient, _ = loss_and_gradient(whole(name), old, logp, advantages, mask)
    assert loss.isfinite().all() and gradient.isfinite().all()


@pytest.mark.parametrize("name", METHODS)
def test_the_clip_side_is_one_number_a_token_and_0_where_masked(name):
    args = batch()
    _, _, side = loss_and_gradient(whole(name), *args)
    assert side.dtype == torch.int8 and side.shape == args[0].shape and (side[~args[3]] == 0).all()


@pytest.mark.parametrize("name", METHODS)
def test_at_the_first_update_of_a_step_each_is_the_policy_gradient_plus_its_own_term(name):
    """π_θ = π_old: −Â ∇ln p, nothing clipped; the added terms are named here."""
    old, _, advantages, mask = batch()
    _, gradient, side = loss_and_gradient(whole(name), old, old.clone().requires_grad_(), advantages, mask)
    extra, tokens = torch.zeros_like(old), tokens_of(old, advantages, mask)
    if "bonus" in name:
        extra += 0.5 * 2  # −c ∇H with H = −2 ln p here
    if name == "entropic":
        extra -= 0.5 * made(name).marks(tokens) * advantages.abs()
    weights = made(name).weights(tokens, torch.Generator().manual_seed(0))  # they are tested above
    want = torch.where(mask, (extra - advantages) * weights, 0.0)
    torch.testing.assert_close(gradient, want, atol=1e-12, rtol=0)  # |log r| has slope 0 at 0
    assert (side == 0).all()


@settings(deadline=None, max_examples=50)  # a busy machine is not a failure
@given(st.integers(2, 40), st.integers(0, 1000))
def test_losses_do_not_depend_on_how_tokens_are_cut_into_micro_batches(n, seed):
    """The losses and clip sides of two micro-batches joined are those of one: nothing is averaged inside."""
    old, logp, _, mask = batch(seed, n)
    advantages = torch.tensor([random.Random(seed + i).gauss(0, 1) for i in range(n)]).double()
    cut = n // 2 // PER_RESPONSE * PER_RESPONSE  # a response is never cut
    for name in METHODS:
        method = made(name)
        marks = method.marks(tokens_of(old, advantages, mask))

        def loss_of(part: slice, method=method, marks=marks):
            args = (x[part] for x in (old, logp, advantages, mask))
            return method.loss(*args, UPPER, LOWER, marks[part], -logp[part])

        loss, side = loss_of(slice(None))
        parts = [loss_of(slice(0, cut)), loss_of(slice(cut, None))]
        torch.testing.assert_close(torch.cat([loss for loss, _ in parts]), loss, atol=1e-14, rtol=1e-14)
        assert torch.equal(torch.cat([side for _, side in parts]), side)
