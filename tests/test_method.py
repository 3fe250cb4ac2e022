"""Facts of the method that live in the scripts: what is drawn, what is trained on, at which rate,
what is kept still."""
import argparse
import json
import math
import random

import pytest
import torch
from test_pipeline import pm_args, rl_args, run, sft_args

import train_pm
import train_rl
import train_sft
from minicai.checkpoint import load_model
from minicai.critique import respond
from minicai.ppo import (
    PPOConfig,
    Rollout,
    Tokens,
    advantages,
    evaluate_tokens,
    ppo_loss,
    token_rewards,
)
from minicai.preference import PreferenceModel, load_preference_model
from minicai.run import lr_schedule, read_jsonl


@pytest.fixture(scope="module")
def before(toy, tmp_path_factory):
    """Both first stages, undisturbed."""
    if (toy / "before").exists():                   # made already (test_planted_mistakes.py)
        return toy / "before"
    out = tmp_path_factory.mktemp("before")
    run(train_sft, sft_args(toy, out / "sft"))
    run(train_pm, pm_args(toy, out / "pm", "--model", out / "sft/sl_cai"))
    return out


@pytest.fixture
def steps(monkeypatch):
    """What every optimizer step was made with:
    (rate of each group, norm of each group's gradient, eps)."""
    seen = []
    for kind in (torch.optim.Adam, torch.optim.AdamW):
        def step(self, *more, real=kind.step):
            groups = self.param_groups
            norms = [torch.cat([p.grad.flatten() for p in g["params"] if p.grad is not None]
                               or [torch.zeros(1)]).norm().item()
                     for g in groups]
            seen.append(([g["lr"] for g in groups], norms, groups[0]["eps"]))
            return real(self, *more)
        monkeypatch.setattr(kind, "step", step)
    return seen


def log(folder):
    return [row for _, row in read_jsonl(folder / "metrics.jsonl")]


# ---- stages 1 and 2: how they learn --------------------------------------------------------------
@pytest.mark.parametrize("script, args, loss",
                         [(train_sft, sft_args, "answer_loss"), (train_pm, pm_args, "pair_loss")])
def test_rates_passes_and_clipped_gradients(toy, before, tmp_path, monkeypatch, steps, script,
                                            args, loss):
    more = ["--model", before / "sft/sl_cai"] if script is train_pm else []
    real = getattr(script, loss)
    # every gradient is far too long
    monkeypatch.setattr(script, loss, lambda *how: 100 * real(*how))
    run(script, args(toy, tmp_path, *more, "--epochs", "2", "--warmup", "0.5", "--lr", "1e-3"))
    rows = log(tmp_path)
    if script is train_sft:  # two passes; Adam's eps: see train()
        count = json.loads((tmp_path / "config.json").read_text())["examples"]
        assert len(rows) == 2 * math.ceil(count / 8) and {eps for *_, eps in steps} == {1e-5}
    assert len(rows) == len(steps) and len(rows) % 2 == 0
    assert [row["step"] for row in rows] == list(range(len(rows)))
    for step, (row, (rates, norms, _)) in enumerate(zip(rows, steps)):
        assert rates == [row["lr"]] \
            == [pytest.approx(1e-3 * lr_schedule(step, len(rows), int(0.5 * len(rows))))]
        assert row["grad_norm"] > 1.5 and norms[0] == pytest.approx(1, abs=1e-3)
    assert rows[0]["lr"] < max(row["lr"] for row in rows) > rows[-1]["lr"] > 0


# ---- stage 1 -------------------------------------------------------------------------------------
def test_what_stage_1_learns_from(tok, tmp_path, monkeypatch):
    """Revisions of all rounds (or the last ones), unless they cannot be read,
    and every sample to helpful prompts."""
    say = lambda text: [{"role": "user", "content": text}]
    answer = lambda text, skipped=None: {"ids": tok.encode(f" {text}") + [tok.end],
                                         "response": text, "cut": False, "skipped": skipped}

    def respond(ask, tok, conversations, progress=None):
        return [{"messages": m, **answer(f"to {m[0]['content']}", "empty" if m[0]["content"]
                                         == "silent" else None)} for m in conversations]

    def critique_revise(ask, tok, constitution, rows, rounds, rng, shots, direct):
        for row in rows:
            row["rounds"] = [{**answer(f"{row['response']}, round {n}", "empty" if n == 1
                                       and row["response"] == "to bad 1" else None),
                              "critique": "", "revision": "x"} for n in range(rounds)]
    monkeypatch.setattr(train_sft, "respond", respond)
    monkeypatch.setattr(train_sft, "critique_revise", critique_revise)
    monkeypatch.setattr(train_sft, "show_principles", lambda *_: None)
    for last, revised in ((False, ["bad 0, round 0", "bad 0, round 1", "bad 1, round 0"]),
                          (True, ["bad 0, round 1", "bad 1, round 0"])):
        args = argparse.Namespace(out=tmp_path, rounds=2, helpful_samples=2, last_only=last,
                                  joined=0.0, max_prompt=99, direct=False)
        examples, \
            shown = train_sft.make_examples(args, None, tok, None, [say("bad 0"), say("bad 1")],
                                            [say("good"), say("silent")], [], random.Random(0))
        wanted = [f"to {text}" for text in revised] + ["to good"] * 2
        assert [tok.decode(ids[:-1]).strip() for _, ids in examples] == wanted
        assert all(ids[-1] == tok.end for _, ids in examples)
        assert examples[-1][0] == tok.encode_chat(say("good"), generation=True)[0]
        assert len(shown) == 2


