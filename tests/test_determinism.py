"""What docs/determinism.md promises: the same command gives the same bytes,
in this process and in fresh ones."""
import json

import pytest
from programs import ENV, ended, start
from test_pipeline import pm_args, rl_args, run, sft_args

import train_pm
import train_rl
import train_sft

RESULTS = {"sft": ["sl_cai/model.safetensors", "metrics.jsonl", "revisions.jsonl", "answers.jsonl"],
           "pm": ["pm/model.safetensors", "metrics.jsonl", "comparisons.jsonl"],
           "rl": ["rl_cai/model.safetensors", "metrics.jsonl", "rollouts.jsonl"]}


@pytest.fixture(scope="module")
def here(toy, tmp_path_factory):
    """The three stages in this process."""
    out = tmp_path_factory.mktemp("here")
    for script, args in zip((train_sft, train_pm, train_rl), commands(toy, out, out).values()):
        run(script, args)
    return out


def commands(toy, before, out) -> dict:
    tuned = ("--model", before / "sft/sl_cai")
    return {"sft": sft_args(toy, out / "sft"),
            "pm": pm_args(toy, out / "pm", *tuned, "--chain-of-thought"),
            "rl": rl_args(toy, before / "pm/pm", out / "rl", *tuned)}


def test_fresh_processes_give_the_same_bytes(toy, here, tmp_path, monkeypatch):
    """Each with another order of hashes, and all at once,
    so that they disturb each other's time."""
    monkeypatch.setitem(ENV, "PYTHONHASHSEED", "7")
    running = {stage: start(f"train_{stage}.py", *args)
               for stage, args in commands(toy, here, tmp_path).items()}
    for stage, process in running.items():
        code, _, err = ended(process)
        assert code == 0, err
        for name in RESULTS[stage]:
            assert (tmp_path / stage / name).read_bytes() == (here / stage / name).read_bytes(), \
                (stage, name)


def test_another_seed_is_another_run(toy, here, tmp_path):
    for script, (stage, args) in zip((train_sft, train_pm, train_rl),
                                     commands(toy, here, tmp_path).items()):
        run(script, [*args, "--seed", "1"])
        for name in RESULTS[stage]:
            assert (tmp_path / stage / name).read_bytes() != (here / stage / name).read_bytes(), \
                (stage, name)
        facts = json.loads((tmp_path / stage / "config.json").read_text())
        assert facts["args"]["seed"] == 1 and facts["threads"] == 1
