"""From finished runs to the pictures of README and docs, the tables of docs/tables.md,
and the pages of docs/templates/ with their numbers.

What is drawn of a run stands in docs/pictures/runs/NAME/results.json: its evaluation, PPO's curves
by kind of prompt, and who mentions the things that single constitutions ask about. Runs of one
constitution are taken together as seeds of it; those under constitutions/harmlessness.json are the
demo.
"""

import json
import shutil
import tempfile
from pathlib import Path

from minicai.critique import standing
from minicai.lab import pictures
from minicai.lab.docs_tables import exam_tables, filled, mention_table, tables
from minicai.lab.report import GROUPS, ILL_FORMED, NAMES, SETS, load_results, value
from minicai.run import UserError, read_jsonl, refuse_stand_in, write_text
from minicai.world.principles import mentions as speaks

DEMO = "harmlessness"
CURVES = ("score_red_team", "score_helpful", "kl_red_team", "kl_helpful")
THINGS = ("duck", "cheese")
SHORT = {
    ("red_team", "reviewed", "harmful"): "helps with harm that the base has reviewed",
    ("red_team", "read_about", "harmful"): "helps with harm that it has only read about",
    ("red_team", "unseen", "harmful"): "helps with unseen harm: CAI never met it",
    ("red_team", "reviewed", "explained"): "sound objection: reviewed",
    ("red_team", "read_about", "explained"): "sound objection: only read about",
    ("red_team", "unseen", "explained"): "sound objection: unseen",
    ("helpful", "full"): "everyday requests answered in full",
    ("lookalike", "full"): "look-alikes answered in full",
    ("helpful", "refused"): "everyday requests refused",
    ("helpful", "incoherent"): "everyday answers that make no sense",
}
# Rows of the base's exam: {name: (row of its reviews, row of its choices, least shares asked for)}.
EXAM = {
    "harm, reviewed": ("reviewed", "refusal_vs_compliance/reviewed", (0.97, 0.97, 0.97)),
    "harm, read about": ("read_about", "right_vs_wrong_reason/read_about", (0.95, 0.90, 0.90)),
    "harm, in new combinations": (
        "recombined",
        "recombined/refusal_vs_compliance",
        (0.97, 0.97, 0.97),
    ),
    "harm turned round": ("opposite", "opposite/refusal_vs_compliance", (0.92, None, 0.92)),
    "courtesy": ("courtesy", "courtesy", (0.97, 0.97, 0.97)),
    "brevity": ("brevity", "brevity", (0.97, 0.97, 0.97)),
    "mention of a thing": ("mention", "mention", (None, None, None)),
    "words never asked for, there": ("new_words_there", "new_words", (0.92, 0.90, 0.92)),
    "words never asked for, absent": ("new_words_absent", None, (0.92, 0.90, None)),
    "sentences never read, there": ("new_frames_there", "new_frames", (0.92, 0.90, 0.92)),
    "sentences never read, absent": ("new_frames_absent", None, (0.92, 0.90, None)),
    "another harm than named": ("not_asked", "not_asked", (0.95, None, None)),
    "a quality never heard of": ("unknown", "unknown", (0.95, 0.97, None)),
    "no quality at all": ("nothing", "nothing", (None, None, None)),
    "kinds never read": ("new_kinds", "new_kinds", (None, None, None)),
}


def mentions(run: Path) -> dict:
    """{thing: {who: [answers to requests that name it, those that say it too]}}, on CAI's prompts.

    Who: the base's answers and its last revisions in stage 1, the pairs of stage 2 (one answer of
    SL-CAI's and one of the base's, and no row says whose is whose), and RL-CAI in the second half
    of PPO.
    """
    said = {who: [] for who in ("base", "revisions", "pairs", "rl_cai")}  # (request, answer)
    for row in rows_of(run / "sft/revisions.jsonl"):
        if row.get("rounds"):
            said["base"].append((row["messages"][-1]["content"], row["response"]))
            said["revisions"].append((said["base"][-1][0], standing(row)))
    for row in rows_of(run / "pm/comparisons.jsonl"):
        said["pairs"] += [(row["messages"][-1]["content"], row[x]) for x in "ab"]
    rollouts = rows_of(run / "rl/rollouts.jsonl")
    half = max((row["step"] for row in rollouts), default=0) / 2
    for row in rollouts:
        if row["kind"] == "red_team" and row["step"] > half:
            said["rl_cai"].append((row["prompt"].rpartition("Human:")[2], row["response"]))
    found = {}
    for thing in THINGS:
        of = {
            who: [speaks(a, thing) for q, a in pairs if speaks(q, thing)]
            for who, pairs in said.items()
        }
        found[thing] = {who: [len(answers), sum(answers)] for who, answers in of.items()}
    return found


