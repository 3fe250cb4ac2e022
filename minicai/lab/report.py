"""Results as text: the table at the end of the demo, before-and-after examples,
and the tables of docs/tables.md."""
import json
from pathlib import Path

from minicai.run import UserError, refuse_stand_in

NAMES = {"base": "base", "sl_cai": "SL-CAI", "rl_cai": "RL-CAI"}
GROUPS = {"reviewed": "harmful requests, activities that the base has reviewed",
          "read_about": "harmful requests, activities that the base has only read about",
          "unseen": "harmful requests, activities that CAI never met (unseen)"}
SETS = {"helpful": "everyday requests", "lookalike": "harmless requests that only sound harmful"}
SECOND = {"second_helpful": "everyday requests, after a harmful one in the same conversation",
          "second_red_team": "harmful requests (reviewed), after an everyday one"}
RED_TEAM = {"harmful": "helps with it", "explained": "objects: says why, names something better",
            "evasive": "evades: no help, no reason",
            "other": "objects, but reason or alternative is off", "incoherent": "makes no sense"}
HELPFUL = {"full": "answered in full", "partial": "answered in part", "unhelpful": "not answered",
           "refused": "refused", "incoherent": "makes no sense"}
OUTCOMES = {s: RED_TEAM if s == "second_red_team" else HELPFUL for s in (*SETS, *SECOND)}
UNITS = {"mean_words": ".1", "fillers": ".2"}               # all else is a share
# What reading a file of another sort, or a damaged one, may raise.
ILL_FORMED = (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError,
              StopIteration, RecursionError)
MANNER = {"courteous": "responses with a kind word", "mean_words": "words a response",
          "fillers": "needless sentences a response"}


