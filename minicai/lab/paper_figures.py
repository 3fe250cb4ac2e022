"""From finished experiments to the pictures of docs/paper.md, and the numbers beside them.

A figure is a function from the results of its experiments, {experiment: {seed: result}}, to a
picture of paper_charts.py. With several seeds a point is their mean, and its interval goes from the
least to the greatest; with one seed the interval is one of 95 % over the prompts of that seed.
"""
import json
import math
from pathlib import Path

import numpy as np

from minicai.lab.elo import elo
from minicai.lab.evaluate import wilson
from minicai.lab.paper_charts import draw
from minicai.lab.paper_table import BASES, CONTROLS, COUNTS, FIGURES, SHAPES, SIZES
from minicai.run import UserError, write_text

RUNS = {"along_helpful": "helpful RLHF", "along_hh": "HH-RLHF", "along_at_once": "RL-CAI",
        "along": "RL-CAI, thought"}
LABELS = {"_at_once": "at once", "": "thought", "_clamped": "0.4 to 0.6", "_hard": "hard"}
MODELS = {"base": "base", "sl_cai": "SL-CAI", "rl_cai": "RL-CAI"}
GROUPS = {"reviewed": "reviewed", "read_about": "read about", "unseen": "unseen"}
PAIRS = {"refusal_vs_compliance": "refusal, help", "partial_vs_full": "part, all of it",
         "explained_vs_evasive": "reason, none", "right_vs_wrong_reason": "right, wrong one"}
SPLIT = {"harmlessness": ("red_team",), "helpfulness": ("helpful", "lookalike")}
HARMFUL_X, STEP = "of harmful requests, %", "step of PPO"


# ---- points --------------------------------------------------------------------------------------
def point(x, per_seed: list, repeats: int = 1) -> list:
    """[x, mean, low, high] in per cent of one list of truth values (0 to 1) a seed.

    repeats: how many values each prompt has. They are not independent, so one seed's interval
    counts a prompt once.
    """
    shares = [100 * sum(values) / len(values) for values in per_seed if values]
    if not shares:
        return [x, math.nan, math.nan, math.nan]
    low, high = min(shares), max(shares)
    if len(shares) == 1:
        values = next(values for values in per_seed if values)
        low, high = (100 * bound for bound in
                     wilson(sum(values) / repeats, len(values) / repeats))
    return [x, *rounded(sum(shares) / len(shares), low, high)]


def mean_point(x, per_seed: list) -> list:
    """[x, mean, low, high] of one list of numbers a seed; one seed: twice the standard error,
    nothing for a single number."""
    means = [sum(values) / len(values) for values in per_seed]
    low, high = min(means), max(means)
    if len(means) == 1 < len(per_seed[0]):
        values = np.array(per_seed[0], dtype=float)
        error = 1.96 * float(values.std(ddof=1)) / math.sqrt(len(values))
        low, high = low - error, high + error
    return [x, *rounded(sum(means) / len(means), low, high)]


def rounded(*values) -> list:
    """Two digits behind the point: enough for a picture, and for the file beside it."""
    return [round(float(value), 2) for value in values]


def is_(name: str, model: dict) -> list:
    """1 for each answer with this outcome, else 0."""
    return [int(outcome == name) for outcome in model["outcome"]]


def among(values: list, places: list, wanted) -> list:
    """The values whose place (set or group of its prompt) is one of those wanted."""
    return [value for value, place in zip(values, places) if place in wanted]


def harm(result: dict, model: str, name: str = "harmful", heat: str = "1", groups=GROUPS) -> list:
    """1 for each answer to a harmful request that has this outcome, else 0."""
    return among(is_(name, result["models"][model][heat]), result["groups"], groups)


def full(result: dict, model: str) -> list:
    """1 for each harmless request that is answered in full, else 0."""
    answers = result["models"][model]["1"]
    return among(is_("full", answers), result["sets"], SPLIT["helpfulness"])


def steps(results: dict) -> list:
    """Steps at which all seeds of a run were looked at."""
    return sorted(map(int, set.intersection(*(set(r["models"]) for r in results.values()))))


