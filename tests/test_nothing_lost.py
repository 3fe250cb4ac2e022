"""What lies where something will be written is not lost, and what would fail at the end fails
first."""
import json
import os
import shutil

import pytest
import torch
from test_pipeline import pm_args, sft_args

import train_pm
import train_sft
from minicai import gguf, red_team
from minicai.checkpoint import load_model, save_model, save_scalar
from minicai.lab import critique_formats, evaluate_real, export_preferences, report_html
from minicai.run import HELD, UserError, read_jsonl, write_jsonl
from minicai.state import digest, hold
from minicai.world import exam, pretrain


def one_line(capsys, main, args, says):
    """What a program says to bad input: one line, exit code 2."""
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in args])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.count("\n") == 1 and said.startswith("error: "), said
    assert says in said, said


def everything(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def model(tiny_model_dir, tmp_path):
    """A model directory that minicai wrote."""
    save_model(tmp_path / "model", *load_model(tiny_model_dir), made={})
    return tmp_path / "model"


# ---- folders -------------------------------------------------------------------------------------
@pytest.mark.parametrize("foreign", ["notes.md", "weights.pt", "model.gguf", "mine/x.json"])
def test_a_model_never_replaces_a_folder_with_something_else_in_it(model, foreign):
    (model / foreign).parent.mkdir(exist_ok=True)
    (model / foreign).write_text("precious")
    before = everything(model)
    with pytest.raises(UserError, match="is no part of a model"):
        save_model(model, *load_model(model))
    assert everything(model) == before


def test_a_link_to_a_model_stays_a_link(model, tmp_path):
    (tmp_path / "link").symlink_to(model)
    trained, tok = load_model(model)
    with torch.no_grad():
        trained.embed.weight += 1
    save_model(tmp_path / "link", trained, tok)
    assert (tmp_path / "link").is_symlink()
    assert torch.equal(load_model(model)[0].embed.weight, trained.embed.weight)


def test_a_gguf_file_is_not_deleted_by_what_is_made_of_it(model, capsys):
    (model / "x.gguf").write_bytes(b"GGUF")
    before = everything(model)
    one_line(capsys, gguf.main, [model / "x.gguf", model], "would write over it")
    assert everything(model) == before


@pytest.mark.parametrize("name, model_name", [("state.pt", None), ("metrics.jsonl", None),
                                              ("revisions.jsonl", None), ("sl_cai", "notes.md")])
def test_what_is_in_the_way_is_said_before_anything_is_sampled(toy, tmp_path, capsys, monkeypatch,
                                                               name, model_name):
    monkeypatch.setattr(train_sft, "respond", lambda *_, **__: pytest.fail("it sampled first"))
    (tmp_path / name).mkdir()
    if model_name:
        (tmp_path / name / model_name).write_text("mine")
    one_line(capsys, train_sft.main, sft_args(toy, tmp_path), str(tmp_path / name))


def test_a_loop_of_links_is_one_line(toy, tmp_path, capsys):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    one_line(capsys, train_sft.main, sft_args(toy, tmp_path / "loop"), str(tmp_path / "loop"))


def test_a_pipe_is_not_waited_for(toy, tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe")
    for flag in ("--red-team", "--constitution"):
        one_line(capsys, train_sft.main, sft_args(toy, tmp_path / "out", flag, tmp_path / "pipe"),
                 "a pipe or device")


def test_all_held_out_is_said_before_anything_is_sampled(toy, tmp_path, capsys):
    one_line(capsys, train_pm.main, pm_args(toy, tmp_path, "--held-out", "1"), "--held-out")
    assert list(tmp_path.iterdir()) == []


def test_prompts_written_beside_a_run_leave_its_half_written_model(toy, tmp_path, monkeypatch):
    run = tmp_path / "run"
    hold(run)
    held, HELD[:] = [*HELD], []
    part = run / ".sl_cai.minicai-part-abcd1234"
    part.mkdir()
    (run / ".r.jsonl.minicai-part").write_text("left by a killed one")
    rows = [{"messages": [{"role": "user", "content": "x"}], "after": [], "skipped": None}]
    monkeypatch.setattr(red_team, "write_prompts", lambda *_: rows)
    red_team.main([str(a) for a in ("--model", toy / "base", "--prompts", toy / "red_team.jsonl",
                                    "--count", 1, "--max-new", 8, "--max-prompt", 40, "--out",
                                    run / "r.jsonl")])
    assert part.is_dir() and not (run / ".r.jsonl.minicai-part").exists()
    HELD[:] = held


# ---- what a manifest does not name ---------------------------------------------------------------
@pytest.mark.parametrize("name", ["chat_template.jinja", "generation_config.json",
                                  "special_tokens_map.json", "added_tokens.json"])
def test_a_file_that_somebody_put_into_a_model_is_not_read_unnoticed(model, name):
    digest(model)
    (model / name).write_text("{}")
    with pytest.raises(UserError, match=f"{name}: is not among the files that manifest.json names"):
        digest(model)
    (model / "exam.json").write_text("{}")                          # nothing is loaded from it
    (model / name).unlink()
    digest(model)


def test_an_emptied_manifest_vouches_for_nothing(model):
    (model / "manifest.json").write_text('{"files": {}, "made": {}}')
    with pytest.raises(UserError, match="is not among the files"):
        load_model(model)


# ---- files ---------------------------------------------------------------------------------------
def test_programs_that_write_one_file_do_not_write_over_what_they_read(model, tmp_path, capsys):
    row = {"messages": [{"role": "user", "content": "Q"}], "a": "A", "b": "B", "p_a": 0.9}
    write_jsonl(tmp_path / "c.jsonl", [row])
    before = everything(tmp_path)
    one_line(capsys, export_preferences.main, [tmp_path / "c.jsonl", tmp_path / "c.jsonl"],
             "would write over it")
    one_line(capsys, report_html.main, ["--run", tmp_path, "--out", tmp_path / "c.jsonl"],
             "ends in .html")
    one_line(capsys, exam.main, ["--model", model, "--out", model / "config.json"],
             "how a part of a model is called")
    one_line(capsys, exam.main, ["--model", model, "--out", tmp_path], "is a folder")
    one_line(capsys, red_team.main, ["--out", tmp_path], "is a folder")
    one_line(capsys, export_preferences.main, [tmp_path / "c.jsonl", model / "config.json"],
             "how a part of a model is called")
    one_line(capsys, critique_formats.main, [model, "--red-team", tmp_path / "c.jsonl", "--out",
                                             tmp_path / "c.jsonl"], "would write over it")
    one_line(capsys, red_team.main, ["--out", "/dev/full"], "is a folder or device")
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    made = json.loads((model / "manifest.json").read_text()) | {"made": {"command": "train it"}}
    (model / "manifest.json").write_text(json.dumps(made))
    one_line(capsys, gguf.main, [tmp_path / "x.gguf", model], "a model that 'train it' has made")
    (model / "manifest.json").write_bytes(before[f"{model.name}/manifest.json"])
    (tmp_path / "x.gguf").unlink()
    assert everything(tmp_path) == before


@pytest.mark.parametrize("change", [{"cut": True}, {"messages": "zz"}, {"a": 3}, {"p_a": "x"},
                                    {"messages": []}, {"messages": ["x"]}])
def test_only_comparisons_are_exported(tmp_path, capsys, change):
    row = {"messages": [{"role": "user", "content": "Q"}], "a": "A", "b": "B", "p_a": 0.9} | change
    write_jsonl(tmp_path / "c.jsonl", [row])
    one_line(capsys, export_preferences.main, [tmp_path / "c.jsonl", tmp_path / "new/x.jsonl"],
             "c.jsonl:1: not a row")
    assert not (tmp_path / "new").exists()


def test_an_array_may_stand_behind_blank_lines(tmp_path):
    (tmp_path / "x.jsonl").write_text('\ufeff\n\n[{"a": 1},\n {"a": 2}]\n')
    assert read_jsonl(tmp_path / "x.jsonl") == [(3, {"a": 1}), (4, {"a": 2})]


# ---- the base ------------------------------------------------------------------------------------
def test_a_training_of_the_base_that_fails_leaves_the_old_one(model, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = ["--start", model, "--out", model, "--exam", "0", "--processes", "1", "--steps", "1",
             "--batch-tokens", "256"]
    config = json.loads((model / "config.json").read_text())
    shape = ["--vocab", config["vocab_size"], "--layers", config["num_hidden_layers"],
             "--width", config["hidden_size"]]
    before = everything(model)

    def fails(_):
        raise UserError("step 3: loss or gradient is not finite")
    monkeypatch.setattr(pretrain, "run_processes", fails)
    one_line(capsys, pretrain.main, [*flags, *shape], "step 3")
    assert everything(model) == before
    (model / "notes.md").write_text("mine")
    one_line(capsys, pretrain.main, [*flags, *shape], "notes.md: exists")


def test_what_a_worker_has_to_say_is_said_in_one_line(tmp_path, capsys, monkeypatch):
    def raises(*_, **__):
        raise torch.multiprocessing.ProcessRaisedException(
            "\n\n-- Process 0 terminated with the following error:\nTraceback (most recent call "
            "last):\n  File x\nminicai.run.UserError: step 3: too much\n", 0, 1)
    monkeypatch.setattr(torch.multiprocessing, "spawn", raises)
    args = pretrain.arguments(["--processes", "1"])
    with pytest.raises(UserError, match="^step 3: too much$"):
        pretrain.run_processes(args)


# ---- real models ---------------------------------------------------------------------------------
@pytest.fixture
def asked(tiny_model_dir, tok, tmp_path, monkeypatch):
    """Flags of a comparison of models that must not begin."""
    monkeypatch.setattr(evaluate_real, "answer_all", lambda *_: pytest.fail("it sampled first"))
    (tmp_path / "p.jsonl").write_text('{"prompt": "How?"}\n')
    (tmp_path / "c.jsonl").write_text('{"prompt": "How?", "chosen": "So.", "rejected": "No."}\n')
    trunk, _ = load_model(tiny_model_dir)
    save_scalar(tmp_path / "pm", trunk, torch.nn.Linear(32, 1, bias=False), tok)
    return ["--prompts", f"asked={tmp_path / 'p.jsonl'}", "--max-new", "6", "--device", "cpu",
            "--out", tmp_path / "out", "--models", f"a={tiny_model_dir}"]


def test_every_model_is_looked_at_before_the_first_one_answers(asked, tiny_model_dir, tmp_path,
                                                               capsys):
    short = shutil.copytree(tiny_model_dir, tmp_path / "short")
    config = json.loads((short / "config.json").read_text())
    (short / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 100}))
    see = lambda more, says: one_line(capsys, evaluate_real.main, [*asked, *more], says)
    see([f"b={tmp_path / 'pm'}"], "a language model is needed here")
    see([f"b={short}"], "a context may take")
    see(["--pm", tiny_model_dir], "not a preference model")
    judged = ["--comparisons", tmp_path / "c.jsonl", "--max-judged", "60", "--judge"]
    see([*judged, tmp_path / "pm"], "a language model is needed here")
    long = {"prompt": "How? " * 60, "chosen": "So.", "rejected": "No."}
    (tmp_path / "c.jsonl").write_text(json.dumps(long) + "\n")
    see([*judged[:2], "--max-judged", "400", "--judge", short], "a context may take")
    (tmp_path / "c.jsonl").write_text('{"prompt": "How?", "chosen": 3, "rejected": "No."}\n')
    see([*judged, tiny_model_dir], "c.jsonl:1")
    for name in ("", "\udcff", "a\nb"):
        see([f"{name}={tiny_model_dir}"], "give each as name=path")
    assert not (tmp_path / "out/transcripts.jsonl").exists()
