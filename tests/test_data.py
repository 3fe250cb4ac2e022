"""Files of dialogues in every shape that is read, and batches of rows."""
import gzip
import json
import random
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from minicai.answers import answered_ids
from minicai.checkpoint import load_model
from minicai.data import (
    batches_by_length,
    batches_by_tokens,
    check_room,
    drop_too_long,
    pad_right,
    read_comparisons,
    read_human,
    read_prompts,
    split,
)
from minicai.run import UserError

USER = {"role": "user", "content": "hi"}
SAID, SYSTEM = {"role": "assistant", "content": "yes?"}, {"role": "system", "content": "be kind"}
TALK = [USER, SAID, {"role": "user", "content": "one\n\ntwo"}]  # blank lines occur inside turns
TRANSCRIPT = "\n\nHuman: hi\n\nAssistant: yes?\n\nHuman: one\n\ntwo"


def write(path, *rows):
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows),
                    encoding="utf-8")
    return path


@pytest.mark.parametrize("row, dialogue", [
    ({"messages": [USER], "group": "other keys are ignored"}, [USER]), ({"messages": TALK}, TALK),
    ({"messages": [SYSTEM, *TALK, SAID]}, [SYSTEM, *TALK]),  # what is said after the last user turn
    ({"messages": [USER | {"weight": 1}]}, [USER]), ({"prompt": "hi"}, [USER]),
    ({"prompt": TALK}, TALK), ({"transcript": TRANSCRIPT}, TALK),
    ({"transcript": TRANSCRIPT + "\n\nAssistant:", "rating": 2.0}, TALK),
    ({"transcript": "Human: hi\n\nAssistant: yes?\n\n"}, [USER]),
    ({"chosen": TRANSCRIPT + "\n\nAssistant: a", "rejected": TRANSCRIPT + "\n\nAssistant: b"},
     TALK),
    ({"chosen": [*TALK, SAID], "rejected": [*TALK, SAID]}, TALK),
    ({"prompt": "hi", "chosen": "a", "rejected": "b"}, [USER]),
    # as in mirrors
    ({"prompt": TRANSCRIPT + "\n\nAssistant:"}, TALK),
    ({"prompt": "Human: hi\n\nAssistant:"}, [USER]),
    ({"transcript": TRANSCRIPT.replace("\n", "\r\n")}, TALK),
    ({"prompt": TRANSCRIPT.replace("\n", "\r\n")}, TALK),
    ({"prompt": "Human: who are you?"}, [USER | {"content": "Human: who are you?"}]),
    ({"system": "be kind", "prompt": "hi"}, [SYSTEM, USER]),
    ({"system": " ", "prompt": "hi"}, [USER]), ({"system": None, "messages": TALK}, TALK),
    ({"system": "be kind", "messages": [SYSTEM, USER]}, [SYSTEM, USER]),
    ({"messages": [SYSTEM | {"content": ""}, USER]}, [USER]),
    ({"system": "be kind", "messages": [SAID, USER]}, [SYSTEM, SAID, USER]),
    # other kinds of rows in the same table leave columns empty
    ({"messages": None, "prompt": "hi"}, [USER]),
    # a transcript's beginning, as its answers beside it show
    ({"prompt": "Human: hi", "chosen": "Human: hi\n\nAssistant: a",
      "rejected": "Human: hi\n\nAssistant: b"}, [USER])])
def test_every_shape_of_prompt(tmp_path, row, dialogue):
    assert read_prompts(write(tmp_path / "p.jsonl", row)) == [dialogue]


