"""A run that is killed and started again ends as if nothing had happened: same weights, same log, nothing sampled twice."""
import pytest
import torch
from test_pipeline import pm_args, rl_args, run, sft_args

import train_pm
import train_rl
import train_sft
from minicai import run as running

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
    """(script, its arguments for a directory, what is called once a step, what samples, model directory's name)"""
    more = (*OFTEN, "--epochs", "2")
    scorer, tuned = before / "pm/pm", ("--model", before / "sft/sl_cai")
    return {"sft": (train_sft, lambda out: sft_args(toy, out, *more), "clip_gradients", "critique_revise", "sl_cai"),
            "pm": (train_pm, lambda out: pm_args(toy, out, *more, *tuned), "clip_gradients", "ai_labels", "pm"),
            "rl": (train_rl, lambda out: rl_args(toy, scorer, out, *OFTEN, *tuned), "update", None, "rl_cai")}[request.param]


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
    script, args, step, sampling, model = stage
    run(script, args(tmp_path / "whole"))
    with monkeypatch.context() as patch:
        dies(patch, script, step, call)
        killed(script, args(tmp_path / "parts"))
    if sampling or call > 1:
        assert (tmp_path / "parts/state.pt").exists()
    with (tmp_path / "parts/metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "loss"')                                # the last words of a process that was killed
    with monkeypatch.context() as patch:
        if sampling:
            dies(patch, script, sampling, 1)                            # what was sampled is not sampled again
        capsys.readouterr()
        run(script, args(tmp_path / "parts"))
    assert f"going on after {call - 1} steps" in capsys.readouterr().out or not sampling and call == 1
    assert left(tmp_path / "parts", model) == left(tmp_path / "whole", model)
    assert not (tmp_path / "parts/state.pt").exists()


def test_killed_while_writing(toy, tmp_path, monkeypatch):
    """The state before the one that was being written still loads, and leads to the same end."""
    run(train_sft, sft_args(toy, tmp_path / "whole", *OFTEN))
    with monkeypatch.context() as patch:
        dies(patch, torch, "save", 3)
        killed(train_sft, sft_args(toy, tmp_path / "parts", *OFTEN))
    assert (tmp_path / "parts/state.pt.tmp").exists()
    run(train_sft, sft_args(toy, tmp_path / "parts", *OFTEN))
    assert left(tmp_path / "parts", "sl_cai") == left(tmp_path / "whole", "sl_cai")


def test_what_belongs_to_another_run_is_not_taken_up(toy, tmp_path, monkeypatch, capsys):
    out = tmp_path / "sft"
    with monkeypatch.context() as patch:
        dies(patch, train_sft, "clip_gradients", 2)
        killed(train_sft, sft_args(toy, out, *OFTEN))
    state = (out / "state.pt").read_bytes()
    for change in (["--seed", "1"], ["--lr", "1e-3"]):
        (out / "state.pt").write_bytes(state)
        with monkeypatch.context() as patch:
            dies(patch, train_sft, "critique_revise", 1)
            killed(train_sft, sft_args(toy, out, *OFTEN, *change))
        assert "left by a run with other arguments or inputs: starting over" in capsys.readouterr().out
    (out / "state.pt").write_bytes(state[:1000])
    killed(train_sft, sft_args(toy, out, *OFTEN))
    said = capsys.readouterr().err
    assert said.startswith(f"error: {out / 'state.pt'}: damaged") and said.count("\n") == 1
    torch.save({"somebody": "else's"}, out / "state.pt")
    killed(train_sft, sft_args(toy, out, *OFTEN))
    assert capsys.readouterr().err == f"error: {out / 'state.pt'}: damaged (KeyError): delete it to start over\n"


def test_memory_flags_may_change_on_the_way(toy, tmp_path, monkeypatch, capsys):
    """What the message about too little memory advises does not throw away what was sampled."""
    with monkeypatch.context() as patch:
        dies(patch, train_sft, "clip_gradients", 2)
        killed(train_sft, sft_args(toy, tmp_path, *OFTEN))
    with monkeypatch.context() as patch:
        dies(patch, train_sft, "critique_revise", 1)
        run(train_sft, sft_args(toy, tmp_path, "--micro", "2", "--checkpointing", "--sample-tokens", "500"))
    assert "going on after 1 steps" in capsys.readouterr().out


def test_a_changed_input_is_seen(tmp_path):
    (tmp_path / "a").write_text("one")
    before, folder = running.fingerprint(tmp_path / "a"), running.fingerprint(tmp_path)
    (tmp_path / "a").write_text("two")
    assert running.fingerprint(tmp_path / "a") != before and running.fingerprint(tmp_path) != folder
