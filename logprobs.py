"""Log-probabilities and entropy of sampled tokens without ever holding a [tokens, vocabulary] float32 tensor.

Everything is computed `chunk` tokens at a time. This file needs torch and nothing else. Shapes: N tokens, hidden size
D, vocabulary V. All functions take the same arguments:

    hidden        [N, D] the last hidden state at each token's position, together with the output head [V, D];
                  or, with head=None, [N, V] the logits themselves
    tokens        [N] int64, the sampled tokens
    temperature   the logits are divided by it
    chunk         the number of tokens whose logits exist at a time

The softmax is computed in float32, and in float64 for logits in float64. In bfloat16 it would be off by 0.1 nats.
"""

from typing import NamedTuple

import torch

CHUNK = 256


class TokenStats(NamedTuple):
    logp: torch.Tensor  # [N] ln π(a|s)
    entropy: torch.Tensor  # [N] H, nats
    mean_f: torch.Tensor  # [N] B = Σ_x p_x² (ln p_x + H) = E_{x~p}[f(x)], see `clipping.token_term`


def _logits(hidden: torch.Tensor, head: torch.Tensor | None, temperature: float) -> torch.Tensor:
    """Products of bfloat16 tensors are computed in float32, here and in the backward pass. Rounded to bfloat16, logits
    would be off by 0.01 on average, and the head's gradient, a sum over chunks, would depend on the size of a chunk."""
    wide = torch.promote_types(hidden.dtype, torch.float32)
    if head is None:
        logits = hidden.to(wide)
    elif hidden.is_cuda and hidden.dtype == torch.bfloat16:  # not yet run
        logits = torch.mm(hidden, head.T, out_dtype=wide)
    else:
        logits = hidden.to(wide) @ head.T.to(wide)
    return logits / temperature


def _clamp(log_p: torch.Tensor) -> torch.Tensor:
    """A forbidden token has the logit −inf; 0 · ln 0 has to be 0 and not NaN."""
    return log_p.clamp_(min=torch.finfo(log_p.dtype).min)


@torch.no_grad()
def token_stats(hidden, tokens, head=None, temperature: float = 1.0, chunk: int = CHUNK) -> TokenStats:
    """ln π(a|s), H and B of N tokens in one pass, without gradient."""
    chunks = []
    for h, a in zip(hidden.split(chunk), tokens.split(chunk)):
        log_p = _logits(h, head, temperature).log_softmax(-1)  # [chunk, V]
        logp = log_p.gather(-1, a[:, None]).squeeze(-1)
        p = _clamp(log_p).exp()
        p_log_p = log_p.mul_(p)
        entropy = -p_log_p.sum(-1)
        mean_f = (p * p_log_p).sum(-1) + entropy * p.square().sum(-1)
        chunks.append((logp, entropy, mean_f))
    return TokenStats(*(torch.cat(column) for column in zip(*chunks)))


class _TokenLogp(torch.autograd.Function):
    """ln softmax(hidden @ headᵀ / temperature)[a]. Backward computes each chunk's logits again instead of keeping them.
    With `want_entropy` it returns H too, whose gradient in the logits is −p (ln p + H)."""

    @staticmethod
    def forward(ctx, hidden, tokens, head, temperature, chunk, want_entropy):
        logp, log_z, entropy = [], [], []
        for h, a in zip(hidden.split(chunk), tokens.split(chunk)):
            logits = _logits(h, head, temperature)
            log_z.append(logits.logsumexp(-1))
            logp.append(logits.gather(-1, a[:, None]).squeeze(-1) - log_z[-1])
            if want_entropy:
                log_p = _clamp(logits.sub_(log_z[-1][:, None]))
                entropy.append(-(log_p.exp() * log_p).sum(-1))
        entropy = torch.cat(entropy) if want_entropy else None
        ctx.save_for_backward(hidden, tokens, head, torch.cat(log_z), entropy)
        ctx.temperature, ctx.chunk = temperature, chunk
        return torch.cat(logp), entropy

    @staticmethod
    def backward(ctx, grad, grad_entropy):
        hidden, tokens, head, log_z, entropy = ctx.saved_tensors
        grad_hidden, grad_head = torch.empty_like(hidden), None
        if ctx.needs_input_grad[2]:
            grad_head = torch.zeros_like(head, dtype=torch.promote_types(head.dtype, torch.float32))
        for i in range(0, len(tokens), ctx.chunk):
            j = i + ctx.chunk
            log_p = _logits(hidden[i:j], head, ctx.temperature).sub_(log_z[i:j, None])
            d = log_p.exp().neg_()  # −p
            if entropy is not None:
                entropy_d = _clamp(log_p).add_(entropy[i:j, None]).mul_(d)  # −p (ln p + H)
            d.scatter_add_(-1, tokens[i:j, None], torch.ones_like(d[:, :1]))  # 1[x = a] − p
            d.mul_(grad[i:j, None] / ctx.temperature)
            if entropy is not None:
                d += entropy_d.mul_(grad_entropy[i:j, None] / ctx.temperature)
            d = d.to(hidden.dtype)
            grad_hidden[i:j] = d if head is None else d @ head
            if grad_head is not None and hidden.is_cuda and hidden.dtype == torch.bfloat16:  # not yet run
                torch.addmm(grad_head, d.T, hidden[i:j], out_dtype=grad_head.dtype, out=grad_head)
            elif grad_head is not None:
                grad_head.addmm_(d.T.to(grad_head.dtype), hidden[i:j].to(grad_head.dtype))
        return grad_hidden, None, None if grad_head is None else grad_head.to(head.dtype), None, None, None


def token_logp(hidden, tokens, head=None, temperature: float = 1.0, chunk: int = CHUNK) -> torch.Tensor:
    """ln π(a|s) [N], with gradient to `hidden` and `head`. For the backward pass it keeps them and N numbers."""
    return _TokenLogp.apply(hidden, tokens, head, temperature, chunk, False)[0]


def token_logp_and_entropy(hidden, tokens, head=None, temperature: float = 1.0, chunk: int = CHUNK):
    """(ln π(a|s), H), both [N] and with gradient. It needs N numbers and one chunk more than `token_logp`."""
    return _TokenLogp.apply(hidden, tokens, head, temperature, chunk, True)
