"""The bench: its memory meter against known allocations, turns and ratios,
the whole command on tiny shapes."""
import json
from importlib.util import find_spec

import pytest
import torch

from minicai.lab import bench, peers
from minicai.lab.meter import interleave, peak_bytes, row, rows_of, table

CPU = torch.device("cpu")


# ---- the meter -----------------------------------------------------------------------------------
def test_the_peak_is_the_most_held_at_one_moment():
    def work():
        a = torch.empty(1000, 1000)         # 4 MB
        b = torch.empty(2000, 1000)         # 12 MB held here: the peak
        del a                               # 8
        c = torch.empty(500, 1000)          # 10
        del b, c
        torch.empty(2900, 1000)             # 11.6
    assert peak_bytes(work, CPU) == 12_000_000


def test_the_peak_of_a_backward_can_be_counted_by_hand():
    """x @ w.T [N,V] is held while its sum goes back (as a view of one number),
    then the gradients of x and w come."""
    N, D, V = 400, 10, 300
    x, w = torch.randn(N, D, requires_grad=True), torch.randn(V, D, requires_grad=True)
    peak = peak_bytes(lambda: (x @ w.T).sum().backward(), CPU)
    assert 4 * N * V <= peak <= 4 * (N * V + N * D + V * D) + 1000


def test_what_was_there_before_does_not_count():
    big = torch.ones(1_000_000)
    assert peak_bytes(lambda: big.sum(), CPU) < 1000
    assert 0 <= peak_bytes(lambda: big * 2, CPU) - 4_000_000 < 1000      # and the number 2


def test_the_fused_logprob_never_holds_all_logits():
    """What logprob.py promises, as the meter sees it:
    far below one [N,V] array, where eager holds three."""
    N, D, V = 4096, 8, 2000
    hidden, weight = torch.randn(N, D, requires_grad=True), torch.randn(V, D, requires_grad=True)
    targets = torch.zeros(N, dtype=torch.long)
    losses, peak = bench.logprob_losses(CPU, {})["no entropy"], {}
    for name in ("eager", "fused"):
        hidden.grad = weight.grad = None
        peak[name] = peak_bytes(lambda: losses[name](hidden, weight, targets).backward(), CPU)
    assert peak["fused"] < 4 * N * V / 2 and peak["eager"] > 2 * 4 * N * V


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_peak_on_cuda():
    assert peak_bytes(lambda: torch.empty(1 << 20, device="cuda"), torch.device("cuda")) == 4 << 20


def test_variants_take_turns_and_the_first_round_does_not_count():
    calls = []
    variants = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")
                or {"one": 1.0, "two": len(calls)}}
    times = interleave(variants, 3, CPU, "turns")
    assert "".join(calls) == "abababab"
    assert len(times["a"][""]) == 3 and min(times["a"][""]) >= 0
    assert times["b"] == {"one": [1.0] * 3, "two": [4, 6, 8]}


def test_rows_hold_medians_spread_and_ratios():
    times = {"slow": [4.0, 2.0, 9.0], "fast": [1.0, 3.0, 2.0]}
    slow, fast = rows_of("part", "case", times, ("slow", "absent"),
                         peaks={"slow": 4e6, "fast": 1e6})
    assert (fast["median"], fast["low"], fast["high"], fast["unit"]) == (2000, 1000, 3000, "ms")
    assert fast["speed"] == {"slow": 2.0} and slow["speed"] == {} and fast["peak"] == {"slow": 0.25}
    assert rows_of("part", "case", times, amount=12)[1]["median"] == 6 and fast["peak_mb"] == 1
    # an even number of turns: what is shown and the ratio are of the same medians
    one, two = rows_of("part", "case", {"one": [1.0, 3.0], "two": [2.0, 2.0]}, ("two",), amount=6)
    assert (one["median"], two["median"], one["speed"]) == (4, 3, {"two": 4 / 3})
    text = table([slow, fast, row("other", "share", "x", [3.25], "%", note="target")])
    assert "slow 2.00; 0.25 of the peak of slow" in text and "1,000 to 3,000" in text
    assert text.count("median") == 2
    assert text.splitlines()[-1].split() == ["share", "x", "3.25", "%", "target"]


def test_padding_is_what_the_longest_row_costs():
    assert bench.padding([1, 3, 2, 2], [[0, 1], [2, 3]]) == pytest.approx(1 - 8 / 10)
    assert bench.padding([2, 2], [[0, 1]]) == 0


# ---- the command ---------------------------------------------------------------------------------
def run(tmp_path, *flags):
    out = tmp_path / "made" / "bench.json"
    bench.main(["--quick", "--repeats", "1", "--out", str(out), *flags])
    return json.loads(out.read_text())