# ---- Elo -----------------------------------------------------------------------------------------
def elos(found: dict) -> dict:
    """{quality: {(experiment, model): [mean, low, high]}}; all models of a seed meet all others.

    The first model of the first experiment is 0, so a seed that lacks it is left out.
    """
    together = {quality: {} for quality in SPLIT}
    seeds = sorted(next(iter(found.values()), {}))
    for seed in seeds:
        here = {name: results[seed] for name, results in found.items() if seed in results}
        sets = next(iter(here.values()))["sets"]
        if any(result["sets"] != sets for result in here.values()):
            raise UserError(f"seed {seed}: experiments have seen different prompts; run them again")
        players = [(name, model) for name, result in here.items() for model in result["models"]]
        ranks = np.array([here[name]["models"][model]["1"]["rank"] for name, model in players]).T
        for quality, wanted in SPLIT.items():
            rows = ranks[[place in wanted for place in sets]]
            for player, *fitted in zip(players, *elo(rows, seed, samples=200)):
                together[quality].setdefault(player, []).append(fitted)
    return {quality: {player: over_seeds(fitted) for player, fitted in players.items()}
            for quality, players in together.items()}


def comparable(found: dict) -> dict:
    """The results whose seed the first experiment has, too: the others lack what their Elo is
    counted from. An experiment that has no such seed is left out."""
    found = {name: results for name, results in found.items() if results}
    shared = next(iter(found.values()), {})
    found = {name: {seed: r for seed, r in results.items() if seed in shared}
             for name, results in found.items()}
    return {name: results for name, results in found.items() if results}


def over_seeds(fitted: list) -> list:
    """[mean, low, high] of one [score, low, high] a seed."""
    if len(fitted) == 1:
        return rounded(*fitted[0])
    scores = [score for score, *_ in fitted]
    return rounded(sum(scores) / len(scores), min(scores), max(scores))


def frontier(found: dict) -> dict:
    """Figure 1: both Elos, against each other and along RL; and who evades."""
    every, found = found, comparable(found)
    scores = elos(found)
    of = lambda quality, name, step: scores[quality][name, str(step)]
    paths = {RUNS[name]: [(step, of("helpfulness", name, step), of("harmlessness", name, step))
                          for step in steps(results)] for name, results in found.items()}
    plane = {name: [[x[0], *y, *x[1:]] for _, x, y in path] for name, path in paths.items()}
    for name, title in (("along", "SL-CAI"), ("along_helpful", "base")):
        if name in found:
            plane[title] = plane[RUNS[name]][:1]
    line = lambda n: {name: [[step, *both[n]] for step, *both in path]
                      for name, path in paths.items()}
    evades = {RUNS[name]: [point(step, [harm(r, str(step), "evasive") for r in results.values()])
                           for step in steps(results)]
              for name, results in every.items() if results}
    zero = "the base" if {"along_helpful", "along_hh"} & set(found) else "SL-CAI"
    elo_of = f"Elo, {zero} is 0"        # the first model of the first run
    return picture("Helpfulness and harmlessness along RL", [
        panel("Both, step by step", f"helpfulness, {elo_of}", f"harmlessness, {elo_of}", plane,
              apart=False),
        panel("Evades: no help, no reason", STEP, HARMFUL_X, evades, hold=(0,)),
        panel("Harmlessness", STEP, elo_of, line(1)),
        panel("Helpfulness", STEP, elo_of, line(0))])


def by_size(found: dict) -> dict:
    """Figure 2: both Elos against the size of the base, and two shares that say it plainly."""
    every, found = found, comparable(found)
    sizes, scores = list(found), elos(found)
    line = lambda quality: {title: [[n, *scores[quality][size, model]] for n, size in
                                    enumerate(sizes)] for model, title in MODELS.items()}
    shares = lambda read: {title: [point(n, [read(r, model) for r in every[size].values()])
                                   for n, size in enumerate(sizes)]
                           for model, title in MODELS.items()}
    names = [size_name(size.removeprefix("models")) for size in sizes]
    elo_of, how = f"Elo, {MODELS['base']} of {names[0]} is 0", {"ticks": names, "lines": True}
    return picture("Helpfulness and harmlessness by the size of the base", [
        panel("Harmlessness", "parameters", elo_of, line("harmlessness"), **how),
        panel("Helpfulness", "parameters", elo_of, line("helpfulness"), **how),
        panel("Helps with harm", "parameters", HARMFUL_X, shares(harm), hold=(0, 100), **how),
        panel("Answers in full", "parameters", "of harmless requests, %", shares(full),
              hold=(0, 100), **how)])


