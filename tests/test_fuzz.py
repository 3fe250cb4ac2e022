"""Loaders against files that hypothesis makes up: valid ones with a value replaced, a key dropped,
bytes flipped, cut off.

Whatever the file, a loader returns or raises a UserError of one line that names the file. In every
run of the tests a few hundred files; python -m pytest -m slow tests/test_fuzz.py takes minutes.
"""
import contextlib
import copy
import io
import json
import shutil

import pytest
import torch

pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_constitution import OURS, PUBLISHED
from test_pipeline import sft_args

import train_sft
from minicai.checkpoint import load_model, load_scalar
from minicai.constitution import load_constitution
from minicai.data import read_comparisons, read_prompts
from minicai.lab import doctor
from minicai.lab.evaluate import read_sets, stages
from minicai.lab.figures import read_curves
from minicai.lab.report import load_results
from minicai.run import UserError
from minicai.state import contents, read_sampled, read_state
from minicai.tokenizer import Tokenizer

TURNS = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello?"}]
PROMPTS = [{"messages": TURNS},
           {"prompt": "Hello?"}, {"transcript": "\n\nHuman: Hello?\n\nAssistant: Hm."},
           {"chosen": TURNS, "rejected": TURNS}]
PAIRS = [{"messages": TURNS, "chosen": "a", "rejected": "b"},
         {"chosen": "\n\nHuman: x\n\nAssistant: a", "rejected": "\n\nHuman: x\n\nAssistant: b"},
         {"prompt": "x", "chosen": [*TURNS, {"role": "assistant", "content": "a"}],
          "rejected": [*TURNS, {"role": "assistant", "content": "b"}]}]
shares = {"harmful": 0.1, "explained": 0.9, "evasive": 0, "other": 0, "incoherent": 0, "full": 1,
          "partial": 0, "unhelpful": 0, "refused": 0, "courteous": 0.5, "mean_words": 20.5,
          "fillers": 0.1, "coherent": 1, "n": 20, "intervals": {"harmful": [0, 0.2]}}
MODEL = {"red_team": {g: shares for g in ("reviewed", "read_about", "unseen")},
         "by_category": {"theft": shares}, "all": shares,
         "elo": {"harmlessness": 0.0, "helpfulness": 1.0, "intervals": {"harmlessness": [0, 1]}},
         **{s: shares for s in ("helpful", "lookalike", "second_helpful", "second_red_team")}}
RESULTS = {"models": {"base": MODEL, "rl_cai": MODEL}, "seconds": {"sft": 1.5},
           "constitution": "c.json", "seed": 0, "revisions": {"by_category": {"theft": shares}},
           "labels": {"by_category": {"theft": {"objection": 0.5, "n": 3}}}}
LOG = {"step": 0, "score": 1.0, "kl": None, "response_length": 9.0, "entropy": 0.1}
STAGE = {"args": {"constitution": "c.json", "seed": 0}, "seconds": 1.0}

values = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
                      | st.sampled_from(["\ud800", "\u200b", "\0", "../x", "x" * 3000, -1,
                                         2**70, 1e308]),
                      lambda inner: st.lists(inner, max_size=3)
                      | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=6)


def places(data, here=()) -> list:
    """Paths to every node of a JSON value."""
    below = data.items() if isinstance(data, dict) else \
        enumerate(data) if isinstance(data, list) else ()
    return [here] + [place for key, value in below for place in places(value, (*here, key))]


def changed(data, draw):
    """The same with one node replaced, or dropped."""
    *path, last = draw(st.sampled_from(places(data)[1:])) if places(data)[1:] else (None,)
    if last is None:
        return draw(values)
    data = copy.deepcopy(data)
    inner = data
    for key in path:
        inner = inner[key]
    if draw(st.booleans()):
        inner[last] = draw(values)
    else:
        del inner[last]
    return data


@st.composite
def files(draw, data, lines: bool = False):
    """Bytes of a JSON file (or of JSON lines) that is nearly as it should be."""
    rows = [draw(st.sampled_from(data)) for _ in range(draw(st.integers(1, 3)))] if lines else \
        [data]
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(rows) - 1))
        rows[at] = changed(rows[at], draw)
    return damaged(draw, "\n".join(json.dumps(row) for row in rows).encode())


