"""A constitution: the only human judgement about harm in the three stages.

It holds pairs of (critique request, revision request) for the supervised stage and comparison
principles for the preference stage (Bai et al. 2022, sections 3.1 and 4.1; 16 of each there).
Constitutions are data: change the file, change the model. Two layouts are read: our own JSON (see
constitutions/) and a directory with the files of the paper's artifact repository, which minicai
does not copy because they carry no licence.
"""
import itertools
import json
import random
import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from minicai.data import Unusable, read_prompt, read_transcript
from minicai.run import UserError, refuse_stand_in, visible


@dataclass(frozen=True)
class Principle:
    """One request to criticise and the matching request to revise:
    bare sentences, without the format around them."""
    critique_request: str
    revision_request: str


@dataclass(frozen=True)
class Constitution:
    """Everything the two stages ask a model;
    `preamble` opens every critique context and may be empty."""
    name: str
    preamble: str
    critiques: list                     # of Principle
    comparisons: list                   # of str: which of two responses is better?
    few_shot_critique: list             # of str: whole worked critiques and revisions, as text
    # Of {"conversation": messages, "principle", "better", "worse", "thought"}.
    few_shot_comparison: list


# The schema of our own files; a key with "?" may be left out.
# Anything else is refused by name: a misspelt key must not quietly leave a principle out.
SHOT = {"conversation": [dict], "principle": str, "thought?": str, "better": str, "worse": str}
SCHEMA = {"name": str, "description?": str, "preamble?": str,
          "critique_revision": [{"critique": str, "revision": str}],
          "comparison": [str], "few_shot?": {"critique?": [str], "comparison?": [SHOT]}}
# The published files, of which other keys are nobody's business.
PAIR = {"prompt": [str], "edit_request": str}
COMPARED = {"prompt": str, "corrects": [str], "incorrects": [str]}
WORKED = ("Human", "Assistant", "CritiqueRequest", "Critique", "RevisionRequest", "Revision")


def load_constitution(path) -> Constitution:
    """Read our JSON file, or a directory with the paper's published files;
    UserError says what is wrong."""
    path = Path(path)
    found = _load_published(path) if path.is_dir() else _load_ours(path)
    if not found.critiques or not found.comparisons:
        raise UserError(f"{path}: it needs at least one pair of critique and revision, "
                        "and one comparison principle")
    return found


def draw_critiques(constitution: Constitution, count: int, seed: int) -> Constitution:
    """The same with `count` distinct pairs of critique and revision, drawn by `seed` (section 3.4
    of the paper varies their number); a smaller draw is a part of a larger one. Raises UserError if
    there are fewer."""
    distinct = list(dict.fromkeys(constitution.critiques))
    if count > len(distinct):
        raise UserError(f"--principles {count}: {constitution.name} has {len(distinct)} distinct "
                        "pairs of critique and revision")
    random.Random(f"{seed} principles").shuffle(distinct)
    return replace(constitution, critiques=distinct[:count])


def _load_ours(path: Path) -> Constitution:
    """Our own JSON, checked against SCHEMA."""
    data = _read_json(path)
    _check(data, SCHEMA, f"{path}:")
    shots = {"critique": [], "comparison": []} | (data.get("few_shot") or {})
    for i, text in enumerate(shots["critique"]):
        parts = r"\n\n".join(f"{tag}: .+" for tag in WORKED)
        if not re.fullmatch(parts, text.strip(), re.DOTALL) \
                or any(text.count(f"\n\n{tag}:") != 1 for tag in WORKED[2:]):
            raise UserError(f"{path}: few_shot critique[{i}] must have the parts "
                            f"{', '.join(WORKED)}, in order, the last four once")
    for i, shot in enumerate(shots["comparison"]):
        where = f"{path}: few_shot comparison[{i}]: conversation"
        try:
            asked = read_prompt({"messages": shot["conversation"]}, where)
        except Unusable as error:
            raise UserError(f"{where}: {error}") from None
        if shot["conversation"][-1]["role"] != "user":
            raise UserError(f"{where}: it must end with what the user says")
        shot["conversation"] = asked
        if re.search(r"\([AB]\)|\{(?!better\}|worse\})\w+\}", shot.get("thought", "")):
            raise UserError(f"{path}: few_shot comparison[{i}]: thought: write {{better}} and "
                            "{worse}, not (A), (B) or other names: which is (A) is drawn")
    return Constitution(data["name"], data.get("preamble", ""),
                        [Principle(p["critique"], p["revision"])
                         for p in data["critique_revision"]],
                        data["comparison"], shots["critique"], shots["comparison"])


