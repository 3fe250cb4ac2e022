"""CUDA graphs: what has fixed shapes is recorded once and replayed, so that a GPU does not wait for Python.

A small model's forward is hundreds of operations that take a GPU less time than Python needs to ask for them. A
recording of them is one request. It reads and writes the same memory at every replay: what goes in is copied to where
the recording looks for it. Elsewhere than on CUDA, and where a recording fails, steps are just called: the same
numbers, more waiting. decode.py records the sampler's steps; below, whole texts go through a model, there and back.

Shapes: B batch, T time, C width.
"""

import functools
import sys
import weakref
from types import SimpleNamespace

import torch

FAILED = []                                         # what went wrong, once: then nothing is recorded any more
TRUNKS = weakref.WeakKeyDictionary()                # GPT -> {sizes: recording}: it outlives a call, not the model


def rounded(n: int, least: int = 1, parts: int = 1) -> int:
    """n, or `least` if that is more, rounded up to a power of 2 or to one of the `parts` equal steps up to it: few
    sizes are recorded."""
    n = max(n, least)
    step = max(1, 2 ** (n - 1).bit_length() // (2 * parts))
    return -(-n // step) * step


def new_side(device: torch.device) -> tuple:
    """(stream, memory pool, what keeps them) of recordings, of which only one at a time holds anything in it."""
    stream, pool, graph = torch.cuda.Stream(device), torch.cuda.graph_pool_handle(), torch.cuda.CUDAGraph()
    number = torch.zeros(1, device=device)
    with torch.cuda.graph(graph, pool=pool, stream=stream):
        number += 1
    return stream, pool, (graph, number)


side = functools.cache(new_side)                    # that of all steps which hold nothing when they are done


def record(steps: list, device: torch.device, owner: SimpleNamespace | None = None) -> list:
    """Functions that do what those of `steps` do, without arguments and results, each in one request to the GPU.

    owner: has a side of its own under `where`, for steps that leave something for one another. The steps are called once for real, in their order (kernels are chosen and compiled then). They must not make the
    GPU wait, and what is to be found after them has to be written to memory that was there before.
    """
    if device.type == "cuda" and not FAILED:
        try:
            if owner and not owner.where:
                owner.where = new_side(device)
            stream, pool, _ = owner.where if owner else side(device)
            stream.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(stream):
                for step in steps:
                    step()
            torch.cuda.current_stream(device).wait_stream(stream)
            graphs = [torch.cuda.CUDAGraph() for _ in steps]
            for graph, step in zip(graphs, steps):
                with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                    step()
            return [graph.replay for graph in graphs]
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            FAILED.append(str(error).strip().splitlines()[0])
            torch.cuda.synchronize(device)
            print(f"CUDA graphs cannot be used here ({FAILED[0]:.200}): slower without", file=sys.stderr)
    for step in steps:
        step()
    return steps


# ---- a trunk, there and back -----------------------------------------------------------------------------------
def recorded_forward(model, ids: torch.Tensor) -> torch.Tensor | None:
    """model(ids), hidden states [B,T,C], by a recording; None where there is none: then call the model.

    It is made when a size comes for the second time. Rows and columns are filled up to a few sizes, on the right, where nothing real looks. With gradients, one batch at
    a time is on its way: what a recording holds for its backward, the next forward would overwrite.
    """
    learns = torch.is_grad_enabled() and model.head.requires_grad
    if model.checkpointing or torch.is_inference_mode_enabled():
        return None
    if model not in TRUNKS:
        TRUNKS[model] = SimpleNamespace(found={}, stamp=None, weights=list(model.parameters()), pairs=[], where=(),
                                        flying=lambda: None)
    trunk, (B, T) = TRUNKS[model], ids.shape
    if learns and trunk.flying() is not None:
        return None
    stamp = [p.data_ptr() for p in trunk.weights]
    if trunk.stamp != stamp:                        # the weights have moved, or changed their type
        trunk.found, trunk.stamp, trunk.pairs = {}, stamp, []
    rows, columns = rounded(B, parts=4), min(rounded(T, 64, parts=4), model.config.max_positions)
    key = rows, columns, learns, model.bf16
    if key not in trunk.found:
        trunk.found[key] = None
        return None
    s = trunk.found[key] = trunk.found[key] or record_trunk(model, trunk, rows, columns, learns)
    s.ids[:B, :T] = ids
    if learns:
        return Replay.apply(torch.ones((), requires_grad=True), s, trunk, B, T)
    s.forward()
    return s.out[:B, :T].clone()


def record_trunk(model, trunk, rows: int, columns: int, learns: bool) -> SimpleNamespace:
    """What a forward of [rows, columns] ids reads (ids) and writes (out), and with gradients its backward: it reads
    d_out and writes to trunk.pairs of (weight, gradient)."""
    device, asked = model.head.device, [p for p in trunk.weights if p.requires_grad]
    s = SimpleNamespace(ids=torch.zeros(rows, columns, dtype=torch.long, device=device), out=None, d_out=None)

    def forward():
        with torch.set_grad_enabled(learns):
            out = model.hidden_states(s.ids)
        if learns or s.out is None:
            s.out = out if learns else out.clone()
        else:
            s.out.copy_(out)
        s.d_out = torch.zeros_like(out) if learns and s.d_out is None else s.d_out

    def backward():
        found = torch.autograd.grad(s.out, asked, s.d_out, allow_unused=True)   # an untied head is not the trunk's
        pairs = [(p, g) for p, g in zip(asked, found) if g is not None]
        if not trunk.pairs:                                                     # one set for all sizes
            trunk.pairs = [(p, g.clone()) for p, g in pairs]
        torch._foreach_copy_([old for _, old in trunk.pairs], [new for _, new in pairs])
    if learns:
        s.forward, s.backward = record([forward, backward], device, trunk)
        s.out = s.out.detach()
    else:
        s.forward, = record([forward], device)
    return s


class Replay(torch.autograd.Function):
    """A recorded forward, whose backward adds to the weights' gradients by itself; `start` only makes autograd come."""

    @staticmethod
    def forward(ctx, start, s, trunk, B, T):
        """Hidden states [B,T,C] of the ids in s.ids."""
        ctx.s, ctx.trunk, trunk.flying = s, trunk, weakref.ref(ctx)
        s.forward()
        return s.out[:B, :T].clone()

    @staticmethod
    def backward(ctx, d_out):
        """Gradients of all weights, from those of the hidden states [B,T,C]."""
        s, (B, T, _) = ctx.s, d_out.shape
        s.d_out.zero_()
        s.d_out[:B, :T] = d_out
        s.backward()
        ctx.trunk.flying = lambda: None
        # The next replay overwrites what this one wrote: it is added to what other parts of a batch gave, or copied.
        there = [(p.grad, g) for p, g in ctx.trunk.pairs if p.grad is not None]
        new = [(p, g) for p, g in ctx.trunk.pairs if p.grad is None]
        if there:
            torch._foreach_add_(*map(list, zip(*there)))
        for (p, _), copied in zip(new, torch._foreach_mul([g for _, g in new], 1.0) if new else ()):
            p.grad = copied
        return None, None, None, None, None
