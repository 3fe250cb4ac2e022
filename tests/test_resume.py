"""A run that is killed and started again ends as if nothing had happened: same weights, same log,
nothing sampled twice."""
import fcntl
import hashlib
import json
import os
import random
import shutil
import subprocess
from types import SimpleNamespace

import pytest
import torch
from test_pipeline import pm_args, rl_args, run, sft_args

import train_pm
import train_rl
import train_sft
from minicai import feedback, sample
from minicai import state as state_module
from minicai.checkpoint import load_model, load_trunk, save_model
from minicai.run import HELD, UserError
from minicai.state import Resume, differences, digest, read_state, seal, tidy, unfinished

OFTEN = ("--save-minutes", "0")


@pytest.fixture(scope="module")
def before(toy, tmp_path_factory):
    """A directory with the first two stages' models."""
    out = tmp_path_factory.mktemp("before")
    run(train_sft, sft_args(toy, out / "sft"))
    run(train_pm, pm_args(toy, out / "pm", "--model", out / "sft/sl_cai"))
    return out


@pytest.fixture(params=["sft", "pm", "rl"])
def stage(request, toy, before):
    """(script, its arguments for a directory, what is called once a step, whether it samples first,
    its model's name)"""
    more = (*OFTEN, "--epochs", "2")
    scorer, tuned = before / "pm/pm", ("--model", before / "sft/sl_cai")
    return {"sft": (train_sft, lambda out: sft_args(toy, out, *more), "clip_gradients",
                    True, "sl_cai"),
            "pm": (train_pm, lambda out: pm_args(toy, out, *more, *tuned), "clip_gradients",
                   True, "pm"),
            "rl": (train_rl, lambda out: rl_args(toy, scorer, out, *OFTEN, *tuned), "update", False,
                   "rl_cai")}[request.param]


def dies(monkeypatch, where, name, call):
    """The process is killed in the given call of a function, before that has done anything."""
    real, calls = getattr(where, name), []

    def counted(*args, **kwargs):
        calls.append(1)
        if len(calls) == call:
            raise KeyboardInterrupt
        return real(*args, **kwargs)
    monkeypatch.setattr(where, name, counted)


def killed(script, args):
    with pytest.raises(SystemExit):
        run(script, args)


def left(out, model):
    files = [out / model / "model.safetensors", out / "metrics.jsonl", *out.glob("rollouts.jsonl")]
    return [file.read_bytes() for file in files]


