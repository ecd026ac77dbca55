"""The clipped surrogate, token statistics and region masks as code: pytest tests/test_clipping.py (the mathematics:
test_theory.py)"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from clipping import clipped_surrogate, region_masks
from logprobs import token_logp, token_logp_and_entropy, token_stats
from methods.track import region_weights
from trainer.metrics import UpdateSums

STATIC = (0.0, 0.2)


def test_static_is_ppos_clip_to_the_bit():
    torch.manual_seed(0)
    old_logp, advantages = -torch.rand(1000) * 3, torch.randn(1000)
    logp = (old_logp + 0.3 * torch.randn(1000)).requires_grad_()
    loss, _ = clipped_surrogate(old_logp, logp, advantages, torch.ones(1000, dtype=torch.bool), STATIC, STATIC)
    ratio = torch.exp(logp - old_logp)
    plain = -torch.min(ratio * advantages, torch.clamp(ratio, 1 - 0.2, 1 + 0.2) * advantages)
    assert torch.equal(loss, plain)
    assert torch.equal(*(torch.autograd.grad(x.sum(), logp)[0] for x in (loss, plain)))


def sums(old_logp, logp, mask, side, surprising=None) -> dict[str, float]:
    """What the trainer adds up, by name."""
    surprising = torch.zeros_like(mask) if surprising is None else surprising
    return {name: value.item() for name, value in vars(UpdateSums.of(old_logp, logp, mask, side, surprising)).items()}


def test_clipping_knows_the_advantages_sign():
    #            above, Â > 0 | above, Â < 0 | below, Â < 0 | below, Â > 0 | inside | masked
    ratio = torch.tensor([1.5, 1.5, 0.5, 0.5, 1.1, 9.0])
    advantages = torch.tensor([1.0, -1.0, -1.0, 1.0, 1.0, 1.0])
    mask = torch.tensor([True] * 5 + [False])
    old_logp = torch.full((6,), -3.0)
    loss, side = clipped_surrogate(old_logp, old_logp + ratio.log(), advantages, mask, STATIC, STATIC)
    assert side.tolist() == [1, 0, -1, 0, 0, 0] and side.dtype == torch.int8
    torch.testing.assert_close(loss, torch.tensor([-1.2, 1.5, 0.8, -0.5, -1.1, 0.0]))


def test_sums_of_the_clipped_tokens():
    """Above: two tokens with p_old = 0.1 and 0.3, one of them surprising. Below: one with 0.5. The last is masked."""
    p_old = torch.tensor([0.1, 0.3, 0.5, 0.5, 0.2])
    ratio = torch.tensor([1.5, 2.0, 0.5, 1.1, 9.0])
    mask = torch.tensor([True] * 4 + [False])
    side = torch.tensor([1, 1, -1, 0, 0], dtype=torch.int8)
    surprising = torch.tensor([True, False, True, True, False])
    found = sums(p_old.log(), (p_old * ratio).log(), mask, side, surprising)
    kl = (ratio - 1 - ratio.log())[:4].double().sum().item()
    wanted = [4, 2, 1, 0.1 + 0.3, 0.5, 1, 1, kl, 0]
    assert list(found.values()) == pytest.approx(wanted, abs=20 * torch.finfo(torch.float32).eps)


@pytest.mark.parametrize("junk", [float("nan"), float("inf"), -float("inf")])
def test_masked_tokens_contribute_nothing_whatever_they_hold(junk):
    logp = torch.tensor([-1.0, junk, -2.0], requires_grad=True)
    mask, old_logp = torch.tensor([True, False, True]), torch.tensor([-1.0, -1.0, -2.0])
    loss, side = clipped_surrogate(old_logp, logp, torch.ones(3), mask, STATIC, STATIC)
    loss.sum().backward()
    assert loss.tolist() == [-1.0, 0.0, -1.0] and logp.grad.tolist() == [-1.0, 0.0, -1.0]
    found = sums(old_logp, logp, mask, side)
    assert found.pop("tokens") == 2 and set(found.values()) == {0.0}


def test_nothing_but_masked_tokens_is_zero_not_nan():
    logp, mask = torch.zeros(3, requires_grad=True), torch.zeros(3, dtype=torch.bool)
    loss, side = clipped_surrogate(torch.zeros(3), logp, torch.ones(3), mask, STATIC, STATIC)
    loss.sum().backward()
    assert loss.sum() == 0 and (logp.grad == 0).all()
    assert set(sums(torch.zeros(3), logp, mask, side).values()) == {0.0}


def test_a_large_ratio_that_is_not_insane_is_left_alone():
    """Â < 0 and r = e^15: the lower bound does not bind, and the gradient is r |Â|."""
    old, advantages = torch.tensor([-16.0], dtype=torch.float64), torch.tensor([-2.0], dtype=torch.float64)
    logp, mask = torch.tensor([-1.0], dtype=torch.float64, requires_grad=True), torch.tensor([True])
    loss, side = clipped_surrogate(old, logp, advantages, mask, STATIC, STATIC)
    loss.sum().backward()
    assert loss.item() == logp.grad.item() == pytest.approx(2 * math.exp(15))
    assert side == 0 and sums(old, logp, mask, side)["ratio_clamped"] == 0


def test_an_insane_ratio_is_clamped_in_log_space_and_counted():
    logp, mask = torch.tensor([-1.0, -1.0], requires_grad=True), torch.tensor([True, True])
    old_logp, advantages = torch.tensor([-200.0, -1.0]), torch.tensor([-1.0, 1.0])
    loss, side = clipped_surrogate(old_logp, logp, advantages, mask, STATIC, STATIC)
    loss.sum().backward()
    assert loss.isfinite().all() and logp.grad.isfinite().all()
    assert sums(old_logp, logp, mask, side)["ratio_clamped"] == 1


def plain_stats(logits: torch.Tensor, tokens: torch.Tensor):
    p, log_p = logits.softmax(-1), logits.log_softmax(-1)
    entropy = -(p * log_p).sum(-1)
    return log_p[range(len(tokens)), tokens], entropy, (p * p * (log_p + entropy[:, None])).sum(-1)


@settings(deadline=None)  # a busy machine is not a failure
@given(
    n=st.integers(1, 30),
    vocabulary=st.integers(2, 40),
    chunk=st.integers(1, 40),
    temperature=st.floats(0.3, 3),
    with_head=st.booleans(),
)
def test_stats_and_gradients_equal_the_plain_formulas_for_any_chunk(n, vocabulary, chunk, temperature, with_head):
    generator = torch.Generator().manual_seed(n * 1000 + vocabulary)
    tokens = torch.randint(vocabulary, (n,), generator=generator)
    head = (
        torch.randn(vocabulary, 8, generator=generator, dtype=torch.float64, requires_grad=True) if with_head else None
    )
    hidden = torch.randn(
        n, 8 if with_head else vocabulary, generator=generator, dtype=torch.float64, requires_grad=True
    )
    logits = (hidden @ head.T if with_head else hidden) / temperature
    expected = plain_stats(logits, tokens)
    for got, want in zip(token_stats(hidden, tokens, head, temperature, chunk), expected):
        assert not got.requires_grad
        torch.testing.assert_close(got, want.detach(), atol=1e-12, rtol=0)
    logp = token_logp(hidden, tokens, head, temperature, chunk)
    torch.testing.assert_close(logp, expected[0], atol=1e-12, rtol=0)
    weights = torch.randn(n, generator=generator, dtype=torch.float64)
    leaves = [hidden, head] if with_head else [hidden]
    for got, want in zip(*(torch.autograd.grad((x * weights).sum(), leaves) for x in (logp, expected[0]))):
        torch.testing.assert_close(got, want, atol=1e-12, rtol=0)
    logits = (hidden @ head.T if with_head else hidden) / temperature
    expected, both = plain_stats(logits, tokens), token_logp_and_entropy(hidden, tokens, head, temperature, chunk)
    assert torch.equal(both[0], logp)
    torch.testing.assert_close(both[1], expected[1], atol=1e-12, rtol=0)
    other = torch.randn(n, generator=generator, dtype=torch.float64)
    for got, want in zip(
        *(torch.autograd.grad((x * weights).sum() + (y * other).sum(), leaves) for x, y in (both, expected[:2]))
    ):
        torch.testing.assert_close(got, want, atol=1e-12, rtol=0)


def test_entropy_without_a_use_for_it_leaves_the_gradient_of_logp_as_it_is():
    hidden, head, tokens = (
        torch.randn(7, 8, requires_grad=True),
        torch.randn(30, 8, requires_grad=True),
        torch.randint(30, (7,)),
    )
    both = [
        torch.autograd.grad(f(hidden, tokens, head, chunk=3).square().sum(), (hidden, head))
        for f in (token_logp, lambda *args, **kwargs: token_logp_and_entropy(*args, **kwargs)[0])
    ]
    assert all(torch.equal(*pair) for pair in zip(*both))


def test_bf16_logits_are_accumulated_in_float32():
    logits = (torch.randn(5, 5000) * 3).bfloat16()
    tokens = torch.arange(5)
    for got, want in zip(token_stats(logits, tokens), plain_stats(logits.float(), tokens)):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


def test_forbidden_tokens_have_no_part_in_entropy():
    logits = torch.tensor([[0.0, 1.0, -torch.inf], [3.0, -torch.inf, -torch.inf]])
    stats = token_stats(logits, torch.tensor([0, 0]))
    want = plain_stats(torch.tensor([[0.0, 1.0]]), torch.tensor([0]))
    for got, expected in zip(stats, want):
        torch.testing.assert_close(got[0], expected[0])
    assert [column[1].item() for column in stats] == [0.0, 0.0, 0.0]
    logits.requires_grad_()
    token_logp_and_entropy(logits, torch.tensor([0, 0]))[1].sum().backward()
    plain = torch.tensor([[0.0, 1.0]], requires_grad=True)
    plain_stats(plain, torch.tensor([0]))[1].sum().backward()
    torch.testing.assert_close(logits.grad, torch.tensor([[*plain.grad[0].tolist(), 0.0], [0.0, 0.0, 0.0]]))


@pytest.mark.parametrize("chunk", [1, 16, 512])
def test_sums_over_chunks_are_in_float32(chunk):
    """All terms of the head's gradient have one sign, so that a sum in bfloat16 would lose what is small beside it."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.rand(512, 8, generator=generator).bfloat16()
    head = torch.randn(30, 8, generator=generator).bfloat16().requires_grad_()
    tokens = torch.zeros(512, dtype=torch.int64)
    token_logp(hidden, tokens, head, chunk=chunk).sum().backward()
    p = (hidden.double() @ head.detach().double().T).softmax(-1)
    exact = (torch.nn.functional.one_hot(tokens, 30) - p).T @ hidden.double()
    # bfloat16 rounds twice, by 2^-8 at most: the terms 1[x = a] − p, and the result; float32 adds 512 · 2^-24 at most
    torch.testing.assert_close(head.grad.double(), exact, rtol=2 * 2**-8 + 2**-14, atol=0)


