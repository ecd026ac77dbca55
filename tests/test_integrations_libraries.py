"""clipping.py, logprobs.py, methods/ and the advantages beside verl's and TRL's own functions, on random ragged
tensors. If a release of theirs changes what a formula means, it is seen here: pytest
tests/test_integrations_libraries.py

The differences that remain are in a table in integrations/README.md.
"""

import types
from collections import defaultdict
from importlib.util import find_spec

import pytest
import torch

from clipping import CLIP_HIGHER, EPS, M, U, clipped_surrogate, threshold
from grpo import group_advantages
from logprobs import token_stats
from methods import Tokens, make_method
from methods.base import top_share
from methods.entropy_bonus import EntropyBonus

PIP = "pip install --no-deps -r requirements-integrations.txt"
needs_verl = pytest.mark.skipif(not (find_spec("verl") and find_spec("ray")), reason=f"needs verl: {PIP}")
needs_trl = pytest.mark.skipif(not find_spec("trl"), reason=f"needs TRL: {PIP}")
TRL_ARGS = dict(delta=None, steps_per_generation=1, sapo_temperature_pos=1.0, sapo_temperature_neg=1.05)
LINES = [(EPS, EPS), (CLIP_HIGHER, EPS), (U, EPS), (EPS, M), (U, M)]


def a_batch(seed=0, rows=6, length=9):
    """(old_logp, logp with gradient, advantages, mask), each [rows, length]. Responses have 1 to `length` tokens.
    |log r| is up to 200, and one token with Â < 0 has a ratio of e^1.5."""
    generator = torch.Generator().manual_seed(seed)
    old_logp = -4 * torch.rand(rows, length, generator=generator)
    logp = (old_logp + 0.5 * torch.randn(rows, length, generator=generator)).clamp(max=-0.01)
    old_logp[0, 0], logp[0, 0], old_logp[1, 0], logp[1, 0] = -200.0, -0.01, -0.01, -200.0
    old_logp[2, 0], logp[2, 0] = -2.0, -0.5
    advantages = torch.randn(rows, length, generator=generator)
    advantages[0, 0], advantages[2, 0] = 1.0, -1.0
    mask = torch.arange(length) < torch.randint(1, length + 1, (rows, 1), generator=generator)
    return old_logp, logp.requires_grad_(), advantages, mask


def loss_and_gradient(loss, logp):
    return loss.item(), torch.autograd.grad(loss, logp)[0]


def by_verl(loss_mode, batch, mean="token-mean", **options):
    """(loss, gradient, metrics) of one of verl's registered losses, as a mean over tokens, or another mean."""
    from verl.trainer.ppo.core_algos import get_policy_loss_fn
    from verl.workers.config import ActorConfig, PolicyLossConfig

    fields = PolicyLossConfig.__dataclass_fields__
    policy_loss = PolicyLossConfig(**{name: options.pop(name) for name in list(options) if name in fields})
    config = ActorConfig(
        strategy="fsdp", rollout_n=1, ppo_micro_batch_size_per_gpu=1, policy_loss=policy_loss, **options
    )
    loss, metrics = get_policy_loss_fn(loss_mode)(*batch, mean, config)
    return *loss_and_gradient(loss, batch[1]), metrics


def by_trl(batch, entropy, **options):
    """(loss, gradient, metrics) of TRL's loss "bnpo", a mean over tokens, or another `loss_type`. The trainer is a
    stub: a namespace with the settings that its `_compute_loss` reads, and a model whose ln π and H are those of the
    batch."""
    from trl_runs import GRPOTrainer

    old_logp, logp, advantages, mask = batch
    settings = dict(
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level="token",
        beta=0.0,
        loss_type="bnpo",
        use_vllm=False,
        use_adaptive_entropy=False,
        current_gradient_accumulation_steps=1,
        epsilon_low=0.2,
        epsilon_high=0.2,
        entropy_coef=0.0,
    )
    trainer = types.SimpleNamespace(**(settings | options), args=types.SimpleNamespace(**TRL_ARGS))
    trainer._entropy_bonus_enabled = trainer.entropy_coef != 0
    trainer._get_per_token_logps_and_entropies = lambda *args, **kwargs: (logp, entropy, None)
    trainer._metrics = {"train": defaultdict(list)}
    trainer.model = types.SimpleNamespace(training=True)
    same = lambda tensor, reduction=None: tensor
    trainer.accelerator = types.SimpleNamespace(gather=same, reduce=same, sync_gradients=True, num_processes=1)
    ids = torch.zeros(mask.shape, dtype=torch.long)
    inputs = {"prompt_ids": ids, "prompt_mask": ids, "completion_ids": ids, "completion_mask": mask.long()}
    inputs |= {"advantages": advantages, "old_per_token_logps": old_logp, "num_items_in_batch": mask.sum()}
    loss = GRPOTrainer._compute_loss(trainer, None, inputs)
    return *loss_and_gradient(loss, logp), trainer._metrics["train"]


