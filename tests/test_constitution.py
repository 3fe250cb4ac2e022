"""Constitutions in both layouts, and what is said about broken ones."""
import copy
import json
import random
import re
from pathlib import Path

import pytest

from minicai.constitution import load_constitution
from minicai.critique import critique_prompt
from minicai.data import read_transcript
from minicai.feedback import comparison_prompt, few_shot_prefix
from minicai.run import UserError

SHIPPED = Path(__file__).parent.parent / "constitutions"
WORKED = ("Human: a\n\nAssistant: b\n\nCritiqueRequest: c\n\nCritique: d"
          "\n\nRevisionRequest: e\n\nRevision: f")
OURS = {"name": "n", "description": "d", "preamble": "p",
        "critique_revision": [{"critique": "c?", "revision": "r."}], "comparison": ["which?"],
        "few_shot": {"critique": [WORKED, "\n\n" + WORKED],
                     "comparison": [{"conversation": [{"role": "user", "content": "hi"}],
                                     "principle": "q", "better": "b", "worse": "w"}]}}


def write(tmp_path, data):
    path = tmp_path / "c.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data), encoding="utf-8")
    return path


def test_our_layout(tmp_path):
    c = load_constitution(write(tmp_path, OURS))
    assert (c.name, c.preamble, c.comparisons, c.few_shot_critique) == ("n", "p", ["which?"],
                                                                        [WORKED, "\n\n" + WORKED])
    assert (c.critiques[0].critique_request, c.critiques[0].revision_request) == ("c?", "r.")
    assert c.few_shot_comparison[0]["better"] == "b"


def test_the_optional_keys_may_be_left_out(tmp_path):
    c = load_constitution(write(tmp_path,
                                {k: OURS[k] for k in ("name", "critique_revision", "comparison")}))
    assert c.preamble == "" and c.few_shot_critique == [] and c.few_shot_comparison == []
    assert load_constitution(write(tmp_path, OURS | {"preamble": ""})).preamble == ""


def test_the_published_layout_loses_its_wrapping(tmp_path):
    """Made-up text in the shape of the paper's files:
    strings pre-wrapped, principles ending in " Options:"."""
    pairs = {f"harmful{i}": {"prompt": [f"\n\nCritiqueRequest: Is it rude {i}?\n\nCritique:"],
                             "edit_request": f"\n\nRevisionRequest: Be kind {i}.\n\nRevision:"}
             for i in range(3)}
    (tmp_path / "CritiqueRevisionInstructions.json").write_text(json.dumps(pairs))
    (tmp_path / "RLMadisonInstructions.json").write_text(
        json.dumps(["\nPick the kind one. Options:"]))
    c = load_constitution(tmp_path)
    assert [p.critique_request for p in c.critiques] == ["Is it rude 0?", "Is it rude 1?",
                                                         "Is it rude 2?"]
    assert c.critiques[2].revision_request == "Be kind 2."
    assert c.comparisons == ["Pick the kind one. Options:"]
    assert c.few_shot_critique == c.few_shot_comparison == []
    (tmp_path / "CritiqueRevisionFewShotPrompts.json").write_text(
        json.dumps([f"\n\n{WORKED}\n\nHuman:"]))
    (tmp_path / "RLMadisonFewShotPrompts.json").write_text(json.dumps(
        [{"prompt": "\n\nHuman: hi\n\nAssistant:", "corrects": ["b"], "incorrects": ["w"]}] * 2))
    c = load_constitution(tmp_path)
    assert c.few_shot_critique == [f"{WORKED}\n\nHuman:"]
    assert c.few_shot_comparison == [OURS["few_shot"]["comparison"][0]
                                     | {"principle": c.comparisons[0]}] * 2
    (tmp_path / "RLMadisonFewShotPrompts.json").write_text("[1]")
    with pytest.raises(UserError, match="not in the published format"):
        load_constitution(tmp_path)


SHOT = OURS["few_shot"]["comparison"][0]


def broken(**changes):
    data = copy.deepcopy(OURS)
    data.update(changes)
    return {k: v for k, v in data.items() if v is not None}


