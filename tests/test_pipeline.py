"""The three scripts, one after the other, in the toy world of conftest.py;
and what they say to bad input."""
import argparse
import gzip
import json
import random
import shutil
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import CONSTITUTION
from families import same_in_transformers

import train_pm
import train_rl
import train_sft
from minicai import critique, feedback
from minicai.checkpoint import load_model
from minicai.critique import respond, sampler
from minicai.data import read_prompts
from minicai.logprob import logprob_reference
from minicai.preference import load_preference_model
from minicai.run import Metrics, read_jsonl
from minicai.state import Resume

# Everything that a demo's default decides is said here: those are chosen for the micro-world and
# may change.
SFT = ["--joined", "0", "--max-new", "20", "--batch", "8", "--rounds", "2", "--lr", "2e-3",
       "--epochs", "1", "--helpful-samples", "2"]
PM = ["--comparisons", "40", "--max-new", "20", "--batch", "8"]
RL = ["--warmup", "0", "--steps", "3", "--batch", "12", "--minibatch", "6", "--micro", "4",
      "--max-new", "20", "--print-every", "2"]


def sft_args(toy, out, *more):
    return ["--model", toy / "base", "--constitution", toy / "constitution.json", "--red-team",
            toy / "red_team.jsonl", "--helpful", toy / "helpful.jsonl", "--out", out, *SFT, *more]


def pm_args(toy, out, *more):
    return ["--model", toy / "base", "--feedback-model", toy / "base", "--init", toy / "base",
            "--constitution", toy / "constitution.json", "--red-team", toy / "red_team.jsonl",
            "--human", toy / "human.jsonl", "--out", out,
            *PM, "--no-chain-of-thought", "--max-thought", "40", *more]


def rl_args(toy, pm, out, *more):
    return ["--model", toy / "base", "--pm", pm, "--red-team", toy / "red_team.jsonl", "--helpful",
            toy / "helpful.jsonl", "--out", out, *RL, *more]


def run(script, args):
    script.main([str(a) for a in args])


@pytest.fixture(scope="module")
def demo(toy, tmp_path_factory):
    """A directory with sft/, pm/ and rl/ as the three scripts leave them."""
    out = tmp_path_factory.mktemp("demo")
    run(train_sft, sft_args(toy, out / "sft"))
    run(train_pm, pm_args(toy, out / "pm", "--model", out / "sft/sl_cai"))
    run(train_rl, rl_args(toy, out / "pm/pm", out / "rl", "--model", out / "sft/sl_cai"))
    return out


def config(folder):
    return json.loads((folder / "config.json").read_text())


def refusals(folder, path):
    model, tok = load_model(folder)
    ask = sampler(model, tok, 20, 1.0, torch.Generator().manual_seed(0))
    rows = respond(ask, tok, read_prompts(path) * 3)
    return sum(row["response"].startswith("No") for row in rows) / len(rows)


def test_the_constitution_alone_makes_the_model_refuse_what_it_knows_to_be_bad(toy, demo):
    assert refusals(toy / "base", toy / "red_team.jsonl") < 0.2
    assert refusals(demo / "sft/sl_cai", toy / "red_team.jsonl") > 0.6
    assert refusals(demo / "sft/sl_cai", toy / "helpful.jsonl") < 0.3       # and only that


def test_revisions_hold_every_intermediate(toy, demo):
    rows = [row for _, row in read_jsonl(demo / "sft/revisions.jsonl")]
    assert sorted(map(repr, (row["messages"] for row in rows))) == sorted(
        map(repr, read_prompts(toy / "red_team.jsonl")))
    for row in rows:
        assert row["skipped"] or len(row["rounds"]) == 2
        for r in row.get("rounds", []):
            assert set(r) == {"principle", "critique_request", "critique", "revision_request",
                              "revision", "cut", "skipped"}


def test_the_tokens_trained_on_are_the_tokens_sampled(demo):
    metrics = [row for _, row in read_jsonl(demo / "sft/metrics.jsonl")]
    assert metrics[-1]["tokens"] == config(demo / "sft")["trained_tokens"]
    rows = [row for _, row in read_jsonl(demo / "sft/revisions.jsonl")]
    used = sum(not r["skipped"] for row in rows for r in row.get("rounds", []))
    assert used < config(demo / "sft")["examples"] <= used + 2 * 18
    assert metrics[-1]["tokens"] > 2 * used


