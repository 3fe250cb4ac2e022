"""Decoding by recorded steps of fixed shapes: what comes out is what the open loop
of sample.py gives, id for id.

On a CPU a step is called where CUDA replays it; the shapes, the masks, the moves of rows are the
same.
"""
import copy
import weakref
from types import SimpleNamespace

import pytest
import torch
from families import FAMILIES, make_model

from minicai import decode, sample
from minicai.checkpoint import load_model
from minicai.gpt import GPT, GPTConfig
from minicai.sample import generate

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def both(monkeypatch, model, rows, **options):
    """(the open loop's ids, those of the recorded steps) for one seed;
    on the device that there is."""
    run = lambda: generate(model, rows, generator=torch.Generator().manual_seed(0), **options)
    with monkeypatch.context() as patch:
        patch.setattr(sample, "decodes", lambda device: False)
        plain = run()
    monkeypatch.setattr(sample, "decodes", lambda device: True)
    return plain, run()


def same(plain, recorded):
    """Id for id on a CPU; a GPU sums in another order where shapes differ,
    and a tie may fall the other way."""
    equal = sum(a == b for a, b in zip(plain, recorded))
    return len(plain) == len(recorded) and \
        equal >= (len(plain) if DEVICE == "cpu" else 0.9 * len(plain) - 1)


def prompts(n, vocab, longest=30, shared=()):
    g = torch.Generator().manual_seed(1)
    lengths = torch.randint(1, longest, (n,), generator=g).tolist()
    return [[*shared, *torch.randint(vocab, (k,), generator=g).tolist()] for k in lengths]


@pytest.mark.parametrize("family", FAMILIES)
def test_recorded_steps_give_the_ids_of_the_open_loop(family, tmp_path, monkeypatch):
    """Every family, grouped queries, prompts of many lengths and of one,
    with a common beginning and without."""
    make_model(family, tmp_path)
    model, tok = load_model(tmp_path, DEVICE)
    vocab, stop = tok.n_vocab, set(range(0, tok.n_vocab, 9))
    options = {"max_new_tokens": 40, "stop": stop,
               "forbidden": tok.forbidden(model.config.vocab_size)}
    for rows in (prompts(21, vocab), prompts(5, vocab, shared=range(40)), [[5, 6, 7]] * 3, [[9]]):
        for temperature in (0, 1.0):
            plain, recorded = both(monkeypatch, model, rows, temperature=temperature, **options)
            assert same(plain, recorded)
    assert {len(ids) for ids in plain} and len({len(ids) for ids in recorded}) == 1
    assert len(decode.DECODERS[model].steps) >= 6


@pytest.fixture
def model():
    config = GPTConfig(vocab_size=61, n_layer=2, n_head=4, n_kv_head=2, width=32, mlp_width=48,
                       max_positions=96)
    return GPT(config).init_weights(torch.Generator().manual_seed(0), std=0.4).to(DEVICE)


def test_rows_that_ended_leave_and_the_rest_go_on(model, monkeypatch):
    """Of 64 rows few are left at the end: fewer rows a step, the same ids;
    and the last column is never needed."""
    sizes, step = [], decode.Decoder.step
    monkeypatch.setattr(decode.Decoder, "step", lambda self, rows, *rest: sizes.append(rows)
                        or step(self, rows, *rest))
    options = {"max_new_tokens": 66, "stop": {3, 4, 20}, "temperature": 1.0}
    # 30 + 66 = max_positions
    plain, recorded = both(monkeypatch, model, prompts(64, 61), **options)
    assert same(plain, recorded) and len({len(ids) for ids in plain}) > 8
    assert all(set(ids[:-1]).isdisjoint({-1, 3, 4, 20}) and ids[-1] != -1 for ids in recorded)
    assert sizes[0] == 64 and sizes[-1] <= 16 and sizes == sorted(sizes, reverse=True)
    seen = len(sizes)
    # Other tensors lie where those of the first call were; what was recorded must not read there.
    others = [torch.full((k,), 7, device=DEVICE) for k in range(1, 200)]
    assert both(monkeypatch, model, prompts(64, 61), **options)[1] == recorded
    assert len(sizes) == 2 * seen
    del others
    assert len(decode.DECODERS[model].steps) == seen  # nothing was recorded again


def test_kernels_that_fail_are_told_once_and_done_without(model, monkeypatch, capsys):
    def broken(*_):
        raise ValueError("no such instruction\nmore")
    options = {"max_new_tokens": 8, "stop": {3}, "temperature": 0}
    plain, recorded = both(monkeypatch, model, prompts(5, 61), **options)
    decode.DECODERS[model].steps = {}
    decode.DECODERS[model].kernels = SimpleNamespace(step_logits=broken)
    assert same(recorded, both(monkeypatch, model, prompts(5, 61), **options)[1])
    assert capsys.readouterr().err.count("kernels cannot be used here (no such instruction): "
                                         "plain torch") == 1


def test_a_decoder_follows_the_weights_and_goes_with_the_model(model, monkeypatch):
    model.bf16 = True
    options = {"max_new_tokens": 12, "stop": {3}, "temperature": 0}
    first = both(monkeypatch, model, prompts(8, 61), **options)[1]
    decoder, other = decode.DECODERS[model], copy.deepcopy(model)
    assert decoder.dtype == torch.bfloat16
    assert all(p.dtype == torch.bfloat16 for p in decoder.model.parameters())
    with torch.no_grad():
        for p in model.parameters():
            p += 0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(5)).to(DEVICE)
    second = both(monkeypatch, model, prompts(8, 61), **options)[1]
    assert second != first and decode.DECODERS[model] is decoder
    # and a copy has one of its own
    assert both(monkeypatch, other, prompts(8, 61), **options)[1] == first
    kept, gone = len(decode.DECODERS), weakref.ref(decode.DECODERS[other])
    del model, decoder, other
    assert len(decode.DECODERS) < kept and gone() is None           # at once: on a GPU it is memory


def test_more_room_drops_what_was_recorded_on_the_old(model, monkeypatch):
    monkeypatch.setattr(decode, "ROOM", 1)
    options = {"max_new_tokens": 8, "stop": {3}, "temperature": 0}
    for n in (2, 8, 8, 3):
        plain, recorded = both(monkeypatch, model, prompts(n, 61), **options)
        assert same(plain, recorded)
    assert {key[0] for key in decode.DECODERS[model].steps} == {8, 4}