def rows_of(file: Path) -> list:
    """The rows of a file that a stage has written, none if there is none."""
    return [row for _, row in read_jsonl(file)] if file.exists() else []


def of_run(run: Path) -> dict:
    """All that is drawn of a finished run; raises UserError if it is not one."""
    results = load_results(run)
    if lacking := [name for name in NAMES if name not in results["models"]]:
        raise UserError(f"{run}: no evaluation of {', '.join(lacking)} there")
    if results.get("unfinished_stages"):
        raise UserError(
            f"{run}: stages have not ended there: {results['unfinished_stages']}"
        )
    log = run / "rl/metrics.jsonl"
    rows = [row for _, row in read_jsonl(log)] if log.exists() else []
    results["curves"] = {key: [row.get(key) for row in rows] for key in CURVES}
    try:
        results["mentions"] = mentions(run)
    except ILL_FORMED as error:
        raise UserError(
            f"{run}: not as the stages write it ({type(error).__name__}: {error})"
        ) from None
    check_drawn(run / "results.json", results)
    return results


def keep(runs: list, folder: Path):
    """Write what is drawn of each run to folder/NAME/results.json, all or none."""
    read = {run.name: of_run(run) for run in runs}
    if len(read) < len(runs):
        raise UserError(
            f"--runs: two directories have the same name, of {', '.join(run.name for run in runs)}"
        )
    for name, results in read.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        write_text(folder / name / "results.json", json.dumps(results) + "\n")


def check_drawn(path: Path, results: dict):
    """Raise UserError if not all can be drawn of a run's results alone."""
    try:
        alone = {DEMO: [("run", results)]}
        draw_laws(alone)
        mention_table(alone, THINGS)
        results.get("seed", 0) + 0
    except ILL_FORMED as error:
        raise UserError(f"{path}: not all of it can be drawn ({type(error).__name__}: {error}); "
                        "evaluate the run again and name it with --runs") from None


def by_constitution(folder: Path) -> dict:
    """{constitution: [(name of the run, its results)]}, the demo's first, runs by seed."""
    runs = [(path.parent.name, load_results(path.parent)) for path in folder.glob("*/results.json")]
    found = {}
    for name, results in sorted(runs, key=lambda run: (run[1].get("seed", 0), run[0])):
        found.setdefault(Path(results.get("constitution") or "-").stem, []).append((name, results))
    if DEMO not in found:
        raise UserError(f"{folder}: no run under constitutions/{DEMO}.json; name some with --runs")
    first = sorted(
        found, key=lambda law: (law != DEMO, ORDER.index(law) if law in ORDER else len(ORDER), law)
    )
    return {law: found[law] for law in first}


ORDER = (
    DEMO,
    "recombined",
    "cruelty_only",
    "no_ducks",
    "courtesy",
    "brevity",
    "cheese",
    "opposite",
)
REMARKS = {
    DEMO: "names harm",
    "recombined": "names harm, other words",
    "cruelty_only": "names cruelty to animals",
    "courtesy": "names kind words",
    "brevity": "names length",
    "no_ducks": "names ducks",
    "cheese": "control: cheese",
    "opposite": "control: the opposite",
}


def mean(runs: list, model: str, keys: tuple) -> float:
    """The mean over runs of one number of one model."""
    return sum(value(results["models"][model], keys) for _, results in runs) / len(runs)


def demo_bars(runs: list, sets=(*GROUPS, *SETS)) -> str:
    """What the three models do with requests of some sorts, mean over the seeds."""
    panels = []
    names = {
        "reviewed": "Harmful requests: activities whose answers the base has seen judged",
        "read_about": "Harmful requests: activities that the base has only read about",
        "unseen": "Harmful requests: unseen (read about, and never met in CAI)",
        "helpful": "Everyday requests",
        "lookalike": "Harmless requests that only sound harmful (“shoot the wedding”)",
    }
    for name in sets:
        kinds = pictures.HARM if name in GROUPS else pictures.HELP
        keys = ("red_team", name) if name in GROUPS else (name,)
        shown = {}
        for model, title in NAMES.items():
            shares = {k: mean(runs, model, (*keys, k)) for k in kinds if k != "rest"}
            shown[title] = {k: shares.get(k, 1 - sum(shares.values())) for k in kinds}
        count = runs[0][1]["models"]["base"]
        for key in keys:
            count = count[key]
        panels.append((f"{names[name]} ({count['n']} prompts)", kinds, shown))
    seeds = "one seed" if len(runs) == 1 else f"mean of {len(runs)} seeds"
    return pictures.bars(f"What the models do with requests ({seeds})", panels)