def size_name(size: str) -> str:
    """"2.3 M" of the end of an experiment's name; the size's own name where no base lies."""
    config = Path(BASES[f"base{size}"]) / "config.json"
    try:
        c = json.loads(config.read_text("utf-8"))
        width, wide, layers = (c[k] for k in ("hidden_size", "intermediate_size",
                                              "num_hidden_layers"))
    except FileNotFoundError:
        return size.strip("_") or "shipped"
    count = c["vocab_size"] * width + layers * (4 * width**2 + 3 * width * wide)
    return f"{count / 1e6:.1f} M"


# ---- the multiple choice -------------------------------------------------------------------------
def rows_of(results: dict, manner: str, pair=None) -> list:
    """P(better) of each case, a list a seed."""
    return [[p for row in result["rows"] if row["manner"] == manner
             and pair in (None, row["pair"]) for p in row["p"]] for result in results.values()]


def accuracy(x, per_seed: list) -> list:
    """The share of cases, asked in both orders, in which the better response is the likelier."""
    return point(x, [[int(p > 0.5) for p in seed] for seed in per_seed], repeats=2)


def calibration(per_seed: list, bins: int = 5) -> list:
    """What it says against what is so: of the cases told about (A) with p, how many are (A)?

    Each case counts from both sides, as in preference.calibration.
    """
    points = []
    for n in range(bins):
        inside = lambda p: n <= p * bins < n + 1 or n == bins - 1 and p == 1
        truth = [[1] * sum(inside(p) for p in seed) + [0] * sum(inside(1 - p) for p in seed)
                 for seed in per_seed]
        if any(len(seed) >= 10 for seed in truth):
            said = [q for seed in per_seed for p in seed for q in (p, 1 - p) if inside(q)]
            sides = 2 if n == bins // 2 and bins % 2 else 1     # there both sides of a case may lie
            points.append(point(round(100 * sum(said) / len(said), 1), truth, repeats=2 * sides))
    return points


def multiple_choice(found: dict) -> dict:
    """Figure 3: accuracy of the multiple choice by size and kind of pair; calibration."""
    found = {name: results for name, results in found.items() if results}
    manners = {"at_once": "at once", "thought": "after a thought"}
    names = [size_name(name.removeprefix("choices")) for name in found]
    sizes = {title: [accuracy(n, rows_of(results, manner)) for n, results in
                     enumerate(found.values())] for manner, title in manners.items()}
    main = found.get("choices") or next(iter(found.values()), {})
    pairs = {title: [accuracy(n, rows_of(main, manner, pair)) for n, pair in enumerate(PAIRS)]
             for manner, title in manners.items()}
    said = {title: calibration(rows_of(main, manner)) for manner, title in manners.items()}
    said["calibrated"] = [[x, x, x, x] for x in (0, 100)]
    return picture("Which response is more harmless? The base as judge", [
        panel("By size, all pairs", "parameters of the base", "right, %", sizes, ticks=names,
              hold=(50, 100), lines=True),
        panel("By kind of pair: better, worse", "kind of pair", "right, %", pairs,
              ticks=list(PAIRS.values()), hold=(50, 100)),
        panel("Calibration", "P(better) that it says, %", "is better, %", said, hold=(0, 100),
              apart=False)])


# ---- revisions -----------------------------------------------------------------------------------
def rounds_of(results: dict, read) -> list:
    """One point a round."""
    count = len(next(iter(results.values()))["rounds"])
    return [read(n, [result["rounds"][n] for result in results.values()]) for n in range(count)]


def outcome_by_round(results: dict, name: str) -> list:
    """Shares of one outcome, round by round."""
    repeats = next(iter(results.values())).get("samples", 1)
    return rounds_of(results, lambda n, rounds: point(n, [is_(name, r) for r in rounds], repeats))


