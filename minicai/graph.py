"""CUDA graphs: what has fixed shapes is recorded once and replayed, so that a GPU does not wait for Python.

A recorded step reads and writes the same memory at every replay: what goes in is copied to where the recording looks
for it. Elsewhere than on CUDA, and where a recording fails, a step is just called: the same numbers, more waiting.
"""

import functools
import sys

import torch

FAILED = []                                         # what went wrong, once: then nothing is recorded any more


def rounded(n: int, least: int = 1, parts: int = 1) -> int:
    """n, or `least` if that is more, rounded up to a power of 2 or to one of the `parts` equal steps up to it: few
    sizes are recorded."""
    n = max(n, least)
    step = max(1, 2 ** (n - 1).bit_length() // (2 * parts))
    return -(-n // step) * step


@functools.cache
def side(device: torch.device) -> tuple:
    """(stream, memory pool) of all recordings, and a first one that keeps the pool: they run one after the other, so
    they can share what they hold in between."""
    stream, pool, graph = torch.cuda.Stream(device), torch.cuda.graph_pool_handle(), torch.cuda.CUDAGraph()
    number = torch.zeros(1, device=device)
    with torch.cuda.graph(graph, pool=pool, stream=stream):
        number += 1
    return stream, pool, graph, number


def record(step, device: torch.device):
    """A function that does what step() does, without arguments and results, in one request to the GPU.

    step is called once for real (kernels are chosen and compiled then). It must not make the GPU wait, and what is to
    be found after it has to be written to memory that was there before.
    """
    if device.type != "cuda" or FAILED:
        step()
        return step
    try:
        stream, pool = side(device)[:2]
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            step()
        torch.cuda.current_stream(device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            step()
        return graph.replay
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        FAILED.append(str(error).strip().splitlines()[0])
        torch.cuda.synchronize(device)
        print(f"CUDA graphs cannot be used here ({FAILED[0]:.200}): slower without", file=sys.stderr)
        return step
