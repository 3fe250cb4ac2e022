"""The chunked log-prob against the definition in double precision:
values, both gradients, odd shapes, memory."""
import sys
from types import SimpleNamespace

import pytest
import torch

import minicai
import minicai.logprob as logprob
from minicai.logprob import logprob_reference, token_logprobs


def problem(N, D, V, seed=0, scale=1.0, orphans=0):
    """Random inputs in double precision, with the last `orphans` ids forbidden."""
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(N, D, generator=g, dtype=torch.float64)
    weight = torch.randn(V, D, generator=g, dtype=torch.float64) * scale / D ** 0.5
    targets = torch.randint(0, V - orphans, (N,), generator=g)
    forbidden = torch.arange(V) >= V - orphans if orphans else None
    return hidden, weight, targets, forbidden, torch.randn(2, N, generator=g, dtype=torch.float64)


def run(fn, hidden, weight, dtype, g):
    """(logp, entropy, d hidden, d weight) of fn in a type, for upstream gradients g [2, N]."""
    hidden, weight = (x.to(dtype).detach().requires_grad_() for x in (hidden, weight))
    logp, entropy = fn(hidden, weight)
    out = [logp, entropy] if entropy is not None else [logp]
    torch.autograd.backward(out, [x.to(o.dtype) for x, o in zip(g, out)])
    return [x.detach().double() for x in (*out, hidden.grad, weight.grad)]


SHAPES = [(1, 8, 5), (7, 3, 2), (33, 16, 257), (130, 24, 1001)]


@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_double_precision_is_exact(shape, temperature):
    hidden, weight, targets, forbidden, g = problem(*shape, orphans=shape[2] // 4)
    args = targets, temperature, forbidden
    truth = run(lambda h, w: logprob_reference(h, w, *args), hidden, weight, torch.float64, g)
    for rows in (1, 5, 1000):
        ours = run(lambda h, w: token_logprobs(h, w, *args, entropy=True,
                                               scratch_bytes=4 * shape[2] * rows),
                   hidden, weight, torch.float64, g)
        assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-11) for a, b in zip(ours, truth))


@pytest.mark.parametrize("rows", [3, 1000])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_second_backward_gives_the_same(rows, temperature):
    """The first one has used up the logits that the forward left."""
    hidden, weight, targets, forbidden, g = problem(10, 4, 30, orphans=3)
    hidden, weight = (x.requires_grad_() for x in (hidden, weight))
    logp, _ = token_logprobs(hidden, weight, targets, temperature, forbidden,
                             scratch_bytes=4 * 30 * rows)
    first, again = (torch.autograd.grad(logp, (hidden, weight), g[0], retain_graph=True)
                    for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again))


def assert_no_worse_than_eager(dtype, scale, entropy, shape, rows, device="cpu", slack=1.5):
    """The error of token_logprobs against double precision stays within `slack` times
    that of the definition in dtype."""
    hidden, weight, targets, forbidden, g = (x.to(device)
                                             for x in problem(*shape, scale=scale, orphans=5))
    # the same inputs for all three
    hidden, weight = hidden.to(dtype).double(), weight.to(dtype).double()

    def reference(h, w):
        logp, ent = logprob_reference(h, w, targets, 0.8, forbidden)
        return logp, ent if entropy else None
    truth = run(reference, hidden, weight, torch.float64, g)
    eager = run(reference, hidden, weight, dtype, g)
    fused = run(lambda h, w: token_logprobs(h, w, targets, 0.8, forbidden, entropy,
                                            scratch_bytes=rows * 4 * shape[2]),
                hidden, weight, dtype, g)
    names = ["logp", "entropy", "d hidden", "d weight"] if entropy else \
        ["logp", "d hidden", "d weight"]
    for name, t, e, f in zip(names, truth, eager, fused):
        error = lambda x: (x - t).norm() / t.norm()
        assert error(f) <= slack * error(e) + 1e-7, (name, error(f), error(e))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 30.0])