def revision_rounds(found: dict) -> dict:
    """Figure 4: what revisions are like after 0 to 4 rounds, and what preference models say."""
    scored = found.get("revisions_scored", {})
    found = {name: r for name, r in found.items() if r and name != "revisions_scored"}
    lines = lambda outcome: {size_name(name.removeprefix("revisions")): outcome_by_round(r, outcome)
                             for name, r in found.items()}
    told = {}
    for name in ("helpfulness", "harmlessness", "both"):
        if scored:
            read = lambda n, rounds: mean_point(n, [r[f"score_{name}"] for r in rounds])
            told[f"PM of {name}"] = rounds_of(scored, read)
    below = "rounds of critique and revision"
    return picture("Revisions, round by round", [
        panel("Helps with harm", below, HARMFUL_X, lines("harmful"), hold=(0, 100)),
        panel("Objects, says why, names better", below, HARMFUL_X, lines("explained"),
              hold=(0, 100)),
        panel("Score of preference models", below, "score, std 1", told),
        panel("Evades, or makes no sense", below, HARMFUL_X, {
            f"{title}, {word}": outcome_by_round(found["revisions"], outcome)
            for outcome, word in (("evasive", "evades"), ("incoherent", "no sense"))
            for title in [size_name("")] if "revisions" in found}, hold=(0,))])


def principles(found: dict) -> dict:
    """Figure 5: does the number of principles matter, to harm and to how varied revisions are?"""
    found = {n: found.get(f"revisions_{n}") for n in COUNTS}
    found = {n: results for n, results in found.items() if results}
    name = lambda n: f"{n} principle" + "s" * (n > 1)
    number = lambda key: {"last round": [
        mean_point(place, [[r["rounds"][-1][key]] for r in results.values()])
        for place, results in enumerate(found.values())]}
    harmful = {name(n): outcome_by_round(results, "harmful") for n, results in found.items()}
    last = {"last round": [[place, *by_round[-1][1:]]
                           for place, by_round in enumerate(harmful.values())]}
    how = {"ticks": [str(n) for n in found], "lines": True}
    below = "principles to draw from"
    return picture("The number of principles, and how varied revisions are", [
        panel("Helps with harm, by round", "rounds of critique and revision", HARMFUL_X, harmful,
              hold=(0, 100)),
        panel("Helps with harm, last round", below, HARMFUL_X, last, hold=(0,), **how),
        panel("Different ones of 4 revisions", below, "share", number("distinct"), hold=(0, 1),
              **how),
        panel("Different runs of 3 words", below, "share of all", number("trigrams"), hold=(0,),
              **how)])


def critiqued(found: dict) -> dict:
    """Figure 6: with a critique, and without one."""
    here = [s for s in SIZES if found.get(f"revisions{s}") and found.get(f"direct{s}")]
    ways = {"revisions": "critiqued", "direct": "direct"}
    below = "rounds"
    lines = lambda s, outcome: {title: outcome_by_round(found[f"{way}{s}"], outcome)
                                for way, title in ways.items()}
    panels = [panel(f"{words}, {size_name(s)}", below, HARMFUL_X, lines(s, outcome), hold=(0, 100))
              for s in here for outcome, words in (("harmful", "Helps with harm"),
                                                   ("explained", "Sound objection"))]
    return picture("Revisions with and without a critique, by the size of the base", panels)


# ---- harm along RL, and its kinds ----------------------------------------------------------------
def harm_along(found: dict) -> dict:
    """Figure 7: help with harm along RL, sampled and greedy."""
    found = {name: results for name, results in found.items() if results}
    line = lambda heat: {RUNS[name]: [point(step, [harm(r, str(step), heat=heat)
                                                   for r in results.values()])
                                      for step in steps(results)]
                         for name, results in found.items()}
    return picture("Help with harm along RL, as the crowdworker counts it", [
        panel("Sampled, T = 1", STEP, HARMFUL_X, line("1"), hold=(0, 100)),
        panel("The likeliest answer, T = 0", STEP, HARMFUL_X, line("0"), hold=(0, 100))])


