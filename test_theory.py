"""The mathematics of arXiv 2602.09782, checked numerically on softmax policies in float64: pytest test_theory.py -s

One state with logits z, p = softmax(z), sampled token a, ratio r = p_a / π_old(a), advantage Â, L = r Â and

    H = −Σ_x p_x ln p_x       f(a) = p_a (ln p_a + H)       B = Σ_x p_x² (ln p_x + H) = E_{x~p}[f(x)]
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clipping import (
    M,
    U,
    bound_in_p_old,
    clipped_surrogate,
    entropy_change,
    region_masks,
    threshold,
    token_term,
)
from logprobs import token_stats
from methods.track import region_weights

E1, E2, E3, E4 = range(4)


def policies() -> dict[str, torch.Tensor]:
    """Logits [V]: hand-made extremes, and random ones from two tokens to a real vocabulary."""
    generator = torch.Generator().manual_seed(0)
    cases = {
        "uniform": torch.zeros(10),
        "near-deterministic": torch.tensor([30.0, 0.0, -1.0, 2.0]),
        "two tokens": torch.tensor([0.3, -0.4]),
        "one dominant, long tail": torch.cat([torch.tensor([8.0]), torch.zeros(2000)]),
    }
    for vocabulary in (2, 3, 5, 20, 100, 50_000):
        for scale in (0.3, 2.0, 6.0):
            cases[f"random, V = {vocabulary}, scale {scale}"] = torch.randn(vocabulary, generator=generator) * scale
    return {name: logits.double() for name, logits in cases.items()}


POLICIES = policies()


def some_tokens(z: torch.Tensor) -> list[int]:
    """The likeliest, the rarest and two others."""
    order = z.argsort().tolist()
    return sorted({order[0], order[-1], order[len(order) // 3], order[len(order) // 2]})


def entropy(z: torch.Tensor) -> torch.Tensor:
    return -(z.softmax(-1) * z.log_softmax(-1)).sum(-1)


def stats_of_all(z: torch.Tensor):
    """(logp, H, B) with every token of the vocabulary as the sampled one: three [V]."""
    _, h, mean_f = token_stats(z[None], torch.tensor([0]))
    return z.log_softmax(-1), h.expand(len(z)), mean_f.expand(len(z))


@pytest.fixture(autouse=True)
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(params=POLICIES, ids=list(POLICIES))
def z(request):
    return POLICIES[request.param]


# ------------------------------------------------------------------------------ 1  gradients and their inner product


@pytest.mark.parametrize("advantage, old_shift", [(1.3, 0.0), (-0.7, 0.0), (1.3, 0.4), (-0.7, -0.9)])
def test_gradients_and_inner_product_have_their_closed_forms(z, advantage, old_shift):
    """∂H/∂z_x = −p_x (ln p_x + H);  ∂L/∂z_x = Â r (1[x=a] − p_x);  ⟨∇L, ∇H⟩ = −Â r [f(a) − B], r ≠ 1 included."""
    z = z.clone().requires_grad_()
    p, logp, h = z.softmax(-1).detach(), z.log_softmax(-1).detach(), entropy(z)
    (grad_h,) = torch.autograd.grad(h, z)
    torch.testing.assert_close(grad_h, -p * (logp + h.detach()), atol=1e-10, rtol=0)
    for a in some_tokens(z.detach()):
        old_logp = logp[a] - old_shift
        (grad_l,) = torch.autograd.grad(torch.exp(z.log_softmax(-1)[a] - old_logp) * advantage, z)
        r = math.exp(old_shift)
        one_hot = torch.zeros_like(p)
        one_hot[a] = 1
        torch.testing.assert_close(grad_l, advantage * r * (one_hot - p), atol=1e-10, rtol=0)
        stats = token_stats(z.detach()[None], torch.tensor([a]))
        closed = r * entropy_change(*stats, torch.tensor([advantage]))
        torch.testing.assert_close(grad_l @ grad_h, closed[0], atol=1e-10, rtol=0)


@pytest.mark.parametrize("a", [0, 2])
def test_a_step_changes_entropy_by_the_inner_product_to_first_order(a):
    """H(z + η∇L) − H(z) = η⟨∇L, ∇H⟩ + O(η²): halving η divides what is left by 4."""
    z, advantage = torch.tensor([1.0, 0.2, -0.5, -2.0]), torch.tensor([1.0])
    grad = advantage * (torch.nn.functional.one_hot(torch.tensor(a), 4) - z.softmax(-1))
    slope = entropy_change(*token_stats(z[None], torch.tensor([a])), advantage)[0]
    assert slope.abs() > 0.01
    rest = [(entropy(z + eta * grad) - entropy(z) - eta * slope).abs() for eta in (0.04, 0.02, 0.01, 0.005)]
    orders = [math.log2(big / small) for big, small in zip(rest, rest[1:])]
    assert all(abs(order - 2) < 0.1 for order in orders), orders


# ------------------------------------------------------------------------------------- 2  regions, rule and boundary


def test_the_rule_gives_the_sign_of_the_token_specific_term_always(z):
    """E1, E4: −Â f(a) < 0;  E2, E3: −Â f(a) > 0 (the paper: the sign is decided by surprisal −ln p_a against
    H)."""
    logp, h, _ = stats_of_all(z)
    for advantage in (1.0, -1.0):
        masks = region_masks(logp, h, torch.full_like(logp, advantage))
        own_term = -advantage * token_term(logp, h)
        assert (own_term[masks[E1] | masks[E4]] <= 0).all() and (own_term[masks[E2] | masks[E3]] >= 0).all()
        tiny = logp < -300  # p_a underflows next to ln p_a: f(a) = 0 is then all that float64 can say
        assert (own_term[masks.any(0) & ~tiny] != 0).all()


def test_the_exact_boundary_gives_the_sign_of_the_inner_product_always(z):
    """Â > 0: ⟨∇L, ∇H⟩ < 0 ⇔ f(a) > B, and the other way round for Â < 0."""
    logp, h, mean_f = stats_of_all(z)
    for advantage in (1.0, -1.0):
        advantages = torch.full_like(logp, advantage)
        masks = region_masks(logp, h, advantages, mean_f)
        change = entropy_change(logp, h, mean_f, advantages)
        assert (change[masks[E1] | masks[E4]] < 0).all() and (change[masks[E2] | masks[E3]] > 0).all()


def test_rule_and_exact_sign_disagree_only_in_e1_and_e3(z):
    """B = Cov_{x~p}(p_x, ln p_x) ≥ 0, so f(a) < 0 implies f(a) < B: in E2 and E4 the rule is exact."""
    logp, h, mean_f = stats_of_all(z)
    p = logp.exp()
    covariance = (p * p * logp).sum() - (p * p).sum() * (p * logp).sum()
    torch.testing.assert_close(mean_f[0], covariance, atol=1e-12, rtol=0)
    assert covariance >= -1e-15
    if z.std() > 0:  # on the uniform policy every token is a tie, up to rounding
        for advantage in (1.0, -1.0):
            rule = region_masks(logp, h, torch.full_like(logp, advantage))
            exact = region_masks(logp, h, torch.full_like(logp, advantage), mean_f)
            surprising = rule[E2] | rule[E4]
            assert (exact[E2] | exact[E4])[surprising].all()


def test_how_often_rule_and_exact_sign_disagree():
    """On softmaxes of random logits the rule is often wrong about expected tokens; the share is printed (-s), not
    tuned."""
    generator = torch.Generator().manual_seed(0)
    for scale in (0.5, 1.0, 2.0, 4.0):
        z = torch.randn(4000, 20, generator=generator) * scale
        a = torch.multinomial(z.softmax(-1), 1, generator=generator)[:, 0]
        logp, h, mean_f = token_stats(z, a)
        expected_by_rule, expected_exactly = logp + h > 0, token_term(logp, h) > mean_f
        wrong = expected_by_rule & ~expected_exactly
        print(
            f"logits N(0, {scale}²), V = 20: rule wrong on {wrong.double().mean():.1%} of sampled tokens, "
            f"{wrong.sum() / expected_by_rule.sum():.1%} of those it calls expected"
        )
        assert wrong.any() and not (expected_exactly & ~expected_by_rule).any()


@pytest.mark.parametrize("advantage, region", [(1.0, E1), (-1.0, E3)])
def test_a_counterexample_by_hand(advantage, region):
    """p = (0.5, 0.4, 0.1) and a = 1: surprisal 0.916 < H = 0.943, so the rule says expected (E1 with Â > 0: entropy
    falls; E3 with Â < 0: it rises). But f(a) = 0.4 (−0.916 + 0.943) = 0.0108 < B = 0.25 (−0.693 + 0.943) + 0.16 (−0.916
    + 0.943) + 0.01 (−2.303 + 0.943) = 0.0533, so entropy really moves the other way."""
    z = torch.tensor([0.5, 0.4, 0.1]).log()
    logp, h, mean_f = token_stats(z[None], torch.tensor([1]))
    assert (h.item(), mean_f.item()) == pytest.approx((0.9433, 0.0532), abs=1e-4)
    assert token_term(logp, h).item() == pytest.approx(0.0108, abs=1e-4)
    advantages = torch.tensor([advantage])
    assert region_masks(logp, h, advantages)[region].all()
    assert not region_masks(logp, h, advantages, mean_f)[region].any()
    step = 1e-3 * advantage * (torch.tensor([0.0, 1.0, 0.0]) - z.softmax(-1))
    moved = entropy(z + step) - entropy(z)
    assert moved * -advantage < 0  # the rule predicts the sign of −Â


# ------------------------------------------------------------------------------------------------- 3  two identities


def test_a_constant_advantage_moves_entropy_nowhere_on_average(z):
    """E_{a~p}[⟨∇L, ∇H⟩] = 0 for a constant Â, on-policy (r = 1), since B = E_{x~p}[f(x)]."""
    logp, h, mean_f = stats_of_all(z)
    mean = (logp.exp() * entropy_change(logp, h, mean_f, torch.full_like(logp, 1.7))).sum()
    assert mean.abs() < 1e-12


def test_the_expected_change_is_minus_the_covariance_of_advantage_and_f(z):
    """Σ_a p_a · (inner product) = −Cov_{a~p}(A(a), f(a)) for any advantage A(a)."""
    logp, h, mean_f = stats_of_all(z)
    p, f = logp.exp(), token_term(logp, h)
    advantages = torch.randn(len(z), generator=torch.Generator().manual_seed(1))
    covariance = (p * advantages * f).sum() - (p * advantages).sum() * (p * f).sum()
    torch.testing.assert_close((p * entropy_change(logp, h, mean_f, advantages)).sum(), -covariance, atol=1e-12, rtol=0)


# -------------------------------------------------------------------------------------------------------- 4 clipping


def batch(seed: int = 0, n: int = 2000):
    generator = torch.Generator().manual_seed(seed)
    old_logp = -torch.rand(n, generator=generator) * 4
    logp = (old_logp + torch.randn(n, generator=generator) * 0.5).clamp(max=-1e-6)
    advantages = torch.randn(n, generator=generator)
    return old_logp, logp, advantages


def test_a_clipped_token_has_no_gradient_and_an_unclipped_one_all_of_it():
    """J = E[min(r Â, clip(r, 1 − ε_low(p), 1 + ε_high(p)) Â)]: the gradient is 0 above the upper bound with Â > 0 and
    below the lower one with Â < 0, and that of r Â everywhere else. The bound itself carries none."""
    old_logp, logp, advantages = batch()
    logp.requires_grad_()
    loss, side = clipped_surrogate(old_logp, logp, advantages, torch.ones(len(logp), dtype=torch.bool), U, M)
    (gradient,) = torch.autograd.grad(loss.sum(), logp)
    ratio, p = (logp - old_logp).exp().detach(), logp.exp().detach()
    high = (advantages > 0) & (ratio > 1 + 0.5 - 0.25 * p)
    low = (advantages < 0) & (ratio < 1 - (0.3 - 0.13 * p))
    assert torch.equal(high, side == 1) and torch.equal(low, side == -1) and min(high.sum(), low.sum()) > 100
    assert (gradient[high | low] == 0).all()
    torch.testing.assert_close(gradient[~(high | low)], -(ratio * advantages)[~(high | low)], atol=0, rtol=1e-15)


def test_a_bound_that_is_not_detached_would_push_clipped_tokens():
    """The same loss without `detach` gives a clipped token with Â > 0 the gradient α p Â ≠ 0: that the test above can
    fail."""
    old_logp, logp, advantages = batch()
    logp.requires_grad_()
    ratio, p = (logp - old_logp).exp(), logp.exp()  # p not detached
    low, high = 1 - threshold(p, M), 1 + threshold(p, U)
    surrogate = torch.minimum(ratio * advantages, torch.maximum(torch.minimum(ratio, high), low) * advantages)
    (gradient,) = torch.autograd.grad(surrogate.sum(), logp)
    clipped = ((advantages > 0) & (ratio > high)).detach()
    torch.testing.assert_close(gradient[clipped], (-0.25 * p * advantages)[clipped].detach(), atol=1e-12, rtol=0)
    assert (gradient[clipped] < 0).all()


@pytest.mark.parametrize("line", [U, (0.0, 0.2), (0.3, 0.1)])
def test_the_upper_bound_in_p_old(line):
    """r ≤ 1 + (α p_θ + β) with p_θ = r p_old  ⇔  r ≤ (1 + β) / (1 − α p_old)."""
    p_old, ratio = torch.rand(20_000), torch.rand(20_000) * 3
    bound = bound_in_p_old(p_old, line, 1)
    torch.testing.assert_close(
        bound, 1 + threshold(bound * p_old, line), atol=1e-12, rtol=0
    )  # the bound is the fixed point
    assert ((ratio <= 1 + threshold(ratio * p_old, line)) == (ratio <= bound)).all()


@pytest.mark.parametrize("line", [M, (0.0, 0.2), (0.3, 0.1)])
def test_the_lower_bound_in_p_old(line):
    """r ≥ 1 − (α p_θ + β) with p_θ = r p_old  ⇔  r ≥ (1 − β) / (1 + α p_old)."""
    p_old, ratio = torch.rand(20_000), torch.rand(20_000) * 3
    bound = bound_in_p_old(p_old, line, -1)
    torch.testing.assert_close(bound, 1 - threshold(bound * p_old, line), atol=1e-12, rtol=0)
    assert ((ratio >= 1 - threshold(ratio * p_old, line)) == (ratio >= bound)).all()


def test_the_dynamic_upper_bound_cannot_bind_for_likely_tokens():
    """r ≤ 1/p_old always, and U's bound 1.5 / (1 + 0.25 p_old) is above that from p_old = 0.8 on."""
    assert (bound_in_p_old(torch.linspace(0.801, 1, 50), U, 1) > 1 / torch.linspace(0.801, 1, 50)).all()
    assert bound_in_p_old(torch.tensor(0.799), U, 1) < 1 / 0.799


