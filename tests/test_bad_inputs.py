"""Everything that can be given wrong, by flag, file, folder and command: one line that says where
and what, exit code 2, no model built, nothing written."""
import gzip
import json
import os
import shutil
from types import SimpleNamespace

import pytest
import torch
from conftest import CONSTITUTION
from test_pipeline import pm_args, rl_args, run, sft_args

import train_pm
import train_rl
import train_sft
from minicai import chat
from minicai.lab import bench, doctor, evaluate, export_preferences, figures, plan
from minicai.run import UserError
from minicai.world import exam, make_data, pretrain, preview

SHARE = ["-0.1", "1.1", "nan", "inf", "x"]
COUNT, NONE_TOO = ["0", "-1", "1.5", "nan", "1e3"], ["-1", "x", "0.5", "inf"]
ABOVE_0, FROM_0 = ["0", "-1", "nan", "inf", "1e99"], ["-1", "nan", "-inf", "x"]
PLACE = ["", " ", "a\0b", "a\nb"]
LR, HEAT = ["-1", "nan", "inf", "1e9"], ["-1", "nan", "0.001", "1e6"]
SEED = ["-1", str(2**64), "nan", "0.5"]
ALL = {"--seed": SEED, "--save-minutes": FROM_0, "--sample-tokens": COUNT,
       "--dtype": ["fp8", "FP32"], "--chat": ["none"],
       "--out": PLACE, "--red-team": PLACE, "--max-prompt": COUNT, "--max-new": COUNT,
       "--batch": COUNT, "--micro": COUNT, "--model": PLACE}
FLAGS = {
    train_sft: ALL | {"--constitution": PLACE, "--helpful": PLACE, "--red-team-limit": NONE_TOO,
                      "--helpful-limit": NONE_TOO, "--helpful-samples": NONE_TOO + ["1001"],
                      "--rounds": NONE_TOO, "--principles": COUNT, "--joined": SHARE,
                      "--temperature": HEAT,
                      "--epochs": COUNT, "--lr": LR, "--warmup": SHARE},
    train_pm: ALL | {"--feedback-model": PLACE, "--init": PLACE, "--constitution": PLACE,
                     "--human": PLACE, "--comparisons": NONE_TOO, "--human-limit": NONE_TOO,
                     "--measure": NONE_TOO, "--labels": ["firm"], "--average": COUNT + ["101"],
                     "--min-mass": SHARE, "--held-out": SHARE + ["0"], "--temperature": HEAT,
                     "--max-thought": COUNT, "--epochs": COUNT, "--lr": LR, "--warmup": SHARE},
    train_rl: ALL | {"--pm": PLACE, "--helpful": PLACE, "--red-team-share": SHARE, "--steps": COUNT,
                     "--minibatch": COUNT, "--epochs": COUNT, "--lr": LR, "--value-lr": LR,
                     "--warmup": NONE_TOO, "--kl-coef": FROM_0,
                     "--end-penalty": FROM_0, "--reward-shape": ["round"], "--gamma": SHARE + ["2"],
                     "--lam": SHARE + ["5"], "--clip": ABOVE_0,
                     "--value-clip": ABOVE_0, "--value-coef": FROM_0, "--max-grad-norm": ABOVE_0,
                     "--temperature": HEAT + ["0"], "--print-every": COUNT,
                     "--save-every": NONE_TOO},
    evaluate: {"--seed": SEED, "--limit": COUNT, "--max-new": COUNT, "--examples": NONE_TOO,
               "--out": PLACE, "--data": PLACE, "--table": PLACE, "--compare": PLACE},
    figures: {"--run": PLACE, "--runs": PLACE, "--to": PLACE, "--exam": PLACE},
    chat: {"--temperature": HEAT, "--max-new-tokens": COUNT, "--seed": SEED, "--chat": ["none"]},
    plan: {name: COUNT for name in ("--batch", "--minibatch", "--micro", "--max-prompt",
                                    "--max-new", "--sample-tokens")},
    bench: {"--threads": COUNT, "--repeats": COUNT, "--device": ["tpu"]},
    preview: {"--cases": COUNT, "--seed": SEED, "--model": PLACE},
    make_data: {"--seed": SEED, "--out": PLACE},
    pretrain: {"--out": PLACE, "--start": PLACE, "--steps": COUNT, "--batch-tokens": COUNT,
               "--vocab": COUNT, "--layers": COUNT, "--width": COUNT, "--muon-lr": LR,
               "--adam-lr": LR, "--processes": COUNT, "--exam": NONE_TOO, "--seed": SEED}}