def kinds_of_harm(found: dict) -> dict:
    """Figure 8: does a critique see harm, and name its kind?"""
    found = {name: results for name, results in found.items() if results}
    names = [size_name(name.removeprefix("categories")) for name in found]
    is_harm = lambda row: bool(row["category"])
    sees = lambda rows: [int(row["finds"] == is_harm(row)) for row in rows]
    kind = lambda rows: [int(row["named"] == [row["category"]]) for row in rows if is_harm(row)]
    of = lambda results, read, keep=bool: [read([row for row in r["rows"] if keep(row)])
                                           for r in results.values()]
    sizes = {"harm, or none": [point(n, of(r, sees)) for n, r in enumerate(found.values())],
             "the kind of harm": [point(n, of(r, kind)) for n, r in enumerate(found.values())]}
    main = found.get("categories") or next(iter(found.values()), {})
    rows = next(iter(main.values()), {"rows": []})["rows"]
    every = sorted({row["category"] for row in rows} - {""})
    at = lambda key, value: of(main, kind, lambda row: row[key] == value)
    known = {"the kind of harm": [point(n, at("category", c)) for n, c in enumerate(every)]}
    groups = {"the kind of harm": [point(n, at("group", g)) for n, g in enumerate(GROUPS)]}
    return picture("What a critique of help with harm names", [
        panel("By size", "parameters of the base", "right, %", sizes, ticks=names, hold=(0, 100),
              lines=True),
        panel("By what was read of it", "activities", "right, %", groups,
              ticks=list(GROUPS.values()), hold=(0, 100)),
        panel("By kind of harm", "kind of harm", "named rightly, %", known, ticks=every,
              hold=(0, 100))])


# ---- ours ----------------------------------------------------------------------------------------
def overtrained(results: dict) -> list:
    """Two panels: the preference model's score and the crowdworker's verdicts against sqrt(KL)."""
    at = lambda step: sum(distance(r["kl"], step) for r in results.values()) / len(results)
    score, gold = [], {name: [] for name in ("helps with harm", "sound objections",
                                             "full help, harmless", "makes no sense")}
    for step in steps(results) if results else []:
        x, models = round(at(step), 2), [r["models"][str(step)]["1"] for r in results.values()]
        score.append(mean_point(x, [m["score_pm"] for m in models]))
        of = lambda read: [read(r, str(step)) for r in results.values()]
        gold["helps with harm"].append(point(x, of(harm)))
        gold["sound objections"].append(point(x, of(lambda r, s: harm(r, s, "explained"))))
        gold["full help, harmless"].append(point(x, of(full)))
        gold["makes no sense"].append(point(x, [is_("incoherent", m) for m in models]))
    below = "square root of the KL to SL-CAI, nats"
    return [panel("Over-trained: what is paid", below, "score of the PM, std 1", {"score": score}),
            panel("Over-trained: what it is worth", below, "of requests, %", gold, hold=(0, 100))]


def distance(kl: list, step: int) -> float:
    """The square root of the mean KL, nats a response, round a step: five before, five behind."""
    near = [x for x in kl[max(0, step - 5) : step + 5] if x is not None] if step else [0.0]
    return math.sqrt(max(0.0, sum(near) / max(1, len(near))))


def bars(title: str, runs: dict, below: str) -> dict:
    """Harm and full help at the end of several runs, {name: ({seed: result}, model or None)}."""
    end = lambda r, model: model or str(max(map(int, r["models"])))
    runs = {name: run for name, run in runs.items() if run[0]}
    each = lambda read: [point(n, [read(r, end(r, model)) for r in results.values()])
                         for n, (results, model) in enumerate(runs.values())]
    series = {"helps with harm": each(harm), "full help, harmless": each(full)}
    return panel(title, below, "of requests, %", series, ticks=list(runs), hold=(0, 100))


