"""Programs that are killed at random moments and started again end with the same bytes
as undisturbed ones."""
import random
import signal
import time

import pytest
from programs import ended, last_line, start, wait_for
from test_pipeline import pm_args, rl_args, run, sft_args

import train_pm
import train_rl
import train_sft
from minicai.state import leftovers, read_sampled, unfinished

# many batches, many saves: many moments to be killed at
MANY = ("--sample-tokens", "150", "--save-minutes", "0")
KILLS = 12                                                       # of each program in the slow suite


@pytest.fixture(scope="module")
def models(toy, tmp_path_factory):
    out = tmp_path_factory.mktemp("models")
    run(train_sft, sft_args(toy, out / "sft"))
    run(train_pm, pm_args(toy, out / "pm", "--model", out / "sft/sl_cai"))
    return out


def commands(toy, models) -> dict:
    """{name: (program, its arguments for a folder, files that must come out the same)}"""
    tuned = ("--model", models / "sft/sl_cai")
    return {
        "sft": ("train_sft.py", lambda out: sft_args(toy, out, *MANY, "--epochs", "4"),
                ["sl_cai/model.safetensors", "metrics.jsonl", "revisions.jsonl", "answers.jsonl"]),
        "pm": ("train_pm.py", lambda out: pm_args(toy, out, *MANY, *tuned, "--epochs", "4",
                                                  "--chain-of-thought", "--both-orders"),
               ["pm/model.safetensors", "metrics.jsonl", "comparisons.jsonl"]),
        "rl": ("train_rl.py", lambda out: rl_args(toy, models / "pm/pm", out, *tuned, *MANY[2:],
                                                  "--steps", "12"),
               ["rl_cai/model.safetensors", "metrics.jsonl", "rollouts.jsonl"]),
        "evaluate": ("minicai.lab.evaluate", lambda out: ["--models", f"a={toy / 'base'}",
                                                          f"b={models / 'sft/sl_cai'}", "--limit",
                                                          "15", "--max-new", "24", "--out", out],
                     ["transcripts.jsonl"])}


def campaign(program, args, files, folder, kills: int, rng) -> list:
    """Kill a program `kills` times, at random moments after it has begun to write;
    run it to its end; the moments."""
    started = time.time()
    code, _, err = ended(start(program, *args(folder / "whole")))
    assert code == 0, err
    lasts, moments, runs = time.time() - started, [], 0
    while len(moments) < kills:
        out, runs = folder / f"parts{runs}", runs + 1
        for _ in range(rng.choice([1, 2, 3])):  # the same run is killed up to three times
            process = start(program, *args(out))
            texts = held(out)
            wait_for(process, lambda: unfinished(out) and held(out) > texts or not texts
                     and unfinished(out))
            time.sleep(rng.random() ** 2 * lasts * 0.6)
            if process.poll() is not None:
                break
            process.send_signal(signal.SIGKILL)
            process.wait()
            moments.append((held(out), (out / "state.pt").exists(), len(leftovers(out))))
        goes_on = unfinished(out)
        code, said, err = ended(start(program, *args(out)))
        assert code == 0, err
        assert not unfinished(out) and not leftovers(out)
        for name in files:
            assert (out / name).read_bytes() == (folder / "whole" / name).read_bytes(), \
                (name, moments)
        # nothing that was written down was thrown away
        assert ("going on after" in said) == goes_on
    return moments


def held(out) -> int:
    """How many texts a killed run has kept."""
    return sum(len(rows) for _, rows in read_sampled(out / "sampled.jsonl")[1].values())


@pytest.mark.parametrize("script, name", [(train_sft, "sft"), (train_rl, "rl")])
def test_a_kill(toy, models, tmp_path, script, name):
    """A few in every run of the tests; one process fewer,
    since the undisturbed run is this one's."""
    program, args, files = commands(toy, models)[name]
    run(script, args(tmp_path / "whole"))
    process = start(program, *args(tmp_path / "parts"))
    assert wait_for(process, lambda: held(tmp_path / "parts") > 20
                    or (tmp_path / "parts/state.pt").exists())
    process.kill()
    ended(process)
    code, said, err = ended(start(program, *args(tmp_path / "parts")))
    assert code == 0 and "going on after" in said, err
    for file in files:
        assert (tmp_path / "parts" / file).read_bytes() \
            == (tmp_path / "whole" / file).read_bytes(), file


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sft", "pm", "rl", "evaluate"])
def test_many_kills(toy, models, tmp_path, name):
    moments = campaign(*commands(toy, models)[name], tmp_path, KILLS, random.Random(name))
    print(f"\n{name}: killed {len(moments)} times; (texts kept, state.pt there, "
          f"half-written files): {moments}")
    assert len(moments) >= KILLS


# ---- asked to end --------------------------------------------------------------------------------
def test_asked_to_end_in_the_middle(toy, models, tmp_path, number=signal.SIGTERM):
    program, args, _ = commands(toy, models)["rl"]
    process = start(program, *args(tmp_path / "o"))
    assert wait_for(process, lambda: (tmp_path / "o/state.pt").exists())
    process.send_signal(number)
    code, _, err = ended(process)
    assert code == 128 + number and "Traceback" not in err
    assert last_line(err) \
        == f"stopped: the same command, without --fresh, goes on from what {tmp_path / 'o'} holds"
    assert not leftovers(tmp_path / "o")


# what a library does with Ctrl-C in the middle of its import depends on the moment
@pytest.mark.slow
def test_asked_to_end_while_it_imports(toy, models, tmp_path):
    """At any moment of the start: no traceback, and a shell sees 130
    (a process that was ended by a signal)."""
    program, args, _ = commands(toy, models)["sft"]
    seen = set()
    for moment in (0.2, 0.8):
        process = start(program, *args(tmp_path / "o"))
        time.sleep(moment)
        process.send_signal(signal.SIGINT)
        code, _, err = ended(process)
        assert code in (130, -signal.SIGINT) and "Traceback" not in err, err
        seen.add(last_line(err).partition(":")[0])
    assert "stopped" in seen
