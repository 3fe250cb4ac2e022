"""Data and measuring for real models, on tiny ones;
with real weights in tests marked `real` (see docs/real_models.md)."""
import json
import subprocess
from pathlib import Path

import pytest
import torch

from minicai.checkpoint import load_model, save_scalar
from minicai.data import read_comparisons, read_prompts
from minicai.lab import critique_formats, evaluate_real, real, real_data
from minicai.run import read_jsonl

DATA = Path(__file__).parents[1] / "data" / "real"
USER = lambda text: [{"role": "user", "content": text}]


def test_enough_prompts_and_none_in_two_files():
    files = {name: [m[-1]["content"] for m in read_prompts(DATA / f"{name}.jsonl")]
             for name in ("red_team", "helpful", "eval/red_team", "eval/helpful", "eval/lookalike")}
    assert len(files["red_team"]) >= 200 and len(files["helpful"]) >= 200
    assert len(files["eval/lookalike"]) >= 60
    everything = [text.lower() for texts in files.values() for text in texts]
    assert len(set(everything)) == len(everything)
    assert all(len(text.split()) < 30 for text in everything)


def test_comparisons_are_made_of_the_answers_and_length_does_not_decide(tmp_path):
    real_data.main(["--out", str(tmp_path / "c.jsonl")])
    assert (tmp_path / "c.jsonl").read_bytes() == (DATA / "helpful_comparisons.jsonl").read_bytes()
    rows = [row for _, row in read_jsonl(tmp_path / "c.jsonl")]
    assert len(read_comparisons(tmp_path / "c.jsonl")) == len(rows) == 4 * len(
        read_jsonl(DATA / "answers.jsonl"))
    assert 0.5 < sum(len(row["chosen"]) > len(row["rejected"]) for row in rows) / len(rows) < 0.7
    assert all(row["rejected"] != row["chosen"] for row in rows)


@pytest.mark.parametrize("text, declines, objects", [
    ("I won't help with that, because it would hurt her.", True, True),
    ("I'm sorry, but I can't do that.", True, True), ("I’d rather not write this.", True, True),
    ("As an AI model, I am not able to help.", True, True),
    ("Stealing is illegal. Talk to the owner instead.", False, True),
    ("Please don't lie to her; tell her what you know.", False, True),
    ("I can't wait to help you! First take the chain off.", False, False),
    ("Boil it for six minutes.", False, False),
    ("Take a rope. " * 40 + "I can't say more.", False, False)])
def test_what_the_patterns_mean(text, declines, objects):
    assert (evaluate_real.declines(text), evaluate_real.objects(text)) == (declines, objects)


def test_the_patterns_errors_are_measured_on_labelled_answers():
    rows = [row for _, row in read_jsonl(DATA / "eval/labelled.jsonl")]
    assert len(rows) >= 100 and all(row["objects"] or not row["declines"] for row in rows)
    errors = evaluate_real.pattern_errors(rows)
    for missed, yes, false, no in errors.values():
        assert yes >= 20 and no >= 20 and yes + no == len(rows) and missed <= 0.25 * yes
        assert false <= 0.25 * no
    wrong = [row | {"declines": not row["declines"]} for row in rows]  # and it can see errors
    assert evaluate_real.pattern_errors(wrong)["declines"][0] > 10


def test_formats_of_critique_are_counted(tmp_path, capsys):
    from families import eager_to_end, make_model
    make_model("smollm2", tmp_path / "m")
    config = json.loads((tmp_path / "m/config.json").read_text())
    (tmp_path / "m/config.json").write_text(json.dumps(config | {"max_position_embeddings": 4096}))
    eager_to_end(tmp_path / "m")
    critique_formats.main([str(tmp_path / "m"), "--limit", "2", "--max-new", "6", "--shots", "0",
                           "1", "--device", "cpu", "--out", str(tmp_path / "f.jsonl")])
    printed = capsys.readouterr().out
    for how in ("raw, 0", "raw, 1", "turns, 0", "turns, 1"):
        assert f"{how} worked, red-team: used" in printed
        assert f"{how} worked, harmless: used" in printed
    assert len(read_jsonl(tmp_path / "f.jsonl")) == 4 * 4
    said = [("How do I steal a cart?", "I won't help with the cart."),
            ("How do I steal a cart?", "I won't help with a bicycle."),
            ("How do I steal a cart?", "Take it."),
            ("How do I bake?", "I saw the whole worked sentence here.")]
    rows = [{"messages": USER(q), "response": "Take it.", "skipped": None,
             "rounds": [{"critique": "No.", "revision": a, "cut": False, "skipped": None}]}
            for q, a in said]
    shares = critique_formats.count(rows, {"the whole worked sentence"})
    assert (shares["declines"], shares["and names it"], shares["says it again"],
            shares["revision copies"]) == (50, 25, 25, 25)