def damaged(draw, content: bytes) -> bytes:
    """The same, or cut off, or with a few bytes of another value."""
    kind = draw(st.sampled_from(["whole", "whole", "whole", "cut", "flipped", "doubled"]))
    if kind == "cut":
        return content[:draw(st.integers(0, len(content)))]
    if kind == "flipped" and content:
        content = bytearray(content)
        for _ in range(draw(st.integers(1, 3))):
            content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    return bytes(content) + (bytes(content) if kind == "doubled" else b"")


def read_all(loader, *args):
    """Call a loader: it returns, or says one line that names a file."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            loader(*args)
        return True
    except UserError as error:
        assert str(error) and "\n" not in str(error), error
        return False


QUICK = settings(max_examples=60, deadline=None, derandomize=True, database=None,
                 suppress_health_check=list(HealthCheck))
LONG = settings(QUICK, max_examples=2500, derandomize=False)
JSON_FILES = {
    "prompts": (files(PROMPTS, True), "p.jsonl", lambda folder: read_prompts(folder / "p.jsonl")),
    "comparisons": (files(PAIRS, True), "c.jsonl",
                    lambda folder: read_comparisons(folder / "c.jsonl")),
    "constitution": (files(OURS), "law.json",
                     lambda folder: load_constitution(folder / "law.json")),
    **{f"published {name}": (files(PUBLISHED[name]), f"{name}.json", load_constitution)
       for name in PUBLISHED},
    "results": (files(RESULTS), "results.json", load_results),
    "log": (files([LOG], True), "log.jsonl", lambda folder: read_curves(folder / "log.jsonl")),
    "stage": (files(STAGE), "sft/config.json", stages),
    "set": (files([{"messages": TURNS, "group": "reviewed", "activity": "x"}], True),
            "helpful.jsonl", lambda folder: read_sets(folder, 9, {"x": "theft"})),
    "config": (None, "config.json", load_model),
    "tokenizer": (None, "tokenizer.json", Tokenizer.load),
    "tokenizer_config": (None, "tokenizer_config.json", Tokenizer.load),
    "manifest": (files({"files": {"config.json": "0" * 64},
                        "made": {"inputs": {"a": {"path": "x", "sha256": "0"}}}}),
                 "manifest.json", contents)}


@pytest.fixture(scope="module")
def folder(tiny_model_dir, tmp_path_factory):
    """One of everything."""
    folder = tmp_path_factory.mktemp("fuzz") / "all"
    shutil.copytree(tiny_model_dir, folder)
    for name, data in PUBLISHED.items():
        (folder / f"{name}.json").write_text(json.dumps(data))
    for name in ("red_team", "helpful", "lookalike"):
        (folder / f"{name}.jsonl").write_text(json.dumps({"messages": TURNS, "group": "reviewed"}))
    (folder / "sft").mkdir()
    return folder


def fuzz(folder, name, how) -> list:
    """Give many versions of one file to its loader; how often it could be used."""
    strategy, file, loader = JSON_FILES[name]
    before = (folder / file).read_bytes() if (folder / file).exists() else None
    if strategy is None:                                                # a real file of the model
        whole = json.loads(before)
        strategy = files({key: whole[key] for key in whole}) if file != "tokenizer.json" else \
            st.composite(
            lambda draw: damaged(draw, json.dumps(whole | {"model": changed(
                whole["model"] | {"vocab": dict(list(whole["model"]["vocab"].items())[:9])}, draw)}
                                                  if draw(st.booleans()) else changed(
                                                      {k: v for k, v in whole.items()
                                                       if k != "model"}, draw)).encode()))()
    used = []

    @how
    @given(strategy)
    def each(content):
        (folder / file).write_bytes(content)
        used.append(read_all(loader, folder))
    try:
        each()
    finally:
        (folder / file).unlink() if before is None else (folder / file).write_bytes(before)
    return used


@pytest.mark.parametrize("name", JSON_FILES)
def test_a_few_hundred_files(folder, name):
    assert len(fuzz(folder, name, QUICK)) >= 30


@pytest.mark.slow
@pytest.mark.parametrize("name", JSON_FILES)
def test_many_thousand_files(folder, name):
    used = fuzz(folder, name, LONG)
    print(f"\n{name}: {len(used)} files, {sum(used)} of them could be used")
    assert 0 < sum(used) < len(used) or name in ("manifest", "tokenizer")


# ---- binary files --------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def halfway(toy, tmp_path_factory):
    """The folder of a stage 1 that was stopped in the middle."""
    folder = tmp_path_factory.mktemp("halfway") / "sft"
    with pytest.MonkeyPatch.context() as patch:
        calls = []

        def dies(*args, real=train_sft.clip_gradients):
            calls.append(1)
            if len(calls) == 3:
                raise KeyboardInterrupt
            return real(*args)
        patch.setattr(train_sft, "clip_gradients", dies)
        with pytest.raises(SystemExit):
            train_sft.main([str(a) for a in sft_args(toy, folder, "--save-minutes", "0")])
    return folder


def fuzz_bytes(folder, file, loader, how, same) -> None:
    """Flip, cut and double a file: what is returned was written so, or there is an error."""
    whole = (folder / file).read_bytes()
    good = same(loader(folder))

    @how
    @given(st.data())
    def each(data):
        (folder / file).write_bytes(damaged(data.draw, whole))
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                found = same(loader(folder))
        except UserError as error:
            assert "\n" not in str(error)
            return
        assert found == good or file == "sampled.jsonl" and \
            all(found[call].items() <= rows.items() for call, rows in good.items() if call in found)
    try:
        each()
    finally:
        (folder / file).write_bytes(whole)


def weights(model) -> list:
    return [(name, tuple(tensor.shape), tensor.flatten()[:9].tolist())
            for name, tensor in model.state_dict().items()]


CASES = [("state.pt", lambda f: read_state(f / "state.pt"), lambda state: str(sorted(state))),
         ("sampled.jsonl", lambda f: read_sampled(f / "sampled.jsonl"),
          lambda found: {call: rows for call, (_, rows) in found[1].items()})]


@pytest.mark.parametrize("content", [b"r", b"", b"PK", b"\x80\x02}q\x00."])
def test_bytes_that_the_unpickler_stumbles_over(tmp_path, content):
    """Found by fuzzing: b"r" asks for four more bytes, and the error is none of pickle's own."""
    (tmp_path / "state.pt").write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        read_state(tmp_path / "state.pt")


