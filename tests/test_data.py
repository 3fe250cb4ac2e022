"""Files of dialogues and batches of rows."""
import json

import pytest
import torch

from minicai.data import batches_by_length, batches_by_tokens, fitting, pad_right, read_comparisons, read_prompts
from minicai.run import UserError

USER = {"role": "user", "content": "hi"}


def write(path, *rows):
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8")
    return path


def test_prompts_and_comparisons(tmp_path):
    talk = [USER, {"role": "assistant", "content": "yes?"}, USER]
    path = write(tmp_path / "p.jsonl", {"messages": [USER], "group": "other keys are ignored"}, {"messages": talk})
    assert read_prompts(path) == [[USER], talk]
    path = write(tmp_path / "c.jsonl", {"messages": [USER], "chosen": "a", "rejected": "b"})
    assert read_comparisons(path) == [([USER], "a", "b")]


@pytest.mark.parametrize("row, says", [
    ({"prompt": "hi"}, "'messages' is missing, found prompt"), ({"messages": []}, "list of turns"),
    ({"messages": ["hi"]}, "a turn must be"), ({"messages": [{"role": "user"}]}, "a turn must be"),
    ({"messages": [{"role": "human", "content": "hi"}]}, "unknown role"), ({"messages": [{"role": "user", "content": " "}]}, "empty"),
    ({"messages": [USER, {"role": "assistant", "content": "x"}]}, "last turn must be the user's"), ("{", "not a valid JSON")])
def test_a_bad_row_is_named_by_path_and_line(tmp_path, row, says):
    path = write(tmp_path / "p.jsonl", {"messages": [USER]}, row)
    with pytest.raises(UserError, match=says) as error:
        read_prompts(path)
    assert str(error.value).startswith(f"{path}:2: ")


@pytest.mark.parametrize("row", [{"messages": [USER], "chosen": "a"}, {"messages": [USER], "chosen": "a", "rejected": ""}])
def test_a_comparison_needs_two_texts(tmp_path, row):
    with pytest.raises(UserError, match="c.jsonl:1: .*rejected"):
        read_comparisons(write(tmp_path / "c.jsonl", row))


def test_long_prompts_are_dropped_and_counted_never_cut(capsys):
    assert fitting(["a", "b", "c"], [3, 10, 4], 4, "p.jsonl") == ["a", "c"]
    assert "dropped 1 of 3" in capsys.readouterr().out
    with pytest.raises(UserError, match="every one is longer than 2"):
        fitting(["a"], [3], 2, "p.jsonl")


def test_padding_is_on_the_right_and_masked():
    ids, mask = pad_right([[5, 6, 7], [0], [9, 0]])                     # id 0 may be a real token: only the mask knows
    assert ids.tolist() == [[5, 6, 7], [0, 0, 0], [9, 0, 0]]
    assert mask.tolist() == [[True, True, True], [True, False, False], [True, True, False]]


def test_batches_hold_every_row_once_and_waste_little():
    lengths = torch.randint(1, 200, (1000,), generator=torch.Generator().manual_seed(0)).tolist()
    batches = batches_by_length(lengths, 32, torch.Generator().manual_seed(0))
    assert sorted(i for b in batches for i in b) == list(range(1000)) and max(map(len, batches)) == 32
    padded = sum(len(b) * max(lengths[i] for i in b) for b in batches)
    assert padded < 1.1 * sum(lengths)
    assert batches == batches_by_length(lengths, 32, torch.Generator().manual_seed(0))
    means = [sum(lengths[i] for i in b) / len(b) for b in batches]
    assert means != sorted(means)                                       # the order of the batches is random


def test_batches_keep_within_a_budget_of_padded_tokens():
    lengths = torch.randint(1, 200, (300,), generator=torch.Generator().manual_seed(0)).tolist() + [5000]
    batches = batches_by_tokens(lengths, 1000)
    assert sorted(i for b in batches for i in b) == list(range(301))
    assert all(len(b) * max(lengths[i] for i in b) <= 1000 for b in batches if b != [300]) and [300] in batches