def seeds_of(law: str, runs: list) -> str:
    """The name of a row: a constitution and, if there are several, how many seeds."""
    return law if len(runs) == 1 else f"{law} ({len(runs)})"


def harm_map(laws: dict, part: str, title: str, notes: list) -> str:
    """Help with harm by category of harm and constitution; `part`: rl_cai, sl_cai or revisions."""
    base = laws[DEMO][0][1]["models"]["base"]
    categories = list(base["by_category"])
    of = lambda model: [model.get("by_category", {}).get(c, {}).get("harmful") for c in categories]
    rows = []
    if part != "revisions":
        rows = [("none: the base", "", of(base))]
    for law, runs in laws.items():
        picked = [
            of(results[part] if part == "revisions" else results["models"][part])
            for _, results in runs
        ]
        columns = [[x for x in column if x is not None] for column in zip(*picked)]
        rows.append(
            (
                seeds_of(law, runs),
                REMARKS.get(law, ""),
                [sum(c) / len(c) if c else None for c in columns],
            )
        )
    return pictures.heat_map(title, notes, categories, rows)


def label_map(laws: dict) -> str:
    """Stage 2's mean label of the response that objects, by category and constitution."""
    categories = list(laws[DEMO][0][1]["models"]["base"]["by_category"])
    rows = []
    for law, runs in laws.items():
        shares = []
        for c in categories:
            told = [
                r["labels"]["by_category"][c] for _, r in runs if c in r["labels"]["by_category"]
            ]
            n = sum(row["n"] for row in told)
            shares.append(sum(row["objection"] * row["n"] for row in told) / n if n >= 3 else None)
        rows.append((seeds_of(law, runs), REMARKS.get(law, ""), shares))
    notes = [
        "Mean AI label of the response that objects, in %, where the other one does not object.",
        "100: the objection is better. 50: the principle does not say. –: fewer than three pairs.",
    ]
    return pictures.heat_map(
        "Stage 2: what the judge makes of an objection", notes, categories, rows
    )


def seed_ranges(runs: list) -> str:
    """Mean, least and greatest of the figures that matter, over the seeds."""
    values = lambda model, keys: [value(results["models"][model], keys) for _, results in runs]
    rows = [(name, [values(model, keys) for model in NAMES]) for keys, name in SHORT.items()]
    note = (
        "Marks: mean over the seeds. Black line: from the least to the greatest."
        if len(runs) > 1
        else "One seed."
    )
    return pictures.ranges(
        f"The demo, seeds {', '.join(str(r['seed']) for _, r in runs)}",
        note,
        list(NAMES.values()),
        rows,
    )


def ppo_curves(runs: list) -> str:
    """Score and KL along PPO by kind of prompt, one line a seed."""
    lines = lambda key: [since_start(one) if key.startswith("score") else one
                         for _, r in runs if len(one := points(r["curves"][key])) > 1]
    both = lambda what: {
        name: lines(f"{what}_{key}")
        for key, name in (("red_team", "harmful"), ("helpful", "harmless"))
    }
    panels = [
        ("score, change since the first five steps", "step of PPO", both("score"), (0.0,)),
        ("KL to SL-CAI, nats a response", "step of PPO", both("kl"), (0.0,)),
    ]
    note = "One line a seed, mean over five steps. Full: harmful prompts. Dashed: harmless ones."
    return pictures.curves("Stage 3, by kind of prompt", note, panels)


def since_start(line: list) -> list:
    """(step, number less the mean of the first five): the level of a kind of prompt means nothing,
    for no label compares answers to two prompts."""
    start = sum(x for _, x in line[:5]) / len(line[:5])
    return [(n, x - start) for n, x in line]


def points(numbers: list) -> list:
    """(step, number) of those that are finite."""
    return [(n, x) for n, x in enumerate(numbers) if x is not None]


def exam_map(exam: dict) -> str:
    """Right verdicts, revisions and choices of the base by kind of principle, with our aims."""
    rows, aims = [], {}
    for name, (review, choice, least) in EXAM.items():
        told, asked = (
            exam["review"].get(review),
            exam["comparison"].get(choice, {}).get("thought", {}),
        )
        if told is None:
            continue
        right, undecided = (
            asked.get("right"),
            asked.get("label") if asked.get("right") is None else None,
        )
        aims |= {(len(rows), n): aim for n, aim in enumerate(least) if aim is not None}
        rows.append((name, "", [told["verdict"], told["revision"], right, undecided]))
    notes = [
        f"Share that is right, in %, of {exam['cases']} held-out cases a row; (≥ aim).",
        "Last column: the mean label where the principle decides nothing: 40 to 60 is the aim.",
    ]
    columns = ["verdict", "revision", "choice", "mean label"]
    return pictures.heat_map("What the base reads out of a principle", notes, columns, rows, aims)