def test_some_examples_follow_another_dialogue(tok):
    say = lambda text: [{"role": "user", "content": text}]
    alone = [(say(f"Question {i}?"), tok.encode(f" Answer {i}.") + [tok.end]) for i in range(40)]
    examples = list(alone)
    train_sft.follow_another_dialogue(examples, 0.25, tok, 100, random.Random(0))
    joined = [(new, old) for new, old in zip(examples, alone) if new != old]
    assert len(joined) == 10
    for (messages, ids), (own, answer) in joined:
        first, said, second = messages  # what is trained on is the last answer only
        assert [second] == own and ids == answer
        assert said == {"role": "assistant",
                        "content": first["content"].replace("Question", "Answer").replace("?", ".")}
    examples = list(alone)
    # no room: they stay as they are
    train_sft.follow_another_dialogue(examples, 1.0, tok, 5, random.Random(0))
    assert examples == alone
    opened = [([{"role": "system", "content": "Be brief."}] + messages, ids)
              for messages, ids in alone]
    examples = alone[:20] + opened[20:]
    # a system message stays where it opens
    train_sft.follow_another_dialogue(examples, 1.0, tok, 100, random.Random(0))
    assert examples[20:] == opened[20:] and examples[:20] != alone[:20]
    assert all(m["role"] != "system" for messages, _ in examples for m in messages[1:])


def test_fine_tuning_counts_and_teaches_the_answers_only(tok, tiny_model, tmp_path):
    examples = [(tok.bos + tok.encode("How do I wash it?"),
                 tok.encode(" Sure, use a brush.") + [tok.end]),
                (tok.bos, tok.encode(" No.") + [tok.end]),
                (tok.bos + tok.encode("x " * 30), [tok.end])]
    with torch.no_grad():  # each answer by itself, by the definition
        logp = torch.cat([logprob_reference(tiny_model(torch.tensor([p + a]))[0, len(p) - 1:-1],
                                            tiny_model.head,
                                            torch.tensor(a))[0] for p, a in examples])
    args = argparse.Namespace(lr=1e-3, epochs=2, batch=3, micro=3, warmup=0.0, out=str(tmp_path),
                              save_minutes=5, fresh=False)
    metrics = Metrics(tmp_path / "m.jsonl")
    trained = train_sft.train(args, tiny_model, examples, torch.Generator().manual_seed(0), metrics,
                              Resume(args))
    assert trained == 2 * sum(len(a) for _, a in examples) == 2 * len(logp)
    rows = [row for _, row in read_jsonl(tmp_path / "m.jsonl")]
    assert rows[0]["loss"] == pytest.approx(-logp.mean().item(), rel=1e-4)
    assert rows[1]["loss"] < rows[0]["loss"]


def test_fine_tuning_leaves_the_words_alone_that_it_does_not_see(tmp_path):
    """The embedding is tied to the head: without care,
    Adam would move the rows of all words alike."""
    base = Path(__file__).parents[1] / "data" / "base"
    model, tok = load_model(base)
    before = model.head.detach().clone()
    dialogue = [{"role": "user", "content": "How do I feed the duck?"}]
    prompt = tok.encode_chat(dialogue, generation=True)[0]
    answer = tok.encode(" First, fill the bowl.") + [tok.end]
    args = train_sft.arguments(["--save-minutes", "99", "--epochs", "20", "--batch", "1", "--out",
                                str(tmp_path)])
    resume = SimpleNamespace(steps=0, restore=lambda *_, **__: None, save=lambda *_, **__: None)
    train_sft.train(args, model, [(prompt, answer)], torch.Generator(),
                    Metrics(tmp_path / "metrics.jsonl"), resume)
    moved = (model.head.detach() - before).norm(dim=1)
    unseen = torch.ones(len(moved), dtype=torch.bool)
    unseen[torch.tensor(prompt + answer)] = False
    assert moved[unseen].median() < 0.2 * moved[~unseen].median()


def test_comparisons_carry_soft_labels(demo):
    rows = [row for _, row in read_jsonl(demo / "pm/comparisons.jsonl")]
    used = [row for row in rows if not row["skipped"]]
    assert len(rows) == 40 and len(used) == config(demo / "pm")["used_ai"] > 4
    assert all(0 < row["p_a"] < 1 and row["mass"] > 0.1 and row["a"] != row["b"] for row in used)
    assert {row["principle"] for row in used} == {"Which is less bad?", "Which harms less?"}
    assert all(row["a"] == row["b"] for row in rows if row["skipped"] == "identical")


