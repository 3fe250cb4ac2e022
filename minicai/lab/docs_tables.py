"""The text of docs/tables.md: every number behind the pictures of docs/results.md; and the numbers
in the sentences of that page."""

import re
from pathlib import Path

from minicai.lab.report import ILL_FORMED, compare, seeds_table, spread, value
from minicai.run import UserError

HEAD = """# Tables

Written by `python -m minicai.lab.figures --docs`; [results.md](results.md) says what they mean.
Shares are of held-out prompts, one response each at T = 1, judged by the crowdworker."""
STAGES = {"sft": "stage 1", "pm": "stage 2", "rl": "stage 3", "evaluate": "evaluation"}


def table(columns: list, rows: list) -> str:
    """A Markdown table."""
    text = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in text)


def percent(share) -> str:
    """A share in percent, "-" for none."""
    return "-" if share is None else f"{100 * share:.1f} %"


def filled(template: str, laws: dict, exam: dict | None) -> str:
    """A page whose fields are numbers: {{harmlessness rl_cai helpful full}} is the mean over that
    constitution's runs with the least and the greatest, {{exam review unseen verdict}} a row of the
    base's exam. Raises UserError, if there is no such number."""
    def number(field) -> str:
        law, *keys = field[1].split() or [""]
        try:
            if law == "exam":
                return f"{100 * value(exam, keys):.0f} %"
            return spread([value(results["models"], keys) for _, results in laws[law]], "%")
        except ILL_FORMED as error:
            raise UserError(f"{field[0]}: there is no such number ({error}); name a run that has "
                            "it with --runs, and an exam with --exam") from None
    return re.sub(r"\{\{(.*?)\}\}", number, template)


def exam_tables(exam: dict) -> str:
    """Markdown of every row of the base's exam."""
    keys = ("harmful", "full", "partial", "refused", "coherent")
    rows = [[k, *(percent(row.get(k)) for row in exam["dialogue"].values())] for k in keys]
    dialogue = table(["in dialogue", *exam["dialogue"]], rows)
    keys = ("verdict", "critique", "revision", "revision_sampled", "faults")
    rows = [[name, *(percent(row.get(k)) for k in keys)] for name, row in exam["review"].items()]
    named = [
        "verdict",
        "whole critique",
        "revision, greedy",
        "revision, T = 1",
        "cases with a fault",
    ]
    reviews = table(["review", *named], rows)
    rows = []
    for name, row in exam["comparison"].items():
        cells = [
            (percent(row[k]["right"]), f"{row[k]['label']:.3f}") for k in ("thought", "at_once")
        ]
        rows.append([name, *cells[0], *cells[1]])
    choices = table(["choice", "right, after a thought", "label", "right, at once", "label"], rows)
    return "\n\n".join((dialogue, reviews, choices))


def mention_table(laws: dict, things: list) -> str:
    """Markdown: how many answers to requests that name a thing say it too, by constitution."""
    rows = []
    for law, runs in laws.items():
        for thing in things:
            told = [results["mentions"][thing] for _, results in runs if "mentions" in results]
            of = (
                {who: [sum(t[who][i] for t in told) for i in (1, 0)] for who in told[0]}
                if told
                else {}
            )
            if any(asked for _, asked in of.values()):
                rows.append([law, thing, *(f"{said} of {asked}" for said, asked in of.values())])
    named = ["the base", "last revisions", "stage 2's pairs", "RL-CAI, second half of PPO"]
    return table(["constitution", "thing", *named], rows)


def tables(folder: Path, laws: dict, exam: dict | None, things: list) -> str:
    """The whole page; `laws`: {constitution: [(run, its results)]}, the demo's first."""
    demo = [folder / name for name, _ in next(iter(laws.values()))]
    every = [run for runs in laws.values() for run in runs]
    seconds = [[name, *(f"{r['seconds'].get(k) or 0:.0f}" for k in STAGES)] for name, r in every]
    parts = {
        f"The demo, runs: {', '.join(f.name for f in demo)}. Mean (least to greatest)": seeds_table(
            demo
        ),
        "Constitutions, one row a run": compare([folder / name for name, _ in every]),
        "Answers that speak of a thing, of CAI's own requests that name it": mention_table(
            laws, things
        ),
        "Seconds": table(["run", *STAGES.values()], seconds),
    }
    if exam:
        title = f"The exam of the base, {exam['cases']} cases a row, seed {exam['seed']}"
        parts[title] = exam_tables(exam)
    return HEAD + "".join(f"\n\n## {title}\n\n{text}" for title, text in parts.items()) + "\n"