@pytest.mark.parametrize("entropy", [False, True])
@pytest.mark.parametrize("shape", [(190, 48, 701), (33, 7, 257)])
def test_no_worse_than_eager(dtype, scale, entropy, shape):
    """Values and both gradients; large logits and odd shapes too."""
    assert_no_worse_than_eager(dtype, scale, entropy, shape, rows=64)


def test_gradients_by_finite_differences():
    hidden, weight, targets, forbidden, _ = problem(5, 4, 9, orphans=2)
    inputs = hidden.requires_grad_(), weight.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda h, w: token_logprobs(h, w, targets, 0.7, forbidden, True, 4 * 9 * 2), inputs)


def test_closed_forms():
    """Equal logits: log 1/V and log V over the ids allowed; a certain id: 0 and 0."""
    logp, entropy = token_logprobs(torch.ones(3, 4), torch.ones(10, 4), torch.tensor([0, 3, 7]),
                                   forbidden=torch.arange(10) >= 8, entropy=True)
    assert torch.allclose(logp, -torch.full((3,), 8.0).log()) and torch.allclose(entropy, -logp)
    sure = torch.zeros(10, 4)
    sure[3] = 100.0
    logp, entropy = token_logprobs(torch.ones(1, 4), sure, torch.tensor([3]), entropy=True)
    assert logp.item() == entropy.item() == 0.0


def test_forbidden_ids_get_no_gradient_and_no_share():
    hidden, weight, targets, forbidden, g = problem(20, 8, 30, orphans=10)
    _, _, _, d_weight = run(lambda h, w: token_logprobs(h, w, targets, 0.1, forbidden, True),
                            hidden, weight, torch.float32, g)
    assert (d_weight[forbidden] == 0).all() and d_weight.isfinite().all()
    assert (d_weight[~forbidden] != 0).any()
    short, _ = token_logprobs(hidden.float(), weight[:20].float(), targets)
    full, _ = token_logprobs(hidden.float(), weight.float(), targets, forbidden=forbidden)
    assert torch.allclose(short, full, atol=1e-6)


def test_only_what_is_asked_for_is_differentiated():
    hidden, weight, targets, *_ = (x for x in problem(6, 4, 11))
    hidden, weight = hidden.float(), weight.float()
    logp, entropy = token_logprobs(hidden.requires_grad_(), weight, targets)
    logp.sum().backward()
    assert entropy is None and hidden.grad is not None and weight.grad is None
    truth = run(lambda h, w: (logprob_reference(h, w, targets)[0], None), hidden, weight,
                torch.float32, torch.ones(1, 6))
    assert torch.allclose(hidden.grad.double(), truth[1], atol=1e-6)


@pytest.mark.parametrize("used", [[0], [1], [0, 1]])
def test_an_output_without_gradient_costs_nothing(monkeypatch, used):
    """logp, entropy or both in the loss: right gradients,
    and none worked out for an entropy that is only looked at."""
    asked = []

    def spy(z, targets, temperature, g, ge, *kept):
        asked.append(ge is not None)
        return logprob.row_gradient(z, targets, temperature, g, ge, *kept)
    monkeypatch.setattr(logprob, "row_functions", lambda hidden: (logprob.row_statistics, spy))
    hidden, weight, targets, *_ = problem(6, 4, 11)
    grads = []
    for fn in (logprob_reference, lambda *a: token_logprobs(*a, entropy=True)):
        h, w = (x.clone().requires_grad_() for x in (hidden, weight))
        out = fn(h, w, targets, 0.7)
        sum(out[i].sum() for i in used).backward()
        grads.append((h.grad, w.grad))
    torch.testing.assert_close(*grads)
    assert asked == [1 in used]