def test_prompts_are_drawn_by_lot(toy, tmp_path):
    """A limit takes some at random, not the first ones of the file."""
    run(train_sft, sft_args(toy, tmp_path, "--red-team-limit", "6", "--helpful-limit", "6"))
    for name, file in (("revisions", "red_team"), ("answers", "helpful")):
        used = [row["messages"] for _, row in read_jsonl(tmp_path / f"{name}.jsonl")]
        first = [row["messages"] for _, row in read_jsonl(toy / f"{file}.jsonl")][:6]
        assert len({json.dumps(m) for m in used}) == 6
        assert {json.dumps(m) for m in used} != {json.dumps(m) for m in first}
    answers = [row["messages"] for _, row in read_jsonl(tmp_path / "answers.jsonl")]
    assert len(answers) == 2 * 6 and all(answers.count(m) == 2 for m in answers)


# ---- stage 2 -------------------------------------------------------------------------------------
@pytest.fixture
def compared(toy, before, tmp_path, monkeypatch):
    """A run of stage 2: its folder, what it trained on, the reference rows,
    the directories it loaded."""
    made, loaded, real_make, real_load = [], [], train_pm.make_comparisons, train_pm.load_model

    def make(*args):
        made.append(real_make(*args))
        return made[-1]
    monkeypatch.setattr(train_pm, "make_comparisons", make)
    monkeypatch.setattr(train_pm, "load_model", lambda folder, *more: loaded.append(folder)
                        or real_load(folder, *more))
    run(train_pm, pm_args(toy, tmp_path / "pm", "--model", before / "sft/sl_cai"))
    return tmp_path / "pm", made[0], loaded


def test_who_does_what(toy, before, compared):
    """SL-CAI and the feedback model say the pairs, that one judges, loaded once,
    the preference model starts from --init."""
    assert compared[2] == [before / "sft/sl_cai", toy / "base", toy / "base"]


def test_what_stage_2_learns_from(toy, tok, compared):
    folder, (train_set, held_out, reference, used), _ = compared
    rows = [row for _, row in read_jsonl(folder / "comparisons.jsonl")]
    assert sum(row["a"] != row["b"] for row in rows) > 4  # two samples, not one twice
    human = {(row["messages"][0]["content"], row["chosen"], row["rejected"])
             for _, row in read_jsonl(toy / "human.jsonl")}
    said = lambda ids: tok.decode([i for i in ids if i not in tok.bos])
    by_people = [(a, b) for a, b, p in train_set if p == 1.0]
    for a, b in by_people:
        assert any(chosen in said(a) and rejected in said(b) and asked in said(a)
                   for asked, chosen, rejected in human)
    labelled = {round(row["p_a"], 5) for row in rows if not row["skipped"]}
    by_judge = [p for _, _, p in train_set if p != 1.0]
    assert by_judge and set(by_judge) <= labelled and by_people
    held = {said(a).split("?")[0] for a, _, _ in held_out["ai"]}
    trained = {said(a).split("?")[0] for a, _, p in train_set if p != 1.0}
    assert held and not held & trained  # no dialogue is on both sides
    assert len(train_set) + sum(map(len, held_out.values())) == used["used_ai"] + used["used_human"]
    # as many of each kind
    assert len(reference) == 2 * 18 and len({tuple(ids) for ids in reference}) > 4


def test_the_score_of_sl_cais_own_responses_is_the_unit(compared):
    folder, (_, _, reference, _), _ = compared
    scores = load_preference_model(folder / "pm")[0].score_rows(reference)
    assert scores.mean().abs() < 1e-3 and scores.std() == pytest.approx(1, abs=1e-3)


