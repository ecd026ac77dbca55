"""The head's fast paths, which are a GPU's, on the CPU: pytest tests/test_logprobs.py. Its mathematics is tested in
test_clipping.py. On a GPU: pytest -m gpu tests/test_logprobs.py"""

import os
import shutil

import pytest
import torch

import logprobs
from logprobs import TokenStats, token_logp, token_logp_and_entropy, token_stats

GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
DEVICES = ["cpu", pytest.param("cuda", marks=GPU)]
has_compiler = shutil.which("g++") or shutil.which("clang++")


def inputs(n, width, vocabulary, dtype, device="cpu", scale=1.0):
    """(hidden, tokens, head), whose logits have a standard deviation of `scale`."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(n, width, generator=generator).to(device, dtype)
    head = (torch.randn(vocabulary, width, generator=generator) * scale / width**0.5).to(device, dtype)
    return hidden, torch.randint(vocabulary, (n,), generator=generator).to(device), head


def exact(hidden, tokens, head, temperature=1.0):
    """(ln π, H, B) in float64 of the whole logits."""
    log_p = (hidden.double() @ head.double().T / temperature).log_softmax(-1)
    entropy = -(log_p.exp() * log_p).sum(-1)
    mean_f = (log_p.exp().square() * (log_p + entropy[:, None])).sum(-1)
    return TokenStats(log_p.gather(-1, tokens[:, None]).squeeze(-1), entropy, mean_f)


def gradients(function, hidden, tokens, head, weights):
    """Of the sum of the outputs, each times its column of `weights`, in hidden and head."""
    hidden, head = hidden.clone().requires_grad_(), head.clone().requires_grad_()
    loss = sum((out * w).sum() for out, w in zip(function(hidden, tokens, head), weights))
    return torch.autograd.grad(loss, (hidden, head))


@pytest.fixture
def keeps(monkeypatch):
    """Keeps p where a GPU would."""
    monkeypatch.setattr(logprobs, "_keeps", lambda hidden, head: True)


@pytest.mark.parametrize("chunk", [5, 8, 100])
def test_keeping_p_changes_nothing_but_the_rounding(chunk, keeps):
    hidden, tokens, head = inputs(37, 6, 50, torch.float64)
    weights = torch.randn(2, 37, dtype=torch.float64)
    for function, plain in (
        (lambda *a: [token_logp(*a, temperature=0.7, chunk=chunk)], lambda *a: exact(*a, 0.7)[:1]),
        (lambda *a: token_logp_and_entropy(*a, temperature=0.7, chunk=chunk), lambda *a: exact(*a, 0.7)[:2]),
    ):
        for got, want in zip(*(gradients(f, hidden, tokens, head, weights) for f in (function, plain))):
            torch.testing.assert_close(got, want)


def test_the_gradient_of_a_nearly_certain_token_survives_bf16(keeps):
    """p = 1 − 1e-4 rounds to 1, so that 1 − p of the rounded p would be 0."""
    hidden, tokens = torch.eye(2).bfloat16(), torch.tensor([0, 1])
    head = (torch.eye(2) * 9.1875).bfloat16()  # logits (9.1875, 0)
    (got, _), (want, _) = (
        gradients(f, hidden, tokens, head, torch.ones(1, 2)) for f in (lambda *a: [token_logp(*a)], exact)
    )
    assert 0 < want.abs().max() < 1e-3
    # rounded once in 1[x = a] − p, once in the result: 2^-8 each at most
    torch.testing.assert_close(got, want, rtol=2.01 * 2**-8, atol=0)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kept", [False, True])
def test_bf16_weights_cost_no_accuracy(device, kept, monkeypatch):
    """Of ln p; and the gradients are rounded to bf16, no more."""
    monkeypatch.setattr(logprobs, "_keeps", lambda hidden, head: kept)
    hidden, tokens, head = inputs(512, 128, 5000, torch.bfloat16, device)
    want, weights = exact(hidden, tokens, head), torch.ones(2, 512, device=device)
    both = token_logp_and_entropy(hidden, tokens, head, chunk=100)
    for got, expected in zip((token_logp(hidden, tokens, head, chunk=100), *both), (want.logp, *want[:2])):
        assert got.dtype == torch.float32 and (got - expected).abs().mean() < 1e-5
    for got, expected in zip(token_stats(hidden, tokens, head, chunk=100), want):
        assert (got - expected).abs().mean() < 1e-5
    wide = hidden.double(), tokens, head.double()
    for function, plain in ((lambda *a: [token_logp(*a, chunk=100)], 1), (token_logp_and_entropy, 2)):
        found = gradients(function, hidden, tokens, head, weights)
        for got, expected in zip(found, gradients(lambda *a, n=plain: exact(*a)[:n], *wide, weights)):
            # three roundings by 2^-9 of the size at most: p, the gradient in the logits, the result; and ln p's share
            assert (got - expected).norm() / expected.norm() < 4 * 2**-9


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_recomputing_takes_little_more_memory_than_trl():
    pytest.importorskip("trl")
    from study.gpu_check import check_head

    found = check_head(torch.device("cuda"), "1.5b")
    assert found["head, ours, p recomputed: peak GiB"] <= 1.3 * found["head, TRL, with entropy: peak GiB"]


@pytest.mark.skipif(
    "ATEN_CPU_CAPABILITY" in os.environ, reason="inductor's code is for the processor's own instructions"
)
@pytest.mark.skipif(not has_compiler, reason="torch.compile needs a C++ compiler here")
def test_compiled_functions_compute_the_same(monkeypatch):
    """About 20 seconds. The last chunk of `token_stats` is shorter, so that its function is compiled twice."""
    hidden, tokens, head = inputs(32, 16, 400, torch.float32)
    weights = torch.randn(2, 32)
    one, two = (lambda *a: [token_logp(*a, 0.7, 16)]), (lambda *a: token_logp_and_entropy(*a, 0.7, 16))

    def everything():
        found = [*token_stats(hidden[:21], tokens[:21], head, 0.7, 16)]
        for kept in (False, True):
            monkeypatch.setattr(logprobs, "_keeps", lambda hidden, head: kept)
            for f in (one, two):
                found += [*f(hidden, tokens, head), *gradients(f, hidden, tokens, head, weights)]
        return found

    want, compiled = everything(), set()
    monkeypatch.setattr(logprobs, "_on_gpu", lambda tensor: True)
    compile_ = logprobs._compiled
    monkeypatch.setattr(logprobs, "_compiled", lambda f: compiled.add(f.__name__) or compile_(f))
    for got, expected in zip(everything(), want, strict=True):
        # sums of 400 numbers in another order: 400 · 2^-24 of their size at most
        torch.testing.assert_close(got, expected, rtol=400 * 2**-24, atol=400 * 2**-24)
    assert compiled == {"_measure", "_reduce", "_gradient"}