def one_line(capsys, module, args, *says, code=2):
    """What a program says to bad input."""
    with pytest.raises(SystemExit) as stop:
        module.main([str(a) for a in args])
    said = capsys.readouterr().err
    assert stop.value.code == code and "Traceback" not in said, said
    assert said.count("\n") == 1 and said.startswith("error: "), said
    assert all(str(word) in said for word in says), (says, said)
    return said


@pytest.fixture
def nothing_is_built(monkeypatch):
    for module in (train_sft, train_pm, train_rl, evaluate):
        monkeypatch.setattr(module, "load_model", lambda *_: pytest.fail("a model was built"))


@pytest.mark.parametrize("module, name", [(module, name) for module, flags in FLAGS.items()
                                          for name in flags])
def test_a_flag_out_of_its_range(nothing_is_built, tmp_path, capsys, monkeypatch, module, name):
    monkeypatch.chdir(tmp_path)
    for value in FLAGS[module][name]:
        one_line(capsys, module, [f"{name}={value}"], f"{name}: ", "--help")
    assert list(tmp_path.iterdir()) == []


def test_every_number_and_path_of_the_scripts_is_in_the_table():
    for module in (train_sft, train_pm, train_rl):
        parsed = vars(module.arguments([]))
        numeric = {f"--{name.replace('_', '-')}"
                   for name, value in parsed.items() if not isinstance(value, (bool, type(None)))}
        assert numeric - {"--clamp", "--pairs"} <= set(FLAGS[module]), numeric - set(FLAGS[module])
    assert sum(len(values) for flags in FLAGS.values() for values in flags.values()) > 250


WORDS = [(train_sft, ["--rouns", "2"], "--rouns"), (train_sft, ["--round", "2"], "--round"),
         (train_pm, ["extra"], "extra"), (train_sft, ["--lr"], "--lr"),
         (train_pm, ["--clamp", "0.6", "0.4"], "--clamp: the lower bound first"),
         (train_pm, ["--no-chain-of-thought", "--clamp", "0.4", "0.6"],
          "without a thought nothing is clamped"),
         (train_sft, ["--device", "meta"], "give cpu, cuda"),
         (train_pm, ["--clamp", "0.6"], "--clamp"), (train_pm, ["--pairs", "both"], "--pairs"),
         (train_pm, ["--clamp", "nan", "0.4"], "--clamp"),
         (train_pm, ["--clamp", "-1", "2"], "--clamp"),
         (train_rl, ["--shared-value", "--no-value"], "--shared-value and --no-value"),
         (train_pm, ["--comparisons", "0", "--human-limit", "0"], "nothing is left to learn from"),
         (train_rl, ["--device", "nonsense"], "--device nonsense"),
         (train_rl, ["--shared-value=1"], "--shared-value"),
         (evaluate, ["--models", "base"], "expected NAME=DIR"),
         (evaluate, ["--models", "=x"], "expected NAME=DIR"),
         (evaluate, ["--models", "x="], "expected NAME=DIR"),
         (evaluate, ["--device", "tpu9"], "--device tpu9"),
         (evaluate, ["--table", "nowhere"], "nowhere/results.json: No such file"),
         (evaluate, ["--compare"], "--compare"),
         (evaluate, ["--data", "nowhere"], "nowhere/red_team.jsonl: No such file"),
         (make_data, ["--about", "zebra", "--out", "x"], "--about zebra: no request of the town"),
         (make_data, ["--about", "", "--out", "x"], "--about : no request of the town"),
         (make_data, ["--about", "duck"], "--about duck: give a folder of its own"),
         (exam, ["--processes", "0"], "--processes"), (exam, ["--cases", "-1"], "--cases"),
         (figures, ["--run", "nowhere"], "nowhere/rl/metrics.jsonl"), (doctor, [], "DIR"),
         (doctor, ["nowhere"], "nowhere: no such folder"), (doctor, ["a\0b"], "cannot be the name"),
         (plan, ["nowhere"], "nowhere: no such model directory"),
         (exam, ["--out", "x.json.gz"], "named as if packed"),
         (exam, ["--out", "/dev/null/x.json"], "lies in a file"),
         (exam, ["--out", f"{__file__}/x.json"], "lies in a file"),
         (export_preferences, ["a.jsonl", "b.jsonl.gz"], "named as if packed"),
         (figures, ["--docs", "--paper"], "one at a time"),
         (evaluate, ["--mention", "duck", "a\0b"], r"a\x00b/transcripts.jsonl"),
         (evaluate, ["--mention", "", "nowhere"], "a word that can be seen"),
         (evaluate, ["--mention", "a\nb", "nowhere"], "a word that can be seen"),
         (chat, ["nowhere"], "nowhere: no such model directory")]


