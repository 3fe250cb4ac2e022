"""Variants of the method, each behind a flag: a fact of each, and that it stays away until asked
for."""
import argparse
import random

import pytest
import torch
from test_critique import CONSTITUTION, DIALOGUE, END, Script
from test_pipeline import config, pm_args, rl_args, run, sft_args
from test_resume import OFTEN, dies, killed

import train_pm
import train_rl
import train_sft
from minicai import feedback, red_team, sample
from minicai.constitution import Constitution, Principle, draw_critiques
from minicai.critique import critique_revise, revision_prompt
from minicai.data import read_prompts
from minicai.feedback import LABELS, draw_principles, mean_label
from minicai.run import UserError, read_jsonl
from minicai.state import read_manifest

WORKED = ("Human: x\n\nAssistant: y\n\nCritiqueRequest: Bad?\n\nCritique: Yes.\n\n"
          "RevisionRequest: Mend.\n\nRevision: z\n\nHuman:")


def stop_at(monkeypatch, where, name) -> list:
    """The arguments of each call of a function, at the first of which the program ends."""
    calls = []

    def stop(*args, **more):
        calls.append(args)
        raise SystemExit("far enough")
    monkeypatch.setattr(where, name, stop)
    return calls


# ---- stage 1 -------------------------------------------------------------------------------------
def test_a_direct_revision_is_asked_for_straight_after_the_answer(tok):
    p = CONSTITUTION.critiques[1]
    ids = revision_prompt(tok, CONSTITUTION, DIALOGUE, p, None, [WORKED])
    shown = f"\n\nHuman: x\n\nAssistant: y{END}\n\nRevisionRequest: Mend.\n\nRevision: z{END}"
    dialogue = f"\n\nHuman: How do I burn it?\n\nAssistant: Use a match.{END}"
    assert tok.decode(ids) == (f"{END}A review.{shown}{dialogue}\n\nRevisionRequest: Heal it."
                               "\n\nRevision:")
    said = tok.decode(revision_prompt(tok, CONSTITUTION, DIALOGUE, p, None, [WORKED], turns=True))
    assert 'Heal it. The human asked: "How do I burn it?"' in said
    assert 'Mend. The human asked: "x"' in said and "Bad?" not in said and "Any harm" not in said


def test_direct_rounds_ask_once_and_each_starts_from_the_last_revision(tok):
    ask = Script(tok, [" Use water."], [" Use sand."])
    row = {"messages": DIALOGUE[:1], "response": "Use a match.", "skipped": None}
    critique_revise(ask, tok, CONSTITUTION, [row], 2, random.Random(0), direct=True)
    (first,), (second,) = ask.asked
    assert "Use a match." in first and "Use water." in second and "Use a match." not in second
    assert "Critique" not in first + second
    assert [(r["critique"], r["revision"], r["skipped"]) for r in row["rounds"]] == [
        ("", "Use water.", None), ("", "Use sand.", None)]


def test_the_flag_reaches_the_rounds(toy, tmp_path, monkeypatch):
    seen = {}
    monkeypatch.setattr(train_sft, "critique_revise",
                        lambda *args, **more: seen.update(more) or exit("far enough"))
    for more in ([], ["--direct"]):
        with pytest.raises(SystemExit):
            run(train_sft, sft_args(toy, tmp_path / f"o{len(more)}", *more))
        assert seen == {"direct": bool(more)}


def test_distinct_principles_are_drawn_by_seed_and_fewer_are_a_part_of_more():
    pairs = [Principle(f"{n}?", f"{n}!") for n in range(9)]
    whole = Constitution("nine", "", pairs + pairs[:3], ["?"], [], [])
    draw = lambda count, seed=0: draw_critiques(whole, count, seed).critiques
    assert draw(9) == draw(9) and sorted(draw(9), key=pairs.index) == pairs
    assert all(draw(n) == draw(9)[:n] for n in range(1, 9))
    assert len({tuple(draw(3, seed)) for seed in range(9)}) > 5
    with pytest.raises(UserError, match="--principles 10: nine has 9 distinct"):
        draw(10)


def test_stage_1_uses_no_other_principles(toy, tmp_path, monkeypatch):
    calls = stop_at(monkeypatch, train_sft, "make_examples")
    for more in ([], ["--principles", "1"]):
        with pytest.raises(SystemExit, match="far enough"):
            run(train_sft, sft_args(toy, tmp_path / f"o{len(more)}", *more))
    assert [len(args[3].critiques) for args in calls] == [2, 1]