# --------------------------------------------------------------------------- 5  training on one region's tokens only


def train(weigh, seed: int, steps: int = 60) -> float:
    """Change of mean entropy of a tabular softmax policy (32 states, 16 tokens) under GRPO with PPO's clip, each
    token's term weighted by weigh(region masks [4, N]), the denominator unchanged. Reward 1 for a fixed random third of
    each state's tokens."""
    generator = torch.Generator().manual_seed(seed)
    z = (torch.randn(32, 16, generator=generator) * 1.5).requires_grad_()
    right = torch.rand(32, 16, generator=generator) < 1 / 3
    optimizer = torch.optim.Adam([z], lr=0.01)
    before = entropy(z).mean().item()
    for _ in range(steps):
        state = torch.arange(32).repeat_interleave(16)
        with torch.no_grad():
            token = torch.multinomial(z.softmax(-1), 16, replacement=True, generator=generator).flatten()
            reward = right[state, token].double().view(32, 16)
            advantages = ((reward - reward.mean(1, keepdim=True)) / (reward.std(1, keepdim=True) + 1e-6)).flatten()
            old_logp, h, _ = token_stats(z[state], token)
            weights = weigh(region_masks(old_logp, h, advantages))
        for _ in range(4):
            logp = z[state].log_softmax(-1).gather(1, token[:, None])[:, 0]
            everything = torch.ones_like(old_logp, dtype=torch.bool)
            loss, _ = clipped_surrogate(old_logp, logp, advantages, everything, (0.0, 0.2), (0.0, 0.2))
            optimizer.zero_grad()
            ((loss * weights).sum() / len(loss)).backward()
            optimizer.step()
    return entropy(z).mean().item() - before