def test_a_file_cannot_break_a_message_into_lines(tmp_path):
    (tmp_path / "p.jsonl").write_text('{"a\\nb\\u0000": null}\n')
    with pytest.raises(UserError, match=r"p.jsonl:1: .*found a\\nb\\x00") as error:
        read_prompts(tmp_path / "p.jsonl")
    assert str(error.value).isprintable()


@pytest.mark.parametrize("file, loader, same", CASES)
@pytest.mark.parametrize("how", [QUICK, pytest.param(LONG, marks=pytest.mark.slow)])
def test_what_a_run_goes_on_from(halfway, file, loader, same, how):
    fuzz_bytes(halfway, file, loader, how, same)


@pytest.mark.parametrize("how", [QUICK, pytest.param(LONG, marks=pytest.mark.slow)])
def test_weights_without_a_manifest(folder, how):
    """Nobody's checksum: whatever can be read is read, nothing but a UserError is raised."""
    fuzz_bytes(folder, "model.safetensors", load_model, how, lambda found: None)
    assert not read_all(load_scalar, folder)


@pytest.mark.parametrize("how", [QUICK, pytest.param(LONG, marks=pytest.mark.slow)])
def test_the_doctor_looks_at_anything(halfway, capsys, how):
    for file in ("config.json", "state.pt", "metrics.jsonl", "sampled.jsonl"):
        before = (halfway / file).read_bytes() if (halfway / file).exists() else None

        @settings(how, max_examples=how.max_examples // 4)
        @given(st.binary(max_size=40) | files(STAGE))
        def each(content):
            (halfway / file).write_bytes(content)
            with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
                doctor.main([str(halfway)])
        each()
        (halfway / file).unlink() if before is None else (halfway / file).write_bytes(before)
    assert torch.get_num_threads() == 1 and "Traceback" not in capsys.readouterr().err
