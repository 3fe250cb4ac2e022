"""Constitutions in both layouts, and what is said about broken ones."""
import copy
import json

import pytest

from minicai.constitution import load_constitution
from minicai.run import UserError

OURS = {"name": "n", "description": "d", "preamble": "p", "critique_revision": [{"critique": "c?", "revision": "r."}],
        "comparison": ["which?"],
        "few_shot": {"critique": ["one", "two"], "comparison": [{"conversation": [{"role": "user", "content": "hi"}],
                                                                 "principle": "q", "better": "b", "worse": "w"}]}}


def write(tmp_path, data):
    path = tmp_path / "c.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data), encoding="utf-8")
    return path


def test_our_layout(tmp_path):
    c = load_constitution(write(tmp_path, OURS))
    assert (c.name, c.preamble, c.comparisons, c.few_shot_critique) == ("n", "p", ["which?"], ["one", "two"])
    assert (c.critiques[0].critique_request, c.critiques[0].revision_request) == ("c?", "r.")
    assert c.few_shot_comparison[0]["better"] == "b"


def test_the_optional_keys_may_be_left_out(tmp_path):
    c = load_constitution(write(tmp_path, {k: OURS[k] for k in ("name", "critique_revision", "comparison")}))
    assert c.preamble == "" and c.few_shot_critique == [] and c.few_shot_comparison == []


def test_the_published_layout_loses_its_wrapping(tmp_path):
    """Made-up text in the shape of the paper's files: strings pre-wrapped, principles ending in " Options:"."""
    pairs = {f"harmful{i}": {"prompt": [f"\n\nCritiqueRequest: Is it rude {i}?\n\nCritique:"],
                             "edit_request": f"\n\nRevisionRequest: Be kind {i}.\n\nRevision:"} for i in range(3)}
    (tmp_path / "CritiqueRevisionInstructions.json").write_text(json.dumps(pairs))
    (tmp_path / "RLMadisonInstructions.json").write_text(json.dumps(["\nPick the kind one. Options:"]))
    c = load_constitution(tmp_path)
    assert [p.critique_request for p in c.critiques] == ["Is it rude 0?", "Is it rude 1?", "Is it rude 2?"]
    assert c.critiques[2].revision_request == "Be kind 2." and c.comparisons == ["Pick the kind one. Options:"]


def broken(**changes):
    data = copy.deepcopy(OURS)
    data.update(changes)
    return {k: v for k, v in data.items() if v is not None}


@pytest.mark.parametrize("data, says", [
    ("{", "not valid JSON"), ("[]", "expected an object"), (broken(extra=1), "unknown key 'extra'"),
    (broken(name=None), "'name' is missing"), (broken(comparison=None), "'comparison' is missing"),
    (broken(comparison="x"), "'comparison' must be a list"), (broken(comparison=[]), "at least one"),
    (broken(comparison=["ok", " "]), r"comparison\[1\]"), (broken(comparison=["ok", 3]), r"comparison\[1\]"),
    (broken(critique_revision=[{"critique": "c"}]), r"critique_revision\[0\].*'revision' is missing"),
    (broken(critique_revision=[{"critique": "c", "revision": "r", "revison": "r"}]), "unknown key 'revison'"),
    (broken(critique_revision=[{"critique": "", "revision": "r"}]), "not empty"),
    (broken(few_shot={"critiques": []}), "unknown key 'critiques'"), (broken(preamble=3), "'preamble' must be a str")])
def test_what_is_wrong_is_said(tmp_path, data, says):
    with pytest.raises(UserError, match=says) as error:
        load_constitution(write(tmp_path, data))
    assert "c.json" in str(error.value) and "\n" not in str(error.value)


def test_a_missing_file_and_a_half_published_directory(tmp_path):
    with pytest.raises(UserError, match="nowhere.json"):
        load_constitution(tmp_path / "nowhere.json")
    with pytest.raises(UserError, match="CritiqueRevisionInstructions.json"):
        load_constitution(tmp_path)
