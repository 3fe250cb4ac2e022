"""Less memory, the same numbers: parts of a batch, layers computed twice, frozen matrices;
bfloat16 near float32."""
import argparse
import copy
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from families import FAMILIES, make_model
from torch import nn

import train_pm
import train_sft
from minicai.answers import token_indices
from minicai.checkpoint import load_model, save_scalar
from minicai.critique import sampler
from minicai.feedback import choose
from minicai.ppo import Models, PPOConfig, collect, evaluate_tokens, summary, update
from minicai.preference import PreferenceModel, load_preference_model
from minicai.run import Metrics, UserError, clip_gradients

BATCH = 6


def examples(tok, seed=0):
    """(prompt ids, answer ids) of different lengths."""
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 20, (BATCH, 2), generator=g).tolist()
    return [tuple(torch.randint(tok.n_vocab, (n,), generator=g).tolist() for n in pair)
            for pair in lengths]


def scorer(model):
    head = nn.Linear(model.config.width, 1, bias=False)
    nn.init.normal_(head.weight, generator=torch.Generator().manual_seed(1))
    return PreferenceModel(model, head)


def fine_tuning(model, tok, micro):
    """The parts of a batch's loss, as train_sft.py makes them."""
    rows = examples(tok)
    tokens = sum(len(answer) for _, answer in rows)
    return (train_sft.answer_loss(model, rows[i:i + micro], tokens) for i in range(0, BATCH, micro))


def comparing(pm, tok, micro):
    """The same of train_pm.py."""
    rows = [(p + a, p + b, i / BATCH)
            for i, ((p, a), (_, b)) in enumerate(zip(examples(tok), examples(tok, 1)))]
    return (train_pm.pair_loss(pm, rows[i:i + micro], BATCH) for i in range(0, BATCH, micro))


def gradients(model, losses):
    """(loss, all gradients in one row) of a batch,
    whose parts are differentiated one after the other."""
    loss = 0.0
    for part in losses:
        part.backward()
        loss += part.item()
    norm = clip_gradients(model.parameters(), 1e9, 0, loss)
    flat = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert norm == pytest.approx(flat.norm().item(), rel=1e-5) and norm > 0.01
    model.zero_grad()
    return loss, flat


@pytest.mark.parametrize("micro", [1, 4])                           # 4: the last part is smaller
@pytest.mark.parametrize("make, losses", [(lambda m: m, fine_tuning), (scorer, comparing)],
                         ids=["sft", "pm"])
def test_parts_of_a_batch_add_up_to_the_batch(tiny_model, tok, make, losses, micro):
    model = make(tiny_model)
    whole, parts = (gradients(model, losses(model, tok, n)) for n in (BATCH, micro))
    assert parts[0] == pytest.approx(whole[0], rel=1e-5)
    torch.testing.assert_close(parts[1], whole[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("script", [train_sft, train_pm])
def test_a_part_that_is_not_finite_stops_before_the_step(tiny_model, tok, tmp_path,
                                                         monkeypatch, script):
    """The scripts' own loops: one part at a time, and no step once a part was not finite."""
    sft, made = script is train_sft, []
    name, model = ("answer_loss", tiny_model) if sft else ("pair_loss", scorer(tiny_model))
    rows = examples(tok) if sft else [(p + a, p + b, 1.0)
                                      for (p, a), (_, b) in zip(examples(tok), examples(tok, 1))]
    real = getattr(script, name)

    def loss(*inputs):
        made.append(any(p.grad is not None for p in model.parameters()))
        return real(*inputs) * (float("nan") if len(made) == 2 else 1)
    monkeypatch.setattr(script, name, loss)
    args = argparse.Namespace(lr=1.0, epochs=1, batch=BATCH, micro=2, warmup=0.0)
    resume = SimpleNamespace(steps=0, restore=lambda **_: None)
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(UserError, match="step 0: loss nan"):
        script.train(args, model, rows, torch.Generator().manual_seed(0),
                     Metrics(tmp_path / "m.jsonl"), resume)
    assert made[:2] == [False, True]  # the first was differentiated before the second
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters()))


