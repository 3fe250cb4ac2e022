"""The row arithmetic of logprob.py on CUDA, as two Triton kernels:
used there by itself wherever `triton` imports.

Between two matrix products a logit meets some ten operations, and a GPU needs longer to fetch it
than to compute them. Plain torch fetches and writes the chunk back for every one: to float32, over
the temperature, maximum, difference, exponential, sums, again for the entropy. Here it is read once
for the numbers of its rows, and in the backward read once more and overwritten by its own gradient.
In bfloat16 that is 2 bytes a logit forward and 4 backward, and no second table. BLOCK numbers of a
row stay in registers meanwhile, as float32, with the maximum and sums so far.

The products stay with cuBLAS, which runs them near the card's peak with tiles that fit the shape
and the card. To fuse them would save one write and one read of a logit, beside 2 D operations that
made it; the code would be far longer.

Not here: autotuning (what is left is memory traffic, the same for every block size) and float64.
With TRITON_INTERPRET=1 in the environment, Triton runs all this with NumPy on CPU tensors: so it is
tested without a GPU.

Shapes: n rows of a chunk, V vocabulary.
"""

import torch
import triton
import triton.language as tl

BLOCK = 4096  # columns a step: 16 registers a thread and array, with 8 warps of 32 threads


@triton.jit
def load_scaled(z, cols, V, temperature):
    """x = z / T at these columns, float32 from here on;
    past the end 1e30 below 0, since -inf would make 0 x inf."""
    x = tl.load(z + cols, mask=cols < V, other=0.0).to(tl.float32) / temperature
    return tl.where(cols < V, x, -1e30)


@triton.jit
def statistics_kernel(z, targets, logp, entropy, peak, total, V, temperature, BLOCK: tl.constexpr):
    """One program for each row, which it reads once;
    when the maximum grows, the sums so far move to the new scale."""
    row = tl.program_id(0).to(tl.int64)                         # 64 bits: n V may pass 2^31
    z += row * V
    m, s, t = -1e30, 0.0, 0.0  # max x, sum e^(x - m), sum e^(x - m) (x - m)
    for start in range(0, V, BLOCK):
        x = load_scaled(z, start + tl.arange(0, BLOCK), V, temperature)
        higher = tl.maximum(m, tl.max(x, 0))
        shrink = tl.exp(m - higher)
        e = tl.exp(x - higher)
        t = shrink * (t + (m - higher) * s) + tl.sum(e * (x - higher), 0)
        s = shrink * s + tl.sum(e, 0)
        m = higher
    chosen = tl.load(z + tl.load(targets + row)).to(tl.float32) / temperature
    tl.store(logp + row, chosen - m - tl.log(s))
    tl.store(entropy + row, tl.log(s) - t / s)  # -sum p log p, with log p = x - m - log s
    tl.store(peak + row, m)
    tl.store(total + row, s)


@triton.jit
def gradient_kernel(z, targets, g, ge, entropy, peak, total, V, temperature, BLOCK: tl.constexpr):
    """One program for each block of each row:
    the row's numbers are known, so every logit stands alone."""
    row, cols = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    z += row * V
    x = load_scaled(z, cols, V, temperature) - tl.load(peak + row)
    s, up = tl.load(total + row), tl.load(g + row)
    p = tl.exp(x) / s
    d = tl.where(cols == tl.load(targets + row), up, 0.0) - up * p
    if ge is not None:  # decided when the kernel is compiled
        d -= tl.load(ge + row) * p * (x - tl.log(s) + tl.load(entropy + row))
    tl.store(z + cols, d.to(z.dtype.element_ty), mask=cols < V)


def row_statistics(z, targets, temperature: float, want_entropy: bool) -> list[torch.Tensor]:
    """[logp, entropy, peak, total], each [n], of logits z [n, V];
    the entropy costs nothing here, wanted or not."""
    out = [torch.empty(len(z), device=z.device) for _ in range(4)]
    with torch.cuda.device_of(z):  # Triton launches on the current device
        statistics_kernel[len(z),](z, targets.contiguous(), *out, z.shape[1], float(temperature),
                                   BLOCK, num_warps=8)
    return out


def row_gradient(z, targets, temperature: float, g, ge, entropy, peak, total) -> torch.Tensor:
    """What logprob.row_gradient returns, d [n, V], written over the logits z [n, V]."""
    n, V = z.shape
    with torch.cuda.device_of(z):
        gradient_kernel[n, triton.cdiv(V, BLOCK)](z, targets.contiguous(), g, ge, entropy, peak,
                                                  total, V, float(temperature), BLOCK, num_warps=8)
    return z