def test_all_parts_without_peers(tmp_path, capsys):
    report = run(tmp_path)
    text = capsys.readouterr().out
    assert {r["section"] for r in report["rows"]} == {"log-prob", "sampling", "PPO", "training"}
    assert all(0 < r["low"] <= r["median"] <= r["high"] for r in report["rows"])
    assert all(len(text.splitlines()[i]) < 200 for i in range(5)) and report["peers"] == {}
    assert not {"transformers", "TRL", "Liger, chunked"} & {r["variant"] for r in report["rows"]}
    peak = {(r["case"], r["variant"]): r["peak_mb"]
            for r in report["rows"] if r["section"] == "log-prob"}
    assert peak["64x16x50, no entropy", "fused"] <= peak["64x16x50, no entropy", "eager"]
    mine = {r["case"]: r["median"]
            for r in report["rows"] if r["section"] == "PPO" and r["variant"] == "minicai"}
    assert list(mine) == [f"batch 4, {phase}"
                          for phase in ("sampling", "scoring", "update", "whole step")]
    assert mine["batch 4, whole step"] == pytest.approx(sum(list(mine.values())[:3]), rel=1e-6)
    for r in report["rows"]:
        assert r["variant"] in text and r["case"] in text


def test_one_part_in_the_demos_own_family(tmp_path):
    report = run(tmp_path, "--only", "sampling", "--family", "llama", "--threads", "1")
    assert {r["section"] for r in report["rows"]} == {"sampling"}
    assert report["args"]["family"] == "llama"


def test_the_reference_model_has_957k_parameters():
    for family, count in (("gpt2", 957_184), ("llama", 984_192)):
        model = bench.reference_model(bench.arguments(["--family", family]), bench.FULL, CPU)
        assert sum(p.numel() for p in model.parameters()) == count


@pytest.mark.parametrize("drawn", [False, True])
def test_at_the_size_of_a_model_directory(tmp_path, tiny_model_dir, tiny_model, drawn):
    """Its weights, or weights of its shape where there is a config.json only."""
    folder = tiny_model_dir
    if drawn:
        (folder := tmp_path / "shape").mkdir()
        (folder / "config.json").write_bytes((tiny_model_dir / "config.json").read_bytes())
    args = bench.arguments(["--model", str(folder)])
    model = bench.reference_model(args, bench.LARGE, CPU)
    assert model.config == tiny_model.config
    assert torch.equal(model.head, tiny_model.head.to(model.head)) != drawn
    rows = run(tmp_path, "--model", str(folder))["rows"]
    assert {r["section"] for r in rows} == {"log-prob", "sampling", "PPO", "training"}
    assert f"16x32x{model.config.vocab_size}, no entropy" in {r["case"] for r in rows}
    assert not any("padding" in r["case"] for r in rows)  # those texts are the micro-world's


def test_a_model_that_reads_too_little_is_said_before_anything_is_measured(
        tmp_path, tiny_model_dir, capsys):
    (tmp_path / "short").mkdir()
    config = json.loads((tiny_model_dir / "config.json").read_text()) \
        | {"max_position_embeddings": 8}
    (tmp_path / "short/config.json").write_text(json.dumps(config))
    with pytest.raises(SystemExit):
        run(tmp_path, "--model", str(tmp_path / "short"))
    assert "reads fewer than 9 tokens" in capsys.readouterr().err


def test_missing_peers_are_named_in_a_line_each(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(peers, "find_spec", lambda package: None)
    report = run(tmp_path, "--peers", "--only", "sampling")
    lines = [line for line in capsys.readouterr().out.splitlines() if "is missing, so" in line]
    assert [line.split()[0] for line in lines] == ["transformers", "trl", "liger_kernel"]
    assert all("pip install -c constraints.txt" in line for line in lines) and report["peers"] == {}


@pytest.mark.parametrize("part, package, variant",
                         [("sampling", "transformers", "transformers"), ("ppo", "trl", "TRL"),
                          ("logprob", "liger_kernel", "Liger, chunked")])
def test_beside_a_peer(tmp_path, monkeypatch, part, package, variant):
    """The bench itself asserts that greedy ids and gradients agree; here:
    that the peer is measured."""
    pytest.importorskip(package)
    monkeypatch.setattr(peers, "find_spec",
                        lambda name: find_spec(name) if name == package else None)
    rows = run(tmp_path, "--peers", "--only", part)["rows"]
    measured = [r for r in rows if r["variant"] == variant]
    assert measured and all(r["median"] > 0 for r in measured)
    if part == "ppo":
        assert len(measured) == 4 and any("TRL" in r["speed"] for r in rows)


@pytest.mark.parametrize("flags", [["--only", "ppo,nonsense"], ["--threads", "0"],
                                   ["--repeats", "0"], ["--out", "/"]])
def test_bad_flags_are_one_line(flags, capsys):
    with pytest.raises(SystemExit) as stopped:
        bench.main(flags)
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1
