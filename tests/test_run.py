"""Files, errors, schedule and log."""
import argparse
import errno
import gzip
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from minicai.run import (
    Metrics,
    Parser,
    Stopped,
    UserError,
    clip_gradients,
    friendly_main,
    lr_schedule,
    machine_flags,
    path,
    pick_device,
    read_jsonl,
    real,
    replacing,
    seed_everything,
    set_up,
    whole,
    without_nan,
    write_config,
    write_jsonl,
    write_text,
    writing,
)
from minicai.state import hold


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
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. "
                                     "GPU 0 has ...")
    with pytest.raises(SystemExit) as stop:
        main()
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.startswith("error: out of memory")
    assert said.count("\n") == 1
    assert all(word in said
               for word in ("--micro", "--sample-tokens", "--checkpointing", "minicai.lab.plan"))


def test_a_mistake_of_ours_keeps_its_traceback():
    @friendly_main
    def main():
        raise ValueError("a bug")
    with pytest.raises(ValueError, match="a bug"):
        main()


def test_jsonl_is_read_by_line_whatever_is_inside(tmp_path):
    path = tmp_path / "a.jsonl"
    # BOM, U+2028, an empty line
    path.write_bytes(b"\xef\xbb\xbf" + '{"a": "x\u2028y"}\n\n{"a": 2}\n'.encode())
    assert read_jsonl(path) == [(1, {"a": "x\u2028y"}), (3, {"a": 2})]
    packed = tmp_path / "a.jsonl.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert read_jsonl(packed) == read_jsonl(path)


@pytest.mark.parametrize("content, says", [
    (b'{"a": 1}\n{"a": \n', ":2: not a valid JSON line"),
    (b'{"a": 1}\n{"a": "\xff"}\n', ":2: not a valid JSON line"),
    (b'{}\n[1]\n', ":2: expected a JSON object, found list"),
    (b'[1]\n', ":1: expected a JSON object, found int"), (b"", ": no rows"),
    (b"\n\n", ": no rows")])
def test_a_broken_file_is_named_by_line(tmp_path, content, says):
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        read_jsonl(path)
    assert str(error.value).startswith(f"{path}{says}") and "\n" not in str(error.value)


def test_files_that_are_missing_directories_or_not_gzip(tmp_path):
    (tmp_path / "b.jsonl.gz").write_bytes(b"plain")
    packed = gzip.compress(b'{"a": 1}\n' * 100)
    (tmp_path / "short.jsonl.gz").write_bytes(packed[:-12])  # a download that broke off
    (tmp_path / "bad.jsonl.gz").write_bytes(packed[:15] + b"\xff\xff" + packed[17:])
    for name in ("none.jsonl", ".", "b.jsonl.gz", "short.jsonl.gz", "bad.jsonl.gz"):
        with pytest.raises(UserError):
            read_jsonl(tmp_path / name)


def test_half_a_character_is_written_as_json_names_it(tmp_path):
    rows = [{"name": "a \ud800", "say": "é"}]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    assert [json.loads(line) for line in open(tmp_path / "rows.jsonl", encoding="utf-8")] == rows


def test_a_file_is_written_whole(tmp_path):
    path = tmp_path / "a.jsonl"
    write_jsonl(path, [{"a": "é"}, {"b": 1}])
    assert path.read_text(encoding="utf-8") == '{"a": "é"}\n{"b": 1}\n'

    def rows():
        yield {"a": 1}
        raise RuntimeError
    with pytest.raises(RuntimeError):
        write_jsonl(path, rows())
    # the old file is untouched
    assert len(read_jsonl(path)) == 2 and list(tmp_path.iterdir()) == [path]


def test_metrics_are_valid_json_even_when_training_is_not(tmp_path):
    metrics = Metrics(tmp_path / "new" / "m.jsonl", "")
    metrics.log(step=0, loss=1.5)
    metrics.log(step=1, loss=float("nan"))
    lines = [json.loads(line, parse_constant=pytest.fail)
             for line in (tmp_path / "new" / "m.jsonl").open()]
    assert lines == [{"step": 0, "loss": 1.5}, {"step": 1, "loss": None}]


def test_the_config_tells_how_a_run_was_made(tmp_path):
    write_config(tmp_path, argparse.Namespace(seed=3, out=tmp_path), time.time() - 5, extra=1)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["args"]["seed"] == 3 and config["torch"] == torch.__version__
    assert config["extra"] == 1
    assert 4.5 < config["seconds"] < 60 and config["threads"] >= 1


def test_the_learning_rate_rises_then_falls_to_zero():
    factors = [lr_schedule(step, 100, 10) for step in range(101)]
    assert factors[0] == pytest.approx(0.1) and max(factors) == 1 and factors[100] == 0
    assert factors[:10] == sorted(factors[:10])
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[55] == pytest.approx(0.5)
    assert lr_schedule(0, 1, 0) == 1                                    # a run of one step learns


@pytest.mark.parametrize("loss, gradient", [(float("nan"), 1.0), (float("inf"), 1.0),
                                            (1.0, float("nan"))])
def test_training_stops_before_a_step_that_is_no_number(loss, gradient):
    weight = torch.nn.Parameter(torch.ones(2))
    weight.grad = torch.full((2,), gradient)
    with pytest.raises(UserError, match="step 7"):
        clip_gradients([weight], 1.0, 7, loss)


def test_gradients_are_shortened_to_the_limit_and_no_further():
    weight = torch.nn.Parameter(torch.ones(2))
    for gradient, after in ((3.0, 1.0), (0.1, 0.02 ** 0.5)):
        weight.grad = torch.full((2,), gradient)
        assert clip_gradients([weight], 1.0, 0, 0.5) == pytest.approx(gradient * 2 ** 0.5)
        assert weight.grad.norm().item() == pytest.approx(after, rel=1e-4)


