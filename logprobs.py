"""Log-probabilities and entropy of sampled tokens without ever holding a [tokens, vocabulary] float32 tensor.

Everything is computed `chunk` tokens at a time. This file needs torch and nothing else. Shapes: N tokens, n of them in
a chunk, hidden size D, vocabulary V. All functions take the same arguments:

    hidden        [N, D] the last hidden state at each token's position, together with the output head [V, D];
                  or, with head=None, [N, V] the logits themselves
    tokens        [N] int64, the sampled tokens
    temperature   the logits are divided by it
    chunk         the number of tokens whose logits exist at a time

The softmax is computed in float32, and in float64 for logits in float64. In bfloat16 it would be off by 0.1 nats.

On a GPU the time beside the matrix products is that of reading and writing logits. There torch.compile makes one or two
passes of the functions `_measure`, `_reduce` and `_gradient` (TORCH_COMPILE_DISABLE=1 leaves them as they are), and −p
is kept for the backward pass where that is cheap, see `_keeps`. **What ran on a GPU** (an H200, at commit d85cdc3) are
the products in bfloat16 with float32 results. The compiled functions and what is kept have run on a CPU only.
"""

import functools
import itertools
from collections.abc import Callable
from typing import NamedTuple

import torch

CHUNK = 256


class TokenStats(NamedTuple):
    logp: torch.Tensor  # [N] ln π(a|s)
    entropy: torch.Tensor  # [N] H, nats
    mean_f: torch.Tensor  # [N] B = Σ_x p_x² (ln p_x + H) = E_{x~p}[f(x)], see `clipping.token_term`


def _product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a @ b in float32, of bfloat16 tensors too. Rounded to bfloat16, logits would be off by 0.01 on average, and the
    head's gradient, a sum over chunks, would depend on the size of a chunk."""
    wide = torch.promote_types(a.dtype, torch.float32)
    if a.is_cuda and a.dtype == torch.bfloat16:
        return torch.mm(a, b, out_dtype=wide)
    return a.to(wide) @ b.to(wide)


def _logits(hidden: torch.Tensor, head: torch.Tensor | None) -> torch.Tensor:
    return hidden.to(torch.promote_types(hidden.dtype, torch.float32)) if head is None else _product(hidden, head.T)


# ----------------------------------------------------------------- passes over the logits of a chunk, which are [n, V]


@functools.cache
def _compiled(function: Callable) -> Callable:
    return torch.compile(function)  # once for the chunks' shape, and once more for a last chunk of any other length


def _fused(function: Callable) -> Callable:
    """Compiled for tensors on a GPU. On a CPU the vectorised operations of torch are as fast, and start at once."""

    @functools.wraps(function)
    def fused(logits, *rest):
        return (_compiled(function) if _on_gpu(logits) else function)(logits, *rest)

    return fused


def _on_gpu(tensor: torch.Tensor) -> bool:
    return tensor.is_cuda


def _scaled(logits, temperature: float):
    return logits if temperature == 1 else logits / temperature


def _clamp_(log_p: torch.Tensor) -> torch.Tensor:
    """A forbidden token has the logit −inf; 0 · ln 0 has to be 0 and not NaN."""
    return log_p.clamp_(min=torch.finfo(log_p.dtype).min)


@_fused
def _measure(logits, tokens, temperature: float):
    """(ln π(a), H, B), [n] each."""
    log_p = _scaled(logits, temperature).log_softmax(-1)
    logp = log_p.gather(-1, tokens[:, None]).squeeze(-1)
    p = _clamp_(log_p).exp()
    p_log_p = log_p.mul_(p)
    entropy = -p_log_p.sum(-1)
    return logp, entropy, p_log_p.mul_(p).sum(-1) + entropy * p.square_().sum(-1)


@_fused
def _reduce(logits, tokens, temperature: float, want_entropy: bool, kept: torch.Tensor | None):
    """(ln π(a), ln Σ exp, H or None), [n] each. Writes −p into `kept` [n, V]."""
    logits = _scaled(logits, temperature)
    highest = logits.amax(-1, keepdim=True)  # written out, since torch.compile makes one pass of just this form
    log_z = (logits - highest).exp_().sum(-1, keepdim=True).log() + highest
    logp = (logits.gather(-1, tokens[:, None]) - log_z).squeeze(-1)
    entropy = None
    if want_entropy or kept is not None:
        log_p = _clamp_(logits - log_z)
        p = log_p.exp()
        if kept is not None:
            kept.copy_(-p)
        if want_entropy:
            entropy = -log_p.mul_(p).sum(-1)
    return logp, log_z.squeeze(-1), entropy


@_fused
def _gradient(logits, temperature: float, log_z, entropy, grad, grad_entropy, dtype: torch.dtype):
    """−p grad − p (ln p + H) grad_entropy, [n, V] in `dtype`: the gradient in the logits, but for the sampled token.
    With log_z=None `logits` are −p."""
    log_p = logits.neg().to(grad.dtype).log() if log_z is None else _scaled(logits, temperature) - log_z[:, None]
    if entropy is None:
        return log_p.exp_().mul_(-grad[:, None]).to(dtype)
    p = _clamp_(log_p).exp()
    return log_p.add_(entropy[:, None]).mul_(grad_entropy[:, None]).add_(grad[:, None]).mul_(p.neg_()).to(dtype)


# --------------------------------------------------------------------------------------------------------- all tokens