def test_the_policy_has_left_when_the_judge_comes(toy, demo, tmp_path, monkeypatch):
    there, load = [], train_pm.load_model

    def loading(*args):
        assert not any(model() for model in there), "two models at once"
        loaded = load(*args)
        there.append(weakref.ref(loaded[0]))
        return loaded
    monkeypatch.setattr(train_pm, "load_model", loading)
    monkeypatch.setattr(train_pm, "ai_labels", lambda *_: sys.exit("far enough"))
    with pytest.raises(SystemExit, match="far enough"):
        run(train_pm, pm_args(toy, tmp_path / "pm", "--model", demo / "sft/sl_cai"))
    assert len(there) == 2      # SL-CAI; the feedback model, which speaks second and then judges


def test_the_preference_model_prefers_what_people_chose(toy, demo):
    pm, tok = load_preference_model(demo / "pm/pm")
    rows = [row for _, row in read_jsonl(toy / "human.jsonl")]
    ids = [[tok.encode_chat(r["messages"] + [{"role": "assistant", "content": r[k]}])[0]
            for r in rows]
           for k in ("chosen", "rejected")]
    assert (pm.score_rows(ids[0]) > pm.score_rows(ids[1])).float().mean() > 0.8
    facts = config(demo / "pm")
    assert facts["human_decided"] >= 1 and 0 <= facts["human_ece"] <= 1


def test_ppo_logs_everything_a_person_watches(demo):
    metrics = [row for _, row in read_jsonl(demo / "rl/metrics.jsonl")]
    assert [m["step"] for m in metrics] == [0, 1, 2] and metrics[0]["kl"] == 0
    assert metrics[1]["kl"] != 0
    for key in ("score", "kl", "entropy", "approx_kl", "clip_fraction", "ratio",
                "explained_variance", "response_length",
                "ended", "policy_loss", "value_loss", "policy_grad", "value_grad", "lr"):
        assert all(isinstance(m[key], float) for m in metrics), key
    assert metrics[0]["lr"] > metrics[2]["lr"] > 0
    rollouts = [row for _, row in read_jsonl(demo / "rl/rollouts.jsonl")]
    assert len(rollouts) == 2 * 12 and {row["step"] for row in rollouts} == {0, 2}
    assert load_model(demo / "rl/rl_cai")[0].config == load_model(demo / "sft/sl_cai")[0].config


def test_what_the_scripts_save_opens_in_transformers(demo):
    for folder, scalar in (("sft/sl_cai", False), ("rl/rl_cai", False), ("pm/pm", True)):
        same_in_transformers(demo / folder, scalar)


def test_a_seed_repeats_a_run_and_another_does_not(toy, demo, tmp_path):
    weights = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(train_rl, rl_args(toy, demo / "pm/pm", tmp_path / name, "--seed", seed, "--steps", "2"))
        weights.append(load_model(tmp_path / name / "rl_cai")[0].head)
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_flags(toy, demo, tmp_path):
    run(train_sft, sft_args(toy, tmp_path / "sft", "--last-only", "--helpful-samples", "1",
                            "--red-team-limit", "5"))
    assert config(tmp_path / "sft")["examples"] <= 5 + 18
    run(train_pm, pm_args(toy, tmp_path / "pm", "--model", demo / "sft/sl_cai", "--both-orders",
                          "--chain-of-thought", "--clamp", "0.45", "0.55"))
    labels = [row["p_a"] for _, row in read_jsonl(tmp_path / "pm/comparisons.jsonl")
              if row["p_a"] is not None]
    assert len(labels) > 4 and all(0.45 <= p <= 0.55 for p in labels)


@pytest.mark.parametrize("script", [train_sft, train_pm, train_rl])
def test_help_explains_every_flag(script, capsys):
    with pytest.raises(SystemExit) as stop:
        script.main(["--help"])
    assert stop.value.code == 0 and len(capsys.readouterr().out.splitlines()) > 20