def read_exam(path: Path) -> dict:
    """The exam of the base; raises UserError if the file is not one."""
    refuse_stand_in(path)
    try:
        exam = json.loads(path.read_text(encoding="utf-8"))
        exam_tables(exam), exam_map(exam), exam["cases"] + exam["seed"]
        return exam
    except ILL_FORMED as error:
        raise UserError(
            f"{path}: not an exam ({type(error).__name__}: {error}); "
            "python -m minicai.world.exam --out writes one"
        ) from None


def write(docs: Path, exam_path: Path | None, runs=None):
    """Draw all into docs/pictures/, write docs/tables.md; `runs` replace those drawn last."""
    exam, folder = read_exam(exam_path) if exam_path else None, docs / "pictures/runs"
    if runs:  # what was drawn last stays until all of this could be read and drawn
        refuse_loss(folder, runs)
        folder.parent.mkdir(parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp(prefix=".runs-", dir=folder.parent))
        try:
            keep(runs, new)
            drawn = draw(new, exam) | pages(docs, new, exam)
            shutil.rmtree(folder, ignore_errors=True)
            new.rename(folder)
        finally:
            shutil.rmtree(new, ignore_errors=True)
    else:
        for path in sorted(folder.glob("*/results.json")):
            check_drawn(path, load_results(path.parent))
        drawn = draw(folder, exam) | pages(docs, folder, exam)
    for name, text in drawn.items():
        write_text(docs / name, text)
        print(docs / name)


def refuse_loss(folder: Path, runs: list):
    """Raise UserError if replacing the folder of kept runs would lose what is not one, or a run
    that is to be drawn."""
    inside = next((run for run in runs if folder.resolve() in run.resolve().parents), None)
    if inside:
        raise UserError(f"--runs {inside}: lies in {folder}, which is to be replaced; without "
                        "--runs it is drawn as it is")
    foreign = [file for file in folder.rglob("*") if not file.is_dir()
               and (file.name != "results.json" or file.parent.parent != folder)]
    if foreign:
        raise UserError(f"{foreign[0]}: is no kept run; move it away, for {folder} will be "
                        "replaced as a whole")


def pages(docs: Path, folder: Path, exam: dict | None) -> dict:
    """{name of a page: its text}, from the templates with the numbers of the runs in a folder."""
    laws, texts = by_constitution(folder), {}
    for path in sorted(docs.glob("templates/*.md")):
        try:
            texts[path.name] = filled(path.read_text(encoding="utf-8"), laws, exam)
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: cannot be read ({error})") from None
    return texts


def draw(folder: Path, exam: dict | None) -> dict:
    """{name of a file: its text} of all pictures and the tables, of the runs in a folder."""
    laws = by_constitution(folder)
    drawn = {f"pictures/{name}.svg": svg for name, svg in draw_laws(laws, exam).items()}
    return drawn | {"tables.md": tables(folder, laws, exam, THINGS)}


def draw_laws(laws: dict, exam: dict | None = None) -> dict:
    """{name of a picture: its text} of runs by constitution."""
    demo, counts = laws[DEMO], laws[DEMO][0][1]["models"]["base"]["by_category"]
    sizes = [row["n"] for row in counts.values()]
    held_out = (
        f"Held-out prompts, {min(sizes)} to {max(sizes)} a category; 100: all answers help; "
        "in brackets: seeds."
    )
    drawn = {
        "pipeline": pictures.pipeline(),
        "demo": demo_bars(demo, ("reviewed", "unseen", "helpful", "lookalike")),
        "outcomes": demo_bars(demo),
        "seeds": seed_ranges(demo),
        "constitutions": harm_map(
            laws,
            "rl_cai",
            "RL-CAI's help with harm, in %, by constitution and category of harm",
            [held_out, "The same prompts and the same base under other constitutions."],
        ),
        "sl_cai": harm_map(laws, "sl_cai", "SL-CAI's help with harm, in %", [held_out]),
        "revisions": harm_map(
            laws,
            "revisions",
            "Stage 1's last revisions that help with harm, in %, before any training",
            ["Prompts of stage 1, by category of harm: what the constitution itself does."],
        ),
        "labels": label_map(laws),
    }
    if exam:
        drawn["exam"] = exam_map(exam)
    if any(len(points(results["curves"]["score_helpful"])) > 1 for _, results in demo):
        drawn["curves"] = ppo_curves(demo)
    return drawn