@pytest.mark.parametrize("module, words, says", WORDS)
def test_words_that_are_not_understood(nothing_is_built, tmp_path, capsys, monkeypatch, module,
                                       words, says):
    monkeypatch.chdir(tmp_path)
    one_line(capsys, module, words, says)
    assert list(tmp_path.iterdir()) == []


HI = {"role": "user", "content": "hi"}
GOOD_ROW = json.dumps({"messages": [HI]}) + "\n"
DIALOGUES = {  # what a file of dialogues holds -> what is said
    "empty": (b"", ": no rows"), "blank lines": (b"\n \n\n", ": no rows"),
    "a number": (b"3\n", ":1: expected a JSON object, found int"),
    "null": (b"null\n", ":1: expected a JSON object, found NoneType"),
    "a list of numbers": (b"[1, 2]", ":1: expected a JSON object"),
    "an empty array": (b"[]", ": no rows"),
    "an open array": (b'[{"prompt": "a"}', ":1: not a valid JSON line"),
    "two arrays": (b'[{"prompt": "a"}]\n[3]', ": not a valid JSON line"),
    "half a line": (GOOD_ROW.encode() + b'{"mess', ":2: not a valid JSON line"),
    "not UTF-8": (GOOD_ROW.encode() + b'{"prompt": "\xff"}', ":2: not a valid JSON line"),
    "zeros": (b"\0" * 40, ":1: not a valid JSON line"),
    "deep": (b"[" * 10**5, ":1: not a valid JSON line"),
    "deep in a row": (b'{"messages": ' + b"[" * 10**5, ":1: not a valid JSON line"),
    "a picture": (b"\x89PNG\r\n\x1a\n", ":1: not a valid JSON line"),
    "csv": (b"prompt\nhello\n", ":1: not a valid JSON line"),
    "no key": (b'{"text": "hi"}\n', ":1: key 'messages' is missing, found text"),
    "an empty object": (b"{}", ":1: key 'messages' is missing"),
    "messages is an object": (json.dumps({"messages": HI}).encode(),
                              ":1: 'messages' must be a list of"),
    "messages is an empty object": (b'{"messages": {}}', ":1: 'messages' must be a list of"),
    "messages is a text": (b'{"messages": "hi"}', ":1: 'messages' must be a list of"),
    "messages is null": (b'{"messages": null}', ":1: 'messages' must be a list of"),
    "messages is a number": (b'{"messages": 3}', ":1: 'messages' must be a list of"),
    "messages of numbers": (b'{"messages": [3]}', ":1: 'messages' must be a list of"),
    "messages of lists": (b'{"messages": [["user", "hi"]]}', ":1: 'messages' must be a list of"),
    "a stranger's role": (b'{"messages": [{"role": "human", "content": "hi"}]}',
                          ":1: 'messages' must be a list of"),
    "no role": (b'{"messages": [{"content": "hi"}]}', ":1: 'messages' must be a list of"),
    "content is null": (b'{"messages": [{"role": "user", "content": null}]}',
                        ":1: 'messages' must be a list of"),
    "content is a list": (b'{"messages": [{"role": "user", "content": [{"type": "text"}]}]}',
                          ":1: 'messages' must be a list of"),
    "role is a list": (b'{"messages": [{"role": ["user"], "content": "hi"}]}',
                       ":1: 'messages' must be a list of"),
    "prompt is a number": (b'{"prompt": 3}', ":1: 'prompt' must be a list of"),
    "transcript is null": (b'{"transcript": null}', ":1: 'transcript' must be a list of"),
    "nothing said": (b'{"messages": []}', ": no row can be used: 1 x no user turn"),
    "blank": (b'{"prompt": "  "}', ": no row can be used: 1 x empty turn"),
    "nothing visible": ('{"prompt": "\u200b\u2060"}'.encode(),
                        ": no row can be used: 1 x empty turn"),
    "the assistant alone": (b'{"messages": [{"role": "assistant", "content": "hi"}]}',
                            ": no row can be used: 1 x no user turn"),
    "half a character": (b'{"prompt": "a \\ud800"}', ": no row can be used: 1 x half a character"),
    "text before the first turn": (b'{"transcript": "well\\n\\nHuman: hi"}',
                                   ": no row can be used"),
    "long": (json.dumps({"prompt": "hi " * 999}).encode(), ": every one is longer than 256 tokens"),
    "a huge number": (b'{"messages": 1' + b"0" * 5000 + b"}", ":1: "),
    "not gzip": (b"plain", "Not a gzipped file"),
    "gzip cut off": (gzip.compress(GOOD_ROW.encode() * 99)[:-9], "end-of-stream"),
    "gzip damaged": (b"\x1f\x8b\x08\0\0\0\0\0\0\3\xff\xff", ": ")}