def mild(batch):
    """The batch with |log r| below 10, as TRL does not bound it, and with one advantage per response."""
    old_logp, logp, advantages, mask = batch
    logp = logp.detach().clamp(min=-10).requires_grad_()
    return old_logp.clamp(min=-10), logp, advantages[:, :1].expand_as(mask), mask


def wide(batch):
    """The batch with ratios of up to e², which a cap of 5 binds."""
    old_logp, logp, advantages, mask = mild(batch)
    return old_logp, (2 * (logp.detach() - old_logp)).clamp(-2, 2).add(old_logp).requires_grad_(), advantages, mask


def close(batch):
    """The batch with ratios that GSPO's bounds clip in some responses."""
    old_logp, logp, advantages, mask = mild(batch)
    return old_logp, (old_logp + 1e-3 * (logp.detach() - old_logp)).requires_grad_(), advantages, mask


def by_ours(objective, batch):
    """(loss, gradient, clip sides) of a method as the trainer computes them, on the response tokens alone."""
    old_logp, logp, advantages, mask = batch
    method, n = make_method(objective), int(mask.sum())
    everything, none = torch.ones(n, dtype=torch.bool), torch.zeros(4, n)
    response = torch.arange(len(mask))[:, None].expand_as(mask)[mask]
    tokens = Tokens(old_logp[mask], none[0], advantages[mask], everything, response, none)
    args = old_logp[mask], logp[mask], advantages[mask], everything, EPS, EPS
    loss, side = method.loss(*args, method.marks(tokens))
    return *loss_and_gradient((loss * method.weights(tokens, torch.Generator())).sum() / n, logp), side


def assert_same(ours, theirs):
    torch.testing.assert_close(torch.tensor(ours[0]), torch.tensor(theirs[0]))
    torch.testing.assert_close(ours[1], theirs[1])


@needs_verl
@pytest.mark.parametrize("upper, lower", LINES)
def test_surrogate_is_verls_without_the_third_clip(upper, lower):
    """To the bit, the thresholds given to verl as tensors."""
    batch = a_batch()
    mask, p = batch[3], batch[1].detach().exp()
    clips = dict(clip_ratio_high=threshold(p, upper), clip_ratio_low=threshold(p, lower))
    loss, gradient, metrics = by_verl("vanilla", batch, clip_ratio_c=1e30, **clips)
    ours, side = clipped_surrogate(*batch, upper, lower)
    assert loss_and_gradient(ours.sum() / mask.sum(), batch[1])[0] == loss
    ours, side = clipped_surrogate(*batch, upper, lower)
    assert torch.equal(loss_and_gradient(ours.sum() / mask.sum(), batch[1])[1], gradient)
    clipped = (side != 0).sum().item()
    assert clipped > 0 and round(metrics["actor/pg_clipfrac"] * mask.sum().item(), 3) == clipped
    assert by_verl("vanilla", batch, **clips)[0] != loss  # by default verl clips once more, at a ratio of 3


@needs_trl
@pytest.mark.parametrize("upper, lower", LINES)
def test_surrogate_is_trls(upper, lower):
    """To the bit where |log r| is below 20; TRL does not bound it, and its loss would be infinite."""
    old_logp, logp, advantages, mask = a_batch()
    batch = (old_logp.clamp(min=-10), logp.detach().clamp(min=-10).requires_grad_(), advantages, mask)
    p = batch[1].detach().exp()
    clips = dict(epsilon_high=threshold(p, upper), epsilon_low=threshold(p, lower))
    loss, gradient, metrics = by_trl(batch, torch.zeros(mask.shape), **clips)
    ours, side = clipped_surrogate(*batch, upper, lower)
    ours = loss_and_gradient(ours.sum() / mask.sum(), batch[1])
    assert ours[0] == loss and torch.equal(ours[1], gradient)
    for name, number in (("high", 1), ("low", -1)):
        found = metrics[f"clip_ratio/{name}_mean"][0] * mask.sum().item()
        assert round(found, 3) == (side == number).sum().item() > 0