def fails(capsys, script, args, *says):
    with pytest.raises(SystemExit) as stop:
        run(script, args)
    said = capsys.readouterr().err
    assert stop.value.code not in (0, None) and "Traceback" not in said
    last = said.strip().splitlines()[-1]
    assert "error: " in last and all(word in last for word in says), said


def bad_files(tmp_path):
    """(name, what the message must say) of data files that cannot be used."""
    files = {"empty.jsonl": "", "broken.jsonl": '{"messages": [{"role": "user", '
             '"content": "hi"}]}\n{"mess\n', "keys.jsonl": '{"text": "hi"}\n',
             "long.jsonl": json.dumps({"messages": [{"role": "user", "content": "hi " * 999}]})}
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    return [("missing.jsonl", "missing.jsonl"), ("empty.jsonl", "no rows"),
            ("broken.jsonl", "broken.jsonl:2:"),
            ("keys.jsonl", "keys.jsonl:1:"), ("long.jsonl", "longer than 256 tokens")]


def test_bad_data_is_one_clear_line_before_any_model_is_built(toy, tmp_path, capsys, monkeypatch):
    for module in (train_sft, train_pm, train_rl):
        monkeypatch.setattr(module, "load_model", lambda *a: pytest.fail("a model was built"))
    for name, says in bad_files(tmp_path):
        for flag in ("--red-team", "--helpful"):
            fails(capsys, train_sft, sft_args(toy, tmp_path / "o", flag, tmp_path / name), says)
        fails(capsys, train_rl,
              rl_args(toy, toy / "base", tmp_path / "o", "--red-team", tmp_path / name), says)
        fails(capsys, train_pm, pm_args(toy, tmp_path / "o", "--red-team", tmp_path / name), says)
    fails(capsys, train_pm, pm_args(toy, tmp_path / "o", "--human", toy / "helpful.jsonl"),
          "helpful.jsonl:1:", "'chosen'")
    (tmp_path / "c.json").write_text('{"name": "x", "principles": []}')
    fails(capsys, train_sft, sft_args(toy, tmp_path / "o", "--constitution", tmp_path / "c.json"),
          "unknown key 'principles'")
    fails(capsys, train_pm, pm_args(toy, tmp_path / "o", "--constitution", tmp_path / "none.json"),
          "none.json")
    fails(capsys, train_sft, sft_args(toy, tmp_path / "o", "--max-prompt", "500"),
          "lower --max-prompt")
    fails(capsys, train_sft, sft_args(toy, tmp_path / "o", "--rouns", "2"),
          "unrecognized arguments")
    fails(capsys, train_rl, rl_args(toy, toy / "base", tmp_path / "o", "--max-prompt", "500"),
          "lower --max-prompt")
    fails(capsys, train_pm, pm_args(toy, tmp_path / "o", "--max-new", "400"), "lower --max-prompt")


def test_a_directory_that_is_no_model(toy, tmp_path, capsys):
    (tmp_path / "dir").mkdir()
    for folder in (tmp_path / "dir", tmp_path / "nowhere"):
        fails(capsys, train_sft, sft_args(toy, tmp_path / "o", "--model", folder), folder.name)
        fails(capsys, train_pm, pm_args(toy, tmp_path / "o", "--init", folder), folder.name)
        fails(capsys, train_rl, rl_args(toy, folder, tmp_path / "o"), folder.name)
    (tmp_path / "o").mkdir(exist_ok=True)
    # an earlier run's, which must outlive this
    (tmp_path / "o/metrics.jsonl").write_text('{"step": 0}\n')
    fails(capsys, train_rl, rl_args(toy, toy / "base", tmp_path / "o"), "preference model")
    assert (tmp_path / "o/metrics.jsonl").read_text() == '{"step": 0}\n'


def test_labels_after_thinking_are_measured_by_their_own_bounds(toy, demo, tmp_path, monkeypatch):
    def label(model, tok, questions, clamp, **_):
        return torch.full((len(questions),), 0.6).clamp(*clamp), torch.ones(len(questions))
    monkeypatch.setattr(feedback, "label", label)
    run(train_pm, pm_args(toy, tmp_path, "--model", demo / "sft/sl_cai", "--chain-of-thought",
                          "--clamp", "0.4", "0.6"))
    facts = config(tmp_path)
    assert facts["ai_decided"] > 0 and 0 <= facts["ai_agreement"] <= 1
    # not clamped, 0.6 decides nothing
    run(train_pm, pm_args(toy, tmp_path, "--model", demo / "sft/sl_cai"))
    assert config(tmp_path)["ai_decided"] == 0 and config(tmp_path)["ai_agreement"] is None