def _load_published(folder: Path) -> Constitution:
    """The paper's own files: strings come wrapped in the wire format;
    worked comparisons get a principle by turns."""
    pairs = _read_json(folder / "CritiqueRevisionInstructions.json")
    comparisons = _read_json(folder / "RLMadisonInstructions.json")
    worked, compared = (_read_json(folder / name) if (folder / name).exists() else [] for name in
                        ("CritiqueRevisionFewShotPrompts.json", "RLMadisonFewShotPrompts.json"))
    odd = f"{folder}: not in the published format:"
    _check(pairs, dict, f"{odd} CritiqueRevisionInstructions.json")
    for name, pair in pairs.items():
        _check(pair, PAIR, f"{odd} {name}", others=True)
    _check(comparisons, [str], f"{odd} RLMadisonInstructions.json")
    _check(worked, [str], f"{odd} CritiqueRevisionFewShotPrompts.json")
    _check(compared, [COMPARED], f"{odd} RLMadisonFewShotPrompts.json", others=True)
    try:
        critiques = [Principle(_between(p["prompt"][0], "CritiqueRequest:", "Critique:"),
                               _between(p["edit_request"], "RevisionRequest:", "Revision:"))
                     for p in pairs.values()]
        # Ending in "Options:", as feedback.py allows.
        comparisons = [c.strip() for c in comparisons]
        worked = [text.replace("\r\n", "\n").strip() for text in worked]
        for n, text in enumerate(worked):
            try:
                read_transcript(re.split(r"\n\n(?:Critique|Revision)Request:", text)[0])
            except Unusable as error:
                raise UserError(f"CritiqueRevisionFewShotPrompts.json[{n}]: {error}") from None
        shots = [{"conversation": read_prompt({"transcript": shot["prompt"]}, folder),
                  "principle": principle,
                  "better": shot["corrects"][0], "worse": shot["incorrects"][0]}
                 for shot, principle in zip(compared, itertools.cycle(comparisons))]
    except IndexError:
        raise UserError(f"{odd} a list of prompts or answers is empty") from None
    except UserError as error:
        raise UserError(f"{odd} {error}") from None
    requests = [text for p in critiques for text in (p.critique_request, p.revision_request)]
    _check(requests, [str], f"{folder}: requests")
    return Constitution(folder.name, "", critiques, comparisons, worked, shots)


def _between(text: str, start: str, end: str) -> str:
    return text.strip().removeprefix(start).removesuffix(end).strip()


def _once(pairs: list) -> dict:
    """A JSON object, whose keys must not come twice: the first value would be lost unseen."""
    if twice := [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]:
        raise ValueError(f"the key {twice[0]!r} comes twice")
    return dict(pairs)


def _read_json(path: Path):
    refuse_stand_in(path)
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_once)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; give the path of a constitution "
                        "(see constitutions/)") from None
    except (ValueError, RecursionError) as error:
        # Broken JSON and broken UTF-8 are both ValueErrors.
        raise UserError(f"{path}: not valid JSON ({error})") from None


def _check(data, schema, where: str, others: bool = False):
    """Raise UserError, which names the place, unless `data` is made as `schema` says;
    `others`: more keys may stand."""
    kind = schema if isinstance(schema, type) else type(schema)
    if not isinstance(data, kind) or kind is str and not visible(data):
        name = {dict: "an object", list: "a list", str: "a text"}[kind]
        raise UserError(f"{where} must be {name}, and not empty, found {data!r:.40}")
    if kind is str and (half := re.search("[\ud800-\udfff]", data)):
        raise UserError(f"{where} holds half a character ({half[0]!r}, a lone surrogate)")
    for i, item in enumerate(data if isinstance(schema, list) else []):
        _check(item, schema[0], f"{where}[{i}]", others)
    if isinstance(schema, dict):
        names = {key.rstrip("?"): key for key in schema}
        for key in data if not others else ():
            if key not in names:
                raise UserError(f"{where} unknown key {key!r}; known: {', '.join(names)}")
        for name, key in names.items():
            if name in data and (name == key or data[name] != ""):
                _check(data[name], schema[key], f"{where} {name}")
            elif name == key:
                raise UserError(f"{where} key {name!r} is missing")