class LargestTensor(TorchDispatchMode):
    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.elements = max([self.elements, *(t.numel() for t in tree_leaves(out) if isinstance(t, torch.Tensor))])
        return out


def test_tokens_by_vocabulary_never_exists_whole_forward_or_backward():
    n, vocabulary, chunk = 512, 3000, 32
    hidden, head = torch.randn(n, 8, requires_grad=True), torch.randn(vocabulary, 8, requires_grad=True)
    tokens = torch.randint(vocabulary, (n,))
    with LargestTensor() as largest:
        token_stats(hidden, tokens, head, chunk=chunk)
        token_logp(hidden, tokens, head, chunk=chunk).sum().backward()
        sum(token_logp_and_entropy(hidden, tokens, head, chunk=chunk)).sum().backward()
    assert chunk * vocabulary <= largest.elements < n * vocabulary / 8


@settings(deadline=None)  # a busy machine is not a failure
@given(
    st.lists(st.tuples(st.floats(-8, 0), st.floats(0, 5), st.floats(0, 0.5), st.floats(-2, 2)), min_size=1, max_size=50)
)
def test_regions_are_disjoint_and_ties_and_zero_advantages_are_in_none(tokens):
    logp, entropy, mean_f, advantages = torch.tensor(tokens, dtype=torch.float64).T
    for masks in (region_masks(logp, entropy, advantages), region_masks(logp, entropy, advantages, mean_f)):
        assert masks.dtype == torch.bool and (masks.sum(0) <= 1).all()
        assert not masks[:, advantages == 0].any()
    tied = region_masks(-entropy, entropy, advantages)
    assert not tied.any()


