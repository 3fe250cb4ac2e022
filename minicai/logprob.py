"""Log-probability and entropy of chosen tokens, straight from hidden states.

Shapes: N tokens, D width, V vocabulary.
"""

import torch


def logprob_reference(hidden, weight, targets, temperature: float = 1.0, forbidden=None):
    """The definition: hidden [N, D], weight [V, D], targets [N] -> logp [N], entropy [N] (nats).

    forbidden [V] bool: ids that are never sampled and so take no part in the normalisation.
    """
    logits = hidden @ weight.T / temperature                                    # [N, V]
    if forbidden is not None:
        logits = logits.masked_fill(forbidden, -torch.inf)
    logp = logits.log_softmax(-1)
    entropy = -(logp.exp() * logp.masked_fill(logp == -torch.inf, 0)).sum(-1)   # 0 log 0 = 0
    return logp.gather(-1, targets[:, None]).squeeze(-1), entropy


class ChunkedLogprob(torch.autograd.Function):
    """The same numbers without ever holding [N, V]: a chunk of rows at a time, computed again in the backward."""

    @staticmethod
    def forward(ctx, hidden, weight, targets, temperature, forbidden, want_entropy, chunk):
        logp = hidden.new_empty(len(hidden), dtype=torch.float32)
        entropy = torch.empty_like(logp) if want_entropy else None
        lse = torch.empty_like(logp)
        for i in range(0, len(hidden), chunk):
            rows = slice(i, i + chunk)
            z = chunk_logits(hidden[rows], weight, temperature, forbidden)      # [n, V]
            lse[rows] = z.logsumexp(-1)
            logp[rows] = z.gather(-1, targets[rows, None]).squeeze(-1) - lse[rows]
            if want_entropy:
                z -= lse[rows, None]                                            # log p
                entropy[rows] = -torch.where(z == -torch.inf, 0, z.exp() * z).sum(-1)
        ctx.save_for_backward(hidden, weight, targets, lse, forbidden, entropy)
        ctx.temperature, ctx.chunk = temperature, chunk
        return logp, entropy

    @staticmethod
    def backward(ctx, g_logp, g_entropy):
        hidden, weight, targets, lse, forbidden, entropy = ctx.saved_tensors
        d_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        d_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        for i in range(0, len(hidden), ctx.chunk):
            rows = slice(i, i + ctx.chunk)
            logp = chunk_logits(hidden[rows], weight, ctx.temperature, forbidden) - lse[rows, None]
            p = logp.exp()
            d = p * -g_logp[rows, None]                                         # g (onehot - p)
            d.scatter_add_(-1, targets[rows, None], g_logp[rows, None])
            if entropy is not None and g_entropy is not None:
                logp = logp.masked_fill_(logp == -torch.inf, 0)
                d -= g_entropy[rows, None] * p * (logp + entropy[rows, None])   # - g_ent p (log p + H)
            d = (d / ctx.temperature).to(hidden.dtype)
            if d_hidden is not None:
                d_hidden[rows] = d @ weight
            if d_weight is not None:
                d_weight += d.T @ hidden[rows]
        return d_hidden, None if d_weight is None else d_weight.to(weight.dtype), None, None, None, None, None


def chunk_logits(hidden, weight, temperature, forbidden):
    z = (hidden @ weight.T).float() / temperature
    return z if forbidden is None else z.masked_fill_(forbidden, -torch.inf)


def token_logprobs(hidden, weight, targets, temperature: float = 1.0, forbidden=None, entropy: bool = False):
    """logp [N] (and entropy [N] if asked, else None) of targets [N], differentiable in hidden and weight."""
    chunk = max(16, 2 ** 22 // len(weight))
    return ChunkedLogprob.apply(hidden, weight, targets, temperature, forbidden, entropy, chunk)