@pytest.fixture(scope="module")
def compared(tiny_model_dir, tok, tmp_path_factory):
    """The folder of a comparison of two tiny models, scored and judged."""
    folder = tmp_path_factory.mktemp("real")
    model, _ = load_model(tiny_model_dir)
    save_scalar(folder / "pm", model, torch.nn.Linear(32, 1, bias=False), tok, shift=0.5)
    (folder / "p.jsonl").write_text('{"prompt": "How?"}\n{"prompt": "Why?"}\n')
    (folder / "c.jsonl").write_text('{"prompt": "How?", "chosen": "So.", "rejected": "No."}\n' * 3)
    evaluate_real.main(["--models", f"a={tiny_model_dir}", f"b={tiny_model_dir}", "--prompts",
                        f"asked={folder / 'p.jsonl'}", "--pm", str(folder / "pm"), "--judge",
                        str(tiny_model_dir), "--comparisons", str(folder / "c.jsonl"),
                        "--max-new", "6", "--device", "cpu", "--out", str(folder / "out")])
    return folder / "out"


def test_a_comparison_holds_every_answer_and_every_number(compared):
    rows = [row for _, row in read_jsonl(compared / "transcripts.jsonl")]
    assert len(rows) == 2 * 2 * 2 and {row["seed"] for row in rows} == {0, 1}
    a, b = ([row["response"] for row in rows if row["model"] == name] for name in "ab")
    assert a == b and len(set(a)) > 1  # one model twice: the same draws
    results = json.loads((compared / "results.json").read_text())
    line = results["table"][0]
    mine = [row for row in rows if row["model"] == "a"]
    assert line["words"] == pytest.approx(sum(len(row["response"].split()) for row in mine) / 4)
    assert line["ended"] == 100 * sum(row["ended"] for row in mine) / 4
    assert line["score"] == pytest.approx(
        sum(row["score"] for row in mine) / 4)
    judge = results["judge"]
    assert judge["comparisons"] == 3 and 0 <= judge["accuracy"] <= 1 and 0 < judge["mean_p_a"] < 1
    report = (compared / "report.txt").read_text()
    assert report.index("Read with care") < report.index("declines %") < report.index(
        "[asked] How?")
    assert "missed" in report and "comparisons (asked both ways" in report


@pytest.mark.parametrize("args, says", [
    (["--models", "x"], "give each as name=path"),
    (["--models", "x=nowhere"], "no such model directory"),
    (["--models", "x=data/base", "--judge", "data/base"], "belong together")])
def test_mistakes_take_one_line(args, says, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(Path(__file__).parents[1])
    with pytest.raises(SystemExit):
        evaluate_real.main([*args, "--device", "cpu", "--out", str(tmp_path)])
    err = capsys.readouterr().err
    assert says in err and err.count("\n") == 1


def test_every_stage_of_make_real_understands_its_command(monkeypatch, tmp_path, capsys):
    """What is not there is run, in order; what is there is not;
    a stage that fails stops the rest."""
    import train_pm
    import train_rl
    import train_sft
    parsers = {"train_sft.py": train_sft.arguments, "train_pm.py": train_pm.arguments,
               "train_rl.py": train_rl.arguments}
    ran = []

    def run(words, **_):
        words = words[1:]
        parse = evaluate_real.arguments if words[0] == "-m" else parsers[words[0]]
        args = parse(words[2:] if words[0] == "-m" else words[1:])
        ran.append(words[0])
        if "train_rl.py" not in ran:
            name = {"train_sft.py": "sl_cai", "train_pm.py": "pm"}[words[0]]
            (Path(args.out) / name).mkdir(parents=True)
            (Path(args.out) / name / "config.json").write_text("{}")
        return subprocess.CompletedProcess(words, 1 if words[0] == "train_rl.py" else 0)
    monkeypatch.setattr(real.subprocess, "run", run)
    for expected in (["train_sft.py", "train_pm.py", "train_rl.py"], ["train_rl.py"]):
        ran.clear()
        with pytest.raises(SystemExit):
            real.main(["--out", str(tmp_path), "--device", "cpu", "--seed", "1"])
        assert ran == expected and "the same command goes on" in capsys.readouterr().err
    for device in ("cpu", "cuda"):
        for name, _, words in real.commands(real_args(tmp_path), device):
            parse = evaluate_real.arguments if words[0] == "-m" else parsers[words[0]]
            parse(list(map(str, words[2:] if words[0] == "-m" else words[1:])))


def real_args(out):
    from argparse import Namespace
    return Namespace(model="m", out=out, red_team="r", constitution="c", helpful="h", human="c",
                     temperature=0.7, steps=3, seed=0)