def test_regions_by_hand():
    # surprisal 0.1 or 2.0 against H = 1
    logp, entropy = torch.tensor([-0.1, -2.0, -0.1, -2.0, -1.0, -0.1]), torch.ones(6)
    masks = region_masks(logp, entropy, torch.tensor([1.0, 1.0, -1.0, -1.0, 1.0, 0.0]))
    assert masks.int().tolist() == [[1, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0], [0, 0, 0, 1, 0, 0]]


def test_region_weights_by_hand():
    masks = region_masks(
        torch.tensor([-0.1, -2.0, -0.1, -2.0, -1.0, -0.1]),
        torch.ones(6),
        torch.tensor([1.0, 1.0, -1.0, -1.0, 1.0, 0.0]),
    )
    assert region_weights(masks, 0.25).tolist() == [0.75, 1.25, 1.25, 0.75, 1.0, 1.0]
    assert region_weights(masks, -1.0).tolist() == [2.0, 0.0, 0.0, 2.0, 1.0, 1.0]


def weighted_batch():
    generator = torch.Generator().manual_seed(0)
    old_logp, entropy = -torch.rand(1000, generator=generator) * 3, torch.rand(1000, generator=generator) * 2
    advantages = torch.randn(1000, generator=generator)
    logp = (old_logp + 0.3 * torch.randn(1000, generator=generator)).requires_grad_()
    return old_logp, logp, advantages, region_masks(old_logp, entropy, advantages)


