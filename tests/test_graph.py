"""Whole texts through a recorded model: hidden states and gradients are the plain model's, in any size and any order.

On a CPU a step is called where CUDA replays it; the filling up, the copies and the sums are the same.
"""
import copy

import pytest
import torch
from test_gpt import SHAPES

from minicai import graph
from minicai.gpt import GPT, GPTConfig

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(params=SHAPES)
def models(request):
    """(plain, recorded) with the same weights."""
    config = GPTConfig(vocab_size=97, n_layer=2, n_head=4, width=32, mlp_width=48, max_positions=80, tied=False,
                       **SHAPES[request.param])
    plain = GPT(config).init_weights(torch.Generator().manual_seed(0), std=0.2).to(DEVICE)
    recorded = copy.deepcopy(plain)
    recorded.recording = True
    return plain, recorded


def ids(rows, columns, seed=0):
    return torch.randint(97, (rows, columns), generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def close(a, b):
    assert a.shape == b.shape and (a - b).norm() <= 1e-4 * a.norm() + 1e-6


def grads(model):
    return [None if p.grad is None else p.grad.clone() for p in model.parameters()]


def backward(model, *sizes, keep=False):
    """Gradients of a loss over parts of some sizes, differentiated one after the other; of a second time."""
    if not keep:
        backward(model, *sizes, keep=True)
    model.zero_grad(set_to_none=not keep)
    for seed, size in enumerate(sizes):
        hidden = model(ids(*size, seed=seed))
        (hidden.sin() * torch.linspace(0, 1, size[1], device=DEVICE)[:, None]).sum().backward()
    return grads(model)


def test_hidden_states_are_the_same_in_every_size(models):
    plain, recorded = models
    for size in [(3, 20), (3, 20), (1, 80), (5, 70), (3, 19), (9, 65), (10, 66), (1, 80)]:
        with torch.no_grad():
            close(recorded(ids(*size)), plain(ids(*size)))
        close(recorded(ids(*size)), plain(ids(*size)))                  # dropped without a backward: the next one may fly
    found = graph.TRUNKS[recorded].found
    assert {key[:2] for key in found} == {(3, 64), (1, 80), (5, 80), (10, 80)} and len(found) == 8
    assert {key[:2] for key in found if found[key]} == {(3, 64), (1, 80), (10, 80)}         # those that came twice


def test_gradients_are_the_same_for_parts_of_a_batch_and_step_after_step(models):
    plain, recorded = models
    for sizes in ([(3, 20)], [(3, 20), (3, 18), (2, 50)], [(1, 9), (3, 20)]):
        for keep in (False, True):
            for a, b in zip(backward(plain, *sizes, keep=keep), backward(recorded, *sizes, keep=keep)):
                assert (a is None) == (b is None)                       # the untied head belongs to nobody here
                if a is not None:
                    close(a, b)


def test_what_a_step_changed_is_seen_by_the_next(models):
    for model in models:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
        for _ in range(3):
            backward(model, (3, 20))
            optimizer.step()
    for a, b in zip(models[0].parameters(), models[1].parameters()):
        close(a, b)
    models[1].bfloat16()                                                # other memory, another type: recorded anew
    assert models[1](ids(3, 20)).dtype == torch.bfloat16


def test_two_batches_on_their_way_do_not_disturb_each_other(models):
    """The second one is not recorded; both gradients are right, whichever goes back first."""
    for first in (0, 1):
        found = []
        for model in models:
            model.zero_grad()
            backward(model, (3, 20))
            model.zero_grad()
            on_their_way = [model(ids(3, 20, seed=s)).sin().sum() * (s + 1) for s in (0, 1)]
            on_their_way[first].backward()
            on_their_way[1 - first].backward()
            found.append([g for g in grads(model) if g is not None])
        for a, b in zip(*found):
            close(a, b)


def test_nothing_is_recorded_where_it_cannot_be(models):
    _, model = models
    model.checkpointing = True
    model(ids(2, 9)).sum().backward()
    model.checkpointing = False
    with torch.inference_mode():
        model(ids(2, 9))
    assert not graph.TRUNKS.get(model) or not graph.TRUNKS[model].found


@pytest.mark.parametrize("n, least, parts, wanted", [(1, 1, 1, 1), (5, 1, 1, 8), (64, 1, 1, 64), (65, 1, 4, 80),
                                                     (3, 64, 4, 64), (257, 64, 4, 320), (1000, 64, 4, 1024)])
def test_sizes_are_few(n, least, parts, wanted):
    assert graph.rounded(n, least, parts) == wanted == graph.rounded(wanted, least, parts)


def test_a_recording_that_fails_is_told_once_and_the_step_is_called(monkeypatch, capsys):
    class Graph:
        def __init__(self, *_, **__):
            pass

        def __enter__(self):
            raise RuntimeError("operation not permitted when stream is capturing\nmore")

        __exit__ = wait_stream = replay = lambda *_: None
    monkeypatch.setattr(graph, "FAILED", [])
    monkeypatch.setattr(graph, "side", lambda device: (Graph(), None, None))
    for name in ("CUDAGraph", "graph", "stream", "current_stream", "synchronize"):
        monkeypatch.setattr(torch.cuda, name, Graph if name != "stream" else lambda *_: torch.no_grad())
    calls = []
    for _ in range(2):
        run, = graph.record([lambda: calls.append(1)], torch.device("cuda"))
        run()
    assert len(calls) == 5 and capsys.readouterr().err.count("CUDA graphs cannot be used here (operation not") == 1