@pytest.mark.parametrize("region, sign", [(E1, -1), (E2, 1), (E3, 1), (E4, -1)], ids=["E1", "E2", "E3", "E4"])
def test_training_on_one_region_moves_entropy_as_predicted(region, sign):
    """The paper's controlled experiment: E1 and E4 lower entropy, E2 and E3 raise it, for every
    seed."""
    changes = [train(lambda masks: masks[region].double(), seed) for seed in range(5)]
    print(f"E{region + 1}: " + ", ".join(f"{change:+.3f}" for change in changes))
    assert all(change * sign > 0.05 for change in changes), changes


# ---------------------------------------------------------------------- 6  the policy gradient is bounded by entropy


def test_the_policy_gradient_vanishes_with_entropy(z):
    """With |A| ≤ 1, ‖∇_z E_{a~p}[A(a)]‖ ≤ E‖∇_z ln p(a)‖ ≤ sqrt(1 − Σp²) ≤ sqrt(H): by Jensen, since E‖e_a − p‖² = 1 −
    Σp², and since 1 − p ≤ −ln p. Exact in logit space only; as entropy collapses so does the gradient (cf. arXiv
    2509.03493)."""
    p = z.softmax(-1)
    spread = 1 - (p * p).sum()
    assert spread <= entropy(z) + 1e-12
    norms = (1 - 2 * p + (p * p).sum()).clamp(min=0).sqrt()  # ‖e_a − p‖
    generator = torch.Generator().manual_seed(2)
    for _ in range(20):
        advantages = torch.rand(len(z), generator=generator) * 2 - 1
        gradient = p * (advantages - (p * advantages).sum())  # Σ_a p_a A(a) (e_a − p)
        assert gradient.norm() <= (p * norms).sum() + 1e-12
    assert (p * norms).sum() <= spread.clamp(min=0).sqrt() + 1e-12