def test_a_seed_decides_every_generator():
    import random

    import numpy as np
    draws = []
    for _ in range(2):
        g = seed_everything(7)
        draws.append((random.random(), np.random.rand(), torch.rand(1).item(),
                      torch.rand(1, generator=g).item()))
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


def parsed(*words, **flags):
    parser = Parser("A program.")
    for name, kind in flags.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind)
    return parser.parse_args(words)


@pytest.mark.parametrize("kind, good, bad", [
    (real(0, 1), ["0", "1", "0.5", "1e-3"], ["-0.1", "1.1", "nan", "inf", "-inf", "x", ""]),
    (real(0, above=True), ["1e-9", "7"], ["0", "-1", "nan", "inf", "1e10"]),
    (real(0.01, 100, or_zero=True), ["0", "0.01", "100"], ["0.001", "101", "-1", "nan"]),
    (whole(1), ["1", "1000000000"], ["0", "-3", "1.5", "1e3", "nan", "x", "9" * 5000]),
    (path, ["a", "./a/", "ä b"], ["", " ", "a\0b", "a\nb", "\ud800"])])
def test_a_flag_has_its_range(kind, good, bad):
    for text in good:
        parsed("--some-flag", text, some_flag=kind)
    for text in bad:
        with pytest.raises(UserError) as error:
            parsed("--some-flag", text, some_flag=kind) if not text.startswith("-") else \
                parsed(f"--some-flag={text}", some_flag=kind)
        assert str(error.value).startswith("--some-flag: ") and "\n" not in str(error.value), text


def test_a_flag_is_written_out():
    for words in (["--some", "1"], ["--other", "1"], ["word"], ["--some-flag"]):
        with pytest.raises(UserError, match="--help"):
            parsed(*words, some_flag=whole(0))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_ends_in_one_line(number, capsys, tmp_path):
    @friendly_main
    def main(begun):
        if begun:
            hold(tmp_path)
        os.kill(os.getpid(), number)
        time.sleep(9)
    for begun in (False, True):
        with pytest.raises(SystemExit) as stop:
            main(begun)
        said = capsys.readouterr().err.strip()
        assert stop.value.code == 128 + number and "\n" not in said and said.startswith("stopped: ")
        assert (str(tmp_path) in said) == begun
    hold(tmp_path)                                                      # and it is free again
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL           # outside, all is as it was


def test_what_is_ignored_outside_stays_ignored(capsys):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)               # as nohup does
    try:
        friendly_main(lambda: os.kill(os.getpid(), signal.SIGHUP))()
    finally:
        signal.signal(signal.SIGHUP, before)
    assert capsys.readouterr().err == ""


def test_a_link_is_written_where_it_leads(tmp_path):
    (tmp_path / "there").write_text("old")
    for name, leads_to in (("link", "there"), ("dangling", "new")):
        (tmp_path / name).symlink_to(leads_to)
        write_text(tmp_path / name, "x")
        assert (tmp_path / name).is_symlink() and (tmp_path / leads_to).read_text() == "x"
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="a pipe or device"):
        write_text(tmp_path / "pipe", "x")
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize("stop", [Stopped(signal.SIGTERM), KeyboardInterrupt()])
def test_a_request_to_end_inside_a_write_is_no_full_disk(tmp_path, stop):
    with pytest.raises(type(stop)):
        with writing(tmp_path / "x"):
            try:
                raise stop
            except BaseException:
                raise RuntimeError("what torch makes of it")


def test_what_cannot_be_written_is_one_line_with_room_and_advice(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    for error in (OSError(errno.ENOSPC, "No space left on device"),
                  RuntimeError("unexpected pos 64\nmore")):
        with pytest.raises(UserError) as told, replacing(tmp_path / "a.txt", 5_000_000) as file:
            file.write(b"half")
            raise error
        said = str(told.value)
        assert said.startswith(f"{tmp_path / 'a.txt'}: cannot be written (") and "\n" not in said
        assert "it takes 5.0 MB" in said
        assert "are free there: make room or give another --out" in said
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"
    with pytest.raises(UserError, match="a.txt/b: cannot be written .Not a directory.; "
                       "check path and rights or give another"):
        write_text(tmp_path / "a.txt/b", "x")


def test_an_earlier_log_stays_until_there_is_a_row(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text("an earlier run's\n")
    metrics = Metrics(path, '{"step": 0}\n')
    assert path.read_text() == "an earlier run's\n" and metrics.text() == '{"step": 0}\n'
    metrics.log(step=1)
    metrics.log(step=2)
    assert path.read_text() == metrics.text() == '{"step": 0}\n{"step": 1}\n{"step": 2}\n'


def test_no_number_that_json_does_not_know_however_deep():
    inf = float("inf")
    assert without_nan({"a": [1.0, inf], "b": {"c": (float("nan"), 2)}, "d": "inf", "e": inf}) == \
        {"a": [1.0, None], "b": {"c": [None, 2]}, "d": "inf", "e": None}


@pytest.mark.parametrize("streams", ["2>&-", ">&- 2>&-"])
def test_a_closed_stderr_stops_nothing(streams, tmp_path):
    code = ("from tqdm import tqdm; from minicai.run import UserError, friendly_main, write_text\n"
            "@friendly_main\n"
            "def main():\n"
            "    for _ in tqdm(range(2)): print('at work')\n"
            f"    write_text({str(tmp_path / 'made')!r}, 'x')\n"
            "    raise UserError('and then this')\n"
            "main()")
    ran = subprocess.run(["sh", "-c", f'exec "$0" -c "$1" {streams}', sys.executable, code],
                         capture_output=True)
    assert ran.returncode == 2 and (tmp_path / "made").read_text() == "x", ran