@torch.no_grad()
def token_stats(hidden, tokens, head=None, temperature: float = 1.0, chunk: int = CHUNK) -> TokenStats:
    """ln π(a|s), H and B of N tokens, without gradient."""
    pairs = zip(hidden.split(chunk), tokens.split(chunk))
    return TokenStats(*map(torch.cat, zip(*(_measure(_logits(h, head), a, temperature) for h, a in pairs))))


def _keeps(hidden: torch.Tensor, head: torch.Tensor | None) -> bool:
    """Whether −p of all tokens is kept for the backward pass, in hidden's 2 bytes a number, instead of the logits being
    computed again: three products instead of four.

    On a GPU, up to a sixteenth of its memory: 5 GiB of 80, 17,000 tokens of Qwen2.5's vocabulary. Where layers are
    checkpointed that hardly raises the peak: it is freed before the first layer's backward pass, which needs about as
    much. The card's size decides, and not what is free at the moment: what is kept is rounded, so a run that was
    resumed, or has a neighbour, would differ in its last bits from one that was not. On a CPU memory is scarcer."""
    if head is None or not hidden.is_cuda or hidden.dtype != torch.bfloat16 or not torch.is_grad_enabled():
        return False
    size = len(hidden) * len(head) * hidden.element_size()
    return size <= torch.cuda.get_device_properties(hidden.device).total_memory / 16


class _TokenLogp(torch.autograd.Function):
    """ln softmax(hidden @ headᵀ / temperature)[a], whose gradient in the logits is 1[x = a] − p. With `want_entropy` it
    returns H too, whose gradient is −p (ln p + H). Backward computes each chunk's logits again, or with `keep` uses
    what the forward pass has kept. The sampled token's own gradient is computed in float32 from ln π either way: 1 − p
    of a p that was rounded is nothing at all where p is near 1."""

    @staticmethod
    def forward(ctx, hidden, tokens, head, temperature, chunk, want_entropy, keep):
        kept = hidden.new_empty(len(hidden), len(head)) if keep else None
        rows = zip(hidden.split(chunk), tokens.split(chunk), kept.split(chunk) if keep else itertools.repeat(None))
        parts = zip(*(_reduce(_logits(h, head), a, temperature, want_entropy, p) for h, a, p in rows))
        logp, log_z, entropy = (None if column[0] is None else torch.cat(column) for column in parts)
        if keep and not want_entropy:  # −p becomes 1[x = a] − p
            kept.scatter_(-1, tokens[:, None], -logp.expm1().to(kept.dtype)[:, None])
        ctx.save_for_backward(hidden, tokens, head, logp, log_z, entropy, kept)
        ctx.temperature, ctx.chunk = temperature, chunk
        return logp, entropy

    @staticmethod
    def backward(ctx, grad, grad_entropy):
        hidden, tokens, head, logp, log_z, entropy, kept = ctx.saved_tensors
        grad, want_head, dtype = grad / ctx.temperature, ctx.needs_input_grad[2], hidden.dtype
        if kept is not None and entropy is None:  # two products of all tokens, without a sum over chunks
            grad_hidden = _product(kept, head).mul_(grad[:, None]).to(dtype)
            grad_head = _product(kept.T, (hidden * grad[:, None]).to(dtype)).to(head.dtype) if want_head else None
            return grad_hidden, None, grad_head, None, None, None, None
        own = -logp.expm1() * grad  # the sampled token's
        if entropy is not None:
            grad_entropy = grad_entropy / ctx.temperature
            own -= logp.exp() * (logp + entropy) * grad_entropy
        grad_hidden, grad_head = torch.empty_like(hidden), None
        if want_head:
            grad_head = torch.zeros_like(head, dtype=torch.promote_types(head.dtype, torch.float32))
        # what was kept says that there is memory, and a sum over chunks reads and writes the head's gradient in each
        chunk = ctx.chunk if kept is None else 4 * ctx.chunk
        for i in range(0, len(tokens), chunk):
            here = slice(i, i + chunk)
            of_tokens = [None if column is None else column[here] for column in (log_z, entropy, grad, grad_entropy)]
            if kept is not None:
                d = _gradient(kept[here], 1.0, None, *of_tokens[1:], dtype)
            else:
                d = _gradient(_logits(hidden[here], head), ctx.temperature, *of_tokens, dtype)
            d.scatter_(-1, tokens[here, None], own[here, None].to(d.dtype))
            grad_hidden[here] = d if head is None else d @ head
            if want_head and d.is_cuda and d.dtype == torch.bfloat16:
                torch.addmm(grad_head, d.T, hidden[here], out_dtype=grad_head.dtype, out=grad_head)
            elif want_head:
                grad_head.addmm_(d.T.to(grad_head.dtype), hidden[here].to(grad_head.dtype))
            del d  # before the next chunk's logits
        return grad_hidden, None, grad_head.to(head.dtype) if want_head else None, None, None, None, None


def token_logp(hidden, tokens, head=None, temperature: float = 1.0, chunk: int = CHUNK) -> torch.Tensor:
    """ln π(a|s) [N], with gradient to `hidden` and `head`. For the backward pass it keeps them, a few times N numbers,
    and on a GPU perhaps p, see `_keeps`."""
    return _TokenLogp.apply(hidden, tokens, head, temperature, chunk, False, _keeps(hidden, head))[0]


def token_logp_and_entropy(hidden, tokens, head=None, temperature: float = 1.0, chunk: int = CHUNK):
    """(ln π(a|s), H), both [N] and with gradient. It needs N numbers and one chunk more than `token_logp`."""
    return _TokenLogp.apply(hidden, tokens, head, temperature, chunk, True, _keeps(hidden, head))
