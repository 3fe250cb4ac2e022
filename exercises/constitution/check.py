"""The form of a constitution and its control (install.py writes both where they can be used)."""

import json
import re
import tempfile
from difflib import SequenceMatcher
from pathlib import Path

from minicai.constitution import load_constitution
from minicai.run import UserError

SHIPPED = Path(__file__).parents[2] / "constitutions"


def read(entry: dict, name: str):
    """The constitution as the scripts read it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "c.json"
        path.write_text(json.dumps(entry), encoding="utf-8")
        try:
            return load_constitution(path)
        except UserError as error:
            raise AssertionError(str(error).replace(f"{path}:", f'mine.json, "{name}":')) from None


def sentences(entry: dict, name: str) -> list:
    """All sentences of a constitution, in order."""
    found = read(entry, name)
    return [
        text for p in found.critiques for text in (p.critique_request, p.revision_request)
    ] + found.comparisons


def check_form(mine):
    """both can be read, and hold at least four pairs and four comparison principles"""
    for name in ("constitution", "control"):
        found = read(mine[name], name)
        assert len(found.critiques) >= 4 and len(found.comparisons) >= 4, f"{name}: too few"
        texts = sentences(mine[name], name)
        assert len(set(texts)) == len(texts), f"{name}: a sentence stands twice"


def check_the_control_is_a_control(mine):
    """each sentence of the control is its twin with other words in the same frame"""
    both = [sentences(mine[name], name) for name in ("constitution", "control")]
    pairs = list(zip(*both))
    assert pairs and len(both[0]) == len(both[1]), "not equally many sentences"
    for a, b in pairs:
        words = [re.findall(r"\w+", text.lower()) for text in (a, b)]
        assert words[0] != words[1], f"the same in both: {a!r}"
        assert SequenceMatcher(None, *words).ratio() >= 0.6, f"another frame: {a!r} and {b!r}"


def check_it_is_your_own(mine):
    """it asks for something that no shipped constitution asks for in these words"""
    texts = set(sentences(mine["constitution"], "constitution"))
    for path in SHIPPED.glob("*.json"):
        theirs = json.loads(path.read_text(encoding="utf-8"))
        if path.stem not in ("mine", "mine_control") and texts <= set(sentences(theirs, path.stem)):
            raise AssertionError(f"every sentence stands in {path.name}")
    check_the_control_is_a_control(mine)
