"""A decoder-only transformer: token ids in, hidden states out.

One class serves policy, reference, preference model and value model, so it stops before any head:
logits are made in logprob.py and sample.py, scores in preference.py. The families (Llama, SmolLM2,
Qwen, GPT-2) differ by configuration only. Left out on purpose: dropout (PPO needs the same numbers
twice), and any cache kept inside the module (the sampler allocates one and passes it in).

Shapes: B batch, T time (new tokens), S keys seen so far (S >= T), C width, H query heads,
G key/value heads, D head width, M MLP width, V vocabulary, L layers.
"""

import copy
import math
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from minicai.graph import recorded_forward
from minicai.run import UserError


@dataclass(frozen=True)
class GPTConfig:
    """What shapes the arithmetic of a GPT; the micro-world's base is a bit wider (data/base)."""

    vocab_size: int = 1024        # V: rows of the embedding (may exceed the tokenizer's real ids)
    n_layer: int = 6
    n_head: int = 4
    n_kv_head: int | None = None  # G: fewer than n_head is grouped-query attention; None: as n_head
    head_dim: int | None = None   # D: None: width / n_head (Qwen3 says otherwise)
    width: int = 128              # C
    mlp_width: int | None = None  # M: None: 3 x width
    max_positions: int = 1024     # longest text the model is meant for
    norm: str = "rmsnorm"         # or "layernorm"
    norm_eps: float = 1e-5
    positions: str = "rope"       # or "learned"
    rope_theta: float = 10000.0
    rope_scaling: dict | None = None  # Llama 3.1's: factor, low_freq_factor, high_freq_factor, ...
    mlp: str = "swiglu"           # or "gelu" (tanh form)
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False         # RMSNorm on each head's queries and keys (Qwen3)
    tied: bool = True             # the LM head is the embedding matrix

    def __post_init__(self):
        derived = {"n_kv_head": self.n_head, "head_dim": self.width // self.n_head,
                   "mlp_width": 3 * self.width}
        for name, value in derived.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)  # the dataclass is frozen for everyone else


