"""The Triton kernels against double precision: on the GPU where there is one,
elsewhere in Triton's interpreter."""
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_logprob import assert_no_worse_than_eager, problem

import minicai.logprob as logprob

pytest.importorskip("triton", reason="triton is not installed: CUDA devices use plain torch then")
# conftest.py has chosen the interpreter by now
from minicai import logprob_triton as kernels

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# The interpreter cuts the last bits off where a GPU rounds to the nearest bfloat16: twice the error
# at most.
SLACK = {torch.bfloat16: 1.5 if DEVICE == "cuda" else 3.0}


@pytest.fixture(autouse=True)
def kernels_in_small_steps(monkeypatch):
    """Rows longer than one block, in few columns;
    and the CPU takes the path that CUDA takes by itself."""
    monkeypatch.setattr(kernels, "BLOCK", 64)
    monkeypatch.setattr(logprob, "row_functions",
                        lambda hidden: (kernels.row_statistics, kernels.row_gradient))


def logits_and_truth(n, V, dtype, temperature, orphans):
    """Logits [n, V] of a type, with ids that have no share, and in double precision:
    logp, entropy, their gradients."""
    g = torch.Generator().manual_seed(V)
    z = (20 * torch.randn(n, V, generator=g)).to(dtype)
    # as forbidding_bias leaves them in float16
    z[:, V - orphans:] = -torch.finfo(torch.float16).max / 2
    targets, up = torch.randint(0, V - orphans, (n,), generator=g), torch.randn(2, n, generator=g)
    exact = z.double().requires_grad_()
    all_logp = (exact / temperature).log_softmax(-1)
    logp = all_logp.gather(-1, targets[:, None]).squeeze(-1)
    entropy = -(all_logp.exp() * all_logp).sum(-1)
    grads = [torch.autograd.grad(loss, exact, retain_graph=True)[0] for loss in
             ((logp * up[0]).sum(), (logp * up[0] + entropy * up[1]).sum())]
    return z.to(DEVICE), targets.to(DEVICE), up.to(DEVICE), logp.detach(), entropy.detach(), grads


# n, V, temperature, orphans
SHAPES = [(1, 1, 1.0, 0), (3, 65, 0.7, 2), (5, 257, 2.0, 70), (2, 128, 1.0, 0)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("n, V, temperature, orphans", SHAPES)
def test_rows_against_double_precision(n, V, temperature, orphans, dtype):
    z, targets, up, logp, entropy, \
        (grad_logp, grad_both) = logits_and_truth(n, V, dtype, temperature, orphans)
    stats = kernels.row_statistics(z, targets, temperature, True)
    for ours, truth in zip(stats, (logp, entropy)):
        torch.testing.assert_close(ours.double().cpu(), truth, rtol=1e-5, atol=1e-5)
    # a unit in the last place of what is stored
    close = dict(rtol=max(5e-5, torch.finfo(dtype).eps), atol=1e-5)
    for ge, truth in ((None, grad_logp), (up[1] / temperature, grad_both)):
        table = z.clone()
        d = kernels.row_gradient(table, targets, temperature, up[0] / temperature, ge, *stats[1:])
        assert d.data_ptr() == table.data_ptr() and d.dtype == dtype       # in place
        torch.testing.assert_close(d.double().cpu(), truth, **close)
        assert (d[:, V - orphans:] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_no_worse_than_eager(dtype, scale):
    """All of token_logprobs around the kernels, chunks of unequal size:
    values and both gradients."""
    assert_no_worse_than_eager(dtype, scale, True, (23, 16, 131), rows=9, device=DEVICE,
                               slack=SLACK.get(dtype, 1.5))


def test_the_same_numbers_as_plain_torch(monkeypatch):
    """Ids without a token, targets that lie apart in memory, an entropy that is only looked at,
    gradients of ones."""
    hidden, weight, targets, forbidden, g = (x.to(DEVICE) for x in problem(7, 8, 150, orphans=20))
    targets = torch.stack([targets, targets + 1], 1)[:, 0]
    assert not targets.is_contiguous()

    def ours():
        h, w = hidden.float().requires_grad_(), weight.float().requires_grad_()
        logp, entropy = logprob.token_logprobs(h, w, targets, 0.7, forbidden, True,
                                               scratch_bytes=4 * 150 * 4)
        logp.sum().backward()
        return logp, entropy, h.grad, w.grad
    fused = ours()
    monkeypatch.setattr(logprob, "row_functions",
                        lambda hidden: (logprob.row_statistics, logprob.row_gradient))
    torch.testing.assert_close(fused, ours(), rtol=1e-4, atol=1e-5)


def test_no_rows():
    hidden = torch.zeros(0, 4, device=DEVICE, requires_grad=True)
    weight = torch.randn(9, 4, device=DEVICE)
    targets = torch.zeros(0, dtype=torch.long, device=DEVICE)
    logp, entropy = logprob.token_logprobs(hidden, weight, targets, entropy=True)
    (logp.sum() + entropy.sum()).backward()
    assert logp.shape == entropy.shape == (0,) and hidden.grad.shape == (0, 4)


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from minicai import logprob_triton as kernels

def types(kernel, table):
    fixed = {"z": "*" + table, "targets": "*i64", "V": "i32", "temperature": "fp32",
             "BLOCK": "constexpr"}
    return {name: fixed.get(name, "*fp32") for name in kernel.arg_names}

for kernel in (kernels.statistics_kernel, kernels.gradient_kernel):
    constants = {(kernel.arg_names.index("BLOCK"),): kernels.BLOCK}
    source = ASTSource(kernel, types(kernel, "bf16"), constants)
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 8})
    print(kernel.__name__, len(made.asm["cubin"]) > 0)
"""


def test_the_compiler_takes_them(tmp_path):
    """What the interpreter runs need not compile;
    the compiler needs no GPU, only a process without the interpreter."""
    env = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", COMPILE], cwd=Path(__file__).parent.parent,
                          env=env, capture_output=True, text=True)
    assert done.stdout.split() == ["statistics_kernel", "True", "gradient_kernel", "True"], \
        done.stderr
