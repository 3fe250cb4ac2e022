"""One decoding step of a Llama-like model in five Triton kernels a layer, for decode.py on CUDA.

At one token a row nothing is computed that takes long: a step reads every weight once, and what it
costs beyond that is the start of each operation, some two microseconds even in a recorded graph.
Plain torch needs 17 a layer. Here
    1. norm and the product that makes queries, keys and values
    2. rotation, writing to the cache, attention
    3. the product back into the stream, added
    4. norm, gate and up products, SwiGLU
    5. the down product, added
are one kernel each. A norm is a factor of the row, so it is applied after the product, whose loop
over the width sums the squares on the way. The residual stream stays float32, as in training.

Not here: other norms and positions (decode.py then calls the model), autotuning,
splitting one text over many programs.

Shapes: R rows, C width, H query heads, G key/value heads, D head width, S columns of the cache,
K inner dimension of a product, N outputs of it.
"""

import torch
import triton
import triton.language as tl

ENOUGH = 100                    # programs that keep a large GPU's processors busy (an H100 has 132)


@triton.jit
def product_kernel(x, norm, w, w2, bias, out, R, K, N, eps, NORMED: tl.constexpr,
                   GATED: tl.constexpr, ADDED: tl.constexpr, BR: tl.constexpr, BN: tl.constexpr,
                   BK: tl.constexpr):
    """out [R, N] = f(x [R, K] @ w.T), w [N, K]; NORMED: of RMSNorm(x) with weight `norm`; GATED:
    silu(.) times the same with w2; ADDED: to what is in out. One program makes BR x BN numbers."""
    rows, cols = tl.program_id(0) * BR + tl.arange(0, BR), tl.program_id(1) * BN + tl.arange(0, BN)
    inner = tl.arange(0, BK)
    total, second = tl.zeros((BR, BN), tl.float32), tl.zeros((BR, BN), tl.float32)
    squares = tl.zeros((BR,), tl.float32)
    for start in range(0, K, BK):
        k = start + inner
        a = tl.load(x + rows[:, None] * K + k[None, :], mask=(rows[:, None] < R) & (k[None, :] < K),
                    other=0.0)
        there = (cols[:, None] < N) & (k[None, :] < K)
        where = cols[:, None].to(tl.int64) * K + k[None, :]
        b = tl.load(w + where, mask=there, other=0.0)
        if NORMED:
            a = a.to(tl.float32)
            squares += tl.sum(a * a, 1)
            a = a * tl.load(norm + k, mask=k < K, other=0.0).to(tl.float32)[None, :]
        a = a.to(b.dtype)
        total = tl.dot(a, tl.trans(b), total, input_precision="ieee")
        if GATED:
            second = tl.dot(a, tl.trans(tl.load(w2 + where, mask=there, other=0.0)), second,
                            input_precision="ieee")
    if NORMED:
        factor = tl.rsqrt(squares / K + eps)[:, None]
        total = total * factor
        second = second * factor
    if GATED:
        total = total / (1.0 + tl.exp(-total)) * second
    if bias is not None:
        total += tl.load(bias + cols, mask=cols < N, other=0.0).to(tl.float32)[None, :]
    place = out + rows[:, None].to(tl.int64) * N + cols[None, :]
    inside = (rows[:, None] < R) & (cols[None, :] < N)
    if ADDED:
        total += tl.load(place, mask=inside, other=0.0)
    tl.store(place, total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def attention_kernel(qkv, keys, values, freq, positions, at, seen, out, row_stride, S,
                     H: tl.constexpr, G: tl.constexpr, D: tl.constexpr, Q: tl.constexpr,
                     BS: tl.constexpr):
    """One program for each row and key head:
    rotate, keep the new key and value, attend from H / G queries.

    qkv [R, (H + 2G) D], keys and values [R, G, S, D] with their own row_stride,
    seen [R, S] added to scores.
    """
    row, g = tl.program_id(0).to(tl.int64), tl.program_id(1)
    half, whole, q = tl.arange(0, D // 2), tl.arange(0, D), tl.arange(0, Q)
    now, angle = tl.load(at), tl.load(positions + row).to(tl.float32) * tl.load(freq + half)
    cos, sin = tl.cos(angle), tl.sin(angle)
    qkv += row * (H + 2 * G) * D
    # 1. Queries, padded to Q rows, and the new key and value.
    #    Halves of D turn together ("rotate half").
    mine, place = (q < H // G)[:, None], qkv + (g * (H // G) + q)[:, None] * D + half[None, :]
    q1 = tl.load(place, mask=mine, other=0.0).to(tl.float32)
    q2 = tl.load(place + D // 2, mask=mine, other=0.0).to(tl.float32)
    q1, q2 = q1 * cos[None, :] - q2 * sin[None, :], q2 * cos[None, :] + q1 * sin[None, :]
    new = qkv + (H + g) * D
    k1, k2 = tl.load(new + half).to(tl.float32), tl.load(new + D // 2 + half).to(tl.float32)
    k1, k2 = k1 * cos - k2 * sin, k2 * cos + k1 * sin
    v = tl.load(new + G * D + whole)
    keys += row * row_stride + g.to(tl.int64) * S * D
    values += row * row_stride + g.to(tl.int64) * S * D
    kind = keys.dtype.element_ty
    tl.store(keys + now * D + half, k1.to(kind))
    tl.store(keys + now * D + D // 2 + half, k2.to(kind))
    tl.store(values + now * D + whole, v)
    # 2. The token sees itself, then the columns before it, BS at a time;
    #    sums move to the new scale as the maximum grows.
    scale = 1.0 / tl.sqrt(float(D))
    most = (tl.sum(q1 * k1[None, :], 1) + tl.sum(q2 * k2[None, :], 1)) * scale  # [Q]
    total = tl.full((Q,), 1.0, tl.float32)
    mean = tl.zeros((Q, D), tl.float32) + v.to(tl.float32)[None, :]
    q1, q2 = q1.to(kind), q2.to(kind)
    for start in range(0, now, BS):
        s = start + tl.arange(0, BS)
        past = keys + s[:, None] * D + half[None, :]
        b1 = tl.load(past, mask=(s < now)[:, None], other=0.0)
        b2 = tl.load(past + D // 2, mask=(s < now)[:, None], other=0.0)
        score = (tl.dot(q1, tl.trans(b1), input_precision="ieee")
                 + tl.dot(q2, tl.trans(b2), input_precision="ieee"))
        unseen = tl.load(seen + row * S + s, mask=s < now, other=float("-inf")).to(tl.float32)
        score = score * scale + unseen[None, :]
        higher = tl.maximum(most, tl.max(score, 1))
        shrink, weight = tl.exp(most - higher), tl.exp(score - higher[:, None])
        total = total * shrink + tl.sum(weight, 1)
        old = tl.load(values + s[:, None] * D + whole[None, :], mask=(s < now)[:, None], other=0.0)
        mean = tl.dot(weight.to(kind), old, mean * shrink[:, None], input_precision="ieee")
        most = higher
    made = (mean / total[:, None]).to(out.dtype.element_ty)
    tl.store(out + row * H * D + (g * (H // G) + q)[:, None] * D + whole[None, :], made, mask=mine)


def product(x, w, out, norm=None, eps: float = 0.0, gated=None, bias=None,
            added: bool = False) -> torch.Tensor:
    """out [R, N], filled by product_kernel from x [R, K] and w [N, K]."""
    (R, K), N = x.shape, len(w)
    # Bytes that one program may hold; an H100's in the interpreter, 99 KB where torch does not say.
    shared = 232_448 if not x.is_cuda else getattr(torch.cuda.get_device_properties(x.device),
                                                   "shared_memory_per_block_optin", 101_376)
    w_bytes = w.element_size() * (1 + (gated is not None))
    BR, BN, BK, stages = blocks(R, N, norm is not None, x.element_size(), w_bytes, shared)
    product_kernel[triton.cdiv(R, BR), triton.cdiv(N, BN)](
        x, norm, w, gated, bias, out, R, K, N, eps, norm is not None, gated is not None, added,
        BR, BN, BK, num_warps=4, num_stages=stages)
    return out


def blocks(R: int, N: int, normed: bool, x_bytes: int, w_bytes: int,
           shared: int) -> tuple[int, int, int, int]:
    """(BR, BN, BK, stages) of a product of R rows and N columns;
    stages - 1 blocks of K are on their way at once.

    What a program waits for is memory, one block after the other. So many programs share a product,
    each with few columns, and as many blocks are asked for as `shared` bytes hold. x_bytes: of a
    number of x, float32 where it is normed; w_bytes: of one of w, or of both matrices.
    """
    BR = min(64, max(16, triton.next_power_of_2(R)))
    BN = next((n for n in (64, 32) if triton.cdiv(R, BR) * triton.cdiv(N, n) >= ENOUGH), 16)
    BK, most = (256, 4 if normed else 7) if BR == 16 else (128, 3 if normed else 6)
    if N > 8192:                                            # the head: programs enough
        BN, BK, most = 128, 128, 3
    return BR, BN, BK, max(2, min(most, 1 + shared // (BK * (BR * x_bytes + BN * w_bytes))))


def fits(model) -> bool:
    """Whether these kernels say what the model's layers do,
    and whether there is anything to be gained."""
    c = model.config
    return (c.norm == "rmsnorm" and c.positions == "rope" and c.mlp == "swiglu"
            and not (c.qk_norm or c.out_bias or c.mlp_bias) and c.head_dim in (32, 64, 128)
            and c.n_head // c.n_kv_head <= 16 and model.head.dtype == torch.bfloat16)


def step_logits(model, ids, positions, seen, cache, bias) -> torch.Tensor:
    """Logits [R, V] after ids [R, 1] at positions [R, 1], which are written to the cache's column
    `at`; seen [R,1,1,S], bias [V]: added to scores and to logits."""
    c, R = model.config, len(ids)
    # Few programs: fewer, longer blocks.
    BS = 128 if R * c.n_kv_head <= ENOUGH and c.head_dim <= 64 else 64
    new = lambda n, like: torch.empty(R, n, dtype=like.dtype, device=ids.device)
    x = model.embed(ids[:, 0]).float()                                          # [R, C]
    for block in model.blocks:
        a, m, (k, v) = block.attn, block.mlp, (cache.k[block.attn.layer], cache.v[block.attn.layer])
        qkv = product(x, a.qkv.weight, new(len(a.qkv.weight), k), block.norm1.weight, c.norm_eps,
                      bias=a.qkv.bias)
        y = new(c.n_head * c.head_dim, k)
        attention_kernel[R, c.n_kv_head](qkv, k, v, model.freq, positions, cache.at, seen, y,
                                         k.stride(0), k.shape[2], c.n_head, c.n_kv_head,
                                         c.head_dim, 16, BS, num_warps=4)
        product(y, a.out.weight, x, added=True)
        h = product(x, m.gate.weight, new(c.mlp_width, k), block.norm2.weight, c.norm_eps,
                    gated=m.up.weight)
        product(h, m.down.weight, x, added=True)
    return product(x, model.head, new(c.vocab_size, x), model.norm.weight, c.norm_eps, bias=bias)
