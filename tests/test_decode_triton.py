"""The decoding kernels: on CPU tensors in Triton's interpreter, where there is no GPU,
against the model's own forward."""
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
from minicai import decode, sample
from minicai import decode_triton as kernels
from minicai.decode import Decoder
from minicai.gpt import GPT, GPTConfig
from minicai.sample import pick

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("shape", [dict(n_head=4, n_kv_head=2),
                                   dict(n_head=3, n_kv_head=3, qkv_bias=True, tied=False)])
@pytest.mark.parametrize("rows", [1, 5, 18])
def test_a_step_gives_the_models_logits_and_fills_its_cache(shape, rows, monkeypatch):
    """Grouped queries and not, with a bias, rows with padding, a width that is no power of 2,
    columns in two blocks or in one."""
    monkeypatch.setattr(kernels, "ENOUGH", 1 if rows > 5 else 100)
    config = GPTConfig(vocab_size=77, n_layer=2, head_dim=32, width=72, mlp_width=88,
                       max_positions=128, **shape)
    model = GPT(config).init_weights(torch.Generator().manual_seed(0), std=0.3).to(
        DEVICE).requires_grad_(False)
    for p in model.parameters():
        p += 0.1 * torch.randn(p.shape,
                               generator=torch.Generator().manual_seed(p.numel())).to(DEVICE)
    decoder, g, P = Decoder(model), torch.Generator().manual_seed(1), 70
    cache = decoder.cache(rows, 100)
    mask = torch.arange(P) >= torch.randint(0, 60, (rows, 1), generator=g)
    ids = torch.randint(77, (rows, P + 1), generator=g).to(DEVICE)
    positions = (mask.cumsum(1) - 1).clamp(min=0).to(DEVICE)
    decoder.model(ids[:, :P], positions, mask.to(DEVICE), cache)
    seen = torch.full((rows, 1, 1, cache.k.shape[3]), -torch.inf, device=DEVICE)
    seen[..., :P].masked_fill_(mask[:, None, None].to(DEVICE), 0.0)
    cache.at, bias = torch.tensor([P], device=DEVICE), torch.randn(77, generator=g).to(DEVICE)
    args = ids[:, P:], positions[:, -1:] + 1, seen
    ours = kernels.step_logits(decoder.model, *args, cache, bias)
    kept = cache.k[:, :, :, P].clone(), cache.v[:, :, :, P].clone()
    seen.index_fill_(3, cache.at, 0.0)
    theirs = decoder.model(*args, cache)[:, -1] @ model.head.T + bias
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(kept, (cache.k[:, :, :, P], cache.v[:, :, :, P]),
                               rtol=1e-4, atol=1e-4)
    assert theirs.std() > 0.5 and pick(ours, 0, None).tolist() == pick(theirs, 0, None).tolist()


@pytest.mark.parametrize("shared", [101_376, 166_912, 232_448])  # of common GPUs
def test_what_is_on_its_way_fits_a_gpus_shared_memory(shared):
    """Of any number of rows and columns, in bfloat16 and float32, normed and gated or not."""
    for R in (1, 16, 17, 40, 64, 300):
        for N in (72, 576, 3072, 7000, 8192, 49152):
            for normed, x, w in ((False, 2, 2), (True, 4, 2), (True, 4, 4), (False, 4, 4)):
                if N > 8192 and normed and w == 4 and shared < 166_912:     # the head in float32
                    continue
                BR, BN, BK, stages = kernels.blocks(R, N, normed, x, w, shared)
                assert (stages - 1) * BK * (BR * x + BN * w) <= shared and stages >= 2