def test_parts_of_a_batch_add_up_to_its_loss(tok, tiny_model):
    pm = PreferenceModel(tiny_model, torch.nn.Linear(32, 1, bias=False))
    rows = [(tok.encode(f"one {n}") + [tok.end], tok.encode(f"two and more {n}") + [tok.end], n / 7)
            for n in range(8)]
    whole = train_pm.pair_loss(pm, rows, 8)
    assert sum(train_pm.pair_loss(pm, rows[i:i + 3], 8)
               for i in (0, 3, 6)).item() == pytest.approx(whole.item(), rel=1e-5)
    assert train_pm.pair_loss(pm, [(a, b, 1.0) for a, b, _ in rows], 8).item() == pytest.approx(
        -torch.nn.functional.logsigmoid(pm.score_rows([a for a, *_ in rows]) - pm.score_rows(
            [b for _, b, _ in rows])).mean().item(), rel=1e-4)


def test_parts_of_a_batch_add_up_to_its_loss_in_stage_1_too(tok, tiny_model):
    rows = [(tok.bos + tok.encode(f"one {n}"), tok.encode(" two" * (n + 1)) + [tok.end])
            for n in range(5)]
    tokens = sum(len(answer) for _, answer in rows)
    whole = train_sft.answer_loss(tiny_model, rows, tokens)
    assert sum(train_sft.answer_loss(tiny_model, rows[i:i + 2], tokens)
               for i in (0, 2, 4)).item() == pytest.approx(whole.item(), rel=1e-5)


def test_looking_at_the_judge_changes_nothing(toy, before, tmp_path, monkeypatch):
    """With a chain of thought the look draws thoughts of its own."""
    args = lambda name: pm_args(toy, tmp_path / name, "--model", before / "sft/sl_cai",
                                "--chain-of-thought")
    run(train_pm, args("looked"))
    monkeypatch.setattr(train_pm, "position_bias", lambda *_, **__: (0.5, 1.0))
    run(train_pm, args("blind"))
    assert (tmp_path / "looked/comparisons.jsonl").read_bytes() \
        == (tmp_path / "blind/comparisons.jsonl").read_bytes()


# ---- stage 3 -------------------------------------------------------------------------------------
def test_both_kinds_of_prompts_are_drawn_anew_in_every_step():
    prompts = {"red_team": [[1, n] for n in range(9)], "helpful": [[2, n] for n in range(9)]}
    draw = lambda step, seed=0: train_rl.draw(
        prompts, argparse.Namespace(seed=seed, batch=10, red_team_share=0.3), step)
    drawn = draw(0)
    assert [kind for kind, _ in drawn] == ["red_team"] * 3 + ["helpful"] * 7
    assert all(prompt in prompts[kind] for kind, prompt in drawn)
    assert drawn == draw(0) != draw(1) and drawn != draw(0, seed=1)


@pytest.fixture
def reinforced(toy, before, tmp_path, monkeypatch, steps):
    """A run of stage 3 with short gradients: its folder, the models at the start and at the end,
    names of what is saved."""
    seen, real_load, real_save, saved = {}, train_rl.load_models, train_rl.Resume.save, []

    def load(args, device):
        models, tok = real_load(args, device)
        seen["models"] = models
        seen["start"] = [{name: p.clone() for name, p in m.state_dict().items()} for m in models]
        seen["grads"] = [{p.requires_grad for p in m.parameters()} for m in models]
        return models, tok
    monkeypatch.setattr(train_rl, "load_models", load)
    monkeypatch.setattr(train_rl.Resume, "save",
                        lambda self, step, **parts: saved.append(set(parts))
                        or real_save(self, step, **parts))
    run(train_rl, rl_args(toy, before / "pm/pm", tmp_path / "rl", "--model", before / "sft/sl_cai",
                          "--max-grad-norm", "0.01",
                          "--lr", "1e-3", "--value-lr", "3e-3", "--warmup", "1"))
    return tmp_path / "rl", seen, saved