@pytest.mark.parametrize("call", [1, 3])
def test_killed_and_started_again(stage, tmp_path, monkeypatch, call, capsys):
    script, args, step, samples, model = stage
    run(script, args(tmp_path / "whole"))
    with monkeypatch.context() as patch:
        dies(patch, script, step, call)
        killed(script, args(tmp_path / "parts"))
    assert (tmp_path / "parts/state.pt").exists() == (call > 1)
    assert (tmp_path / "parts/sampled.jsonl").exists() == samples
    with (tmp_path / "parts/metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "loss"')  # the last words of a process that was killed
    with monkeypatch.context() as patch:
        if samples:
            nothing_is_sampled(patch)  # what was sampled is not sampled again
        capsys.readouterr()
        run(script, args(tmp_path / "parts"))
    assert f"going on after {call - 1} steps" in capsys.readouterr().out or \
        not samples and call == 1
    assert left(tmp_path / "parts", model) == left(tmp_path / "whole", model)
    assert not unfinished(tmp_path / "parts")


def nothing_is_sampled(patch, shown=3):
    """...but the few answers that train_sft shows in the end."""
    real = sample.sample_batch
    patch.setattr(sample, "sample_batch", lambda model, prompts, *more: real(model, prompts, *more)
                  if len(prompts) <= shown else pytest.fail("sampled again"))


@pytest.mark.parametrize("batch", [1, 4, 9])
def test_killed_while_sampling(toy, before, tmp_path, monkeypatch, batch, capsys):
    """One batch is lost, no more, and nothing else changes: neither the text nor the weights."""
    small = ("--sample-tokens", "350")
    thinks = ("--model", before / "sft/sl_cai", "--both-orders", "--chain-of-thought")
    for script, args, model, files in ((train_sft, sft_args, "sl_cai",
                                        ["revisions.jsonl", "answers.jsonl"]),
                                       (train_pm, pm_args, "pm", ["comparisons.jsonl"])):
        more = small if script is train_sft else (*small, *thinks)
        whole, parts = tmp_path / f"{model}-whole", tmp_path / f"{model}-parts"
        counts = {}
        with monkeypatch.context() as patch:
            counted(patch, sample, "sample_batch", counts, "whole")
            run(script, args(toy, whole, *more))
        for attempt in range(2):  # and killed again a few batches later
            with monkeypatch.context() as patch:
                counted(patch, sample, "sample_batch", counts, "killed")
                dies(patch, sample, "sample_batch", batch + attempt)
                killed(script, args(toy, parts, *more))
        capsys.readouterr()
        with monkeypatch.context() as patch:
            counted(patch, sample, "sample_batch", counts, "rest")
            run(script, args(toy, parts, *more))
        assert "going on after 0 steps and" in capsys.readouterr().out or batch == 1
        # (who dies is not counted)
        assert counts.pop("killed") + counts.pop("rest") == counts.pop("whole")
        assert left(parts, model) == left(whole, model)
        assert all((parts / name).read_bytes() == (whole / name).read_bytes() for name in files)


def counted(patch, where, name, counts, key):
    """Count the finished calls of a function."""
    real = getattr(where, name)

    def call(*args, **kwargs):
        result = real(*args, **kwargs)
        counts[key] = counts.get(key, 0) + 1
        return result
    patch.setattr(where, name, call)


def test_killed_while_labelling(toy, before, tmp_path, monkeypatch):
    args = lambda out: pm_args(toy, out, "--model", before / "sft/sl_cai", "--comparisons", "60")
    batches = feedback.batches_by_tokens
    monkeypatch.setattr(feedback, "batches_by_tokens",
                        lambda lengths, budget: batches(lengths, 300))
    run(train_pm, args(tmp_path / "whole"))
    with monkeypatch.context() as patch:
        dies(patch, feedback, "pad_right", 3)
        killed(train_pm, args(tmp_path / "parts"))
    calls = []
    real = feedback.pad_right
    monkeypatch.setattr(feedback, "pad_right", lambda *a: calls.append(1) or real(*a))
    run(train_pm, args(tmp_path / "parts"))
    done = len(calls)
    run(train_pm, args(tmp_path / "again"))
    assert done == len(calls) - done - 2 > 0  # two batches were labelled before
    assert left(tmp_path / "parts", "pm") == left(tmp_path / "whole", "pm")
    assert (tmp_path / "parts/comparisons.jsonl").read_bytes() \
        == (tmp_path / "whole/comparisons.jsonl").read_bytes()


def test_killed_while_writing(toy, tmp_path, monkeypatch):
    """The state before the one that was being written still loads, and leads to the same end."""
    run(train_sft, sft_args(toy, tmp_path / "whole", *OFTEN))
    with monkeypatch.context() as patch:
        dies(patch, torch, "save", 3)
        killed(train_sft, sft_args(toy, tmp_path / "parts", *OFTEN))
    (tmp_path / "parts/.state.pt.minicai-part").write_bytes(b"half of it")  # what kill -9 leaves
    (tmp_path / "parts/.sl_cai.minicai-part-0abc_def").mkdir()
    (tmp_path / "parts/.sl_cai.minicai-part-0abc_def/model.safetensors").write_bytes(b"half of it")
    run(train_sft, sft_args(toy, tmp_path / "parts", *OFTEN))
    assert left(tmp_path / "parts", "sl_cai") == left(tmp_path / "whole", "sl_cai")
    assert sorted(p.name for p in (tmp_path / "parts").iterdir()) == sorted(
        p.name for p in (tmp_path / "whole").iterdir())


@pytest.fixture
def halfway(toy, tmp_path, monkeypatch, capsys):
    """The folder of a stage 1 that was killed in its third step."""
    with monkeypatch.context() as patch:
        dies(patch, train_sft, "clip_gradients", 3)
        killed(train_sft, sft_args(toy, tmp_path / "sft", *OFTEN))
    capsys.readouterr()
    return tmp_path / "sft"


def everything(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_what_differs_is_named_and_nothing_is_lost(toy, halfway, tmp_path, capsys):
    (tmp_path / "red.jsonl").write_text((toy / "red_team.jsonl").read_text()
                                        + '{"prompt": "Why?"}\n')
    old = everything(halfway)
    for change, says in ((["--seed", "1"], "--seed (0, now 1)"), (["--lr", "1e-3", "--rounds", "1"],
                         "--rounds (2, now 1), --lr (0.002, now 0.001)"),
                         (["--last-only"], "--last-only (False, now True)"),
                         (["--red-team", tmp_path / "red.jsonl"], "the content of --red-team")):
        killed(train_sft, sft_args(toy, halfway, *OFTEN, *change))
        said = capsys.readouterr().err
        assert f"an unfinished run lies there that differs in {says}: " in said
        assert "--fresh" in said
        assert said.count("\n") == 1 and everything(halfway) == old
    killed(train_pm, pm_args(toy, halfway))
    assert "differs in the script that wrote it" in capsys.readouterr().err
    assert everything(halfway) == old


def test_what_does_not_matter_may_differ(toy, halfway, tmp_path, capsys, monkeypatch):
    """What the message about too little memory advises; other names of the same files;
    threads, with a word."""
    shutil.copytree(toy / "base", tmp_path / "copy")
    (tmp_path / "copy/notes.txt").write_text("a note")
    with monkeypatch.context() as patch:
        dies(patch, train_sft, "clip_gradients", 2)
        nothing_is_sampled(patch)
        patch.chdir(tmp_path)
        patch.setattr(torch, "get_num_threads", lambda: 7)
        killed(train_sft, sft_args(toy, "./sft/", "--micro", "2", "--checkpointing",
                                   "--sample-tokens", "500",
                                   "--save-minutes", "0", "--model", "copy/"))
    said = capsys.readouterr().out
    assert "going on after 2 steps" in said and "threads 1 then, 7 now" in said


def test_fresh_starts_over_once_there_is_something_to_show(toy, halfway, monkeypatch, capsys):
    old, fresh = everything(halfway), sft_args(toy, halfway, *OFTEN, "--seed", "1", "--fresh")
    with monkeypatch.context() as patch:
        dies(patch, sample, "sample_batch", 1)
        killed(train_sft, fresh)
    assert everything(halfway) == old                                   # nothing new yet
    with monkeypatch.context() as patch:
        dies(patch, sample, "sample_batch", 2)
        killed(train_sft, fresh)
    now = everything(halfway)
    assert "state.pt" not in now and now["sampled.jsonl"] != old["sampled.jsonl"]
    assert now["metrics.jsonl"] == old["metrics.jsonl"]                 # no step has been done yet
    capsys.readouterr()
    run(train_sft, fresh[:-1])
    assert "going on after 0 steps and" in capsys.readouterr().out
    run(train_sft, sft_args(toy, halfway.parent / "whole", "--seed", "1"))
    assert left(halfway, "sl_cai") == left(halfway.parent / "whole", "sl_cai")


def test_a_run_over_a_finished_one_says_so(toy, tmp_path, monkeypatch, capsys):
    run(train_sft, sft_args(toy, tmp_path))
    old = everything(tmp_path)
    capsys.readouterr()
    with monkeypatch.context() as patch:
        dies(patch, sample, "sample_batch", 1)
        killed(train_sft, sft_args(toy, tmp_path, "--seed", "1"))
    said = capsys.readouterr()
    assert "holds an earlier run" in said.out and everything(tmp_path) == old
    assert not unfinished(tmp_path)
    assert f"without --fresh, goes on from what {tmp_path} holds" in said.err
    with monkeypatch.context() as patch:
        dies(patch, train_sft, "clip_gradients", 2)
        killed(train_sft, sft_args(toy, tmp_path, "--seed", "1"))
    assert unfinished(tmp_path)


# ---- state.pt and sampled.jsonl, damaged ---------------------------------------------------------
def resealed(path, change):
    """The file with another content, sealed as if it had been written so."""
    state = torch.load(path, weights_only=True)
    del state["seal"]
    change(state)
    torch.save(state | {"seal": seal(state)}, path)


def test_a_flipped_bit_is_never_taken_up(toy, halfway, capsys):
    """Wherever it is: an error, or exactly what was written (a zip has bytes that mean nothing)."""
    path = halfway / "state.pt"
    whole, good = path.read_bytes(), read_state(path)
    rng, refused = random.Random(0), 0
    for _ in range(150):
        torn = bytearray(whole)
        torn[rng.randrange(len(torn))] ^= 1 << rng.randrange(8)
        path.write_bytes(torn)
        try:
            assert seal(read_state(path)) == seal(good)
        except UserError as error:
            refused += 1
            assert str(error).startswith(f"{path}: damaged (") and "\n" not in str(error)
    assert refused > 100
    path.write_bytes(whole[:1000])
    killed(train_sft, sft_args(toy, halfway, *OFTEN))
    said = capsys.readouterr().err
    assert said.startswith(f"error: {path}: damaged") and said.count("\n") == 1
    assert "delete it" in said
    path.unlink()  # as it says: training starts again
    run(train_sft, sft_args(toy, halfway, *OFTEN))
    run(train_sft, sft_args(toy, halfway.parent / "whole", *OFTEN))
    assert left(halfway, "sl_cai") == left(halfway.parent / "whole", "sl_cai")


@pytest.mark.parametrize("change", [lambda s: s.update(step=10**9), lambda s: s.update(step=-3),
                                    lambda s: s["model"].popitem(), lambda s: s.pop("optimizer"),
                                    lambda s: s.update(model=[1]), lambda s: s.update(logs=3)])
def test_another_content_in_the_right_file(toy, halfway, capsys, change):
    path = halfway / "state.pt"
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)  # edited by hand: the seal is that of the old
    killed(train_sft, sft_args(toy, halfway, *OFTEN))
    assert capsys.readouterr().err.startswith(f"error: {path}: damaged (ValueError)")


@pytest.mark.parametrize("content", [{"somebody": "else's"}, [1, 2], torch.ones(3), {"seal": "x"}])
def test_a_strangers_file(toy, halfway, capsys, content):
    torch.save(content, halfway / "state.pt")
    killed(train_sft, sft_args(toy, halfway, *OFTEN))
    said = capsys.readouterr().err
    assert said.startswith(f"error: {halfway / 'state.pt'}: damaged (") and said.count("\n") == 1


def test_what_does_not_fit_although_it_is_sealed(toy, halfway, capsys):
    path = halfway / "state.pt"
    resealed(path, lambda state: state["model"].popitem())
    killed(train_sft, sft_args(toy, halfway, *OFTEN))
    assert f"{path}: does not fit (RuntimeError)" in capsys.readouterr().err


def test_broken_lines_of_what_was_sampled_are_sampled_again(toy, halfway, capsys, tmp_path):
    """Whatever happens to the file, the end is the same."""
    run(train_sft, sft_args(toy, tmp_path / "whole", *OFTEN))
    path, state = halfway / "sampled.jsonl", (halfway / "state.pt").read_bytes()
    lines = path.read_bytes().splitlines(keepends=True)
    assert len(lines) > 4
    flipped = lines[2][:40] + bytes([lines[2][40] ^ 1]) + lines[2][41:]
    for content in ([*lines[:2], flipped, *lines[3:]], [*lines[:3], lines[3][:20]], lines[:1],
                    [*lines[:2], b"\n", *lines[2:]]):
        path.write_bytes(b"".join(content))
        (halfway / "state.pt").write_bytes(state)
        run(train_sft, sft_args(toy, halfway, *OFTEN))
        assert left(halfway, "sl_cai") == left(tmp_path / "whole", "sl_cai")
    (halfway / "state.pt").write_bytes(state)                           # and without it
    run(train_sft, sft_args(toy, halfway, *OFTEN))
    assert left(halfway, "sl_cai") == left(tmp_path / "whole", "sl_cai")
    path.write_bytes(b"x" + lines[0])
    killed(train_sft, sft_args(toy, halfway, *OFTEN))
    assert f"{path}: damaged: delete it to start over" in capsys.readouterr().err


@pytest.mark.parametrize("damage",
                         [lambda log: log.unlink(), lambda log: log.write_text("[1\n\n\0"),
                          lambda log: log.write_bytes(b"\xff\xfe")])
def test_a_log_that_is_broken_or_gone_comes_back(toy, halfway, tmp_path, damage):
    damage(halfway / "metrics.jsonl")
    run(train_sft, sft_args(toy, halfway, *OFTEN))
    run(train_sft, sft_args(toy, tmp_path / "whole", *OFTEN))
    assert left(halfway, "sl_cai") == left(tmp_path / "whole", "sl_cai")


def kept_by(tmp_path, fresh=False, **more):
    """What a process that starts there now goes on from; the one before has ended."""
    while HELD:
        os.close(HELD.pop()[0])
    return Resume(SimpleNamespace(out=tmp_path, seed=0, save_minutes=0, fresh=fresh, **more))


def test_a_torn_line_does_not_spoil_what_comes_after_it(tmp_path):
    """Killed while it wrote, twice: the third one knows all that was whole."""
    kept_by(tmp_path).begin(["a", "b", "c"]).update([(0, [1])])
    for row in (1, 2):
        with (tmp_path / "sampled.jsonl").open("a") as file:
            file.write("0123abcd [0, 1")
        kept_by(tmp_path).begin(["a", "b", "c"]).update([(row, [row])])
    again = kept_by(tmp_path)
    assert dict(again.begin(["a", "b", "c"])) == {0: [1], 1: [1], 2: [2]}
    assert dict(again.begin(["a", "b", "c"])) == {}  # a second call knows nothing yet
    # nor does one that asks something else
    assert dict(kept_by(tmp_path).begin(["a", "b", "x"])) == {}


def test_a_fresh_state_takes_the_place_of_what_another_run_had_sampled(tmp_path):
    kept_by(tmp_path).begin(["a"]).update([(0, [1])])
    with pytest.raises(UserError, match="differs in the script that wrote it"):
        kept_by(tmp_path, steps=3)
    resume = kept_by(tmp_path, fresh=True, steps=3)
    assert (tmp_path / "sampled.jsonl").exists()                        # nothing to show yet
    resume.save(1, generator=torch.Generator())
    assert not (tmp_path / "sampled.jsonl").exists() and kept_by(tmp_path, steps=3).steps == 1


# ---- folders -------------------------------------------------------------------------------------
def test_two_runs_in_one_folder(toy, tmp_path, capsys):
    lock = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    killed(train_sft, sft_args(toy, tmp_path))
    assert capsys.readouterr().err == f"error: {tmp_path}: another run is writing there; " \
        "wait until it ends, or give another --out\n"
    assert list(tmp_path.iterdir()) == []
    os.close(lock)
    run(train_sft, sft_args(toy, tmp_path))


def test_an_input_is_never_written_over(toy, before, tmp_path, capsys):
    shutil.copytree(before, tmp_path / "x")
    folder = tmp_path / "x/sft"
    (tmp_path / "x/link.jsonl").symlink_to(folder / "revisions.jsonl")
    os.link(folder / "answers.jsonl", tmp_path / "x/hard.jsonl")
    shutil.copy(toy / "red_team.jsonl", folder / "mine.jsonl")
    old = everything(folder)
    for more in (["--red-team", folder / "revisions.jsonl"],
                 ["--helpful", tmp_path / "x/link.jsonl"],
                 ["--helpful", tmp_path / "x/hard.jsonl"], ["--model", folder / "sl_cai"]):
        killed(train_sft, sft_args(toy, folder, *more))
        said = capsys.readouterr().err
        assert said.startswith(f"error: {more[0]} {more[1]}: this run would write over it")
        assert said.count("\n") == 1
        assert everything(folder) == old
    killed(train_sft, sft_args(toy, folder / "sl_cai", "--model", folder / "sl_cai"))
    assert "would write over it" in capsys.readouterr().err
    # a file of another name may lie there
    run(train_sft, sft_args(toy, folder, "--red-team", folder / "mine.jsonl"))


def test_too_little_room_is_said_before_anything_is_done(toy, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(state_module.shutil, "disk_usage", lambda _: SimpleNamespace(free=10_000))
    monkeypatch.setattr(train_sft, "load_model", lambda *_: pytest.fail("a model was loaded"))
    killed(train_sft, sft_args(toy, tmp_path / "o"))
    size = sum(p.numel() for p in load_model(toy / "base")[0].parameters())
    assert f"{tmp_path / 'o'}: the run needs up to {28 * size / 1e6:,.1f} MB there, " \
        "0.0 MB are free" in capsys.readouterr().err


# ---- models --------------------------------------------------------------------------------------
def test_a_manifest_says_what_a_model_was_made_from(toy, before):
    manifest = json.loads((before / "sft/sl_cai/manifest.json").read_text())
    files = {path.name for path in (before / "sft/sl_cai").iterdir()} - {"manifest.json"}
    assert set(manifest["files"]) == files and "model.safetensors" in files
    for name, sha in manifest["files"].items():
        assert hashlib.sha256((before / "sft/sl_cai" / name).read_bytes()).hexdigest() == sha
    made = manifest["made"]
    assert made["flags"]["--seed"] == 0 and made["flags"]["--rounds"] == 2 and made["command"]
    assert made["torch"] == torch.__version__ and made["commit"]
    assert set(made["inputs"]) == {"--model", "--constitution", "--red-team", "--helpful"}
    pm = json.loads((before / "pm/pm/manifest.json").read_text())["made"]
    assert pm["inputs"]["--model"] == {"path": str(before / "sft/sl_cai"),
                                       "sha256": digest(before / "sft/sl_cai")}


def test_a_flipped_bit_in_a_model_is_seen_before_anything_is_done(
        toy, before, tmp_path, capsys, monkeypatch):
    for module in (train_sft, train_pm, train_rl):
        monkeypatch.setattr(module, "load_model", lambda *_: pytest.fail("a model was loaded"))
    rng = random.Random(0)
    for n in range(12):
        shutil.copytree(before / ("pm/pm" if n % 3 == 2 else "sft/sl_cai"), tmp_path / str(n))
        path = tmp_path / str(n) / rng.choice(["model.safetensors"] * 3 + ["tokenizer.json"])
        data = bytearray(path.read_bytes())
        at = rng.randrange(len(data) // 2, len(data)) if path.suffix == ".safetensors" else \
            data.rindex(b" ")
        data[at] ^= 1 if path.suffix == ".safetensors" else ord(" ") ^ ord("\n")
        path.write_bytes(data)
        script, args = [(train_sft, sft_args(toy, tmp_path / "o", "--model", tmp_path / str(n))),
                        (train_pm,
                         pm_args(toy, tmp_path / "o", "--feedback-model", tmp_path / str(n))),
                        (train_rl, rl_args(toy, tmp_path / str(n), tmp_path / "o"))][n % 3]
        killed(script, args)
        said = capsys.readouterr().err
        assert said.startswith(f"error: {path}: is not as it was written") and said.count("\n") == 1
        with pytest.raises(UserError, match="is not as it was written"):
            load_trunk(tmp_path / str(n))
    (tmp_path / "0/manifest.json").unlink()  # meant so: then it is taken as it is
    load_trunk(tmp_path / "0")


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"files": 3, "made": {}}',
                                     '{"files": {"a": 1}, "made": {}}',
                                     '{"files": {}, "made": 3}', "[" * 100_000, "\udc80"])