@needs_trl
def test_entropy_bonus_is_trls():
    old_logp, logp, advantages, mask = a_batch(seed=1)
    batch = (old_logp.clamp(min=-10), logp.detach().clamp(min=-10).requires_grad_(), advantages, mask)
    entropy = -batch[1] * 0.5  # any function of the policy, so that the bonus has a gradient
    loss, gradient, _ = by_trl(batch, entropy, entropy_coef=0.3)
    ours, side = EntropyBonus(0.3).loss(*batch, EPS, EPS, None, -batch[1] * 0.5)
    ours = loss_and_gradient(ours.sum() / mask.sum(), batch[1])
    torch.testing.assert_close(torch.tensor(ours[0]), torch.tensor(loss))
    torch.testing.assert_close(ours[1], gradient)


@needs_verl
@pytest.mark.parametrize("objective", ["clip-cov", "kl-cov"])
def test_covariance_objectives_are_verls(objective):
    """With β = 1 and our share for both, and every candidate of Clip-Cov chosen, so that nothing is drawn. verl
    chooses by the current policy and we by π_old: a ratio of e^0.1 on all tokens leaves the choice, and clips
    nothing."""
    old_logp, _, advantages, mask = a_batch(seed=2, rows=40)
    old_logp, advantages = old_logp.clamp(min=-10), 2 * advantages
    batch = (old_logp, (old_logp + 0.1).requires_grad_(), advantages, mask)
    method = make_method(objective)
    everything, none = torch.ones(int(mask.sum()), dtype=torch.bool), torch.zeros(4, int(mask.sum()))
    tokens = Tokens(old_logp[mask], none[0], advantages[mask], everything, none[0], none)
    if objective == "clip-cov":
        loss, gradient, _ = by_verl("clip_cov", batch, clip_cov_ratio=1.0)
        method.share = 1.0
        chosen = method.weights(tokens, torch.Generator()) == 0
    else:
        loss, gradient, _ = by_verl("kl_cov", batch, ppo_kl_coef=1.0, kl_cov_ratio=0.05)
        method.share = 0.05
        chosen = method.marks(tokens) > 0
    assert 0 < chosen.sum() < mask.sum()
    logp, weights = batch[1].detach()[mask].requires_grad_(), method.weights(tokens, torch.Generator())
    ours, _ = method.loss(old_logp[mask], logp, advantages[mask], everything, EPS, EPS, method.marks(tokens))
    ours = loss_and_gradient((ours * weights).sum() / mask.sum(), logp)
    torch.testing.assert_close(torch.tensor(ours[0]), torch.tensor(loss))
    torch.testing.assert_close(ours[1], gradient[mask])
    assert not gradient[~mask].any()


@needs_verl
def test_dppo_has_verls_gradient():
    """verl writes the loss as −Â sg(r) ln π on the tokens that are kept, so only the gradient can be compared."""
    old_logp, logp, advantages, mask = a_batch(seed=5, rows=40)
    batch = (old_logp.clamp(min=-10), logp.detach().clamp(min=-10).requires_grad_(), advantages, mask)
    _, gradient, metrics = by_verl("dppo_tv", batch, clip_ratio_low=0.15, clip_ratio_high=0.15, clip_ratio_c=1e30)
    ours, side = make_method("dppo-tv").loss(*batch, EPS, EPS)
    torch.testing.assert_close(loss_and_gradient(ours.sum() / mask.sum(), batch[1])[1], gradient)
    clipped = (side != 0).sum().item()
    assert clipped > 0 and round(metrics["actor/pg_clipfrac"] * mask.sum().item(), 3) == clipped


@needs_verl
def test_dppo_kl_has_verls_gradient():
    """verl adds 1e-8 to 1 − p. No token of this batch is so near to the bound that it would matter."""
    batch = mild(a_batch(seed=7, rows=40))
    _, gradient, metrics = by_verl("dppo_kl", batch, clip_ratio_low=0.05, clip_ratio_high=0.05, clip_ratio_c=1e30)
    ours, side = make_method("dppo-kl").loss(*batch, EPS, EPS)
    torch.testing.assert_close(loss_and_gradient(ours.sum() / batch[3].sum(), batch[1])[1], gradient)
    clipped = (side != 0).sum().item()
    assert clipped > 0 and round(metrics["actor/pg_clipfrac"] * batch[3].sum().item(), 3) == clipped