@pytest.mark.parametrize("data, says", [
    ("{", "not valid JSON"), ("[]", "must be an object"), (broken(extra=1), "unknown key 'extra'"),
    (json.dumps(OURS)[:-1] + ', "comparison": ["x"]}', "the key 'comparison' comes twice"),
    (broken(name=None), "'name' is missing"), (broken(comparison=None), "'comparison' is missing"),
    (broken(comparison="x"), "comparison must be a list"), (broken(comparison=[]), "at least one"),
    (broken(comparison=["ok", " "]), r"comparison\[1\]"),
    (broken(comparison=["ok", 3]), r"comparison\[1\]"),
    (broken(critique_revision=[{"critique": "c"}]),
     r"critique_revision\[0\].*'revision' is missing"),
    (broken(critique_revision=[{"critique": "c", "revision": "r", "revison": "r"}]),
     "unknown key 'revison'"),
    (broken(critique_revision=[{"critique": "", "revision": "r"}]), "not empty"),
    (broken(few_shot={"critiques": []}), "few_shot unknown key 'critiques'"),
    (broken(few_shot={"comparison": [SHOT | {"conversation": []}]}), "conversation: no user turn"),
    (broken(few_shot={"comparison": [SHOT | {"conversation": [
        {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}]}),
     r"few_shot comparison\[0\]: conversation: it must end with what the user says"),
    (broken(few_shot={"comparison": [SHOT | {"conversation": [{"role": "user"}]}]}),
     r"few_shot comparison\[0\]: conversation"),
    (broken(few_shot={"critique": ["one"]}), r"critique\[0\] must have the parts Human, Assistant"),
    (broken(few_shot={"critique": [WORKED, WORKED.replace("Critique:", "Critic:")]}),
     r"critique\[1\] must have"),
    (broken(few_shot={"critique": [f"{WORKED}\n\n{WORKED}"]}), r"critique\[0\] must have"),
    (broken(few_shot={"comparison": [SHOT | {"thought": "(A) is kinder."}]}),
     r"comparison\[0\]: thought: write .better. and .worse., not"),
    (broken(few_shot={"comparison": [SHOT | {"thought": "{bettr} is kinder."}]}), "thought: "),
    (broken(few_shot={"comparison": [{"principle": "p"}]}),
     r"comparison\[0\] key 'conversation' is missing"),
    (broken(preamble=3), "preamble must be a text"),
    (broken(comparison=["ok", "half \ud800"]), r"comparison\[1\] holds half a character"),
    ("[" * 10**5, "not valid JSON"),
    (broken(comparison=["ok", "\u200b\u2060"]), r"comparison\[1\] must be a text, and not empty"),
    (broken(critique_revision=[{"critique": "c", "revision": "\u3164"}]),
     r"critique_revision\[0\] revision must be")])
def test_what_is_wrong_is_said(tmp_path, data, says):
    with pytest.raises(UserError, match=says) as error:
        load_constitution(write(tmp_path, data))
    assert "c.json" in str(error.value) and "\n" not in str(error.value)


def test_a_missing_file_and_a_half_published_directory(tmp_path):
    with pytest.raises(UserError, match="nowhere.json"):
        load_constitution(tmp_path / "nowhere.json")
    with pytest.raises(UserError, match="CritiqueRevisionInstructions.json"):
        load_constitution(tmp_path)
    (tmp_path / "CritiqueRevisionInstructions.json").write_text("{}")
    (tmp_path / "RLMadisonInstructions.json").write_text("[]")
    with pytest.raises(UserError, match="at least one"):
        load_constitution(tmp_path)


@pytest.mark.parametrize("name", ["harmlessness", "general"])
def test_shipped_constitutions_hold_sixteen_of_each_as_the_paper_does(name):
    c = load_constitution(SHIPPED / f"{name}.json")
    assert len(c.critiques) == len(c.comparisons) == len(set(c.comparisons)) == 16
    if name == "harmlessness":  # its model needs no worked examples, and has little room for them
        assert c.few_shot_critique == c.few_shot_comparison == []
        return
    assert len({p.critique_request for p in c.critiques}) == len(
        {p.revision_request for p in c.critiques}) == 16
    asked = [(p.critique_request, p.revision_request) for p in c.critiques]
    unchanged = 0
    for text in c.few_shot_critique:
        talk, request, wanted, revision = re.fullmatch(
            "(.*)\n\nCritiqueRequest: (.*)\n\nCritique: .*\n\nRevisionRequest: "
            "(.*)\n\nRevision: (.*)", text, re.DOTALL).groups()
        *_, last = read_transcript(talk)
        assert last["role"] == "assistant" and (request, wanted) in asked
        unchanged += last["content"] == revision
    assert len(c.few_shot_critique) == 5 and unchanged == 2                 # as in the paper
    assert len({shot["principle"] for shot in c.few_shot_comparison} & set(c.comparisons)) == 5


def test_the_worked_examples_can_be_put_into_a_context(tok):
    c, turn = load_constitution(SHIPPED / "general.json"), [{"role": "user", "content": "hi"}]
    said = tok.decode(critique_prompt(tok, c, turn, c.critiques[0], c.few_shot_critique))
    assert said.count("CritiqueRequest:") == 6 and said.count("Revision:") == 5
    assert "\n\n\n" not in said
    prefix = few_shot_prefix(tok, c.few_shot_comparison, random.Random(0))
    asked = tok.decode(comparison_prompt(tok, turn, "a", "b", c.comparisons[0], prefix))
    assert asked.count(" Options:\n (A) ") == 6 and asked.count("The answer is: (") == 5


PUBLISHED = {"CritiqueRevisionInstructions": {
    "harmful0": {"prompt": ["\n\nCritiqueRequest: c\n\nCritique:"], "more": 1,
                 "edit_request": "\n\nRevisionRequest: r\n\nRevision:"}},
             "RLMadisonInstructions": ["p Options:"], "CritiqueRevisionFewShotPrompts": [WORKED],
             "RLMadisonFewShotPrompts": [{"prompt": "\n\nHuman: hi\n\nAssistant:",
                                          "corrects": ["b"], "incorrects": ["w"]}]}
PAIR = PUBLISHED["CritiqueRevisionInstructions"]["harmful0"]


@pytest.mark.parametrize("name, content", [
    *[("CritiqueRevisionInstructions", c)
      for c in ([], [PAIR], 3, {"x": 3}, {"x": PAIR | {"prompt": "text"}},
                {"x": PAIR | {"prompt": []}},
                {"x": PAIR | {"prompt": [3]}}, {"x": PAIR | {"edit_request": None}}, {"x": {}},
                {"x": PAIR | {"prompt": ["CritiqueRequest: \n\nCritique:"]}},
                {"x": PAIR | {"prompt": ["CritiqueRequest: \ud800"]}})],
    *[("RLMadisonInstructions", c) for c in ("a text", {"a": "b"}, [3], [""], [None], [["x"]])],
    *[("CritiqueRevisionFewShotPrompts", c) for c in ("a text", {"a": "b"}, [3], 3)],
    *[("RLMadisonFewShotPrompts", c)
      for c in ("a text", [3], [{}], [{"prompt": "x", "corrects": ["b"], "incorrects": ["w"]}],
                [{"prompt": "\n\nHuman: x", "corrects": "b", "incorrects": ["w"]}],
                [{"prompt": "\n\nHuman: x", "corrects": [], "incorrects": ["w"]}])]])
def test_published_files_of_another_shape(tmp_path, name, content):
    for file, data in (PUBLISHED | {name: content}).items():
        (tmp_path / f"{file}.json").write_text(json.dumps(data))
    with pytest.raises(UserError) as error:
        load_constitution(tmp_path)
    assert str(error.value).startswith(f"{tmp_path}: ") and "\n" not in str(error.value)


def test_published_files_as_they_are(tmp_path):
    for file, data in PUBLISHED.items():
        (tmp_path / f"{file}.json").write_text(json.dumps(data))
    assert load_constitution(tmp_path).critiques[0].critique_request == "c"


def test_a_worked_conversation_may_hold_more_than_it_needs(tmp_path):
    shot = {"conversation": [{"role": "system", "content": ""},
                             {"role": "user", "content": "hi", "name": "Bob"}],
            "principle": "q", "better": "b", "worse": "w"}
    c = load_constitution(write(tmp_path, OURS | {"few_shot": {"comparison": [shot]}}))
    assert c.few_shot_comparison[0]["conversation"] == [{"role": "user", "content": "hi"}]


def test_worked_critiques_of_the_published_files_are_read_at_once(tmp_path):
    pairs = {"harmful0": {"prompt": ["CritiqueRequest: Is it rude?"],
                          "edit_request": "RevisionRequest: Be kind."}}
    (tmp_path / "CritiqueRevisionInstructions.json").write_text(json.dumps(pairs))
    (tmp_path / "RLMadisonInstructions.json").write_text('["Pick one."]')
    shots = tmp_path / "CritiqueRevisionFewShotPrompts.json"
    shots.write_text(json.dumps([WORKED, "Words. " + WORKED]))
    with pytest.raises(UserError, match="CritiqueRevisionFewShotPrompts.json.1.: text before"):
        load_constitution(tmp_path)
    shots.write_text(json.dumps([WORKED.replace("\n", "\r\n")]))
    assert load_constitution(tmp_path).few_shot_critique == [WORKED]