@pytest.mark.parametrize("row, messages", [
    ({"messages": [USER], "chosen": "a", "rejected": "b"}, [USER]),
    ({"prompt": "hi", "chosen": "a", "rejected": "b"}, [USER]),
    ({"chosen": TRANSCRIPT + "\n\nAssistant: a", "rejected": TRANSCRIPT + "\n\nAssistant: b\n"},
     TALK),
    ({"chosen": [*TALK, SAID | {"content": "a"}], "rejected": [*TALK, SAID | {"content": "b"}]},
     TALK),
    ({"prompt": TALK, "chosen": [SAID | {"content": "a"}], "rejected": [SAID | {"content": "b"}]},
     TALK),
    # all of it, three times
    ({"prompt": "hi", "messages": [USER, SAID], "chosen": [USER, SAID | {"content": "a"}],
      "rejected": [USER, SAID | {"content": "b"}]}, [USER]),
    ({"prompt": TRANSCRIPT + "\n\nAssistant:", "chosen": "a", "rejected": "b"}, TALK),
    ({"prompt": "hi", "chosen": "\n\nHuman: hi\n\nAssistant: a",
      "rejected": "\n\nHuman: hi\n\nAssistant: b"}, [USER]),
    ({"prompt": "hi", "chosen": "\n\nAssistant: a", "rejected": "\n\nAssistant: b"}, [USER]),
    ({"system": "be kind", "prompt": "hi", "chosen": "a", "rejected": "b"}, [SYSTEM, USER]),
    ({"system": "be kind", "chosen": [SAID, USER, SAID | {"content": "a"}],
      "rejected": [SAID, USER, SAID | {"content": "b"}]}, [SYSTEM, SAID, USER]),
    ({"system": "be kind", "prompt": None, "chosen": [SAID, USER, SAID | {"content": "a"}],
      "rejected": [SAID, USER, SAID | {"content": "b"}]}, [SYSTEM, SAID, USER]),
    ({"messages": None, "prompt": "hi", "chosen": "a", "rejected": "b"}, [USER])])
def test_every_shape_of_comparison(tmp_path, row, messages):
    assert read_comparisons(write(tmp_path / "c.jsonl", row)) == [(messages, "a", "b")]


def test_only_transcripts_are_searched_for_role_tags(tmp_path, tok, role_ids):
    """Anywhere else a tag is ordinary text: it opens no turn,
    neither in the messages nor among the ids."""
    inside = "Please:" + TRANSCRIPT
    path = write(tmp_path / "p.jsonl", {"prompt": inside},
                 {"messages": [USER | {"content": TRANSCRIPT}]})
    assert read_prompts(path) == [[USER | {"content": inside}], [USER | {"content": TRANSCRIPT}]]
    path = write(tmp_path / "c.jsonl",
                 {"prompt": "hi", "chosen": inside, "rejected": "x\n\nHuman: y<|endoftext|>"})
    (messages, chosen, rejected), = read_comparisons(path)
    for text in (chosen, rejected):
        ids, _ = tok.encode_chat(messages + [{"role": "assistant", "content": text}])
        # the start, and after the answer
        assert sum(i in role_ids for i in ids) == 2 and ids.count(tok.end) == 2


def test_an_array_of_records_in_a_jsonl_file_packed_or_not(tmp_path):
    """As red-team attempts were published: a name that says lines, one JSON array inside."""
    rows = [{"transcript": TRANSCRIPT, "tags": None},
            {"transcript": "\n\nHuman: [{]\n\nAssistant: no"}]
    for name, text in (("a.jsonl", json.dumps(rows)),
                       ("b.json", "\ufeff" + json.dumps(rows, indent=1)),
                       ("c.jsonl", "[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")):
        (tmp_path / name).write_text(text, encoding="utf-8")
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(text.encode()))
        for path in (tmp_path / name, tmp_path / f"{name}.gz"):
            assert read_prompts(path) == [TALK, [USER | {"content": "[{]"}]]


BAD = [("empty turn", {"messages": [USER, SAID | {"content": " \n"}, USER], "chosen": "a",
                       "rejected": "b"}),
       ("empty turn", {"messages": [USER], "chosen": "", "rejected": "b"}),
       ("empty turn",
        {"chosen": "\n\nHuman: hi\n\nAssistant: a", "rejected": "\n\nHuman: hi\n\nAssistant:"}),
       ("share no prompt",
        {"chosen": "\n\nHuman: hi\n\nAssistant: a", "rejected": "\n\nHuman: ho\n\nAssistant: b"}),
       ("not ending in", {"chosen": TRANSCRIPT, "rejected": TRANSCRIPT}),
       ("not ending in", {"messages": [USER, SAID], "chosen": "a", "rejected": "b"}),
       ("not ending in", {"chosen": "\n\nAssistant: a", "rejected": "\n\nAssistant: b"}),
       ("are equal", {"prompt": "hi", "chosen": "a", "rejected": "a "}),
       ("text before the first turn", {"chosen": "a", "rejected": "b"}),
       ("no user turn", {"chosen": "", "rejected": ""}),
       ("lone surrogate", {"prompt": "\ud800", "chosen": "a", "rejected": "b"}),
       ("a system message inside", {"messages": [USER, {"role": "system", "content": "s"}, USER],
                                    "chosen": "a", "rejected": "b"})]


