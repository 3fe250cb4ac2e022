"""Decoding on a GPU: one step of fixed shapes,
recorded once as a CUDA graph and replayed for every token.

A small model's step is hundreds of operations that take a GPU less time than Python needs to ask
for them. So nothing that changes from token to token may be known to Python: the column is a
tensor, the cache is seen whole under a mask, what was picked stays on the device. Such a step can
be recorded; a replay is one request. Numbers of rows and columns are rounded up to a few sizes,
each recorded once and kept, with a copy of the weights in the type of the products.

sample.py holds the loop that says the same in the open;
it is what a CPU does, and what fills the cache here too.

Shapes: R rows of a recorded step (R >= B), S columns, V vocabulary, L layers,
G key/value heads, D head width.
"""

import sys
import weakref
from types import SimpleNamespace

import torch
import torch.nn.functional as F

from minicai.gpt import GPT, KVCache
from minicai.graph import record, rounded
from minicai.logprob import triton_kernels

DECODERS = weakref.WeakKeyDictionary()  # GPT -> its Decoder: what is recorded outlives a call
LOOK = 16  # tokens between two looks at who has ended: each makes a GPU wait
ROOM = 2**27                                        # numbers in the least table of keys and values
WORTH = 256  # width from which on decode_triton.py is worth being compiled


def decodes(device: torch.device) -> bool:
    """Whether generate() goes on by recorded steps here."""
    return device.type == "cuda"


def decoder_of(model: GPT) -> "Decoder":
    """The model's decoder, with the weights that the model has now."""
    if model not in DECODERS:
        DECODERS[model] = Decoder(model)
    DECODERS[model].refresh(model)
    return DECODERS[model]


def decode_kernels(model: GPT):
    """The module decode_triton, if it can do what this model does, else None."""
    from minicai import decode_triton  # here, so that nobody without a GPU waits for the import
    return decode_triton if decode_triton.fits(model) else None


