"""The form of a constitution and its control; writes both where they can be used."""

import json
import re
import tempfile
from difflib import SequenceMatcher
from pathlib import Path

from minicai.constitution import load_constitution

SHIPPED = Path(__file__).parents[2] / "constitutions"


def read(entry: dict):
    """The constitution as the scripts read it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "c.json"
        path.write_text(json.dumps(entry), encoding="utf-8")
        return load_constitution(path)


def sentences(entry: dict) -> list:
    """All sentences of a constitution, in order."""
    found = read(entry)
    return [
        text for p in found.critiques for text in (p.critique_request, p.revision_request)
    ] + found.comparisons


def check_form(mine):
    """both can be read, and hold at least four pairs and four comparison principles"""
    for name in ("constitution", "control"):
        found = read(mine[name])
        assert len(found.critiques) >= 4 and len(found.comparisons) >= 4, f"{name}: too few"
        texts = sentences(mine[name])
        assert len(set(texts)) == len(texts), f"{name}: a sentence stands twice"


def check_the_control_is_a_control(mine):
    """each sentence of the control is its twin with other words in the same frame"""
    pairs = list(zip(sentences(mine["constitution"]), sentences(mine["control"])))
    assert pairs and len(sentences(mine["constitution"])) == len(sentences(mine["control"])), (
        "not equally many sentences"
    )
    for a, b in pairs:
        words = [re.findall(r"\w+", text.lower()) for text in (a, b)]
        assert words[0] != words[1], f"the same in both: {a!r}"
        assert SequenceMatcher(None, *words).ratio() >= 0.6, f"another frame: {a!r} and {b!r}"


def check_it_is_your_own(mine):
    """it asks for something that no shipped constitution asks for in these words"""
    texts = set(sentences(mine["constitution"]))
    for path in SHIPPED.glob("*.json"):
        theirs = json.loads(path.read_text(encoding="utf-8"))
        if path.stem not in ("mine", "mine_control") and texts <= set(sentences(theirs)):
            raise AssertionError(f"every sentence stands in {path.name}")
    check_the_control_is_a_control(mine)