@needs_trl
def test_cispo_is_trls():
    batch = wide(a_batch(seed=8, rows=40))
    loss, gradient, metrics = by_trl(batch, torch.zeros(batch[3].shape), loss_type="cispo", epsilon_high=5.0)
    ours = by_ours("cispo", batch)
    assert_same(ours, (loss, gradient))
    capped = (ours[2] != 0).sum().item()
    assert capped > 0 and round(metrics["cispo_clip_ratio"][0] * batch[3].sum().item(), 3) == capped


@needs_verl
def test_cispo_is_verls():
    batch = wide(a_batch(seed=8, rows=40))
    assert_same(by_ours("cispo", batch), by_verl("cispo", batch, clip_ratio_low=1.0, clip_ratio_high=4.0))


@needs_trl
def test_gspo_is_trls():
    batch = close(a_batch(seed=9, rows=40))
    options = dict(importance_sampling_level="sequence", loss_type="grpo", epsilon_low=3e-4, epsilon_high=4e-4)
    ours = by_ours("gspo", batch)
    assert_same(ours, by_trl(batch, torch.zeros(batch[3].shape), **options))
    assert {1, 0, -1} == set(ours[2].tolist())


@needs_verl
def test_gspo_is_verls():
    batch = close(a_batch(seed=9, rows=40))
    clips = dict(clip_ratio_low=3e-4, clip_ratio_high=4e-4)
    assert_same(by_ours("gspo", batch), by_verl("gspo", batch, mean="seq-mean-token-mean", **clips))


@needs_trl
def test_sapo_is_trls():
    batch = wide(a_batch(seed=10, rows=40))
    assert_same(by_ours("sapo", batch), by_trl(batch, torch.zeros(batch[3].shape), loss_type="sapo"))


@needs_verl
def test_sapo_is_verls():
    batch = wide(a_batch(seed=10, rows=40))
    assert_same(by_ours("sapo", batch), by_verl("sapo", batch))


@needs_trl
def test_tokens_of_high_entropy_are_trls():
    """The highest fifth of 100 tokens, which TRL finds with a quantile."""
    from trl_runs import GRPOTrainer

    entropy = torch.rand(20, 9, generator=torch.Generator().manual_seed(6))
    mask = torch.arange(180).view(20, 9) % 9 < 5
    alone = types.SimpleNamespace(gather=lambda x: x, pad_across_processes=lambda x, dim, pad_index: x)
    theirs = GRPOTrainer.get_high_entropy_mask(types.SimpleNamespace(accelerator=alone), entropy, mask, 1 - 0.2)
    ours = top_share(entropy[mask], mask[mask], 0.2)
    assert torch.equal(theirs[mask], ours) and ours.sum() == 20 and not theirs[~mask].any()


@needs_verl
def test_advantages_are_verls():
    from verl.trainer.ppo.core_algos import compute_grpo_outcome_advantage

    generator = torch.Generator().manual_seed(3)
    rewards, groups = (torch.rand(32, generator=generator) < 0.4).float(), torch.arange(32) // 8
    rewards[8:16] = 1.0  # a group that says nothing
    advantages, _ = compute_grpo_outcome_advantage(rewards[:, None], torch.ones(32, 1), groups.numpy())
    torch.testing.assert_close(group_advantages(rewards, 8), advantages.squeeze(1))


def some_logits():
    generator = torch.Generator().manual_seed(4)
    logits = 8 * torch.randn(7, 50, generator=generator, dtype=torch.float64)
    return logits, torch.randint(50, (7,), generator=generator)


@needs_verl
def test_logp_and_entropy_are_verls():
    from verl.utils.torch_functional import entropy_from_logits, logprobs_from_logits_v2

    logits, tokens = some_logits()
    stats = token_stats(logits, tokens)
    torch.testing.assert_close(stats.logp, logprobs_from_logits_v2(logits, tokens))
    torch.testing.assert_close(stats.entropy, entropy_from_logits(logits))


@needs_trl
def test_logp_and_entropy_are_trls():
    from trl.trainer.utils import entropy_from_logits, selective_log_softmax

    logits, tokens = some_logits()
    stats = token_stats(logits, tokens)
    torch.testing.assert_close(stats.logp, selective_log_softmax(logits, tokens))
    torch.testing.assert_close(stats.entropy, entropy_from_logits(logits))