@pytest.mark.parametrize("name", DIALOGUES)
def test_a_file_of_dialogues(toy, nothing_is_built, tmp_path, capsys, name):
    content, says = DIALOGUES[name]
    path, out = tmp_path / ("d.jsonl.gz" if "gzip" in name else "d.jsonl"), tmp_path / "o"
    path.write_bytes(content)
    for module, args in ((train_sft, sft_args(toy, out, "--red-team", path)),
                         (train_sft, sft_args(toy, out, "--helpful", path)),
                         (train_pm, pm_args(toy, out, "--red-team", path)),
                         (train_rl, rl_args(toy, toy / "base", out, "--helpful", path))):
        one_line(capsys, module, args, path, says)
    assert not out.exists()


PAIR = {"messages": [HI], "chosen": "a", "rejected": "b"}
COMPARISONS = {
    "no rejected": ({k: PAIR[k] for k in ("messages", "chosen")}, ":1: key 'rejected' is missing"),
    "chosen is null": (PAIR | {"chosen": None}, ":1: 'chosen' must be"),
    "chosen is a number": (PAIR | {"chosen": 3}, ":1: 'chosen' must be"),
    "chosen is an object": (PAIR | {"chosen": HI}, ":1: 'chosen' must be"),
    "equal": (PAIR | {"rejected": " a"}, ": no row can be used: 1 x chosen and rejected are equal"),
    "empty": (PAIR | {"rejected": ""}, ": no row can be used: 1 x empty turn"),
    "invisible": (PAIR | {"rejected": "\u200b"}, ": no row can be used: 1 x empty turn"),
    "no prompt": ({"chosen": "a", "rejected": "b"}, ": no row can be used"),
    "another prompt": ({"chosen": "Human: a\n\nAssistant: b",
                        "rejected": "Human: c\n\nAssistant: d"},
                       ": no row can be used: 1 x chosen and rejected share no prompt"),
    "messages is an object": (PAIR | {"messages": HI}, ":1: 'messages' must be"),
    "dialogues": ({"prompt": "hi"}, ":1: key 'chosen' is missing"),
    "half a character": (PAIR | {"chosen": "a \ud800"},
                         ": no row can be used: 1 x half a character"),
    "long": (PAIR | {"chosen": "hi " * 999}, ": every one is longer than")}


@pytest.mark.parametrize("name", COMPARISONS)
def test_a_file_of_comparisons(toy, nothing_is_built, tmp_path, capsys, name):
    row, says = COMPARISONS[name]
    (tmp_path / "h.jsonl").write_text(json.dumps(row))
    one_line(capsys, train_pm, pm_args(toy, tmp_path / "o", "--human", tmp_path / "h.jsonl"),
             tmp_path / "h.jsonl", says)
    assert not (tmp_path / "o").exists()