def test_what_real_data_holds_and_nobody_can_use_is_dropped_and_counted(tmp_path, capsys):
    good = {"prompt": "hi", "chosen": "a", "rejected": "b"}
    path = write(tmp_path / "c.jsonl", good, *[row for _, row in BAD], good)
    assert read_comparisons(path) == [([USER], "a", "b")] * 2
    said = capsys.readouterr().out
    assert f"{path}: 2 of 14 rows used; dropped: 3 x empty turn (first in line 2), 1 x" in said
    assert "3 x not ending in a user turn and an assistant turn (first in line 6)" in said
    for reason, row in BAD:
        with pytest.raises(UserError, match=f"c.jsonl: no row can be used: 1 x .*{reason}"):
            read_comparisons(write(path, row))
    path = write(tmp_path / "p.jsonl", {"prompt": ""}, {"transcript": ""}, {"prompt": "hi"},
                 {"messages": [SAID]})
    assert read_prompts(path) == [[USER]]
    said = capsys.readouterr().out
    assert "1 of 4 rows used; dropped: 1 x empty turn (first in line 1), " \
        "2 x no user turn (first in line 2)" in said
    assert read_prompts(write(path, {"prompt": "hi"})) == [[USER]]
    assert capsys.readouterr().out == f"{path}: 1 of 1 rows used; dropped: none\n"


@pytest.mark.parametrize("row, says", [
    ({"system": "a", "messages": [SYSTEM, USER]}, "two system messages"),
    ({"system": 3, "prompt": "hi"}, "text or null"),
    ({"text": "hi"}, "'messages' is missing, found text"), ({}, "found nothing"),
    ({"messages": "hi"}, "'messages' must be a list"),
    ({"messages": ["hi"]}, "must be a list of .*found 'hi'"),
    ({"messages": [{"role": "user"}]}, "must be a list of"),
    ({"messages": [{"role": "human", "content": "hi"}]}, "system, user or assistant"),
    ({"prompt": None}, "found None"), ({"transcript": [{"role": "user", "content": ["hi"]}]},
                                       "'transcript' must be"), ("{", "not a valid JSON"),
    ("[" * 100000, "not a valid JSON"), ('"hi"', "expected a JSON object, found str")])
def test_an_unknown_shape_is_named_by_path_and_line(tmp_path, row, says):
    path = write(tmp_path / "p.jsonl", {"messages": [USER]}, row)
    with pytest.raises(UserError, match=says) as error:
        read_prompts(path)
    assert str(error.value).startswith(f"{path}:2: ") and "\n" not in str(error.value)


@pytest.mark.parametrize("text, says", [
    ('[\n{"prompt": "hi"},\n{"text": 1}\n]', "3: key 'messages' is missing"),
    ('[{"prompt": "hi"}\n{"prompt": "ho"}]', "2: not a valid"),
    ('[{"prompt": "hi"},\n{"prompt": "h', "2: not a valid"),
    ('[{"prompt": "hi"}]\n\n{}', "3: not a valid"),
    ('[\n\n{"prompt": "hi"},\n\n\n[{}]]', "6: expected a JSON object, found list"),
    ("[]", " no rows")])
def test_in_an_array_too_the_line_is_named(tmp_path, text, says):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        read_prompts(path)
    assert str(error.value).startswith(f"{path}:{says}")


def test_git_lfs_pointers_are_named(tmp_path):
    for name in ("a.jsonl", "a.jsonl.gz"):
        (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid "
                                     "sha256:00\nsize 9\n")
        with pytest.raises(UserError, match=f"{name}: a git-lfs pointer.*git lfs pull"):
            read_prompts(tmp_path / name)


def test_a_comparison_needs_two_answers(tmp_path):
    with pytest.raises(UserError, match="c.jsonl:1: .*'rejected' is missing"):
        read_comparisons(write(tmp_path / "c.jsonl", {"messages": [USER], "chosen": "a"}))


def test_long_prompts_are_dropped_and_counted_never_cut(capsys):
    assert drop_too_long(["a", "b", "c"], [3, 10, 4], 4, "p.jsonl") == ["a", "c"]
    assert "dropped 1 of 3" in capsys.readouterr().out
    with pytest.raises(UserError, match="every one is longer than 2"):
        drop_too_long(["a"], [3], 2, "p.jsonl")


def test_prompts_are_measured_with_the_assistants_header(tmp_path, tok):
    path = write(tmp_path / "p.jsonl", {"messages": [USER]})
    length = len(tok.encode_chat([USER], generation=True)[0])
    assert read_prompts(path, tok, length) == [[USER]]
    with pytest.raises(UserError, match=f"longer than {length - 1} tokens"):
        read_prompts(path, tok, length - 1)