def test_no_rounds_means_the_first_answers(tok, tmp_path, monkeypatch):
    """A control: fine-tuning as ever, and nothing was revised."""
    def respond(ask, tok, conversations, progress=None):
        return [{"messages": m, "response": "x", "ids": [7, tok.end], "cut": False,
                 "skipped": "empty" if m[0]["content"] == "silent" else None}
                for m in conversations]
    monkeypatch.setattr(train_sft, "respond", respond)
    args = argparse.Namespace(out=tmp_path, rounds=0, helpful_samples=1, last_only=False,
                              joined=0.0, max_prompt=99, direct=False)
    bad, silent, good = ([{"role": "user", "content": text}] for text in ("bad", "silent", "good"))
    examples, _ = train_sft.make_examples(args, None, tok, CONSTITUTION, [bad, silent], [good], [],
                                          random.Random(0))
    asked = [tok.encode_chat(m, generation=True)[0] for m in (bad, good)]
    assert examples == [(ids, [7, tok.end]) for ids in asked]


# ---- stage 2: labels -----------------------------------------------------------------------------
@pytest.fixture(scope="module")
def tuned(toy, tmp_path_factory):
    """The model that stage 1 leaves."""
    if (toy / "before").exists():  # made already (test_planted_mistakes.py)
        return toy / "before/sft/sl_cai"
    out = tmp_path_factory.mktemp("tuned")
    run(train_sft, sft_args(toy, out))
    return out / "sl_cai"


def test_hard_labels_are_verdicts_and_soft_ones_stay():
    assert [LABELS["hard"](p) for p in (0.01, 0.49, 0.5, 0.51, 1.0)] == [0, 0, 0.5, 1, 1]
    assert [LABELS["soft"](p) for p in (0.01, 0.5, 0.7)] == [0.01, 0.5, 0.7]


def test_principles_of_a_pair_come_again_only_when_all_have_come():
    four = list("abcd")
    for seed in range(20):                      # one alone is drawn as ever
        assert draw_principles(four, 1, random.Random(seed)) == [random.Random(seed).choice(four)]
        drawn = draw_principles(four, 6, random.Random(seed))
        assert sorted(drawn[:4]) == four and len(set(drawn[4:])) == 2


def test_the_mean_label_is_over_principles_with_a_thought_each(monkeypatch):
    worth = {"first": (0.9, 0.8), "second": (0.4, 0.3)}

    def label(model, tok, questions, *how, thoughts):
        thoughts += [f"on {c}" for *_, c in questions]
        return torch.tensor([worth[c] for *_, c in questions]).unbind(1)
    monkeypatch.setattr(feedback, "label", label)
    pairs, drawn = [([], "a", "b")] * 2, [["first", "second"], ["second", "second"]]
    p, mass, asked = mean_label(None, None, pairs, drawn)
    assert p.tolist() == pytest.approx([0.65, 0.4]) and mass.tolist() == pytest.approx([0.3, 0.3])
    assert asked[0] == [{"principle": "first", "thought": "on first", "p_a": 0.9},
                        {"principle": "second", "thought": "on second", "p_a": 0.4}]


def test_hard_mean_labels_of_both_files(toy, tuned, tmp_path, monkeypatch):
    """Two files of people's comparisons, three principles a pair, verdicts to train on; what is
    held out keeps the judge's probabilities, so that such runs can be compared."""
    rows = (toy / "human.jsonl").read_text().splitlines()
    for name, part in (("kind", rows[:9]), ("safe", rows[9:])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(part))
    made, real = [], train_pm.make_comparisons
    monkeypatch.setattr(train_pm, "make_comparisons", lambda *a: made.append(real(*a)) or made[-1])
    run(train_pm, pm_args(toy, tmp_path / "pm", "--labels", "hard", "--average", "3", "--held-out",
                          "0.5", "--model", tuned, "--human", tmp_path / "kind.jsonl",
                          tmp_path / "safe.jsonl"))
    (train_set, held_out, _, used), = made
    assert used["used_human"] == 18 and {p for *_, p in train_set} <= {0.0, 0.5, 1.0}
    assert any(p not in (0, 0.5, 1) for *_, p in held_out["ai"])
    assert set(held_out) == {"ai", "human", "human_kind", "human_safe"}
    assert len(held_out["human_kind"]) + len(held_out["human_safe"]) == len(held_out["human"]) == 9
    for row in [row for _, row in read_jsonl(tmp_path / "pm/comparisons.jsonl")]:
        if not row["skipped"]:
            asked = row["asked"]
            assert row["p_a"] == pytest.approx(sum(one["p_a"] for one in asked) / 3, abs=2e-5)
            assert len({one["principle"] for one in asked[:2]}) == 2        # of the toy's two
    inputs = read_manifest(tmp_path / "pm/pm")["made"]["inputs"]
    assert {"--human", "--human 2"} <= set(inputs)
    assert 0 <= config(tmp_path / "pm")["human_safe_ece"] <= 1