LAW = {"missing": (None, "No such file"), "empty": ("", "not valid JSON"),
       "a list": ("[]", "must be an object"), "deep": ("[" * 10**5, "not valid JSON"),
       "a stranger's": ('{"a": 1}', "unknown key 'a'"),
       "half a character": (json.dumps(CONSTITUTION | {"comparison": ["a \ud800"]}),
                            "half a character"),
       "blank": (json.dumps(CONSTITUTION | {"comparison": ["\u200b"]}), "not empty"),
       "none": (json.dumps(CONSTITUTION | {"comparison": []}), "at least one"),
       "numbers": (json.dumps(CONSTITUTION | {"critique_revision": [3]}),
                   "critique_revision[0] must be an object")}


@pytest.mark.parametrize("name", LAW)
def test_a_constitution(toy, nothing_is_built, tmp_path, capsys, name):
    content, says = LAW[name]
    if content is not None:
        (tmp_path / "c.json").write_text(content)
    for module, args in ((train_sft, sft_args), (train_pm, pm_args)):
        one_line(capsys, module, args(toy, tmp_path / "o", "--constitution", tmp_path / "c.json"),
                 tmp_path / "c.json", says)
    one_line(capsys, train_sft, sft_args(toy, tmp_path / "o", "--constitution", tmp_path),
             "CritiqueRevisionInstructions.json: No such file")
    assert not (tmp_path / "o").exists()


def edited(name, change):
    return lambda folder: (folder / name).write_text(change((folder / name).read_text()))


def written(name, content):
    return lambda folder: (folder / name).write_bytes(content)


MODELS = {  # what has happened to a stranger's model directory
    "gone": (shutil.rmtree, ""), "a file": (lambda f: (shutil.rmtree(f), f.write_text("x")), ""),
    "no config": (lambda f: (f / "config.json").unlink(), "config.json: not a model's config.json"),
    "config is a list": (written("config.json", b"[]"), ""),
    "config is broken": (written("config.json", b'{"a'), ""),
    "config is deep": (written("config.json", b"[" * 10**5), ""),
    "config is not UTF-8": (written("config.json", b"\xff"), ""),
    "another architecture": (edited("config.json", lambda t: t.replace('"llama"', '"mamba"')),
                             "unknown architecture"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "model.safetensors: no such file"),
    "weights are empty": (written("model.safetensors", b""), "damaged or not a safetensors file"),
    "weights are cut off": (lambda f: os.truncate(f / "model.safetensors", 5000),
                            "damaged or not a safetensors file"),
    "weights are a pickle": (lambda f: torch.save({}, f / "model.safetensors"),
                             "damaged or not a safetensors file"),
    "an endless header": (written("model.safetensors", b"\xff" * 100),
                          "damaged or not a safetensors file"),
    "a broken index": (lambda f: ((f / "model.safetensors").unlink(),
                                  written("model.safetensors.index.json", b"[3]")(f)),
                       "not an index of weights"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "tokenizer.json"),
    "tokenizer is broken": (written("tokenizer.json", b"{"), "tokenizer.json"),
    "tokenizer is a list": (written("tokenizer.json", b"[]"), "tokenizer.json"),
    "tokenizer is empty": (written("tokenizer.json", b"{}"), "tokenizer.json"),
    "a manifest of others": (written("manifest.json",
                                     b'{"files": {"model.safetensors": "0"}, "made": {}}'),
                             "model.safetensors: is not as it was written"),
    "a broken manifest": (written("manifest.json", b"{"), "manifest.json: damaged"),
    "a missing part": (written("manifest.json", b'{"files": {"x.json": "0"}, "made": {}}'),
                       "x.json: is missing")}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_directory(tiny_model_dir, toy, tmp_path, capsys, name):
    damage, says = MODELS[name]
    folder, out = tmp_path / "m", tmp_path / "o"
    shutil.copytree(tiny_model_dir, folder)
    damage(folder)
    for module, args in ((train_sft, sft_args(toy, out, "--model", folder)),
                         (train_pm, pm_args(toy, out, "--init", folder)),
                         (train_rl, rl_args(toy, folder, out)),
                         (evaluate, ["--models", f"a={folder}", "--limit", "1", "--out", out]),
                         (chat, [folder])):
        one_line(capsys, module, args, folder, says if module not in (evaluate,) else "")
    assert not any(out.rglob("*.safetensors"))