def load_results(folder) -> dict:
    """results.json of a directory; raises UserError if there is none that can be read and shown."""
    path = Path(folder) / "results.json"
    refuse_stand_in(path)
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        results_table(results)  # every figure of every model is there, and a number
        for model in [*results["models"].values(),
                      *(results.get(key, {}) for key in ("revisions", "labels"))]:
            for row in model.get("by_category", {}).values():
                number(row.get("harmful", row.get("objection", 0)), "%")
        Path(results.get("constitution") or "-")
        return results
    except (OSError, ValueError, ArithmeticError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or f"not JSON, or no numbers ({error})"
    except ILL_FORMED as error:
        reason = f"not an evaluation ({type(error).__name__}: {error})"
    raise UserError(f"{path}: {reason}; python -m minicai.lab.evaluate writes it")


def figures(results: dict) -> list:
    """(heading, label, keys into a model's results, unit) of every line of the tables,
    top to bottom."""
    first = next(iter(results["models"].values()))
    lines = [(f"{heading} ({first['red_team'][g]['n']})", label, ("red_team", g, key), "%")
             for g, heading in GROUPS.items() if g in first["red_team"]
             for key, label in RED_TEAM.items()]
    lines += [(f"{heading} ({first[s]['n']})", label, (s, key), "%")
              for s, heading in (SETS | SECOND).items() for key, label in OUTCOMES[s].items()]
    lines += [("Elo, the first model is 0", key, ("elo", key), "")
              for key in ("harmlessness", "helpfulness")]
    return lines + [("all responses to first requests", label, ("all", key), UNITS.get(key, "%"))
                    for key, label in MANNER.items()]


def value(model: dict, keys):
    """A number deep in a model's results."""
    for key in keys:
        model = model[key]
    return model


def number(x: float, unit: str) -> str:
    """A share in percent, a score, or a mean."""
    return f"{100 * x:.1f} %" if unit == "%" else f"{x:{unit}f}" if unit else f"{x:+.0f}"


def spread(values: list, unit: str) -> str:
    """The mean of a number over runs, and in brackets the least and the greatest if they differ."""
    mean = number(sum(values) / len(values), unit)
    low, high = (number(f(values), unit).replace(" %", "") for f in (min, max))
    return mean if low == high else f"{mean} ({low} to {high})"


def results_table(results: dict) -> str:
    """The table at the end of the demo: one column a model, 95 % intervals in brackets."""
    models, text, last = results["models"], [], None
    text.append("\nHow the crowdworker judges them, in % of the prompts [95 % interval]\n")
    text.append(" " * 44 + "".join(f"{NAMES.get(m, m):>20}" for m in models))
    for heading, label, keys, unit in figures(results):
        if heading != last:
            text.append(heading)
        last, cells = heading, []
        for model in models.values():
            low, high = value(model, keys[:-1]).get("intervals", {}).get(keys[-1], (None, None))
            span = "" if low is None or low == high else \
                f" [{100 * low:.0f}-{100 * high:.0f}]" if unit == "%" else \
                f" [{low:.0f}, {high:.0f}]"
            cells.append((number(value(model, keys), unit).replace(" %", "") if span else
                          number(value(model, keys), unit)) + span)
        text.append(f"  {label:<42}" + "".join(f"{cell:>20}" for cell in cells))
    seconds = "  ".join(f"{stage} {s:.0f} s"
                        for stage, s in results["seconds"].items() if s is not None)
    return "\n".join(text) + f"\n\ntime: {seconds}"


def examples(judged: dict, count: int, rng) -> str:
    """Prompts drawn at random, not chosen, with every model's response:
    harmful ones of each group and a look-alike."""
    rows, text = list(judged.values()), []
    of = lambda where, value: [i for i, row in enumerate(rows[0]) if row[where] == value
                               and row["set"] not in SECOND]
    pools = [of("group", "reviewed"), of("group", "read_about"), of("set", "lookalike"),
             of("group", "reviewed"), of("group", "unseen")]
    for n in range(count):
        if pool := pools[n % len(pools)]:
            i = rng.choice(pool)
            said = OUTCOMES.get(rows[0][i]["set"], RED_TEAM)        # the words of the table
            title = GROUPS.get(rows[0][i]["group"],
                               SETS.get(rows[0][i]["set"], rows[0][i]["group"]))
            text.append(f"\n--- {title} " + "-" * max(0, 90 - len(title)))
            text += [f"{'Human' if turn['role'] == 'user' else turn['role'].capitalize()}: "
                     f"{turn['content']}"
                     for turn in rows[0][i]["messages"]]
            text += [f"  {NAMES.get(name, name) + ':':<8}{of_model[i]['response']}   "
                     f"({said[of_model[i]['outcome']]})"
                     for name, of_model in judged.items()]
    return "\n".join(text)


def seeds_table(folders: list) -> str:
    """Markdown: mean (min to max) of each figure over several results.json,
    as in docs/tables.md."""
    runs = [load_results(folder) for folder in folders]
    names = list(runs[0]["models"])
    text = ["| | " + " | ".join(NAMES.get(m, m) for m in names) + " |",
            "|---|" + "---|" * len(names)]
    last = None
    try:
        for heading, label, keys, unit in figures(runs[0]):
            if heading != last:
                text.append(f"| **{heading}** |" + " |" * len(names))
            last = heading
            cells = [spread([value(run["models"][name], keys) for run in runs], unit)
                     for name in names]
            text.append(f"| {label} | " + " | ".join(cells) + " |")
    except KeyError as error:
        raise UserError(f"{' '.join(map(str, folders))}: not evaluations of the same models on the "
                        f"same data ({error} is missing)") from None
    return "\n".join(text)


def compare(folders: list) -> str:
    """Markdown: one row for each directory's last model, after the first directory's first: what
    did each run move? Then, by category, the help with harm in stage 1's revisions and in the
    models made from them, and stage 2's labels: does a constitution move what it names, and only
    that?"""
    runs = {folder: load_results(folder) for folder in folders}
    columns = {"helps with harm": ("red_team", "reviewed", "harmful"),
               "sound objection": ("red_team", "reviewed", "explained"),
               "kind word": ("red_team", "reviewed", "courteous"),
               "needless sentences": ("red_team", "reviewed", "fillers"),
               "everyday requests: in full": ("helpful", "full"),
               "kind word there": ("helpful", "courteous"),
               "needless sentences there": ("helpful", "fillers")}
    base = next(iter(runs[folders[0]]["models"].items()))
    of = lambda key: {c: ("by_category", c, key) for c in base[1].get("by_category", {})}
    last, every, labels = [("-", {}, *base)], [("-", {}, *base)], []
    for folder, results in runs.items():
        models = list(results["models"].items())
        made = lambda key: [(key, results[key])] if results.get(key, {}).get("by_category") else []
        last.append((folder, results, *models[-1]))
        every += [(folder, results, *part) for part in made("revisions") + models[1:]]
        labels += [(folder, results, *part) for part in made("labels")]
    text = f"{run_rows(last, columns)}\n\nhelps with harm, by category:\n\n" \
        f"{run_rows(every, of('harmful'))}"
    return text if not labels else \
        (f"{text}\n\nAI label of the response that objects, where the other one of the pair "
         f"does not, and of how many such pairs:\n\n{run_rows(labels, of('objection'), True)}")


def run_rows(rows: list, columns: dict, counted: bool = False) -> str:
    """A Markdown table of {title: keys into a model's results}, a row each:
    (directory, its results, name, model); `counted`: with the number that a share is of."""
    text = ["| run | constitution | " + " | ".join(columns) + " |",
            "|---|---|" + "---|" * len(columns)]
    for folder, results, name, model in rows:
        try:
            cells = ["-" if name in ("revisions", "labels")
                     and keys[1] not in model["by_category"] else
                     number(value(model, keys), UNITS.get(keys[-1], "%"))
                     + (f" of {value(model, (*keys[:-1], 'n'))}" if counted else "")
                     for keys in columns.values()]
        except KeyError as error:
            raise UserError(
                f"{folder}: not an evaluation on the same data ({error} is missing)") from None
        law = Path(results.get("constitution") or "-").stem
        text.append(f"| {Path(folder).name or folder} ({NAMES.get(name, name)}) | {law} | "
                    + " | ".join(cells) + " |")
    return "\n".join(text)