def test_a_damaged_manifest(before, tmp_path, content):
    shutil.copytree(before / "sft/sl_cai", tmp_path / "m")
    (tmp_path / "m/manifest.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError,
                       match=r"m/manifest.json: damaged .*make the model again") as error:
        load_trunk(tmp_path / "m")
    assert "\n" not in str(error.value)


def test_a_manifest_of_another_program_says_nothing_of_ours(before, tmp_path):
    shutil.copytree(before / "sft/sl_cai", tmp_path / "m")
    (tmp_path / "m/manifest.json").write_text('{"name": "a web page", "icons": []}')
    load_trunk(tmp_path / "m")


def test_a_swap_that_was_cut_off_is_finished(before, tmp_path):
    shutil.copytree(before / "sft/sl_cai", tmp_path / ".sl_cai.minicai-part-abcd1234.old")
    tidy(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["sl_cai"]
    load_trunk(tmp_path / "sl_cai")
    shutil.copytree(before / "sft/sl_cai", tmp_path / ".sl_cai.minicai-part-abcd1234")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".thesis.part").write_text("mine")
    tidy(tmp_path)  # there is one: only what was ours goes
    assert sorted(p.name for p in tmp_path.iterdir()) == [".hidden", ".thesis.part", "sl_cai"]


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_model_is_replaced_at_once(tiny_model, tok, tmp_path, monkeypatch, exchanges):
    if not exchanges:
        monkeypatch.setattr(state_module, "exchange", lambda *_: False)
    for seed in range(2):
        save_model(tmp_path / "m", tiny_model.init_weights(torch.Generator().manual_seed(seed)),
                   tok, {"seed": seed})
        assert [p.name for p in tmp_path.iterdir()] == ["m"]
        assert json.loads((tmp_path / "m/manifest.json").read_text())["made"] == {"seed": seed}
        assert torch.equal(load_model(tmp_path / "m")[0].head, tiny_model.head)


