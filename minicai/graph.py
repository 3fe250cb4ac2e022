"""CUDA graphs: what has fixed shapes is recorded once and replayed,
so that a GPU does not wait for Python.

A small model's forward is hundreds of operations that take a GPU less time than Python needs to ask
for them. A recording of them is one request. It reads and writes the same memory at every replay:
what goes in is copied to where the recording looks for it. Elsewhere than on CUDA, and where a
recording fails, steps are just called: the same numbers, more waiting. decode.py records the
sampler's steps; below, whole texts go through a model, there and back.

Shapes: B batch, T time, C width.
"""

import sys
import weakref
from functools import cache
from types import SimpleNamespace

import torch
from torch.func import functional_call

FAILED = {}  # {what: the first error}: then nothing of that is recorded any more
TRUNKS = weakref.WeakKeyDictionary()  # GPT -> {sizes: recording}: it outlives a call, not the model


def rounded(n: int, least: int = 1, parts: int = 1) -> int:
    """n, or `least` if that is more, rounded up to a power of 2 or to one of the `parts` equal
    steps up to it: few sizes are recorded."""
    n = max(n, least)
    step = max(1, 2 ** (n - 1).bit_length() // (2 * parts))
    return -(-n // step) * step


class Recording:
    """A step in one request to the GPU. It keeps the step,
    and so the memory that the step reads and writes."""

    def __init__(self, step, stream: torch.cuda.Stream, pool):
        self.step, self.graph = step, torch.cuda.CUDAGraph()
        # Not torch.cuda.graph(): that would give all free memory back first,
        # to be asked for again, at every recording.
        with torch.cuda.stream(stream):
            # Only this thread must do nothing that cannot be recorded:
            # autograd's own threads may allocate.
            self.graph.capture_begin(pool=pool, capture_error_mode="thread_local")
            try:
                step()
            finally:
                self.graph.capture_end()

    def __call__(self):
        self.graph.replay()


def new_side(device: torch.device) -> tuple:
    """(stream, memory pool, what keeps them) of recordings,
    of which only one at a time holds anything in it."""
    stream, pool = torch.cuda.Stream(device), torch.cuda.graph_pool_handle()
    number = torch.zeros(1, device=device)
    return stream, pool, Recording(lambda: number.add_(1), stream, pool)


side = cache(new_side)  # that of all steps which hold nothing when they are done


def record(what: str, steps: list, device: torch.device,
           owner: SimpleNamespace | None = None) -> list:
    """Functions that do what those of `steps` do, without arguments and results,
    each in one request to the GPU.

    what: named if it fails. owner: has a side of its own under `where`, for steps that leave
    something for one another. The steps are called once for real, in their order (kernels are
    chosen and compiled then). They must not make the GPU wait, and what is to be found after them
    has to be written to memory that was there before.
    """
    if device.type == "cuda" and what not in FAILED:
        try:
            if owner and not owner.where:
                owner.where = new_side(device)
            stream, pool, _ = owner.where if owner else side(device)
            stream.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(stream):
                for step in steps:
                    step()
            torch.cuda.current_stream(device).wait_stream(stream)
            return [Recording(step, stream, pool) for step in steps]
        except RuntimeError as error:
            while error.__context__:  # CUDA's last word is only that something failed before
                error = error.__context__
            if isinstance(error, torch.OutOfMemoryError):
                raise error from None
            FAILED[what] = (str(error).strip().splitlines() or [type(error).__name__])[0]
            torch.cuda.synchronize(device)
            print(f"{what}: no CUDA graphs here ({FAILED[what]:.300}): slower without",
                  file=sys.stderr)
    for step in steps:
        step()
    return steps


# ---- a trunk, there and back ---------------------------------------------------------------------
def recorded_forward(model, ids: torch.Tensor) -> torch.Tensor | None:
    """model(ids), hidden states [B,T,C], by a recording;
    None where there is none: then call the model.

    It is made when a size comes for the second time. Rows and columns are filled up to a few sizes,
    on the right, where nothing real looks. With gradients, one batch at a time is on its way: what
    a recording holds for its backward, the next forward would overwrite.
    """
    learns = torch.is_grad_enabled() and model.head.requires_grad
    if model.checkpointing or torch.is_inference_mode_enabled() or "whole texts" in FAILED:
        return None
    if model not in TRUNKS:
        weights = dict(model.named_parameters())
        TRUNKS[model] = SimpleNamespace(found={}, stamp=None, weights=weights, pairs=[], where=(),
                                        flying=lambda: None)
    trunk, (B, T) = TRUNKS[model], ids.shape
    if learns and trunk.flying() is not None:
        return None
    stamp = [p.data_ptr() for p in trunk.weights.values()]
    if trunk.stamp != stamp:                        # the weights have moved, or changed their type
        trunk.found, trunk.stamp, trunk.pairs = {}, stamp, []
    rows, columns = rounded(B, parts=4), min(rounded(T, 64, parts=4), model.config.max_positions)
    key = rows, columns, learns, model.bf16
    if key not in trunk.found:
        trunk.found[key] = None
        return None
    s = trunk.found[key] = trunk.found[key] or record_trunk(model, trunk, rows, columns, learns)
    s.io.ids[:B, :T] = ids
    if learns:
        return Replay.apply(torch.ones((), requires_grad=True), s, trunk, B, T)
    s.forward()
    return s.io.out[:B, :T].clone()


def record_trunk(model, trunk, rows: int, columns: int, learns: bool) -> SimpleNamespace:
    """What a forward of [rows, columns] ids reads (io.ids) and writes (io.out), and with gradients
    its backward: it reads io.d_out and writes to trunk.pairs of (weight, gradient)."""
    device, weights, pairs = model.head.device, trunk.weights, trunk.pairs
    whose = weakref.ref(model)                      # TRUNKS must not keep its own keys
    io = SimpleNamespace(ids=torch.zeros(rows, columns, dtype=torch.long, device=device), out=None,
                         d_out=None, positions=torch.arange(columns, device=device))
    # The same memory under other names. Autograd keeps a node for each weight as long as some loss
    # is there that came from it, with the stream of that forward, and a recording that touched
    # another stream would fail.
    names = {name: p.detach().requires_grad_(p.requires_grad) for name, p in weights.items()}
    asked = [name for name, p in weights.items() if p.requires_grad]

    def forward():
        torch.clear_autocast_cache()  # of weights cast outside, which a replay would not cast again
        with torch.set_grad_enabled(learns):
            out = functional_call(whose(), names, (io.ids, io.positions))
        if learns or io.out is None:
            io.out = out if learns else out.clone()
        else:
            io.out.copy_(out)
        io.d_out = torch.zeros_like(out) if learns and io.d_out is None else io.d_out

    def backward():
        grads = torch.autograd.grad(io.out, [names[n] for n in asked], io.d_out, allow_unused=True)
        # An untied head is not the trunk's.
        found = [(weights[n], g) for n, g in zip(asked, grads) if g is not None]
        if not pairs:  # one set for all sizes
            pairs.extend((p, g.clone()) for p, g in found)
        torch._foreach_copy_([old for _, old in pairs], [new for _, new in found])
    if learns:
        forward, backward = record("whole texts", [forward, backward], device, trunk)
        io.out = io.out.detach()
    else:
        forward, = record("whole texts", [forward], device)
    return SimpleNamespace(io=io, forward=forward, backward=backward)


class Replay(torch.autograd.Function):
    """A recorded forward, whose backward adds to the weights' gradients by itself;
    `start` only makes autograd come."""

    @staticmethod
    def forward(ctx, start, s, trunk, B, T):
        """Hidden states [B,T,C] of the ids in s.io.ids."""
        ctx.s, ctx.trunk, trunk.flying = s, trunk, weakref.ref(ctx)
        s.forward()
        return s.io.out[:B, :T].clone()

    @staticmethod
    def backward(ctx, d_out):
        """Gradients of all weights, from those of the hidden states [B,T,C]."""
        s, (B, T, _) = ctx.s, d_out.shape
        s.io.d_out.zero_()
        s.io.d_out[:B, :T] = d_out
        s.backward()
        ctx.trunk.flying = lambda: None
        # The next replay overwrites what this one wrote:
        # it is added to what other parts of a batch gave, or copied.
        there = [(p.grad, g) for p, g in ctx.trunk.pairs if p.grad is not None]
        new = [(p, g) for p, g in ctx.trunk.pairs if p.grad is None]
        if there:
            torch._foreach_add_(*map(list, zip(*there)))
        for (p, _), copied in zip(new, torch._foreach_mul([g for _, g in new], 1.0) if new else ()):
            p.grad = copied
        return None, None, None, None, None