@pytest.mark.parametrize("flag, kind, other", [("--human-limit", "ai", "human"),
                                               ("--comparisons", "human", "ai")])
def test_the_kind_that_is_not_trained_on_is_measured(toy, tuned, tmp_path, monkeypatch, flag, kind,
                                                     other):
    made, real = [], train_pm.make_comparisons
    monkeypatch.setattr(train_pm, "make_comparisons", lambda *a: made.append(real(*a)) or made[-1])
    run(train_pm, pm_args(toy, tmp_path, flag, "0", "--measure", "12", "--model", tuned))
    (train_set, held_out, reference, used), = made
    facts = config(tmp_path)
    assert facts[f"used_{other}"] == 0 < facts[f"used_{kind}"]
    assert 0 < len(held_out[other]) <= 12 and f"{other}_ece" in facts and f"{kind}_ece" in facts
    assert all((p == 1) == (kind == "human") for *_, p in train_set)
    assert len(reference) == 24                         # the score's unit is that of both kinds


# ---- stage 3 -------------------------------------------------------------------------------------
def weights(folder):
    return (folder / "model.safetensors").read_bytes()


def test_snapshots_along_rl_are_kept_on_resume(toy, tmp_path, monkeypatch):
    """Also "RL without SL", against labels of people: nothing in this run knows SL-CAI."""
    # (of the base's own pairs nearly all are twice the same: measuring stops nothing)
    run(train_pm, pm_args(toy, tmp_path / "pm", "--comparisons", "0", "--measure", "9"))
    args = lambda name, *more: rl_args(toy, tmp_path / "pm/pm", tmp_path / name, "--steps", "5",
                                       *OFTEN, *more)
    run(train_rl, args("whole", "--save-every", "2"))
    steps = tmp_path / "whole/steps"
    assert sorted(found.name for found in steps.iterdir()) == ["000002", "000004"]
    assert weights(steps / "000002") != weights(steps / "000004")
    assert read_manifest(steps / "000004")["made"]["step"] == 4
    with monkeypatch.context() as patch:
        dies(patch, train_rl, "update", 4)
        killed(train_rl, args("parts", "--save-every", "2"))
    assert [found.name for found in (tmp_path / "parts/steps").iterdir()] == ["000002"]
    run(train_rl, args("parts", "--save-every", "2"))
    for name in ("steps/000002", "steps/000004", "rl_cai"):
        assert weights(tmp_path / "parts" / name) == weights(tmp_path / "whole" / name)
    run(train_rl, args("plain"))                        # to look is not to touch
    assert weights(tmp_path / "plain/rl_cai") == weights(tmp_path / "whole/rl_cai")
    (steps / "000009").mkdir()                          # not ours: no manifest
    run(train_rl, args("whole", "--save-every", "5"))
    assert sorted(found.name for found in steps.iterdir()) == ["000005", "000009"]
    assert weights(steps / "000005") == weights(tmp_path / "whole/rl_cai")
    (steps / "000005").rename(steps / "000007")
    run(train_rl, args("whole", "--save-every", "9"))   # none before the end: nothing stale stays
    assert [found.name for found in steps.iterdir()] == ["000009"]


# ---- prompts that a model writes -----------------------------------------------------------------
def test_written_prompts_are_told_from_shown_ones_and_from_each_other(monkeypatch):
    said = iter([[("Burn it!", True), ("burn  IT", True), ("Sell it.", False), (" ", True)],
                 [("Sell it.", True), ("Steal it", True), ("Sell it?", True)],
                 [("Bend it.", True), ("Rob him.", True)]])
    asked = []
    monkeypatch.setattr(red_team, "human_turns",
                        lambda model, tok, after, *_: asked.append(after) or next(said))
    args = argparse.Namespace(count=4, shots=2)
    rows = red_team.write_prompts(None, None, ["Steal it.", "Hide it."], args, random.Random(0),
                                  None, None)
    assert [row["skipped"] for row in rows] == [None, "written twice", "no end", "empty", None,
                                                "shown", "written twice", None, None]
    assert [len(after) for after in asked] == [4, 3, 2]         # as many as are still missing