def test_what_one_model_said_is_never_another_ones():
    """The calls of an evaluation are known by their number: their order is the models' order."""
    run = lambda names: {"flags": {}, "inputs": dict.fromkeys(names, "digest")}
    assert differences(run("ab"), run("ab")) == []
    assert differences(run("ab"), run("ba")) == ["the order of a, b"]
    assert differences(run("ab"), run("abc")) == ["c (one of the two runs only)"]


def test_a_file_where_the_folder_of_models_goes_is_refused_first(tmp_path):
    (tmp_path / "steps").write_text("")
    with pytest.raises(UserError, match="steps: is a file; a folder is to be made there"):
        state_module.refuse_obstacles(tmp_path, ["metrics.jsonl", "steps"])
    (tmp_path / "steps").unlink()
    (tmp_path / "steps").mkdir()
    state_module.refuse_obstacles(tmp_path, ["metrics.jsonl", "steps"])


def test_the_commit_is_minicais_own_or_unknown(tmp_path, monkeypatch):
    """Installed inside another project, git speaks of that one."""
    folder = tmp_path / "venv/lib/minicai"
    folder.mkdir(parents=True)
    who = ("-c", "user.name=a", "-c", "user.email=a@b")
    git = lambda *words: subprocess.run(["git", *who, *words], cwd=tmp_path, check=True,
                                        capture_output=True, text=True)
    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "theirs")
    theirs = git("rev-parse", "HEAD").stdout.strip()
    monkeypatch.setattr(state_module, "__file__", str(folder / "state.py"))
    assert state_module.commit() == "unknown"
    monkeypatch.setattr(state_module, "__file__", str(tmp_path / "minicai/state.py"))
    (tmp_path / "minicai").mkdir()
    assert state_module.commit() == theirs
