"""What lies in a folder, is it whole, and what was it made from?

    python -m minicai.lab.doctor out/demo data/base

Looks at every model directory and every run in the folders given, and below them: checksums
against each model's manifest.json, what an unfinished run would go on from, logs and rows that
cannot be read, what killed saves have left. Says of each what made it, and whether its inputs are
still the same. Changes nothing. Exit code 1 if anything is damaged.
"""
import json
from pathlib import Path

from minicai.lab.report import ILL_FORMED
from minicai.run import Parser, UserError, friendly_main, path, read_jsonl, refuse_stand_in
from minicai.state import (
    MANIFEST,
    contents,
    digest,
    leftovers,
    read_manifest,
    read_sampled,
    read_state,
    unfinished,
)


def look(folder: Path) -> list:
    """(place, whether it is whole, what to say of it) of everything in a folder and below it."""
    folders = (p for p in folder.rglob("*") if p.is_dir() and ".minicai-part" not in p.name)
    found, below = [], sorted(folders)
    for place in [folder, *below]:
        for looks in (model, run, rows):
            try:
                if said := looks(place):
                    found.append((place, True, said))
            except UserError as error:
                found.append((place, False, f"DAMAGED: {error}"))
        found += [(left, True, "left by a save that was killed: the next run there removes it")
                  for left in leftovers(place)]
    return found


def model(place: Path) -> str | None:
    """What is to be said of a model directory; None if it is none."""
    if not list(place.glob("*.safetensors")) and not (place / MANIFEST).exists():
        return None
    manifest = read_manifest(place)
    if manifest is None:
        return f"model without {MANIFEST}, not minicai's own: it cannot be told whether it is whole"
    files = contents(place)
    more = {file.name for file in place.iterdir()} - set(files) - {MANIFEST}
    said = [f"model, whole: {len(files)} files as they were written"
            + f" (not among them: {', '.join(sorted(more))})" * bool(more)]
    if made := manifest["made"]:
        said += [f"by {made.get('command')}",
                 f"commit {made.get('commit')}, torch {made.get('torch')}, "
                 f"{made.get('threads')} threads"]
        try:
            said += [f"from {name} {parent['path']} {parent['sha256'][:12]}{still(parent)}"
                     for name, parent in made.get("inputs", {}).items()]
        except (LookupError, TypeError, AttributeError) as error:
            raise UserError(f"{place / MANIFEST}: 'made' is not what minicai writes "
                            f"({type(error).__name__})") from None
    return "\n      ".join(said)


def still(parent: dict) -> str:
    """Whether an input of a model is what it was."""
    try:
        same = digest(parent["path"]) == parent["sha256"]
        return "" if same else "  (there lies something else now)"
    except (OSError, UserError):
        return "  (no longer there, or damaged)"


def run(place: Path) -> str | None:
    """What is to be said of a run's folder; None if it is none."""
    config = place / "config.json"
    if unfinished(place):
        asked, calls, _ = read_sampled(place / "sampled.jsonl")
        state = read_state(place / "state.pt")
        texts = sum(len(rows) for _, rows in calls.values())
        return (f"run, UNFINISHED: {texts} sampled texts, {state['step'] if state else 0} steps; "
                + "its model is of an earlier run; " * config.exists()
                + f"goes on with: {(asked or state['run']).get('command')}")
    refuse_stand_in(config)
    try:
        made = json.loads(config.read_text("utf-8"))
        if "args" not in made:                                  # a model's
            return None
        return f"run, finished in {made['seconds']:.0f} s, seed {made['args']['seed']}"
    except FileNotFoundError:
        return None
    except ILL_FORMED as error:
        raise UserError(f"{config}: cannot be read ({type(error).__name__}: {error})") from None


def rows(place: Path) -> str | None:
    """How many rows the logs of a folder hold, and whether steps are missing;
    None if there are none."""
    said = []
    for file in sorted(place.glob("*.jsonl")):
        if file.name == "sampled.jsonl":
            continue
        found = [row for _, row in read_jsonl(file)]
        said.append(f"{file.name} {len(found)} rows")
        steps = [row.get("step") for row in found]
        if file.name == "metrics.jsonl" and steps != list(range(len(found))):
            raise UserError(f"{file}: steps are missing")
    return ", ".join(said) or None


@friendly_main
def main(argv=None):
    """Look and say."""
    p = Parser(__doc__)
    p.add_argument("folders", nargs="+", type=path, metavar="DIR",
                   help="folders to look at, with all that is in them")
    folders = p.parse_args(argv).folders
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder")
    found = [each for folder in folders for each in look(folder)]
    for place, _, said in found:
        print(f"{place}\n   {said}")
    damaged = sum(not whole for _, whole, _ in found)
    print(f"\n{len(found)} things looked at, {damaged} damaged")
    if damaged:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
