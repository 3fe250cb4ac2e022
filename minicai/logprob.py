"""Log-probability and entropy of chosen tokens, straight from hidden states:
every stage asks for them here.

A policy's logits are the largest thing in RLHF: 8,192 tokens of a 152k vocabulary are 5 GB in
float32, and autograd keeps two of them. But of each row only two numbers are wanted. So the fused
version takes some rows at a time, reduces their logits at once, and in the backward computes them
again: up to a third more multiplications (2 forward, 2 again, 4 backward, instead of 2 and 4), and
nothing of size [N, V] exists. The last rows' logits are still there when the backward begins.

What happens to the rows between the matrix products is plain torch below;
on CUDA it is left to logprob_triton.py.

Shapes: N tokens, D width, V vocabulary, n rows of a chunk.
"""

import functools
import sys

import torch
import torch.nn.functional as F


def logprob_reference(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor,
                      temperature: float = 1.0, forbidden: torch.Tensor | None = None,
                      ) -> tuple[torch.Tensor, torch.Tensor]:
    """The definition: hidden [N, D], weight [V, D], targets [N] -> logp [N], entropy [N], in nats.

    forbidden [V] bool: ids that are never sampled, so they take no part in the normalisation.
    """
    logits = (hidden @ weight.T).to(at_least_float32(hidden.dtype)) / temperature  # [N, V]
    if forbidden is not None:
        logits = logits.masked_fill(forbidden, -torch.inf)
    logp = logits.log_softmax(-1)
    entropy = -(logp.exp() * logp.masked_fill(logp == -torch.inf, 0)).sum(-1)  # 0 log 0 = 0
    return logp.gather(-1, targets[:, None]).squeeze(-1), entropy