def test_without_a_gain_it_is_grpo_to_the_bit():
    old_logp, logp, advantages, masks = weighted_batch()
    loss, _ = clipped_surrogate(old_logp, logp, advantages, torch.ones(1000, dtype=torch.bool), STATIC, STATIC)
    weighted = loss * region_weights(masks, 0.0)
    assert torch.equal(weighted, loss)
    assert torch.equal(*(torch.autograd.grad(x.sum(), logp, retain_graph=True)[0] for x in (weighted, loss)))


@pytest.mark.parametrize("gain", [-1.0, -0.4, 0.7, 1.0])
def test_weighting_the_loss_is_weighting_the_advantage(gain):
    """So a gain leaves alone which tokens are clipped, and a token is clipped or not whatever its weight."""
    old_logp, logp, advantages, masks = weighted_batch()
    mask, weights = torch.ones(1000, dtype=torch.bool), region_weights(masks, gain)
    losses = [
        clipped_surrogate(old_logp, logp, a, mask, (-0.25, 0.5), STATIC)[0] for a in (advantages, weights * advantages)
    ]
    torch.testing.assert_close(losses[0] * weights, losses[1])
    torch.testing.assert_close(
        *(torch.autograd.grad(x.sum(), logp, retain_graph=True)[0] for x in (losses[0] * weights, losses[1]))
    )