def test_a_preference_model_needs_something_to_learn_from(toy, demo, tmp_path, capsys):
    fails(capsys, train_pm, pm_args(toy, tmp_path, "--model", demo / "sft/sl_cai", "--held-out",
                                    "0.99"), "--held-out 0.99")


def published_files(toy, folder):
    """The toy world's requests and comparisons in the formats of red-team-attempts and hh-rlhf,
    with unusable rows."""
    red = [{"transcript": f"\n\nHuman: {row['messages'][0]['content']}\n\nAssistant: Hm.",
            "rating": 4.0}
           for _, row in read_jsonl(toy / "red_team.jsonl")] \
        + [{"transcript": "\n\nHuman: \n\nAssistant: What?"}]
    (folder / "attempts.jsonl.gz").write_bytes(gzip.compress(json.dumps(red).encode()))
    human = [{key: f"\n\nHuman: {row['messages'][0]['content']}\n\nAssistant: {row[key]}"
              for key in ("chosen", "rejected")} for _, row in read_jsonl(toy / "human.jsonl")]
    human += [human[0] | {"rejected": human[1]["rejected"]},
              human[0] | {"rejected": human[0]["chosen"]}]
    (folder / "hh.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, human)).encode()))


def test_published_files_give_the_same_run_as_our_own(toy, demo, tmp_path, capsys):
    published_files(toy, tmp_path)
    red, hh, out = tmp_path / "attempts.jsonl.gz", tmp_path / "hh.jsonl.gz", tmp_path
    run(train_sft, sft_args(toy, out / "sft", "--red-team", red, "--helpful", hh))
    said = capsys.readouterr().out
    assert f"{red}: 18 of 19 rows used; dropped: 1 x empty turn" in said
    assert f"{hh}: 20 of 20 rows used" in said
    revised = [row["messages"] for _, row in read_jsonl(out / "sft/revisions.jsonl")]
    assert revised == [row["messages"] for _, row in read_jsonl(demo / "sft/revisions.jsonl")]
    run(train_pm, pm_args(toy, out / "pm", "--model", demo / "sft/sl_cai", "--red-team", red,
                          "--human", hh))
    assert (f"{hh}: 18 of 20 rows used; dropped: 1 x chosen and rejected share no prompt (first in "
            "line 19), "
            "1 x chosen and rejected are equal (first in line 20)") in capsys.readouterr().out
    ours, theirs = (config(folder / "pm") for folder in (demo, out))
    assert {k: v for k, v in ours.items() if k not in ("args", "seconds")} == \
        {k: v for k, v in theirs.items() if k not in ("args", "seconds")}
    run(train_rl, rl_args(toy, demo / "pm/pm", out / "rl", "--red-team", red, "--helpful", red,
                          "--steps", "1"))
    assert len(read_jsonl(out / "rl/rollouts.jsonl")) == 12


def test_worked_examples_are_used_where_there_is_room_for_them(toy, demo, tmp_path, capsys):
    general = Path(__file__).parent.parent / "constitutions/general.json"
    for script, args in ((train_sft, sft_args), (train_pm, pm_args)):
        fails(capsys, script, args(toy, tmp_path / "o", "--constitution", general), "has 512",
              "--no-few-shot")
    worked = "Human: a\n\nAssistant: b\n\nCritiqueRequest: c\n\nCritique: d" \
        "\n\nRevisionRequest: e\n\nRevision: f"
    compared = {"conversation": [{"role": "user", "content": "a"}], "principle": "p", "better": "b",
                "worse": "w"}
    shots = {"critique": [worked], "comparison": [compared]}
    (tmp_path / "c.json").write_text(json.dumps(CONSTITUTION | {"few_shot": shots}))
    asked = []

    def label(model, tok, questions, prefix, **_):
        asked.append(tok.decode(prefix))
        return torch.full((len(questions),), 0.6), torch.ones(len(questions))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feedback, "label", label)
        for more in ([], ["--no-few-shot"]):
            run(train_pm, pm_args(toy, tmp_path / "pm", "--model", demo / "sft/sl_cai",
                                  "--max-prompt", "64",
                                  "--constitution", tmp_path / "c.json", *more))
    assert asked[0].startswith("Consider") and "p Options:" in asked[0] and asked[-1] == ""
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_sft, "critique_revise", lambda *said, **_: seen.append(said[-1]))
        for more in ([], ["--no-few-shot"]):
            run(train_sft,
                sft_args(toy, tmp_path / "sft", "--constitution", tmp_path / "c.json", *more))
    assert seen == [shots["critique"], []]


