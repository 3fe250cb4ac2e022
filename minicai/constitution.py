"""A constitution: the only human judgement about harm that reaches training.

It holds pairs of (critique request, revision request) for the supervised stage and comparison principles for the
preference stage (Bai et al. 2022, sections 3.1 and 4.1; 16 of each there). Constitutions are data: change the file,
change the model. Two layouts are read: our own JSON (see constitutions/) and a directory with the files of the
paper's artifact repository, which minicai does not copy because they carry no licence.
"""
import json
from dataclasses import dataclass
from pathlib import Path

from minicai.run import UserError


@dataclass(frozen=True)
class Principle:
    """One request to criticise and the matching request to revise: bare sentences, without the format around them."""
    critique_request: str
    revision_request: str


@dataclass(frozen=True)
class Constitution:
    """Everything the two stages ask a model; `preamble` opens every critique context and may be empty."""
    name: str
    preamble: str
    critiques: list                     # of Principle
    comparisons: list                   # of str: which of two responses is better?
    few_shot_critique: list             # of str: whole worked critiques and revisions, as text
    few_shot_comparison: list           # of {"conversation": messages, "principle", "better", "worse"}


# The schema of our own files: key -> (type, required). Anything else is refused by name: a misspelt key must not
# quietly leave a principle out.
TOP = {"name": (str, True), "description": (str, False), "preamble": (str, False), "critique_revision": (list, True),
       "comparison": (list, True), "few_shot": (dict, False)}
PAIR = {"critique": (str, True), "revision": (str, True)}
SHOTS = {"critique": (list, False), "comparison": (list, False)}
SHOT = {"conversation": (list, True), "principle": (str, True), "better": (str, True), "worse": (str, True)}


def load_constitution(path) -> Constitution:
    """Read our JSON file, or a directory with the paper's published files; UserError says what is wrong."""
    path = Path(path)
    if path.is_dir():
        return _load_published(path)
    data = _read_json(path)
    _check(data, TOP, str(path))
    for i, pair in enumerate(data["critique_revision"]):
        _check(pair, PAIR, f"{path}: critique_revision[{i}]")
    for i, text in enumerate(data["comparison"]):
        _check_text(text, f"{path}: comparison[{i}]")
    shots = data.get("few_shot", {})
    _check(shots, SHOTS, f"{path}: few_shot")
    for i, text in enumerate(shots.get("critique", [])):
        _check_text(text, f"{path}: few_shot.critique[{i}]")
    for i, shot in enumerate(shots.get("comparison", [])):
        _check(shot, SHOT, f"{path}: few_shot.comparison[{i}]")
    if not data["critique_revision"] or not data["comparison"]:
        raise UserError(f"{path}: critique_revision and comparison each need at least one entry")
    return Constitution(data["name"], data.get("preamble", ""),
                        [Principle(p["critique"], p["revision"]) for p in data["critique_revision"]],
                        list(data["comparison"]), list(shots.get("critique", [])), list(shots.get("comparison", [])))


def _load_published(folder: Path) -> Constitution:
    """The paper's own files: their strings come wrapped in the wire format, which critique.py puts on again."""
    pairs = _read_json(folder / "CritiqueRevisionInstructions.json")
    comparisons = _read_json(folder / "RLMadisonInstructions.json")
    try:
        critiques = [Principle(_between(p["prompt"][0], "CritiqueRequest:", "Critique:"),
                               _between(p["edit_request"], "RevisionRequest:", "Revision:")) for p in pairs.values()]
        comparisons = [c.strip() for c in comparisons]          # ending in "Options:", as feedback.py allows
    except (AttributeError, KeyError, IndexError, TypeError) as error:
        raise UserError(f"{folder}: not in the published format ({type(error).__name__}: {error})") from None
    return Constitution(folder.name, "", critiques, comparisons, [], [])


def _between(text: str, start: str, end: str) -> str:
    return text.strip().removeprefix(start).removesuffix(end).strip()


def _read_json(path: Path):
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; give the path of a constitution (see constitutions/)") from None
    except ValueError as error:                                  # broken JSON and broken UTF-8 are both ValueErrors
        raise UserError(f"{path}: not valid JSON ({error})") from None


def _check(data, schema: dict, where: str):
    if not isinstance(data, dict):
        raise UserError(f"{where}: expected an object with the keys {', '.join(schema)}")
    for key in data:
        if key not in schema:
            raise UserError(f"{where}: unknown key {key!r}; known: {', '.join(schema)}")
    for key, (kind, required) in schema.items():
        if required and key not in data:
            raise UserError(f"{where}: key {key!r} is missing")
        if key in data and not isinstance(data[key], kind):
            raise UserError(f"{where}: {key!r} must be a {kind.__name__}, found {type(data[key]).__name__}")
        if required and kind is str:
            _check_text(data[key], f"{where}: {key!r}")


def _check_text(text, where: str):
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"{where}: expected a text that is not empty")
