"""Files, errors, schedule and log."""
import argparse
import gzip
import json
import time

import pytest
import torch

from minicai.run import (Metrics, UserError, friendly_main, lr_schedule, machine_flags, pick_device, read_jsonl,
                         seed_everything, set_up, write_config, write_jsonl)


def test_a_user_error_is_one_line_and_exit_code_2(capsys):
    @friendly_main
    def main():
        raise UserError("data.jsonl:3: no such key")
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2 and capsys.readouterr().err == "error: data.jsonl:3: no such key\n"


def test_out_of_memory_says_what_to_lower(capsys):
    @friendly_main
    def main():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ...")
    with pytest.raises(SystemExit) as stop:
        main()
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.startswith("error: out of memory") and said.count("\n") == 1
    assert all(word in said for word in ("--micro", "--sample-tokens", "--checkpointing", "minicai.lab.plan"))


def test_a_mistake_of_ours_keeps_its_traceback():
    @friendly_main
    def main():
        raise ValueError("a bug")
    with pytest.raises(ValueError, match="a bug"):
        main()


def test_jsonl_is_read_by_line_whatever_is_inside(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + '{"a": "x\u2028y"}\n\n{"a": 2}\n'.encode())       # BOM, U+2028, an empty line
    assert read_jsonl(path) == [(1, {"a": "x\u2028y"}), (3, {"a": 2})]
    packed = tmp_path / "a.jsonl.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert read_jsonl(packed) == read_jsonl(path)


@pytest.mark.parametrize("content, says", [
    (b'{"a": 1}\n{"a": \n', ":2: not a valid JSON line"), (b'{"a": 1}\n{"a": "\xff"}\n', ":2: not a valid JSON line"),
    (b'{}\n[1]\n', ":2: expected a JSON object, found list"), (b'[1]\n', ":1: expected a JSON object, found int"), (b"", ": no rows"), (b"\n\n", ": no rows")])
def test_a_broken_file_is_named_by_line(tmp_path, content, says):
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        read_jsonl(path)
    assert str(error.value).startswith(f"{path}{says}") and "\n" not in str(error.value)


def test_files_that_are_missing_directories_or_not_gzip(tmp_path):
    (tmp_path / "b.jsonl.gz").write_bytes(b"plain")
    packed = gzip.compress(b'{"a": 1}\n' * 100)
    (tmp_path / "short.jsonl.gz").write_bytes(packed[:-12])                                 # a download that broke off
    (tmp_path / "bad.jsonl.gz").write_bytes(packed[:15] + b"\xff\xff" + packed[17:])
    for name in ("none.jsonl", ".", "b.jsonl.gz", "short.jsonl.gz", "bad.jsonl.gz"):
        with pytest.raises(UserError):
            read_jsonl(tmp_path / name)


def test_a_file_is_written_whole(tmp_path):
    path = tmp_path / "a.jsonl"
    write_jsonl(path, [{"a": "é"}, {"b": 1}])
    assert path.read_text(encoding="utf-8") == '{"a": "é"}\n{"b": 1}\n'

    def rows():
        yield {"a": 1}
        raise RuntimeError
    with pytest.raises(RuntimeError):
        write_jsonl(path, rows())
    assert len(read_jsonl(path)) == 2 and list(tmp_path.iterdir()) == [path]              # the old file is untouched


def test_metrics_are_valid_json_even_when_training_is_not(tmp_path):
    metrics = Metrics(tmp_path / "new" / "m.jsonl")
    metrics.log(step=0, loss=1.5)
    metrics.log(step=1, loss=float("nan"))
    lines = [json.loads(line, parse_constant=pytest.fail) for line in (tmp_path / "new" / "m.jsonl").open()]
    assert lines == [{"step": 0, "loss": 1.5}, {"step": 1, "loss": None}]


def test_the_config_tells_how_a_run_was_made(tmp_path):
    write_config(tmp_path, argparse.Namespace(seed=3, out=tmp_path), time.time() - 5, extra=1)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["args"]["seed"] == 3 and config["torch"] == torch.__version__ and config["extra"] == 1
    assert 4.5 < config["seconds"] < 60 and config["threads"] >= 1


def test_the_learning_rate_rises_then_falls_to_zero():
    factors = [lr_schedule(step, 100, 10) for step in range(101)]
    assert factors[0] == pytest.approx(0.1) and max(factors) == 1 and factors[100] == 0
    assert factors[:10] == sorted(factors[:10]) and factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[55] == pytest.approx(0.5)
    assert lr_schedule(0, 1, 0) == 1                                    # a run of one step learns


def test_a_seed_decides_every_generator():
    import random

    import numpy as np
    draws = []
    for _ in range(2):
        g = seed_everything(7)
        draws.append((random.random(), np.random.rand(), torch.rand(1).item(), torch.rand(1, generator=g).item()))
    assert draws[0] == draws[1]


def test_products_are_float32_on_a_cpu_unless_asked():
    for flags, dtype in (([], "fp32"), (["--dtype", "bf16"], "bf16")):
        parser = argparse.ArgumentParser()
        machine_flags(parser.add_argument)
        args = parser.parse_args(["--device", "cpu", "--seed", "4", *flags])
        device, generator = set_up(args)
        assert (device.type, generator.initial_seed(), args.dtype) == ("cpu", 4, dtype)


def test_a_device_that_is_not_there():
    assert pick_device("cpu").type == "cpu" and pick_device().type in ("cpu", "cuda", "mps")
    with pytest.raises(UserError, match="--device nonsense"):
        pick_device("nonsense")


@pytest.mark.parametrize("flag", ["joined", "held_out", "red_team_share"])
def test_a_share_of_more_than_all_is_one_line_that_names_the_flag(flag):
    for value in (-0.1, 1.5):
        with pytest.raises(UserError, match=f"--{flag.replace('_', '-')} {value}: a share"):
            set_up(argparse.Namespace(**{flag: value}))


@pytest.mark.parametrize("flag", ["batch", "micro", "epochs", "steps", "max_new"])
def test_a_count_of_nothing_is_one_line_that_names_the_flag(flag):
    with pytest.raises(UserError, match=f"--{flag.replace('_', '-')} 0: must be at least 1"):
        set_up(argparse.Namespace(device="cpu", dtype=None, seed=0, **{flag: 0}))
