"""Whole texts through a recorded model: hidden states and gradients are the plain model's,
in any size and any order.

On a CPU a step is called where CUDA replays it; the filling up, the copies and the sums are the
same.
"""
import copy
import weakref

import pytest
import torch
from test_gpt import SHAPES

from minicai import graph
from minicai.gpt import GPT, GPTConfig

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(params=SHAPES)
def models(request):
    """(plain, recorded) with the same weights."""
    config = GPTConfig(vocab_size=97, n_layer=2, n_head=4, width=32, mlp_width=48, max_positions=80,
                       tied=False, **SHAPES[request.param])
    plain = GPT(config).init_weights(torch.Generator().manual_seed(0), std=0.2).to(DEVICE)
    recorded = copy.deepcopy(plain)
    recorded.recording = True
    return plain, recorded


def ids(rows, columns, seed=0):
    return torch.randint(97, (rows, columns),
                         generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def close(a, b):
    assert a.shape == b.shape and (a - b).norm() <= 1e-4 * a.norm() + 1e-6


def grads(model):
    return [None if p.grad is None else p.grad.clone() for p in model.parameters()]


def backward(model, *sizes, keep=False):
    """Gradients of a loss over parts of some sizes, differentiated one after the other;
    of a second time."""
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
        # dropped without a backward: the next one may fly
        close(recorded(ids(*size)), plain(ids(*size)))
    found = graph.TRUNKS[recorded].found
    assert {key[:2] for key in found} == {(3, 64), (1, 80), (5, 80), (10, 80)} and len(found) == 8
    # those that came twice
    assert {key[:2] for key in found if found[key]} == {(3, 64), (1, 80), (10, 80)}


def test_gradients_are_the_same_for_parts_of_a_batch_and_step_after_step(models):
    plain, recorded = models
    for sizes in ([(3, 20)], [(3, 20), (3, 18), (2, 50)], [(1, 9), (3, 20)]):
        for keep in (False, True):
            for a, b in zip(backward(plain, *sizes, keep=keep),
                            backward(recorded, *sizes, keep=keep)):
                assert (a is None) == (b is None)  # the untied head belongs to nobody here
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
    models[1].bfloat16()  # other memory, another type: recorded anew
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


@pytest.mark.parametrize("n, least, parts, wanted",
                         [(1, 1, 1, 1), (5, 1, 1, 8), (64, 1, 1, 64), (65, 1, 4, 80),
                          (3, 64, 4, 64), (257, 64, 4, 320), (1000, 64, 4, 1024)])
def test_sizes_are_few(n, least, parts, wanted):
    assert graph.rounded(n, least, parts) == wanted == graph.rounded(wanted, least, parts)


def test_no_graph_of_others_is_part_of_a_recording(models, monkeypatch):
    """A loss that is still held keeps autograd's nodes of the weights, on the stream of its
    forward: as in a training loop, whose last loss lives until the next is there. A recording must
    have nodes of its own."""
    plain, recorded = models
    held = recorded(ids(3, 20)).sum()
    held.backward()
    steps = []
    monkeypatch.setattr(graph, "record",
                        lambda what, made, *rest: [steps.extend(made), *[step() for step in made]]
                        and made)
    recorded(ids(3, 20)).sum().backward()
    io = next(s for s in graph.TRUNKS[recorded].found.values() if s).io
    steps[0]()  # the forward, as CUDA would record it
    nodes, todo = set(), [io.out.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in nodes:
            nodes.add(node)
            todo += [following for following, _ in node.next_functions]
    leaves = [node.variable for node in nodes if hasattr(node, "variable")]
    assert len(leaves) == len(list(recorded.parameters())) - 1          # all but the untied head
    assert not any(leaf is p for leaf in leaves for p in recorded.parameters())
    assert {leaf.data_ptr() for leaf in leaves} < {p.data_ptr() for p in recorded.parameters()}


def test_what_is_recorded_goes_with_the_model():
    """At once, not when Python next looks for circles: on a GPU it is memory."""
    model = GPT(GPTConfig(vocab_size=97, n_layer=1, n_head=2, width=16)).init_weights().to(DEVICE)
    model.recording = True
    backward(model, (3, 20))
    gone = weakref.ref(model), weakref.ref(next(iter(graph.TRUNKS[model].found.values())).io.ids)
    del model
    assert [ref() for ref in gone] == [None, None]


class FakeCUDA:
    """Stands for streams and graphs where there are none;
    a capture ends badly if what it recorded did."""
    bad = None

    def __init__(self, *_, **__):
        pass

    def capture_begin(self, **_):
        pass

    def capture_end(self):
        if FakeCUDA.bad:
            raise RuntimeError("operation failed due to a previous error during capture")

    wait_stream = replay = lambda *_: None


@pytest.fixture
def fake_cuda(monkeypatch):
    monkeypatch.setattr(graph, "FAILED", {})
    monkeypatch.setattr(graph, "side", lambda device: (FakeCUDA(), None, None))
    monkeypatch.setattr(FakeCUDA, "bad", None)
    for name in ("CUDAGraph", "current_stream", "synchronize"):
        monkeypatch.setattr(torch.cuda, name, FakeCUDA)
    monkeypatch.setattr(torch.cuda, "stream", lambda *_: torch.no_grad())


def failing(error, calls):
    """A step that works the first time and fails when it is recorded."""
    def step():
        calls.append(1)
        if len(calls) == 2:
            FakeCUDA.bad = error
            raise error
    return step


def test_a_recording_that_fails_is_told_once_with_its_cause_and_the_step_is_called(
        fake_cuda, capsys):
    calls = []
    for _ in range(2):
        run, = graph.record("decoding",
                            [failing(RuntimeError("the legacy stream would depend\nmore"), calls)],
                            torch.device("cuda"))
        run()
    assert len(calls) == 6 and capsys.readouterr().err == (
        "decoding: no CUDA graphs here (the legacy stream would depend): slower without\n")
    FakeCUDA.bad = None
    run, = graph.record("whole texts", [lambda: None], torch.device("cuda"))  # that has not failed
    assert isinstance(run, graph.Recording)


def test_memory_that_runs_out_in_a_recording_is_said_as_such(fake_cuda):
    with pytest.raises(torch.OutOfMemoryError, match="no room"):
        graph.record("decoding", [failing(torch.OutOfMemoryError("no room"), [])],
                     torch.device("cuda"))
    assert not graph.FAILED


def test_a_recording_keeps_the_memory_that_it_reads(fake_cuda):
    """A replay reads where the step read: what only the step knew must not be freed and given
    to others."""
    stops = torch.arange(3)
    run, = graph.record("decoding", [lambda stops=stops: stops.add_(1)], torch.device("cuda"))
    kept = weakref.ref(stops)
    del stops
    assert kept() is not None and kept().tolist() == [2, 3, 4]
    del run
    assert kept() is None
