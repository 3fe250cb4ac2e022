"""Sampling: the cache, the padding, the batch and the order of rows must not show
in what comes out."""
import copy
import functools

import pytest
import torch
import torch.nn.functional as F

from minicai.gpt import GPT, GPTConfig
from minicai.run import UserError
from minicai.sample import generate, new_cache, pick, stream


@pytest.fixture(scope="module")
def model():
    config = GPTConfig(vocab_size=61, n_layer=2, n_head=2, width=32, mlp_width=48,
                       max_positions=128)
    return GPT(config).init_weights(torch.Generator().manual_seed(0), std=0.4)


STOP, FORBIDDEN = {3, 4, 20, 21, 22, 23}, torch.arange(61) >= 55


def prompts(n, shared=(), seed=0):
    g = torch.Generator().manual_seed(seed)
    return [[*shared, *torch.randint(5, 55, (int(torch.randint(1, 30, (), generator=g)),),
                                     generator=g).tolist()]
            for _ in range(n)]


@functools.cache
@torch.no_grad()
def slow_greedy(model, prompt, n):
    """The definition: the whole text through the model for every token."""
    ids = list(prompt)
    while len(ids) < len(prompt) + n and (len(ids) == len(prompt) or ids[-1] not in STOP):
        logits = (model(torch.tensor([ids])) @ model.head.T)[0, -1].masked_fill(
            FORBIDDEN, -torch.inf)
        ids.append(int(logits.argmax()))
    return ids[len(prompt):]


def greedy(model, rows, n=24, **kwargs):
    return generate(model, rows, max_new_tokens=n, stop=STOP, forbidden=FORBIDDEN,
                    temperature=0, **kwargs)


@pytest.mark.parametrize("shared", [(), tuple(range(25, 45))])
@pytest.mark.parametrize("batch_tokens", [1, 300, 100_000])
def test_greedy_equals_the_slow_definition(model, shared, batch_tokens):
    rows = prompts(24, shared) + ([list(shared)] if shared else [])
    wanted = [slow_greedy(model, tuple(row), 24) for row in rows]
    assert greedy(model, rows, batch_tokens=batch_tokens) == wanted
    # The cases that matter are all there: rows that end early, at once or never.
    assert {len(w) == 24 and w[-1] not in STOP for w in wanted} == {True, False}
    assert len({len(w) for w in wanted}) > 4


def test_equal_prompts_and_no_prompts(model):
    row = prompts(1)[0]
    assert greedy(model, [row] * 5) == [slow_greedy(model, tuple(row), 24)] * 5
    assert greedy(model, []) == []
    with pytest.raises(UserError, match="the prompt is empty"):
        next(stream(model, [], max_new_tokens=4, stop={0}))
    with pytest.raises(UserError, match="prompt 1 is empty"):
        greedy(model, [row, []])
    with pytest.raises(UserError, match="120 tokens and 24 new ones.*at most 128"):
        greedy(model, [row, [5] * 120])


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_stream_equals_generate(model, temperature):
    for seed, row in enumerate(prompts(6)):
        options = dict(max_new_tokens=24, stop=STOP, forbidden=FORBIDDEN, temperature=temperature)
        a, b = (torch.Generator().manual_seed(seed) for _ in range(2))
        assert list(stream(model, row, **options, generator=a)) == generate(
            model, [row], **options, generator=b)[0]


def test_rows_end_at_their_first_stop_and_hold_nothing_forbidden(model):
    new = generate(model, prompts(64), max_new_tokens=40, stop=STOP, forbidden=FORBIDDEN,
                   temperature=2.0, generator=torch.Generator().manual_seed(0))
    assert all(1 <= len(row) <= 40 and not set(row[:-1]) & STOP and max(row) < 55 for row in new)
    ended = [row for row in new if row[-1] in STOP]
    assert ended and all(len(row) == 40 for row in new if row[-1] not in STOP)


def test_the_seed_decides_and_the_batches_do_not(model):
    def run(seed, batch_tokens=None):
        return generate(model, prompts(40), max_new_tokens=12, stop=STOP, batch_tokens=batch_tokens,
                        generator=torch.Generator().manual_seed(seed))
    assert run(1) == run(1) == run(1, 100) == run(1, 1) != run(2)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_are_the_whole_softmax(temperature):
    logits = torch.tensor([2.0, 0.0, -torch.inf, 1.0, -3.0, 0.5])
    n = 60_000
    chance = torch.rand(n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    drawn = pick(logits.expand(n, -1), temperature, chance)
    p = F.softmax(logits / temperature, -1)
    counts = torch.bincount(drawn, minlength=6)
    assert counts[2] == 0
    sigma = (p * (1 - p) * n).sqrt()
    assert ((counts - n * p).abs() <= 4 * sigma).all() and (temperature < 1 or counts[4] > 0)


def test_what_is_sampled_has_the_models_probability(model):
    """First tokens of many copies of a padded prompt follow the softmax that logprob.py computes
    from a full forward."""
    long, short = prompts(1, shared=(6,) * 30)[0], [9, 12, 20]
    new = generate(model, [short] * 4000 + [long], max_new_tokens=1, stop=STOP, forbidden=FORBIDDEN,
                   generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = (model(torch.tensor([short])) @ model.head.T)[0, -1].masked_fill(
            FORBIDDEN, -torch.inf)
    p = logits.softmax(-1)
    counts = torch.bincount(torch.tensor([row[0] for row in new[:4000]]), minlength=61)
    assert ((counts - 4000 * p).abs() <= 4.5 * (4000 * p * (1 - p)).sqrt() + 1).all()
    assert p.max() < 0.9


@pytest.mark.parametrize("how", ["products", "frozen", "weights"])
def test_half_precision_runs_with_a_half_precision_cache(model, how):
    """bfloat16 products of float32 weights or of frozen ones, or bfloat16 weights: far from ties,
    greedy ids are those of the full forward."""
    low = copy.deepcopy(model)
    if how == "weights":
        low.bfloat16()
    else:
        low.bf16 = True
    if how == "frozen":
        low.freeze()
    assert new_cache(low, 1, 1).k.dtype == torch.bfloat16
    new = greedy(low, prompts(12), n=8)
    with torch.no_grad():
        logits = [(low(torch.tensor([row]))[0, -1] @ low.head.T.bfloat16()).masked_fill(
            FORBIDDEN, -torch.inf)
                  for row in prompts(12)]
    assert all(1 <= len(ids) <= 8 for ids in new)
    assert sum(int(z.argmax()) == ids[0] for z, ids in zip(logits, new)) >= 11
    options = dict(max_new_tokens=8, stop=STOP, forbidden=FORBIDDEN, temperature=0)
    assert sum(list(stream(low, row, **options))[0] == ids[0]
               for row, ids in zip(prompts(12), new)) >= 11


def test_learned_positions_are_counted_from_the_first_real_token(tok):
    """RoPE sees distances only; a model with learned positions would notice padding
    that is counted."""
    config = GPTConfig(vocab_size=tok.n_vocab, n_layer=2, n_head=2, width=32, max_positions=64,
                       norm="layernorm", positions="learned", mlp="gelu")
    model = GPT(config).init_weights(torch.Generator().manual_seed(0), std=0.3)
    prompts = [tok.encode("one two three four five six"), tok.encode("seven"),
               tok.encode("eight nine")]
    how = dict(max_new_tokens=8, stop={tok.end}, temperature=0)
    together = generate(model, prompts, **how)
    assert together == [generate(model, [prompt], **how)[0] for prompt in prompts]
    assert len(set(map(tuple, together))) > 1