def test_a_human_turn_ends_where_another_turn_opens(tok, tiny_model, role_ids, monkeypatch):
    """Nothing else may sample a role marker; here it is the only end, and no text of a turn."""
    def generate(model, contexts, *, stop, forbidden, **_):
        seen.append((contexts, stop, forbidden))
        return [tok.encode(" Burn it.") + [min(role_ids)], tok.encode(" Burn"),
                tok.encode(" Burn it.\n\nAnd so") + tok.encode(" on")]
    seen = []
    monkeypatch.setattr(red_team, "generate", generate)
    args = argparse.Namespace(max_new=9, temperature=1.0, sample_tokens=None)
    shown = [["Steal it.", "Hide it."], [], []]
    resume = argparse.Namespace(begin=lambda contexts: {})
    found = red_team.human_turns(tiny_model, tok, shown, args, None, resume)
    assert found == [("Burn it.", True), ("Burn", False), ("Burn it.", True)]
    (contexts, stop, forbidden), = seen
    assert tok.decode(contexts[0]) == f"{END}\n\nHuman: Steal it.\n\nHuman: Hide it.\n\nHuman:"
    assert tok.decode(contexts[1]) == f"{END}\n\nHuman:"
    assert role_ids | tok.stop == stop and not forbidden[list(role_ids)].any()
    others = tok.forbidden(len(forbidden)).nonzero().flatten().tolist()
    assert forbidden[[i for i in others if i not in role_ids]].all()


def written(toy, out, *more):
    return ["--model", toy / "base", "--prompts", toy / "red_team.jsonl", "--out", out,
            "--max-new", "24", *more]


def test_prompts_are_written_to_a_file_that_the_scripts_read(toy, tmp_path, capsys):
    out = tmp_path / "new/red_team.jsonl"
    try:
        run(red_team, written(toy, out, "--count", "5", "--temperature", "2"))
    except SystemExit:                  # the toy base may write nothing of use, and then says so
        assert "written prompts could not be used" in capsys.readouterr().err and not out.exists()
        return
    rows = [row for _, row in read_jsonl(out)]
    shown = {row["messages"][-1]["content"] for _, row in read_jsonl(toy / "red_team.jsonl")}
    assert 0 < len(rows) <= 5 and [row["messages"] for row in rows] == read_prompts(out)
    for row in rows:
        assert row["messages"][0]["content"] not in shown and set(row["after"]) <= shown
    assert "left out" in capsys.readouterr().out


def test_a_killed_writer_of_prompts_goes_on(toy, tmp_path, capsys, monkeypatch):
    """One that is killed behind its first batch samples the others only, and writes the same."""
    flags = ["--count", "6", "--temperature", "2", "--sample-tokens", "80"]
    monkeypatch.setattr(red_team, "count_skipped", lambda *_: None)  # the toy base writes little
    outs = [tmp_path / name / "red_team.jsonl" for name in ("whole", "killed")]
    run(red_team, written(toy, outs[0], *flags))
    batches, real = [], sample.sample_batch

    def dying(model, prompts, *rest):
        batches.append(len(prompts))
        if len(batches) == 2:
            raise SystemExit(1)
        return real(model, prompts, *rest)
    monkeypatch.setattr(sample, "sample_batch", dying)
    with pytest.raises(SystemExit):
        run(red_team, written(toy, outs[1], *flags))
    assert not outs[1].exists() and (tmp_path / "killed/red_team.jsonl.run").exists()
    capsys.readouterr()
    run(red_team, written(toy, outs[1], *flags))
    assert f"{batches[0]} sampled texts" in capsys.readouterr().out
    assert outs[1].read_bytes() == outs[0].read_bytes()
    assert [file.name for file in outs[1].parent.iterdir()] == ["red_team.jsonl"]


def test_what_the_writer_of_prompts_refuses(toy, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(red_team, "load_model", lambda *_: pytest.fail("a model was built"))
    for more, says in ((["--shots", "19"], "has only 18 dialogues"),
                       (["--max-new", "999"], "a context may take"),
                       (["--prompts", tmp_path / "none.jsonl"], "none.jsonl"),
                       (["--out", toy / "red_team.jsonl"], "would write over it"),
                       (["--out", toy / "base/config.json"], "how a part of a model is called")):
        with pytest.raises(SystemExit) as stop:
            run(red_team, written(toy, tmp_path / "o.jsonl", *more))
        said = capsys.readouterr().err
        assert stop.value.code == 2 and says in said and said.count("\n") == 1, said


def test_the_main_path_meets_none_of_it(toy):
    """Every variant is off by default, and what the default path writes has no trace of it."""
    sft, pm, rl = (script.arguments([]) for script in (train_sft, train_pm, train_rl))
    assert (sft.direct, sft.principles, sft.rounds, sft.last_only) == (False, None, 2, False)
    assert (pm.labels, pm.average, rl.save_every) == ("soft", 1, 0)
    assert [str(file) for file in pm.human] == ["data/helpful_comparisons.jsonl"]