@pytest.mark.parametrize("bf16", [False, True])
def test_computing_layers_twice_changes_nothing(tiny_model, tok, bf16):
    tiny_model.bf16, found = bf16, []
    for tiny_model.checkpointing in (False, True):
        found.append(gradients(tiny_model, fine_tuning(tiny_model, tok, 2)))
    assert found[0][0] == found[1][0] and torch.equal(found[0][1], found[1][1])


@pytest.mark.parametrize("make, losses", [(lambda m: m, fine_tuning), (scorer, comparing)],
                         ids=["sft", "pm"])
def test_bfloat16_stays_close_and_keeps_float32_weights(tiny_model, tok, make, losses):
    model = make(tiny_model)
    exact, loss = gradients(model, losses(model, tok, 2))[::-1]
    tiny_model.bf16 = True
    close, low = gradients(model, losses(model, tok, 2))[::-1]
    assert low != loss and low == pytest.approx(loss, rel=0.02)
    assert F.cosine_similarity(exact, close, dim=0) > 0.995 and close.dtype == torch.float32
    assert all(p.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_frozen_model_computes_the_same_bits_from_half_the_memory(family, tmp_path):
    make_model(family, tmp_path)
    exact, (model, tok) = load_model(tmp_path)[0], load_model(tmp_path, "cpu", "bf16")
    frozen = copy.deepcopy(model).freeze()
    ids = torch.randint(tok.n_vocab, (3, 20), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(20).expand(3, 20) > 5
    logps = [evaluate_tokens(m, None, ids, token_indices(mask), PPOConfig(), None)[0].detach()
             for m in (exact, model, frozen)]
    assert torch.equal(logps[1], logps[2]) and logps[1].dtype == torch.float32
    assert 0 < (logps[0] - logps[1]).abs().mean() < 0.1
    assert not any(p.requires_grad for p in frozen.parameters())
    for name, p in frozen.named_parameters():
        assert (p.dtype == torch.bfloat16) == (name.startswith("blocks") and "norm" not in name)
    asked = [row[10:].tolist() for row in ids]          # a choice is read off in float32
    assert torch.equal(choose(model, tok, asked)[0], choose(frozen, tok, asked)[0])
    before = [p.dtype for p in exact.parameters()]
    assert [p.dtype for p in exact.freeze().parameters()] == before  # float32 stays float32


def test_ppo_in_bfloat16_starts_at_kl_0_and_ratio_1(tiny_model, tok):
    """Policy and reference differ in how they are stored, not in what they say."""
    tiny_model.bf16 = True
    reference, reward = copy.deepcopy(tiny_model).freeze(), scorer(copy.deepcopy(tiny_model))
    value, config = copy.deepcopy(reward), PPOConfig(minibatch=4, micro=2, epochs=1)
    reward.trunk.freeze()
    generator = torch.Generator().manual_seed(0)
    ask = sampler(tiny_model, tok, 8, 1.0, generator)
    forbidden = tok.forbidden(tiny_model.config.vocab_size)
    prompts = [prompt for prompt, _ in examples(tok)]
    models = Models(tiny_model, reference, reward, value)
    rollout = collect(models, ask, prompts, config, tok.stop, forbidden)
    assert summary(rollout)["kl"] == 0 and (rollout.logp[rollout.mask] < 0).all()
    assert rollout.scores.dtype == rollout.values.dtype == torch.float32
    optimizer = torch.optim.Adam([*tiny_model.parameters(), *value.parameters()], lr=0.0)
    info = update(models, optimizer, rollout, config, forbidden, generator, 0)
    assert info["ratio"] == pytest.approx(1, abs=0.05) and info["policy_grad"] > 0
    assert info["value_grad"] > 0


def test_a_preference_model_reads_its_score_in_float32(tiny_model, tok, tmp_path):
    save_scalar(tmp_path / "pm", tiny_model, nn.Linear(tiny_model.config.width, 1, bias=False),
                tok, shift=0.5)
    rows = [p + a for p, a in examples(tok)]
    exact, low = (load_preference_model(tmp_path / "pm", "cpu", dtype)[0]
                  for dtype in ("fp32", "bf16"))
    low.trunk.freeze()
    scores = exact.score_rows(rows), low.score_rows(rows)
    assert not torch.equal(*scores)
    assert (scores[0] - scores[1]).abs().max() < 0.02 * scores[0].std() + 0.02
    assert not torch.equal(scores[1], scores[1].bfloat16().float())  # more digits than bfloat16 has