# --------------------------------------------------------------------------------------------- 7  gains on the regions


@settings(deadline=None)  # a busy machine is not a failure
@given(st.integers(0, 2**31), st.integers(2, 30), st.floats(0.1, 8), st.lists(st.floats(-1, 1), min_size=2, max_size=6))
def test_with_the_exact_boundary_predicted_entropy_grows_with_the_gain_for_any_batch(seed, vocabulary, scale, gains):
    """d/du Σ −w(u) Â [f(a) − B] = Σ over the tokens in a region of |Â [f(a) − B]| ≥ 0: in E2 and E3 the weight grows
    and the term is positive, in E1 and E4 it shrinks and the term is negative."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(50, vocabulary, generator=generator) * scale
    logp, h, mean_f = token_stats(
        z, torch.randint(vocabulary, (50,), generator=generator)
    )  # any tokens, not only sampled ones
    advantages = torch.randn(50, generator=generator)
    masks, change = region_masks(logp, h, advantages, mean_f), entropy_change(logp, h, mean_f, advantages)
    predicted = [(region_weights(masks, u) * change).sum().item() for u in sorted(gains)]
    slope = change[masks.any(0)].abs().sum().item()
    for (low, a), (high, b) in zip(zip(sorted(gains), predicted), list(zip(sorted(gains), predicted))[1:]):
        assert b - a == pytest.approx((high - low) * slope, abs=1e-5 * (1 + slope))  # weights are float32


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_with_the_rule_a_gain_can_act_the_wrong_way(advantage):
    """The token of the counterexample by hand (p = 0.4 of (0.5, 0.4, 0.1)), alone in its batch: asked for more entropy,
    the rule takes weight from a token that raises it (E1), or gives weight to one that lowers it (E3). A real step
    confirms it."""
    z = torch.tensor([0.5, 0.4, 0.1]).log()
    stats, advantages = token_stats(z[None], torch.tensor([1])), torch.tensor([advantage])
    gradient = advantage * (torch.tensor([0.0, 1.0, 0.0]) - z.softmax(-1))
    moved = {}
    for boundary, mean_f in (("rule", None), ("exact", stats.mean_f)):
        masks = region_masks(stats.logp, stats.entropy, advantages, mean_f)
        down, up = (region_weights(masks, u).double() for u in (-0.5, 0.5))
        moved[boundary] = entropy(z + 1e-3 * up * gradient) - entropy(z + 1e-3 * down * gradient)
    assert moved["rule"] < -1e-6 and moved["exact"] > 1e-6


def test_on_average_the_rule_acts_the_right_way_too(z):
    """For sampled tokens a ~ p and advantages of either sign that do not depend on a: d/du = E|Â| (E|f| − B E[sgn f]) ≥
    0, since B = E[f] ≤ E|f| and E[sgn f] ≤ 1. So the rule's errors cost authority, never its sign, until reward and
    token go together."""
    logp, h, mean_f = stats_of_all(z)
    p, f = logp.exp(), token_term(logp, h)
    slope = torch.zeros(())
    for advantage in (1.0, -1.0):
        advantages = torch.full_like(logp, advantage)
        direction = region_weights(region_masks(logp, h, advantages), 1.0) - 1  # dw/du
        slope += 0.5 * (p * direction * entropy_change(logp, h, mean_f, advantages)).sum()
    torch.testing.assert_close(
        slope, (p * f.abs()).sum() - mean_f[0] * (p * torch.sign(logp + h)).sum(), atol=1e-12, rtol=0
    )
    assert slope >= -1e-12


def test_training_ends_at_more_entropy_the_larger_the_gain():
    """By the rule, over whole runs and with clipping: the order holds for every seed."""
    gains = (-1.0, -0.5, 0.0, 0.5, 1.0)
    for seed in range(3):
        changes = [train(lambda masks: region_weights(masks, u), seed) for u in gains]
        print("u " + ", ".join(f"{u:+.1f}: {change:+.3f}" for u, change in zip(gains, changes)))
        assert changes == sorted(changes) and changes[0] < changes[2] - 0.05 < changes[4] - 0.1


def test_an_entropy_bonus_is_surprisal_above_entropy_as_an_advantage(z):
    """∇H = E_{a ~ π_old}[ r (−ln p_a − H) ∇ ln p_a ], for any π_old: so an entropy bonus rewards surprising tokens
    (those of E2 and E4) and punishes expected ones, whatever they lead to, where a gain on the regions only weighs what
    the reward says."""
    logp, h, _ = stats_of_all(z)
    old = (z + 0.3 * torch.randn(len(z), generator=torch.Generator().manual_seed(3))).softmax(-1)
    p = logp.exp()
    weight = old * (p / old) * (-logp - h)
    score = weight - weight.sum() * p  # Σ_a weight_a (e_a − p)
    torch.testing.assert_close(score, -p * (logp + h), atol=1e-12, rtol=0)