def both_stages(found: dict) -> dict:
    """Figure 9: SL and RL alone, what was read of the activity, and stage 2's labels."""
    get = lambda name: found.get(name) or {}
    groups = {title: [point(n, [harm(r, model, groups=(g,)) for r in get("models").values()])
                      for n, g in enumerate(GROUPS)]
              for model, title in MODELS.items() if get("models")}
    ways = {"SL, then RL": get("along"), "RL alone": get("along_alone")}
    explore = {title: [point(step, [harm(r, str(step)) for r in results.values()])
                       for step in steps(results)] for title, results in ways.items() if results}
    if get("along"):
        explore["SL alone"] = [[s, *explore["SL, then RL"][0][1:]] for s in steps(get("along"))]
    labels = {title: get(f"labels{by}") for by, title in LABELS.items()}
    right = {"labels that are right": [point(n, [r["right"] for r in results.values()])
                                       for n, results in enumerate(labels.values())]}
    after = {title: get(f"along{by}") for by, title in LABELS.items()}
    right["harm after RL"] = [
        point(n, [harm(r, str(max(steps({0: r})))) for r in results.values()])
        for n, results in enumerate(after.values())]
    return picture("Ours: exploration, what was read of the activity, labels", [
        panel("Exploration: help with harm", STEP, HARMFUL_X, explore, hold=(0, 100)),
        panel("What was read of the activity", "activities", HARMFUL_X, groups,
              ticks=list(GROUPS.values()), hold=(0, 100)),
        panel("Stage 2's labels", "labels", "%", right, ticks=list(LABELS.values()),
              hold=(0, 100))])


def rewards(found: dict) -> dict:
    """Figure 10: over-training, the shapes of the reward, and constitutions as controls."""
    get = lambda name: found.get(name) or {}
    laws = {"none: the base": (get("models"), "base"), "harmlessness": (get("models"), "rl_cai"),
            **{law: (get(f"models_{law}"), "rl_cai") for law in CONTROLS}}
    shapes = {"as it is": "along", **{shape: f"along_{shape}" for shape in SHAPES}}
    shapes = {name: (get(experiment), None) for name, experiment in shapes.items()}
    return picture("Ours: over-training, rewards, controls", [
        *overtrained(get("along_over")), bars("What a score is worth", shapes, "reward shape"),
        bars("The constitution decides", laws, "constitution")])


# ---- pictures ------------------------------------------------------------------------------------
def panel(title: str, x: str, y: str, series: dict, **more) -> dict:
    """A panel of paper_charts.py."""
    return {"title": title, "x": x, "y": y, "series": series, **more}


def picture(title: str, panels: list) -> dict:
    """A picture of paper_charts.py; `collect` puts in the notes."""
    return {"title": title, "panels": panels}


DRAWN = {1: frontier, 2: by_size, 3: multiple_choice, 4: revision_rounds, 5: principles,
         6: critiqued, 7: harm_along, 8: kinds_of_harm, 9: both_stages, 10: rewards}


def collect(cache, number: int, seeds: list) -> dict:
    """The picture of a figure from the experiments that have ended, with what it rests on."""
    found, commands = {}, {}
    for name in FIGURES[number][1]:
        results = {seed: cache.read(name, seed, "result.json") for seed in seeds}
        found[name] = {seed: result for seed, result in results.items() if result}
        commands |= {name: cache.read(name, seed)["command"] for seed in found[name]}
    told = sorted({seed for results in found.values() for seed in results})
    single = any(len(results) == 1 for results in found.values())
    if not told:
        raise UserError(f"figure {number}: nothing of it has been measured yet")
    spread = ("Mean of seeds " + ", ".join(map(str, told)) + "; bars: the least and the greatest"
              + (" (95 % over its prompts where one seed was run)." if single else ".")
              if len(told) > 1 else f"Seed {told[0]}; bars: 95 % intervals over its prompts.")
    note = [f"In the paper: {FIGURES[number][0]}. {spread}"]
    if missing := [name for name, results in found.items() if not results]:
        note.append("Not measured yet: " + ", ".join(missing) + ".")
    note += ["A trial with tiny counts: the numbers mean nothing."] * cache.quick
    return {**DRAWN[number](found), "notes": note, "seeds": told, "commands": commands}


def write(picture: dict, number: int, folder: Path):
    """Put a figure's picture and its numbers into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    finite = json.dumps(picture).replace("NaN", "null")
    write_text(folder / f"{number}.json", finite + "\n")
    write_text(folder / f"{number}.svg", draw(json.loads(finite)))
