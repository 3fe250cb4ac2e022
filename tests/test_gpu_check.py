"""make gpu-check: its parts run on tiny sizes, its verdicts are right,
and no part can take the others with it."""
import json
from types import SimpleNamespace

import pytest
import torch

from minicai.lab import gpu_check, real

CPU = torch.device("cpu")


@pytest.mark.parametrize("part", ["logprob", "ppo", "training", "profile"])
def test_a_part_gives_rows(part, tmp_path, monkeypatch):
    """The others are run by hand: `make gpu-check FLAGS=--quick`;
    they start processes, or transformers."""
    monkeypatch.setattr(gpu_check.sample, "decodes", lambda device: True)
    rows = [{"part": part, **r} for r in gpu_check.PARTS[part][0](gpu_check.QUICK, CPU, tmp_path)]
    assert rows and all(r["value"] >= 0 or "not installed" in r["note"] for r in rows)
    assert all(r["row"][:40] in gpu_check.shown(r) for r in rows)
    json.dumps(rows)


def test_a_verdict_compares_with_the_target_on_the_right_side():
    verdicts = [gpu_check.row("x", value, "s", 2.0, least)["verdict"] for value in (1.0, 3.0)
                for least in (False, True)]
    assert verdicts == ["met", "MISSED", "MISSED", "met"]
    assert gpu_check.row("x", 1.0, "s")["verdict"] == ""
    assert ">= 2" in gpu_check.shown({"part": "p", **gpu_check.row("x", 1.0, "s", 2.0, True)})


def test_the_command(tmp_path, capsys):
    """Two parts in processes of their own; the last lines are the table."""
    gpu_check.main(["--quick", "--device", "cpu", "--only", "real,logprob", "--out",
                    str(tmp_path / "new")])
    said = capsys.readouterr().out
    rows = [json.loads(line) for line in (tmp_path / "new" / "rows.jsonl").read_text().splitlines()]
    assert [r["part"] for r in rows][0] == "real"
    assert {r["part"] for r in rows} == {"real", "logprob"}
    table = said.splitlines()[-len(rows) - 1:]
    assert all(gpu_check.shown(r) == line for r, line in zip(rows, table))
    assert "parts did not end" in table[-1]
    assert "######## logprob" in (tmp_path / "new" / "log.txt").read_text()


def test_a_part_that_breaks_or_takes_too_long_is_one_row(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(gpu_check.PARTS, "real", (None, 0.01))
    gpu_check.main(["--quick", "--device", "cpu", "--only", "real", "--out", str(tmp_path)])
    monkeypatch.setitem(gpu_check.PARTS, "real", (None, 60))
    gpu_check.main(["--quick", "--device", "cpu", "--only", "real,machine", "--minutes", "0.001",
                    "--out", str(tmp_path)])
    said = capsys.readouterr().out
    assert "BROKEN" in said and "stopped after 0 s" in said and "1 parts did not end" in said
    assert "[real: no time left]" in said and "[machine: no time left]" in said
    monkeypatch.setattr(gpu_check.sys, "executable", "false")
    gpu_check.main(["--quick", "--device", "cpu", "--only", "real", "--out", str(tmp_path)])
    assert "BROKEN" in capsys.readouterr().out


def test_real_weights_are_timed_where_there_are_any(tmp_path, monkeypatch, capsys):
    """Up to the line that lab/real.py prints before the evaluation; all it starts is replaced."""
    def start(words, **_):
        if "minicai.lab.real" not in words:  # a stage, started by the command below
            return SimpleNamespace(returncode=0)
        clock = iter([0.0, 30.0, 60.0, 90.5, 150.4, 200.0])
        with monkeypatch.context() as patch:
            patch.setattr(real.time, "time", lambda: next(clock))
            real.main(words[words.index("minicai.lab.real") + 1:])
        return SimpleNamespace(returncode=0, stdout=capsys.readouterr().out, stderr="")
    monkeypatch.setattr(gpu_check.subprocess, "run", start)
    monkeypatch.setenv("MINICAI_WEIGHTS", str(tmp_path))
    row, = gpu_check.real(gpu_check.QUICK, CPU, tmp_path)
    assert (row["value"], row["target"], row["verdict"]) == (150, 180, "met")
    monkeypatch.delenv("MINICAI_WEIGHTS")
    row, = gpu_check.real(gpu_check.QUICK, CPU, tmp_path)
    assert row["value"] != row["value"] and row["verdict"] == ""


@pytest.mark.parametrize("flags", [["--only", "ppo,nonsense"], ["--device", "nowhere"]])
def test_bad_flags_are_one_line(flags, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        gpu_check.main([*flags, "--out", str(tmp_path)])
    assert stopped.value.code == 2 and capsys.readouterr().err.startswith("error: ")