def token_logprobs(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor,
                   temperature: float = 1.0, forbidden: torch.Tensor | None = None,
                   entropy: bool = False,
                   scratch_bytes: int | None = None) -> tuple[torch.Tensor, torch.Tensor | None]:
    """logprob_reference in chunks: logp [N] and, if asked for,
    entropy [N] (else None), at least float32.

    Differentiable in hidden and weight. Products are taken in hidden's type (autocast's, where that
    is on), everything else in float32. scratch_bytes bounds a chunk's logits; by default they stay
    near a CPU's cache, or take 512 MB, or 2,048 rows of them.
    """
    kind, row = hidden.device.type, 4 * len(weight)
    if torch.is_autocast_enabled(kind):
        hidden = hidden.to(torch.get_autocast_dtype(kind))
    if kind == "cuda":              # where the kernels need no second table, in float32
        row = hidden.element_size() * len(weight)
    # Few rows make slow products: each reads all of the weight and of its gradient.
    if scratch_bytes is None:
        scratch_bytes = max(128 * row, 2 * 2**20) if kind == "cpu" else max(2048 * row, 512 * 2**20)
    most = max(1, scratch_bytes // row)
    rows = most if kind == "cpu" else like_chunks(len(hidden), most)
    return ChunkedLogprob.apply(hidden, weight, targets, temperature, forbidden, entropy, rows)


def like_chunks(n: int, most: int) -> int:
    """Rows of a chunk, at most `most`, that cut n rows into as few chunks as that allows, and none
    into a rest of a few rows, which would read the weight as often as all others; whole tiles of
    the products (128 rows) if there is room."""
    rows = -(-n // max(1, -(-n // most)))
    return max(1, min(most, -(-rows // 128) * 128))


class ChunkedLogprob(torch.autograd.Function):
    """`rows` tokens at a time; nothing but the inputs and a few numbers a row is kept for the
    backward."""

    @staticmethod
    def forward(ctx, hidden, weight, targets, temperature, forbidden, want_entropy, rows):
        """Log-probs [N] and, if wanted, entropies [N], in chunks of `rows`;
        [N]-sized statistics are kept."""
        # An entropy that is only looked at costs the backward nothing.
        ctx.set_materialize_grads(False)
        low, bias = weight.to(hidden.dtype), forbidding_bias(forbidden, hidden.dtype)
        ctx.temperature, ctx.rows = temperature, rows
        statistics, ctx.gradient = row_functions(hidden)
        found = []
        for i in range(0, max(1, len(hidden)), rows):  # no tokens at all: one empty chunk
            part = slice(i, i + rows)
            z = None                                    # two chunks' logits never exist at once
            z = F.linear(hidden[part], low, bias)
            found.append(statistics(z, targets[part], temperature, want_entropy))
        ctx.last = [z] if any(ctx.needs_input_grad) else []
        # [N] each; kept[0] is the entropy
        logp, *kept = (torch.cat(column) for column in zip(*found))
        # `low` is the weight itself if both are of one type.
        ctx.save_for_backward(hidden, low, targets, bias, *kept)
        ctx.weight_type = weight.dtype
        return logp, kept[0] if want_entropy else None

    @staticmethod
    def backward(ctx, g_logp, g_entropy):
        """Gradients of hidden [N,D] and weight [V,D]; each chunk's logits are made once more, but
        for the last one's, where this begins."""
        hidden, low, targets, bias, *kept = ctx.saved_tensors
        wide = at_least_float32(hidden.dtype)
        d_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        # In float32 whatever the type of the products:
        # small terms would be lost in a bfloat16 sum of thousands.
        d_weight = torch.empty_like(low, dtype=wide) if ctx.needs_input_grad[1] else None
        if d_weight is not None and not len(hidden):
            d_weight.zero_()
        g = (hidden.new_zeros(len(hidden), dtype=wide) if g_logp is None
             else g_logp / ctx.temperature)   # [N]
        ge = None if g_entropy is None else g_entropy / ctx.temperature  # [N]
        starts = range(0, len(hidden), ctx.rows)[::-1]
        for i in starts:
            part = slice(i, i + ctx.rows)
            z = ctx.last.pop() if ctx.last else F.linear(hidden[part], low, bias)
            d = ctx.gradient(z, targets[part], ctx.temperature, g[part],
                             None if ge is None else ge[part], *(x[part] for x in kept))  # [n, V]
            if d_hidden is not None:
                torch.mm(d, low, out=d_hidden[part])
            if d_weight is not None:
                # The first product is set, the others are added.
                add_product(d_weight, d.T, hidden[part], beta=int(i != starts[0]))
            del d, z                                    # before the next chunk's logits are made
        d_weight = None if d_weight is None else d_weight.to(ctx.weight_type)
        return d_hidden, d_weight, None, None, None, None, None


def add_product(total: torch.Tensor, a: torch.Tensor, b: torch.Tensor, beta: int) -> None:
    """total = beta total + a @ b, of which total may be wider than a and b."""
    if a.dtype == total.dtype:
        total.addmm_(a, b, beta=beta)
    elif a.is_cuda and adds_wide(a.device, a.dtype):
        # No product is written in a type of few digits first.
        torch.addmm(total, a, b, beta=beta, out_dtype=total.dtype, out=total)
    elif beta:
        total += a @ b
    else:
        total.copy_(a @ b)


@functools.cache
def adds_wide(device, dtype) -> bool:
    """Whether this torch adds products of half precision straight into float32:
    tried, since some do it wrongly."""
    a = torch.ones(16, 16, device=device, dtype=dtype)
    total = torch.full((16, 16), 1024.5, device=device)
    try:
        found = []
        for beta in (1, 0, 1):
            torch.addmm(total, a, a, beta=beta, out_dtype=torch.float32, out=total)
            found.append(bool((total == (1040.5, 16, 32)[len(found)]).all()))
        return all(found)
    except (RuntimeError, TypeError):
        return False


def row_functions(hidden: torch.Tensor) -> tuple:
    """(row_statistics, row_gradient): Triton's on CUDA where it is installed,
    elsewhere those below."""
    kernels = (triton_kernels(hidden.device) if hidden.is_cuda and hidden.dtype != torch.float64
               else None)
    return ((kernels.row_statistics, kernels.row_gradient) if kernels
            else (row_statistics, row_gradient))


@functools.cache
def triton_kernels(device):
    """The module logprob_triton, tried on one row, or None where it cannot be used."""
    try:
        # Here, so that nobody without a GPU waits for the import.
        from minicai import logprob_triton
        row = torch.zeros(1, 1, device=device)
        logprob_triton.row_statistics(row, row[0].long(), 1.0, False)
        return logprob_triton
    except ImportError:
        return None
    except Exception as error:  # it builds its launcher with whatever C compiler there is
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        print(f"triton cannot be used here ({reason:.200}): log-probs in plain torch",
              file=sys.stderr)
        return None


def row_statistics(z, targets, temperature: float, want_entropy: bool) -> list[torch.Tensor]:
    """[logp] or [logp, entropy], each [n], of a chunk's logits z [n, V]."""
    z = scaled(z, temperature)
    all_logp = z.log_softmax(-1)
    logp = all_logp.gather(-1, targets[:, None]).squeeze(-1)
    return [logp, -torch.linalg.vecdot(z.softmax(-1), all_logp)] if want_entropy else [logp]


def row_gradient(z, targets, temperature: float, g, ge, entropy=None) -> torch.Tensor:
    """d loss / d z [n, V] of logits z, which may be overwritten.

    g, ge [n]: d loss / d logp and d loss / d entropy, divided by the temperature (ge None: entropy
    is not in the loss). With p = softmax(z / temperature):
        d = g (onehot - p) - ge p (log p + H)
    """
    kind, z = z.dtype, scaled(z, temperature)
    d = z.softmax(-1)                                                   # p
    if ge is None:
        d *= -g[:, None]
    else:
        d *= z.log_softmax(-1).add_(entropy[:, None]).mul_(-ge[:, None]).sub_(g[:, None])
    return d.scatter_add_(-1, targets[:, None], g[:, None]).to(kind)


def scaled(z, temperature: float) -> torch.Tensor:
    """z / temperature, in at least float32."""
    z = z.to(at_least_float32(z.dtype))
    return z if temperature == 1 else z / temperature


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """The type of everything but the products:
    half precision has too few digits for a sum over a vocabulary."""
    return torch.promote_types(dtype, torch.float32)


def forbidding_bias(forbidden: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    """What to add to the logits, [V]: so low that exp() leaves nothing, yet finite,
    since 0 x inf is NaN."""
    if forbidden is None:
        return None
    low = -min(1e30, torch.finfo(dtype).max / 2)
    return torch.zeros(forbidden.shape, dtype=dtype,
                       device=forbidden.device).masked_fill_(forbidden, low)