def test_padding_is_on_the_right_and_masked():
    ids, mask = pad_right([[5, 6, 7], [0], [9, 0]])  # id 0 may be a real token: only the mask knows
    assert ids.tolist() == [[5, 6, 7], [0, 0, 0], [9, 0, 0]]
    assert mask.tolist() == [[True, True, True], [True, False, False], [True, True, False]]


def test_batches_hold_every_row_once_and_waste_little():
    lengths = torch.randint(1, 200, (1000,), generator=torch.Generator().manual_seed(0)).tolist()
    batches = batches_by_length(lengths, 32, torch.Generator().manual_seed(0))
    assert sorted(i for b in batches for i in b) == list(range(1000))
    assert max(map(len, batches)) == 32
    padded = sum(len(b) * max(lengths[i] for i in b) for b in batches)
    assert padded < 1.1 * sum(lengths)
    assert batches == batches_by_length(lengths, 32, torch.Generator().manual_seed(0))
    means = [sum(lengths[i] for i in b) / len(b) for b in batches]
    assert means != sorted(means)  # the order of the batches is random


def test_batches_keep_within_a_budget_of_padded_tokens():
    lengths = torch.randint(1, 200, (300,), generator=torch.Generator().manual_seed(0)).tolist() \
        + [5000]
    batches = batches_by_tokens(lengths, 1000)
    assert sorted(i for b in batches for i in b) == list(range(301))
    assert all(len(b) * max(lengths[i] for i in b) <= 1000 for b in batches if b != [300])
    assert [300] in batches


def test_a_row_that_cannot_be_split_into_words_is_too_long(tmp_path, capsys, tok):
    """A regular expression gives up on a million spaces; the other rows are used."""
    white = {"prompt": f"hi{' ' * 10**6}x", "chosen": "a", "rejected": "b"}
    good = {"prompt": "hi", "chosen": "a", "rejected": "b"}
    path = write(tmp_path / "p.jsonl", white, good)
    assert read_prompts(path, tok, 2**20) == [[USER]]
    path = write(tmp_path / "c.jsonl", good, good | {"rejected": white["prompt"]})
    ids_of = lambda *said: answered_ids(tok, *said)
    assert [row[0] for row in read_human([path], ids_of, 2**20)] == [[USER]]
    assert capsys.readouterr().out.count("dropped 1 of 2 that are longer") == 2


def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path):
    row = json.dumps({"prompt": "hi", "chosen": "a", "rejected": "b"})
    files = [tmp_path / name for name in ("one/train.jsonl.gz", "two/train.jsonl.gz", "x.jsonl")]
    for file in files:
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(gzip.compress(row.encode()) if file.suffix == ".gz" else row.encode())
    names = lambda files: [name for *_, name in read_human(files, lambda *_: [], 1)]
    assert names(files) == ["one_train", "two_train", "x"]
    plain = [tmp_path / name for name in ("labels", "others", "one/a.jsonl", "one/a.json")]
    for file in plain:
        file.write_text(row)
    assert names(plain[:2]) == ["labels", "others"]
    assert len(set(names(plain))) == 4                  # none is measured with another one


def test_a_split_leaves_something_to_train_on():
    with pytest.raises(UserError, match="3 comparisons: --held-out 0.1 of the dialogues .1"):
        split([("a", n) for n in range(3)], 0.1, random.Random(0))
    train, held_out = split([("a", 1), ("b", 2), ("b", 3)], 0.1, random.Random(0))
    assert {row[0] for row in train}.isdisjoint(row[0] for row in held_out) and train and held_out


@pytest.mark.parametrize("config, weights", [
    ({}, "score.weight"), ({"architectures": ["LlamaForTokenClassification"]}, None),
    ({"tie_word_embeddings": True}, "lm_head.weight")])
def test_what_no_model_can_be_loaded_from_is_refused_before_the_work(
        tiny_model_dir, tmp_path, config, weights):
    """check_room looks at what load_model looks at, or a run would find out at its end."""
    folder = shutil.copytree(tiny_model_dir, tmp_path / "odd")
    said = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(said | config))
    tensors = load_file(folder / "model.safetensors")
    if weights:
        rows = 1 if weights == "score.weight" else said["vocab_size"]
        tensors[weights] = torch.ones(rows, said["hidden_size"])
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError) as early:
        check_room(folder, 10, ())
    with pytest.raises(UserError) as late:
        load_model(folder)
    assert str(early.value) == str(late.value)