def test_folders_to_write_to(toy, nothing_is_built, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file/below"):
        for module, args in ((train_sft, sft_args(toy, out)), (train_pm, pm_args(toy, out))):
            one_line(capsys, module, args, out, "cannot be written", "--out")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_rights(toy, nothing_is_built, tmp_path, capsys):
    tmp_path.chmod(0o500)
    one_line(capsys, train_sft, sft_args(toy, tmp_path / "o"), "Permission denied",
             "check path and rights")


def test_nothing_to_learn_from(toy, nothing_is_built, tmp_path, capsys):
    for more in (["--red-team-limit", "0", "--helpful-limit", "0"],
                 ["--red-team-limit", "0", "--helpful-samples", "0"]):
        one_line(capsys, train_sft, sft_args(toy, tmp_path / "o", *more), "nothing to learn from")
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("seconds", ["long", [1], 10 ** 400])
def test_what_stages_have_left_is_read_before_anything_is_sampled(nothing_is_built, tmp_path,
                                                                   capsys, seconds):
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft/config.json").write_text(json.dumps({"args": {}, "seconds": seconds}))
    one_line(capsys, evaluate, ["--out", tmp_path, "--models", "base=data/base"],
             "sft/config.json: not a stage's config.json")


@pytest.mark.parametrize("name", ["manifest.json", "config.json"])
def test_a_pipe_is_not_waited_for(tiny_model_dir, tmp_path, capsys, name):
    place = tmp_path / "model"
    shutil.copytree(tiny_model_dir, place)
    (place / name).unlink(missing_ok=True)
    os.mkfifo(place / name)
    one_line(capsys, chat, [place], name)
    with pytest.raises(SystemExit):
        doctor.main([str(place)])
    assert name in "".join(capsys.readouterr())


def test_a_name_with_a_line_break_is_said_in_one_line(tiny_model_dir, tmp_path, capsys):
    place = tmp_path / "model"
    shutil.copytree(tiny_model_dir, place)
    (place / "manifest.json").unlink(missing_ok=True)
    (place / "model.safetensors").unlink()
    (place / "model.safetensors.index.json").write_text('{"weight_map": {"x": "a\\nb"}}')
    one_line(capsys, chat, [place], r"a\nb: no such file")


def test_sets_of_an_evaluation(tiny_model_dir, nothing_is_built, tmp_path, capsys):
    good = json.dumps({"messages": [HI], "group": "reviewed"}) + "\n"
    for name, content, says in (("helpful", None, "helpful.jsonl: No such file"),
                                ("lookalike", GOOD_ROW,
                                 "lookalike.jsonl:1: key 'group' is missing"),
                                ("red_team", good + '{"prompt": " ", "group": "reviewed"}',
                                 "1 rows cannot be used"), ("red_team", "{", "red_team.jsonl:1:")):
        for each in ("red_team", "helpful", "lookalike"):
            (tmp_path / f"{each}.jsonl").write_text(good)
        (tmp_path / f"{name}.jsonl").unlink() if content is None else \
            (tmp_path / f"{name}.jsonl").write_text(content)
        one_line(capsys, evaluate, ["--models", f"a={tiny_model_dir}", "--data", tmp_path, "--out",
                                    tmp_path / "o"], says)
    assert not (tmp_path / "o").exists()


def test_a_reward_that_is_a_language_model(toy, tmp_path, capsys):
    one_line(capsys, train_rl, rl_args(toy, toy / "base", tmp_path / "o"), "not a preference model")


def test_the_table_would_notice(capsys):
    """What a program must not do: a traceback, two lines, another code."""
    def raises(error):
        def main(_):
            print("error: one\nerror: two\n" if error == "two" else "error: x",
                  file=__import__("sys").stderr)
            raise SystemExit(3) if error in ("code", "two") else error
        return SimpleNamespace(main=main)
    for error in ("code", "two"):
        with pytest.raises(AssertionError):
            one_line(capsys, raises(error), [])
    with pytest.raises(KeyError):
        one_line(capsys, raises(KeyError("a bug")), [])
    assert issubclass(UserError, ValueError) and run