def test_kernels_are_for_cuda_and_plain_torch_for_all_else(monkeypatch, capsys):
    plain = logprob.row_statistics, logprob.row_gradient
    on = lambda is_cuda, dtype: SimpleNamespace(is_cuda=is_cuda, dtype=dtype, device="cpu")
    # without its memory
    monkeypatch.setattr(logprob, "triton_kernels", logprob.triton_kernels.__wrapped__)
    assert logprob.row_functions(on(False, torch.float32)) == logprob.row_functions(
        on(True, torch.float64)) == plain
    fake = SimpleNamespace(row_statistics=lambda *row: None, row_gradient="faster")
    monkeypatch.setattr(minicai, "logprob_triton", fake, raising=False)
    assert logprob.row_functions(on(True, torch.bfloat16)) == (fake.row_statistics, "faster")

    def broken(*row):
        raise RuntimeError("Failed to find C compiler.\nSet CC")
    fake.row_statistics = broken  # it imports, and cannot build its launcher
    assert logprob.row_functions(on(True, torch.bfloat16)) == plain
    assert capsys.readouterr().err \
        == "triton cannot be used here (Failed to find C compiler.): log-probs in plain torch\n"
    monkeypatch.delattr(minicai, "logprob_triton")  # and where triton does not import
    monkeypatch.delitem(sys.modules, "minicai.logprob_triton", raising=False)
    monkeypatch.setitem(sys.modules, "triton", None)
    assert logprob.row_functions(on(True, torch.bfloat16)) == plain


def test_nothing_the_size_of_the_logits_is_kept_or_made():
    """Between forward and backward: inputs and O(N) numbers. At any time:
    no tensor larger than the scratch asked for."""
    from torch.utils._python_dispatch import TorchDispatchMode
    N, D, V, rows = 256, 8, 2000, 16
    hidden, weight, targets, forbidden, g = problem(N, D, V, orphans=3)
    hidden, weight = hidden.float().requires_grad_(), weight.float().requires_grad_()
    kept, largest = [], [0]

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for x in out if isinstance(out, (tuple, list)) else [out]:
                if isinstance(x, torch.Tensor):
                    largest[0] = max(largest[0], x.numel())
            return out
    with Watch(), \
            torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        logp, entropy = token_logprobs(hidden, weight, targets, 0.9, forbidden, True,
                                       scratch_bytes=4 * V * rows)
        (logp.sum() + entropy.sum()).backward()
    assert largest[0] == rows * V  # so the watch did see the chunks
    assert sum(x.numel() for x in kept) <= hidden.numel() + weight.numel() + 4 * N + V


def test_forward_only_keeps_nothing():
    hidden, weight, targets, *_ = problem(6, 4, 11)
    with torch.no_grad():
        logp, _ = token_logprobs(hidden.requires_grad_(), weight.requires_grad_(), targets)
    assert logp.grad_fn is None and not logp.requires_grad


def test_empty_input():
    logp, entropy = token_logprobs(torch.zeros(0, 4, requires_grad=True), torch.randn(9, 4),
                                   torch.zeros(0, dtype=torch.long), entropy=True)
    (logp.sum() + entropy.sum()).backward()
    assert logp.shape == entropy.shape == (0,)


def test_autocast_products_are_bfloat16_and_the_weights_gradient_is_not():
    hidden, weight, targets, _, g = problem(64, 32, 301)
    hidden, weight = hidden.float().requires_grad_(), weight.float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        logp, _ = token_logprobs(hidden, weight, targets, scratch_bytes=4 * 301 * 16)
    logp.backward(g[0].float())
    low = run(lambda h, w: token_logprobs(h, w, targets, scratch_bytes=4 * 301 * 16), hidden,
              weight, torch.bfloat16, g)
    assert torch.equal(logp.double(), low[0]) and logp.dtype == torch.float32
    assert weight.grad.dtype == torch.float32
    assert not torch.equal(weight.grad, weight.grad.bfloat16().float())
    assert torch.allclose(weight.grad.double(), low[2], rtol=0.02, atol=1e-2)


@pytest.mark.parametrize("n, most, wanted", [(8192, 5461, 4096), (8192, 2048, 2048),
                                             (8192, 2730, 2048), (300, 4096, 384),
                                             (10, 3, 3), (9, 5, 5), (5, 4096, 128), (0, 7, 1),
                                             (8194, 4096, 2816)])
def test_chunks_on_a_gpu_are_alike(n, most, wanted):
    """As few as the bound allows, and none of a few rows only."""
    rows = logprob.like_chunks(n, most)
    assert rows == wanted and rows <= most and -(-n // rows) == -(-n // most)
    assert n < 1000 or n % rows == 0 or n % rows > rows / 2