class Decoder:
    """A copy of a model to sample from, room for keys and values,
    and the steps that have been recorded on them."""

    def __init__(self, model: GPT):
        self.dtype = torch.bfloat16 if model.bf16 else model.head.dtype
        self.device = model.head.device
        with torch.device("meta"):
            self.model = GPT(model.config)
        # A weight that has this type already is shared, not copied.
        state = {name: p.detach().to(self.dtype) for name, p in model.state_dict().items()}
        self.model.load_state_dict(state, assign=True)
        self.model.requires_grad_(False)
        self.bias = torch.zeros(model.config.vocab_size, dtype=self.dtype, device=self.device)
        worth = (self.device.type == "cuda" and model.config.width >= WORTH
                 and triton_kernels(self.device))
        self.kernels = decode_kernels(self.model) if worth else None
        self.steps, self.room = {}, torch.zeros(0, dtype=self.dtype, device=self.device)

    @torch.no_grad()
    def refresh(self, model: GPT) -> None:
        """Take over weights that have been trained since."""
        pairs = list(zip(self.model.parameters(), model.parameters()))
        if copied := [(a, b) for a, b in pairs if a.data_ptr() != b.data_ptr()]:
            torch._foreach_copy_(*map(list, zip(*copied)))

    def table(self, rows: int, columns: int) -> torch.Tensor:
        """Keys and values [R, 2, L, G, S, D]; the first rows of a larger one of as many columns are
        the same memory."""
        c = self.model.config
        shape = (rows, 2, c.n_layer, c.n_kv_head, columns, c.head_dim)
        need = torch.Size(shape).numel()
        if need > len(self.room):                       # what was recorded writes to the old room
            self.steps, self.room = {}, None
            # Zeros: attention multiplies what is masked by 0,
            # and 0 times a NaN left by others would be NaN.
            self.room = torch.zeros(max(need, ROOM), dtype=self.dtype, device=self.device)
        return self.room[:need].view(shape)

    def cache(self, batch: int, length: int) -> KVCache:
        """The table as a cache for a batch of texts of `length`,
        and room for those that `rounded` adds."""
        columns = min(rounded(length, 64, parts=4), self.model.config.max_positions)
        cache, kv = KVCache(self.model.config, 0, 0), self.table(rounded(batch), columns)
        cache.k, cache.v = kv[:, 0].transpose(0, 1), kv[:, 1].transpose(0, 1)   # [L, R, G, S, D]
        return cache.first(batch)

    def step(self, rows: int, cache: KVCache, stops, temperature: float, pick) -> tuple:
        """(what a step of `rows` reads and writes, the function that does it):
        recorded if it is not yet."""
        columns = cache.k.shape[3]
        key = rows, columns, temperature, *stops.tolist()
        if key in self.steps:
            return self.steps[key]

        def new(*shape, dtype=torch.long):
            return torch.zeros(shape, dtype=dtype, device=self.device)
        s = SimpleNamespace(ids=new(rows, 1), positions=new(rows, 1), made=new(rows, columns),
                            seen=new(rows, 1, 1, columns, dtype=self.dtype),
                            ended=new(rows, dtype=torch.bool),
                            chance=new(rows, columns, dtype=torch.float64))
        # The first call is a trial: in the last column,
        # where no text that is still being read has a token.
        # Kept by self, the step must not keep it.
        cache, me = self.cache(rows, columns), weakref.proxy(self)
        s.at = cache.at = torch.full((1,), columns - 1, device=self.device)

        def step():
            s.seen.index_fill_(3, s.at, 0.0)                       # the token sees itself
            logits = me.logits(s.ids, s.positions, s.seen, cache)  # [R, V]
            ids = pick(logits, temperature, s.chance.index_select(1, s.at).squeeze(1))[:, None]
            s.made.index_copy_(1, s.at, ids)
            s.ended |= (ids == stops).any(1)
            s.ids.copy_(ids)
            s.positions += 1
            s.at += 1
        self.steps[key] = s, *record("decoding", [step], self.device)
        return self.steps[key]

    def logits(self, ids, positions, seen, cache: KVCache) -> torch.Tensor:
        """Logits [R, V] after ids [R, 1], by kernels made for that where there are any."""
        if self.kernels:
            try:
                return self.kernels.step_logits(self.model, ids, positions, seen, cache, self.bias)
            except Exception as error:                  # whatever a compiler may find
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
                print(f"decoding kernels cannot be used here ({reason:.200}): "
                      "plain torch instead", file=sys.stderr)
                self.kernels = None
        return F.linear(self.model(ids, positions, seen, cache)[:, -1], self.model.head, self.bias)

    def go_on(self, made, positions, seen, chance, cache: KVCache, stops, bias, temperature,
              pick) -> torch.Tensor:
        """made [B, n], of which the first column is there, with the others filled in;
        chance [B, n] decides.

        positions [B, 1] of the first ids; seen [B, P]:
        1 where a filled column of the cache is a real token.
        """
        (B, n), P, columns = made.shape, cache.length, cache.k.shape[3]
        self.bias.copy_(bias if bias is not None else torch.zeros_like(self.bias))
        live, looked, run = torch.arange(B, device=self.device), 1, None
        real = torch.full((B, 1, 1, columns), -torch.inf, dtype=self.dtype, device=self.device)
        real[..., :P].masked_fill_(torch.ones(B, 1, 1, P, dtype=torch.bool, device=self.device)
                                   if seen is None else seen[:, None, None], 0.0)
        chances = chance.new_zeros(B, columns)
        chances[:, P:P + n - 1] = chance[:, 1:]  # step t writes column P + t - 1
        state = {"ids": made[:, :1], "positions": positions, "seen": real, "chance": chances,
                 "ended": (made[:, :1] == stops).any(1)}
        for t in range(1, n):
            if run is None:
                s, run = self.step(rounded(len(live)), cache, stops, temperature, pick)
                s.at.fill_(P + t - 1)
                s.positions.zero_()  # of rows that are nobody's, too
                for name, value in state.items():
                    getattr(s, name)[:len(live)] = value
            run()
            if t % LOOK and t < n - 1:
                continue
            made[live, looked:t + 1] = s.made[:len(live), P + looked - 1:P + t]
            looked, rows = t + 1, (~s.ended[:len(live)]).nonzero().squeeze(-1)
            if not len(rows):
                break
            if 4 * rounded(len(rows)) <= rounded(len(live)):                    # the others leave
                kv = self.table(len(live), columns)[..., :P + t, :]
                kv[:len(rows)] = kv[rows]
                state = {name: getattr(s, name)[rows] for name in state}
                live, run = live[rows], None
        return made