class KVCache:
    """Keys and values of the tokens seen so far, allocated once for a whole generation.

    k, v: [L, B, G, S_max, D]; `length` counts the filled columns, the same for every row (prompts
    are left-padded). `at` [1], if it is set, is the column that the next token goes to, and all
    S_max columns are seen, under a mask: so every step has the same shapes, and nothing that Python
    knows changes from one to the next (see decode.py).
    """

    def __init__(self, config: GPTConfig, batch: int, length: int, device="cpu",
                 dtype=torch.float32):
        shape = (config.n_layer, batch, config.n_kv_head, length, config.head_dim)
        self.k = torch.empty(shape, device=device, dtype=dtype)
        self.v = torch.empty(shape, device=device, dtype=dtype)
        self.length, self.at = 0, None

    def extend(self, layer: int, k: torch.Tensor,
               v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Write new keys and values [B, G, T, D] behind the old ones;
        return all of them as views [B, G, S, D]."""
        if self.at is not None:
            for old, new in ((self.k[layer], k), (self.v[layer], v)):
                old.index_copy_(2, self.at, new)
            return self.k[layer], self.v[layer]
        end = self.length + k.shape[2]
        self.k[layer, :, :, self.length:end] = k
        self.v[layer, :, :, self.length:end] = v
        return self.k[layer, :, :, :end], self.v[layer, :, :, :end]

    def first(self, rows: int) -> "KVCache":
        """A view of the first rows: what is written there is written here."""
        view = copy.copy(self)
        view.k, view.v = self.k[:, :rows], self.v[:, :rows]
        return view

    def spread(self, length: int) -> None:
        """Copy the first `length` columns of row 0 to every row."""
        self.k[:, 1:, :, :length] = self.k[:, :1, :, :length]
        self.v[:, 1:, :, :length] = self.v[:, :1, :, :length]
        self.length = length

    def keep_rows(self, rows: torch.Tensor) -> None:
        """Drop every row of the batch but `rows` [B'] (indices): finished texts leave."""
        live = slice(0, self.length)
        for layer in (*self.k, *self.v):  # one by one: a copy of all may not fit
            layer[:len(rows), :, live] = layer[rows, :, live]
        self.k, self.v = self.k[:, :len(rows)], self.v[:, :len(rows)]


def rope_frequencies(config: GPTConfig) -> torch.Tensor:
    """Angle a position turns each pair of dimensions by, [D/2]
    (RoFormer, arXiv 2104.09864, eq. 15)."""
    pair = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device="cpu")
    freq = 1 / config.rope_theta ** (pair / config.head_dim)    # rounded as transformers rounds
    scaling = config.rope_scaling
    if scaling is None:
        return freq
    # Llama 3.1: slow dimensions (long wavelengths) are slowed by `factor`, quick ones kept, a ramp
    # between. `turns` counts those within the old context.
    turns = freq * scaling["original_max_position_embeddings"] / (2 * math.pi)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    keep = ((turns - low) / (high - low)).clamp(0, 1)
    return freq * (keep + (1 - keep) / scaling["factor"])


def rope_table(freq: torch.Tensor, positions: torch.Tensor,
               dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and signed sines for positions [..., T]:
    two tensors [..., T, 1, D], ready for [..., T, heads, D]."""
    angle = positions[..., None].float() * freq                                 # [..., T, D/2]
    cos, sin = angle.cos(), angle.sin()
    cos, sin = torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)            # [..., T, D]
    return cos.unsqueeze(-2).to(dtype), sin.unsqueeze(-2).to(dtype)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn each pair (x_i, x_{i+D/2}) of x [B, T, heads, D] by its angle:
    "rotate half" order, as in Llama."""
    # Rolling by D/2 swaps the halves; the minus sign of the rotation already sits in `sin`.
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


def make_norm(config: GPTConfig, width: int) -> nn.Module:
    """The normalisation layer of this family over the last `width` numbers."""
    kind = {"rmsnorm": nn.RMSNorm, "layernorm": nn.LayerNorm}[config.norm]
    return kind(width, eps=config.norm_eps)


class Attention(nn.Module):
    """Causal multi-head attention: project, turn by position, attend, project back. Queries, keys
    and values come from one matrix product."""

    def __init__(self, config: GPTConfig, layer: int):
        super().__init__()
        self.layer, self.H, self.G, self.D = layer, config.n_head, config.n_kv_head, config.head_dim
        self.qkv = nn.Linear(config.width, (self.H + 2 * self.G) * self.D, bias=config.qkv_bias)
        self.out = nn.Linear(self.H * self.D, config.width, bias=config.out_bias)
        self.q_norm = nn.RMSNorm(self.D, eps=config.norm_eps) if config.qk_norm else None
        self.k_norm = nn.RMSNorm(self.D, eps=config.norm_eps) if config.qk_norm else None

    def forward(self, x, rope, bias, cache):
        """x [B, T, C] -> [B, T, C]; a cache is read and filled."""
        B, T, _ = x.shape
        H, G, D = self.H, self.G, self.D
        qk, v = self.qkv(x).view(B, T, H + 2 * G, D).split([H + G, G], dim=2)    # [B, T, heads, D]
        if self.q_norm is not None:
            # Autocast leaves norms alone.
            q, k = qk.to(self.q_norm.weight.dtype).split([H, G], dim=2)
            qk = torch.cat([self.q_norm(q), self.k_norm(k)], dim=2)
        if rope is not None:
            qk = rotate(qk, *rope)                      # together: half the operations
        q, k = qk.transpose(1, 2).split([H, G], dim=1)  # [B, heads, T, D]
        v = v.transpose(1, 2)
        del qk                                          # or it outlives what replaces q and k
        if cache is not None:
            k, v = cache.extend(self.layer, k, v)                               # [B, G, S, D]
        # On a CPU torch's backward of attention is several times slower in bfloat16 than in
        # float32.
        wide = v.device.type == "cpu" and cache is None and v.dtype == torch.bfloat16
        q, k, v = laid_out(q, k, v, bias, wide)
        # softmax(q k^T / sqrt(D) + bias) v: without a bias a query sees what is not later than
        # itself.
        with torch.autocast("cpu", enabled=False) if wide else nullcontext():
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias,
                                               is_causal=bias is None and T > 1,
                                               enable_gqa=k.shape[1] != q.shape[1])
        y = y.bfloat16() if wide else y
        return self.out(y.reshape(B, H, T, D).transpose(1, 2).reshape(B, T, H * D))


def laid_out(q, k, v, bias, wide: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries [B, H, T, D], keys and values [B, G, S, D] in the form in which attention, where one
    key head serves H / G query heads, costs least. The numbers that come out are the same."""
    (B, H, T, D), G = q.shape, k.shape[1]
    if T == 1:
        # Sampling: the queries of one key head stand where time stands, in one product with it.
        q = q.reshape(B, G, H // G, D)
    elif G < H and (bias is not None or v.is_cuda and v.dtype == torch.float32):
        # Grouped queries with a mask, or in float32, send a GPU to a slow path that holds all
        # scores [B, H, T, S]: so every query head gets a copy of its keys.
        k, v = k.repeat_interleave(H // G, 1), v.repeat_interleave(H // G, 1)
    return (q.float(), k.float(), v.float()) if wide else (q, k, v)


class MLP(nn.Module):
    """SwiGLU (arXiv 2002.05202), or GPT-2's GELU, which has no gate."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        C, M, bias = config.width, config.mlp_width, config.mlp_bias
        self.gate = nn.Linear(C, M, bias=bias) if config.mlp == "swiglu" else None
        self.up = nn.Linear(C, M, bias=bias)
        self.down = nn.Linear(M, C, bias=bias)

    def forward(self, x):
        """x [B, T, C] -> [B, T, C], each position by itself."""
        if self.gate is not None:
            return self.down(F.silu(self.gate(x)) * self.up(x))                 # [B, T, M] inside
        return self.down(F.gelu(self.up(x), approximate="tanh"))


class Block(nn.Module):
    """One layer: attention, then the MLP, each reading a normalised copy and adding to the residual
    stream."""

    def __init__(self, config: GPTConfig, layer: int):
        super().__init__()
        self.norm1, self.attn = make_norm(config, config.width), Attention(config, layer)
        self.norm2, self.mlp = make_norm(config, config.width), MLP(config)

    def forward(self, x, rope, bias, cache):
        """x [B, T, C] -> [B, T, C]."""
        x = x + self.attn(self.norm1(x), rope, bias, cache)
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    """The trunk: ids [B, T] -> hidden states [B, T, C]; logits are `hidden @ model.head.T`."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        # Unset until init_weights or a file sets them: a first draw would only be thrown away, and
        # on the device "meta" it costs a second of imports.
        table = lambda n: nn.Embedding.from_pretrained(torch.empty(n, config.width), freeze=False)
        self.embed = table(config.vocab_size)
        learned = config.positions == "learned"
        self.pos_embed = table(config.max_positions) if learned else None
        self.blocks = nn.ModuleList(Block(config, i) for i in range(config.n_layer))
        self.norm = make_norm(config, config.width)
        self.unembed = (None if config.tied
                        else nn.Linear(config.width, config.vocab_size, bias=False))
        # Keep a block's input only and compute the rest again in the backward?
        self.checkpointing = False
        # Products in bfloat16? Weights, norms, residual stream stay float32.
        self.bf16 = False
        # Forward and backward of whole texts as CUDA graphs (graph.py)?
        self.recording = False
        # A plain attribute, not a buffer: model.to(bfloat16) must not round the angles.
        self.freq = None if learned else rope_frequencies(config)

    @property
    def head(self) -> torch.Tensor:
        """The LM head's weight [V, C]."""
        return self.embed.weight if self.unembed is None else self.unembed.weight

    def autocast(self):
        """The context in which products are taken in bfloat16, if that is wanted;
        it casts every weight once."""
        return torch.autocast(self.head.device.type, torch.bfloat16) if self.bf16 else nullcontext()

    def freeze(self) -> "GPT":
        """Give up gradients and, if products are bfloat16, keep the blocks' matrices so:
        half the memory, the same numbers."""
        for module in self.requires_grad_(False).modules():
            if self.bf16 and isinstance(module, nn.Linear) and module is not self.unembed:
                module.bfloat16()
        return self

    def compile_blocks(self) -> "GPT":
        """Let torch.compile fuse what lies between the products;
        one layer's code serves all layers."""
        for block in self.blocks:
            block.compile()
        return self

    def init_weights(self, generator: torch.Generator | None = None, std: float = 0.02) -> "GPT":
        """Draw the weights as GPT-2 did: normal,
        the projections into the residual stream scaled by 1/sqrt(2L)."""
        for name, p in self.named_parameters():
            if p.dim() < 2:
                nn.init.constant_(p, 1.0 if "norm" in name and name.endswith("weight") else 0.0)
            else:
                into_stream = name.endswith(("attn.out.weight", "mlp.down.weight"))
                scale = std / math.sqrt(2 * self.config.n_layer) if into_stream else std
                nn.init.normal_(p, 0.0, scale, generator=generator)
        return self

    def forward(self, ids: torch.Tensor, positions: torch.Tensor | None = None,
                mask: torch.Tensor | None = None, cache: KVCache | None = None) -> torch.Tensor:
        """Hidden states [B, T, C] of ids [B, T], after the final norm.

        positions [B, T] or [T]: None counts on from the cache. mask [B, S]: 1 where a key is a real
        token, needed only for left padding (padding on the right is never seen by the tokens before
        it); or what attention_bias makes of it. cache: filled as it goes.
        """
        if self.recording and positions is mask is cache is None:
            hidden = recorded_forward(self, ids)
            if hidden is not None:
                return hidden
        return self.hidden_states(ids, positions, mask, cache)

    def hidden_states(self, ids, positions=None, mask=None, cache=None) -> torch.Tensor:
        """What forward promises, operation by operation."""
        T, past = ids.shape[1], 0 if cache is None else cache.length
        if past + T > self.config.max_positions:
            raise UserError(f"a text of {past + T} tokens: this model reads at most "
                            f"{self.config.max_positions}: lower --max-prompt or --max-new")
        if positions is None:
            positions = torch.arange(past, past + T, device=ids.device)         # [T]
        x = self.embed(ids)                                                     # [B, T, C]
        rope = None
        if self.pos_embed is not None:
            x = x + self.pos_embed(positions)
        else:
            self.freq = self.freq.to(ids.device)  # a no-op after the first call
            rope = rope_table(self.freq, positions, x.dtype)
        bias = mask if mask is not None and mask.dim() == 4 else attention_bias(mask, T, past, x)
        with self.autocast():
            for block in self.blocks:
                if self.checkpointing and torch.is_grad_enabled():
                    x = checkpoint(block, x, rope, bias, cache, use_reentrant=False,
                                   preserve_rng_state=False)
                else:
                    x = block(x, rope, bias, cache)
        if cache is not None and cache.at is None:
            cache.length = past + T
        return self.norm(x).bfloat16() if self.bf16 else self.norm(x)


def attention_bias(mask, T: int, past: int, like: torch.Tensor) -> torch.Tensor | None:
    """What to add to attention scores: 0 where query t may see key s, -inf where not;
    None when causal order is all.

    mask [B, S] or None -> [B, 1, T, S]. Made once a forward and shared by the layers.
    """
    if mask is None and (past == 0 or T == 1):
        return None
    column = torch.arange(past + T, device=like.device)                         # [S]
    query = column[past:, None]                                                 # [T, 1]
    seen = (column <= query)[None, None]                                        # causal order
    if mask is not None:
        # A padding query sees itself: a row without any key would be NaN and spread through its
        # values.
        seen = seen & (mask[:, None, None].bool() | (column == query))          # [B, 1, T, S]
    return torch.zeros(seen.shape, dtype=like.dtype,
                       device=like.device).masked_fill_(~seen, -math.inf)