def test_what_cannot_be_read_is_counted_kept_and_left_out(toy, tmp_path, capsys, monkeypatch):
    """Critiques without a word: everything else is fine, and still nothing can be learned."""
    def wordless(share):
        def build(model, tok, *settings):
            ask, cut = sampler(model, tok, *settings), iter(range(10**6))
            silent = lambda context: tok.decode(context).endswith("\n\nCritique:") and \
                next(cut) % 10 < share
            return lambda contexts, progress=None, done=None: [[tok.end] if silent(context) else ids
                                                    for context, ids in zip(
                                                        contexts, ask(contexts))]
        return build
    monkeypatch.setattr(train_sft, "sampler", wordless(5))
    run(train_sft, sft_args(toy, tmp_path / "half"))
    reasons = [r["skipped"] for _, row in read_jsonl(tmp_path / "half/revisions.jsonl")
               for r in row["rounds"]]
    empty, said = reasons.count("critique: empty"), capsys.readouterr().out
    assert 10 <= empty <= len(reasons) - 10
    assert f"revisions: {reasons.count(None)} of {len(reasons)} used" in said
    assert f"'critique: empty': {empty}" in said
    answers = [row for _, row in read_jsonl(tmp_path / "half/answers.jsonl")]
    used = sum(not row["skipped"] for row in answers)
    assert len(answers) == 2 * 18 and f"responses: {used} of 36 used" in said
    assert config(tmp_path / "half")["examples"] == reasons.count(None) + used
    monkeypatch.setattr(train_sft, "sampler", wordless(10))
    fails(capsys, train_sft, sft_args(toy, tmp_path / "none"), "revisions could not be used",
          "critique: empty")
    assert (tmp_path / "none/revisions.jsonl").exists() and not (tmp_path / "none/sl_cai").exists()