def test_generate_gives_the_same_ids_with_them(monkeypatch):
    """Greedy ids of a few tokens; one row ends at once, so the others move to a smaller step."""
    config = GPTConfig(vocab_size=40, n_layer=1, n_head=2, n_kv_head=1, head_dim=32, width=32,
                       mlp_width=32, max_positions=64)
    model = GPT(config).init_weights(torch.Generator().manual_seed(0), std=0.5).to(DEVICE)
    monkeypatch.setattr(sample, "decodes", lambda device: True)
    monkeypatch.setattr(decode, "LOOK", 2)
    rows, found = [[5, 6, 7], [8], [9] * 5, [11, 12]], []
    for kernels_here in (None, kernels):
        monkeypatch.setattr(decode, "DECODERS", {model: Decoder(model)})
        decode.DECODERS[model].kernels = kernels_here
        found.append(sample.generate(model, rows, max_new_tokens=6, stop={3, 17}, temperature=0))
        assert decode.DECODERS[model].kernels is kernels_here  # it did not fail and do without
    assert found[0] == found[1]


def test_it_knows_what_it_can_do():
    fits = lambda **shape: kernels.fits(
        GPT(GPTConfig(vocab_size=9, n_layer=1, head_dim=32, **shape)).bfloat16())
    assert fits() and fits(qkv_bias=True, n_kv_head=2)
    assert not any([fits(qk_norm=True), fits(norm="layernorm"), fits(positions="learned"),
                    fits(mlp="gelu"), fits(out_bias=True), fits(mlp_bias=True)])
    assert not kernels.fits(GPT(GPTConfig(vocab_size=9, n_layer=1, head_dim=32)))  # float32


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from minicai import decode, sample
from minicai import decode_triton as kernels

def made(kernel, types, fixed, stages, shared=232_448):
    args = {name: "constexpr" if name in fixed else types.get(name, "*bf16")
            for name in kernel.arg_names}
    constants = {(kernel.arg_names.index(name),): value for name, value in fixed.items()}
    done = triton.compile(ASTSource(kernel, args, constants), target=GPUTarget("cuda", 90, 32),
                          options={"num_warps": 4, "num_stages": stages})
    print(kernel.__name__, len(done.asm["cubin"]) > 0, done.metadata.shared <= shared)

numbers = {"R": "i32", "K": "i32", "N": "i32", "eps": "fp32"}
products = {"qkv": (960, {"x": "*fp32"}, dict(NORMED=True, GATED=False, ADDED=False, w2=None)),
            "gate and up": (1536, {"x": "*fp32"},
                            dict(NORMED=True, GATED=True, ADDED=False, bias=None)),
            "down": (576, {"out": "*fp32"},
                     dict(NORMED=False, GATED=False, ADDED=True, norm=None, w2=None, bias=None)),
            "head": (49152, {"x": "*fp32", "out": "*fp32"},
                     dict(NORMED=True, GATED=False, ADDED=False, w2=None))}
shared = {"large": 232_448, "small": 101_376}              # bytes, of an H100 and of most others
for R, name, gpu in [(1, "qkv", "large"), (1, "gate and up", "large"), (1, "down", "large"),
                     (1, "head", "large"), (64, "gate and up", "large"), (64, "down", "large"),
                     (64, "head", "large"), (256, "qkv", "large"), (64, "head", "small"),
                     (64, "gate and up", "small"), (256, "down", "small")]:
    N, types, fixed = products[name]
    x = 4 if types.get("x") == "*fp32" else 2
    BR, BN, BK, stages = kernels.blocks(R, N, fixed["NORMED"], x, 2 + 2 * fixed["GATED"],
                                        shared[gpu])
    made(kernels.product_kernel, numbers | types, fixed | {"BR": BR, "BN": BN, "BK": BK}, stages,
         shared[gpu])
made(kernels.attention_kernel,
     {"freq": "*fp32", "positions": "*i64", "at": "*i64", "row_stride": "i32", "S": "i32"},
     {"H": 9, "G": 3, "D": 64, "Q": 16, "BS": 128}, 3)
"""


def test_the_compiler_takes_them(tmp_path):
    """What the interpreter runs need not compile;
    the compiler needs no GPU, only a process without the interpreter."""
    env = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", COMPILE], cwd=Path(__file__).parent.parent,
                          env=env, capture_output=True, text=True)
    assert done.stdout.split() == ["product_kernel", "True", "True"] * 11 \
        + ["attention_kernel", "True", "True"], done.stderr