def test_each_rate_follows_its_schedule_and_both_gradients_are_clipped(reinforced, steps):
    rows = log(reinforced[0])
    a_rollout = len(steps) // len(rows)
    assert a_rollout == 2 * 2  # passes x minibatches
    for number, (rates, norms, eps) in enumerate(steps):
        factor = lr_schedule(number // a_rollout, len(rows), 1)
        assert rates == [pytest.approx(1e-3 * factor), pytest.approx(3e-3 * factor)] and eps == 1e-5
        assert all(norm == pytest.approx(0.01, rel=1e-3) for norm in norms)
    # longer before
    assert all(row["policy_grad"] > 0.02 and row["value_grad"] > 0.02 for row in rows)
    # the reference stays where it was
    assert rows[0]["kl"] == 0 and all(row["kl"] != 0 for row in rows[1:])


def test_what_moves_and_what_stays(reinforced, before):
    folder, seen, saved = reinforced
    policy, reference, reward, value = seen["models"]
    starts = seen["start"]
    for name in ("embed.weight", "blocks.0.attn.qkv.weight"):
        assert torch.equal(starts[0][name], starts[1][name])  # policy and reference begin equal
    # the value model as the reward
    assert torch.equal(starts[3]["trunk.embed.weight"], starts[2]["trunk.embed.weight"])
    assert not torch.equal(starts[3]["trunk.embed.weight"], starts[0]["embed.weight"])
    assert (starts[3]["head.weight"] == 0).all() and not (starts[2]["head.weight"] == 0).all()
    same = lambda model, start: all(torch.equal(p, start[name])
                                    for name, p in model.state_dict().items())
    assert [same(m, s) for m, s in zip(seen["models"], starts)] == [False, True, True, False]
    assert seen["grads"] == [{True}, {False}, {False}, {True}]
    # every step begins anew
    assert all(p.grad is None for m in (policy, value) for p in m.parameters())
    # and the one that moved is kept
    assert torch.equal(load_model(folder / "rl_cai")[0].head, policy.head)
    assert saved
    assert all(parts == {"policy", "value_model", "optimizer", "generator"} for parts in saved)


def some_rollout(B=3, T=7):
    """A Rollout of random numbers; two tokens of prompt, one of padding in some rows."""
    g = torch.Generator().manual_seed(0)
    mask = torch.ones(B, T, dtype=torch.bool)
    mask[:, :2] = False
    mask[1, -1] = False
    logp, ref, values = (torch.randn(B, T, generator=g) * mask for _ in range(3))
    rollout = Rollout(torch.randint(9, (B, T), generator=g), mask, logp, ref, values,
                      torch.randn(B, generator=g), torch.tensor([True, False, True]))
    return rollout


def test_without_a_value_model_a_token_is_credited_with_all_that_was_paid_after_it():
    config = PPOConfig(valued=False, lam=0.3, gamma=1.0, whiten=False)
    rollout = token_rewards(some_rollout()._replace(values=torch.zeros(3, 7)), config)
    found = advantages(rollout, config)
    later = (rollout.rewards * rollout.mask).flip(1).cumsum(1).flip(1) * rollout.mask
    assert torch.allclose(found.advantages, later, atol=1e-5)
    assert torch.allclose(found.returns, later, atol=1e-5)
    assert not torch.allclose(advantages(rollout, PPOConfig(lam=0.3, whiten=False)).advantages,
                              later, atol=1e-2)


def test_the_loss_is_the_policys_and_a_share_of_the_values():
    old = Tokens(*(torch.randn(6, generator=torch.Generator().manual_seed(n)) for n in range(4)))
    loss, info = ppo_loss(old.logp + 0.1, old.values + 0.3, old, PPOConfig(value_coef=0.3), 6)
    assert loss.item() == pytest.approx((info["policy_loss"] + 0.3 * info["value_loss"]).item(),
                                        rel=1e-5)
    assert info["value_loss"].item() != pytest.approx(0, abs=1e-3)


def test_log_probs_are_taken_at_the_temperature_of_sampling(tok, tiny_model):
    ids = torch.tensor([tok.encode("one two three four")])
    where = (torch.zeros(2, dtype=torch.long), torch.tensor([1, 2]))
    with torch.no_grad():
        found, _, _ = evaluate_tokens(tiny_model, None, ids, where,
                                      PPOConfig(temperature=2.0), None)
        logits = tiny_model(ids)[0, :2] @ tiny_model.head.T
    assert torch.allclose(found, (logits / 2).log_softmax(-1)[torch.arange(2), ids[0, 1:3]],
                          atol=1e-4)


def test_an_answer_is_asked_for_behind_the_assistants_header(tok):
    asked, dialogue = [], [{"role": "user", "content": "How do I wash it?"}]
    ask = lambda contexts, progress=None: asked.extend(contexts) or \
        [tok.encode(" Use a brush.") + [tok.end] for _ in contexts]
    (row,) = respond(ask, tok, [dialogue])
    assert asked == [tok.encode_chat(dialogue, generation=True)[0]] \
        != [tok.encode_chat(dialogue)[0]]
    assert row["response"] == "Use a brush." and not row["cut"] and not row["skipped"]


def test_small_batches_get_their_share_of_red_team_prompts_over_the_steps():
    from argparse import Namespace
    prompts = {"red_team": ["r"], "helpful": ["h"]}
    for batch, share in ((1, 0.5), (2, 0.25), (5, 0.5), (64, 0.5), (100, 0.29)):
        args = Namespace(seed=0, batch=batch, red_team_share=share)
        kinds = [kind for step in range(20) for kind, _ in train_rl.draw(prompts, args, step)]
        assert len(kinds) == 20 * batch and kinds.count("red_team") == round(20 * batch * share)
    first = [kind for kind, _ in train_rl.draw(prompts, args, 0)]
    assert first.count("red_team") == 29            # 100 * 0.29 is 28.999... to a computer