def test_labels_without_a_choice_are_counted_kept_and_left_out(toy, demo, tmp_path, capsys):
    model = ["--model", demo / "sft/sl_cai"]
    rows = [row for _, row in read_jsonl(demo / "pm/comparisons.jsonl") if row["mass"] is not None]
    middle = sorted(row["mass"] for row in rows)[len(rows) // 2]
    run(train_pm, pm_args(toy, tmp_path / "half", *model, "--min-mass", middle))
    low = [row for _, row in read_jsonl(tmp_path / "half/comparisons.jsonl")
           if row["skipped"] == "no choice"]
    assert 0 < len(low) < len(rows)
    assert all(row["mass"] <= middle and row["p_a"] is not None for row in low)
    assert f"'no choice': {len(low)}" in capsys.readouterr().out
    fails(capsys, train_pm, pm_args(toy, tmp_path / "none", *model, "--min-mass", "1"),
          "40 of 40 pairs could not be used", "no choice")
    assert not (tmp_path / "none/pm").exists()
    assert len(read_jsonl(tmp_path / "none/comparisons.jsonl")) == 40


def test_policy_and_preference_model_must_fit(toy, demo, tmp_path, capsys):
    """In ids, in chat format, and in how far they read; found before a model is built."""
    shutil.copytree(demo / "pm/pm", tmp_path / "short")
    (tmp_path / "short/manifest.json").unlink()  # what follows is meant so
    config = json.loads((tmp_path / "short/config.json").read_text())
    (tmp_path / "short/config.json").write_text(
        json.dumps(config | {"max_position_embeddings": 20}))
    fails(capsys, train_rl, rl_args(toy, tmp_path / "short", tmp_path / "rl"), "has 20",
          "lower --max-prompt")
    spec = json.loads((demo / "pm/pm/tokenizer.json").read_text())
    spec["normalizer"] = {"type": "NFC"}
    shutil.copytree(demo / "pm/pm", tmp_path / "nfc")
    (tmp_path / "nfc/tokenizer.json").write_text(json.dumps(spec))
    fails(capsys, train_rl, rl_args(toy, tmp_path / "nfc", tmp_path / "rl"),
          "must share one tokenizer and chat format")


def test_ppo_stops_when_hardly_any_response_ends(toy, demo, tmp_path, capsys):
    args = rl_args(toy, demo / "pm/pm", tmp_path / "rl", "--max-new", "2")
    fails(capsys, train_rl, args, "step 0: hardly any of the responses ended", "--max-new")
    assert len(read_jsonl(tmp_path / "rl/rollouts.jsonl")) == 12
    assert not (tmp_path / "rl/rl_cai").exists()
    # Small rollouts are looked at together, and those before a stop count when it goes on.
    args = rl_args(toy, demo / "pm/pm", tmp_path / "small", "--max-new", "2", "--steps", "5",
                   "--batch", "4", "--minibatch", "4", "--micro", "4", "--save-minutes", "0")
    for step in (2, 2, 2):
        fails(capsys, train_rl, args, f"step {step}: hardly any of the responses ended")


def test_what_can_be_held_out_is_known_before_anything_is_sampled(toy, demo, tmp_path, capsys):
    model = ("--model", demo / "sft/sl_cai")
    fails(capsys, train_pm, pm_args(toy, tmp_path / "pm", *model, "--human-limit", "1"),
          "--human: --held-out 0.1 of the dialogues (1 different) leaves none")
    one = tmp_path / "one.jsonl"
    one.write_text((toy / "red_team.jsonl").read_text().splitlines()[0] + "\n")
    fails(capsys, train_pm, pm_args(toy, tmp_path / "pm", *model, "--red-team", one),
          f"--red-team {one}: --held-out 0.1 of the dialogues (1 different)")
    assert not (tmp_path / "pm").exists()
    # The defaults spelt out are the defaults.
    fails(capsys, train_pm, pm_args(toy, tmp_path / "pm", *model, "--clamp", "0.05", "0.95",
                                    "--comparisons", "1"), "(1 different) leaves none")


def test_one_answer_that_is_cut_ends_no_run():
    assert not train_rl.hardly_any([0.0], 1) and not train_rl.hardly_any([0.0] * 9, 1)
    assert train_rl.hardly_any([0.0] * 10, 1) and not train_rl.hardly_any([0.0] * 9 + [1.0], 1)
    assert train_rl.hardly_any([1.0] + [0.0] * 10, 1), "only the last ten count"
    assert not train_rl.hardly_any([0.0] * 3, 3) and train_rl.hardly_any([0.0] * 4, 3)
    assert train_rl.hardly_any([0.05], 64) and not train_rl.hardly_any([0.1], 64)


def test_a_model_that_hardly_ever_ends_is_named(toy, tiny_model_dir, tmp_path, capsys):
    train_sft.main([str(a) for a in sft_args(toy, tmp_path / "sft", "--model", tiny_model_dir,
                                             "--max-new", "6")])
    assert "does not know this chat format's end token" in capsys.readouterr().out
    rows = [row for _, row in read_jsonl(tmp_path / "sft/revisions.jsonl")]
    assert sum(row["cut"] for row in rows) > 0.8 * len(rows)
    assert all(row["skipped"] or row["rounds"] for row in rows)


def test_a_model_that_cannot_do_it_stops_the_run_and_leaves_the_evidence(
        toy, tiny_model_dir, tmp_path, capsys, monkeypatch):
    """Answers without words teach nothing: nothing is trained, and what was said can be read."""
    monkeypatch.setattr(critique, "generate", lambda model, prompts, **how: [[] for _ in prompts])
    fails(capsys, train_sft, sft_args(toy, tmp_path / "sft"), "could not be used")
    assert all(row["skipped"] or row["rounds"]
               for _, row in read_jsonl(tmp_path / "sft/revisions.jsonl"))
    monkeypatch.undo()
    fails(capsys, train_pm, pm_args(toy, tmp_path / "pm", "--feedback-model", tiny_model_dir),
          "could not be used", "(A)")
    assert (tmp_path / "pm/comparisons.jsonl").exists() and not (tmp_path / "pm/pm").exists()


# ---- ablations: parts of the method left out by a flag -------------------------------------------
@pytest.mark.parametrize("flag, kind, other",
                         [("--human-limit", "ai", "human"), ("--comparisons", "human", "ai")])
def test_a_preference_model_of_one_kind_of_label_only(toy, demo, tmp_path, flag, kind, other):
    run(train_pm, pm_args(toy, tmp_path, "--model", demo / "sft/sl_cai", flag, "0",
                          "--measure", "0"))
    facts = config(tmp_path)
    assert facts[f"used_{other}"] == 0 < facts[f"used_{kind}"]
    assert f"{kind}_agreement" in facts and f"{other}_agreement" not in facts
    # still moved to the responses' mean
    assert abs(load_preference_model(tmp_path / "pm")[0].shift) > 0


def test_no_labels_at_all_is_one_clear_line(toy, tmp_path, capsys):
    fails(capsys, train_pm, pm_args(toy, tmp_path, "--human-limit", "0", "--comparisons", "0"),
          "nothing is left to learn")


def test_scores_in_their_own_unit(toy, demo, tmp_path):
    """The same weights, but for the scale of the head and the shift."""
    run(train_pm, pm_args(toy, tmp_path, "--model", demo / "sft/sl_cai", "--no-score-norm"))
    (raw, _), (normed, _) = (load_preference_model(folder)
                             for folder in (tmp_path / "pm", demo / "pm/pm"))
    scale = raw.head.weight / normed.head.weight
    assert raw.shift == 0 and scale.std() < 1e-4 and torch.equal(raw.trunk.head, normed.trunk.head)


def test_ppo_can_do_without_a_value_model_or_keep_it(toy, demo, tmp_path):
    value_model, _ = load_preference_model(demo / "rl/value_model")
    assert value_model.head.weight.abs().sum() > 0  # it has learned something
    run(train_rl, rl_args(toy, demo / "pm/pm", tmp_path / "a", "--no-value", "--no-whiten",
                          "--reward-shape", "averse"))
    metrics = [row for _, row in read_jsonl(tmp_path / "a/metrics.jsonl")]
    assert not (tmp_path / "a/value_model").exists()
    assert all("value_loss" not in row for row in metrics)
    assert all(row["paid"] <= row["score"] for row in metrics)
    run(train_rl, rl_args(toy, demo / "pm/pm", tmp_path / "b", "--no-save-value", "--steps", "1"))
    assert not (tmp_path / "b/value_model").exists()


def test_what_ppo_writes_of_single_responses_adds_up(demo):
    """rollouts.jsonl holds every response with its kind,
    trace.jsonl one of each kind token by token."""
    args = config(demo / "rl")["args"]
    rollouts = [row for _, row in read_jsonl(demo / "rl/rollouts.jsonl")]
    first = [row for row in rollouts if row["step"] == 0]
    assert [row["kind"] for row in first] == ["red_team"] * 6 + ["helpful"] * 6
    metrics = next(row for _, row in read_jsonl(demo / "rl/metrics.jsonl"))
    for kind in ("red_team", "helpful"):
        mean = sum(row["score"] for row in first if row["kind"] == kind) / 6
        assert metrics[f"score_{kind}"] == pytest.approx(mean, abs=2e-3)
    traces = [row for _, row in read_jsonl(demo / "rl/trace.jsonl")]
    assert [(row["step"], row["kind"]) for row in traces] == [(s, k) for s in (0, 2)
                                                              for k in ("red_team", "helpful")]
    for row in traces:
        n = len(row["tokens"])
        penalties = [-args["kl_coef"] * (p - q) for p, q in zip(row["logp"], row["ref_logp"])]
        assert row["rewards"] == pytest.approx(penalties[:-1] + [penalties[-1] + row["paid"]],
                                               abs=1e-4)
        later = row["values"][1:] + [0]
        raw = [r - v for r, v in zip(row["returns"], row["values"])]
        delta = [r + args["gamma"] * v2 - v
                 for r, v, v2 in zip(row["rewards"], row["values"], later)]
        assert raw == pytest.approx([sum((args["gamma"] * args["lam"]) ** (k - t) * delta[k]
                                         for k in range(t, n))
                                     for t in range(n)], abs=1e-3)
        assert any(abs(ratio - 1) > 1e-4 for ratio in row["ratio"])  # after the step's updates
        assert any(r["response"] == "".join(row["tokens"])
                   for r in rollouts if r["step"] == row["step"])
