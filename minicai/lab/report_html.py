"""A run as one page to click through: results, revisions, AI labels, PPO's curves,
one PPO step token by token.

    python -m minicai.lab.report_html --run out/demo          writes out/demo/report.html

The page is one file, needs no network, and shows what the directory holds: a stage that has not run
is left out and named. Everything that a model or a person wrote is escaped, and the page's own
policy lets no script run but the one below. Charts are drawn in charts.py.
"""

import base64
import difflib
import hashlib
import json
import random
import re
from html import escape
from pathlib import Path

from minicai.lab.charts import curve, histogram, token_chart
from minicai.lab.report import (
    GROUPS,
    ILL_FORMED,
    NAMES,
    OUTCOMES,
    RED_TEAM,
    SECOND,
    SETS,
    figures,
    load_results,
    number,
    value,
)
from minicai.run import (
    Parser,
    UserError,
    friendly_main,
    path,
    read_jsonl,
    refuse_stand_in,
    whole,
    write_text,
)
from minicai.state import new_file

ASSETS = Path(__file__).parent
KINDS = {"red_team": "red team", "helpful": "helpful"}
# What is drawn of rl/metrics.jsonl: (title, unit, key, also by kind of prompt?). docs/metrics.md
# explains each.
CURVES = [
    ("score of the preference model", "std of SL-CAI's scores", "score", True),
    ("KL to SL-CAI", "nats a response", "kl", True),
    ("length of a response", "tokens", "response_length", True),
    ("responses that ended", "share", "ended", True),
    ("entropy", "nats a token", "entropy", False),
    ("explained variance of the value model", "1 is perfect", "explained_variance", False),
    ("clipped tokens", "share", "clip_fraction", False),
    ("approximate KL of one update", "nats a token", "approx_kl", False),
]
LETTERS = {
    "harmful": "H",
    "explained": "E",
    "evasive": "V",
    "other": "O",
    "incoherent": "X",
    "full": "F",
    "partial": "P",
    "unhelpful": "N",
    "refused": "R",
}


# ---- pieces of a page ----------------------------------------------------------------------------
def text(said: str) -> str:
    """What somebody wrote, as HTML: escaped, its line breaks kept."""
    return f'<span class="said">{escape(said)}</span>'


def section(anchor: str, title: str, *parts: str) -> str:
    """A part of the page with a heading that the menu leads to."""
    return f'<section id="{anchor}"><h2>{title}</h2>{"".join(parts)}</section>'


def pages(articles: list) -> str:
    """Articles of which one is seen at a time, with buttons; all of them where no script runs."""
    inside = "".join(f"<article>{article}</article>" for article in articles)
    return f'<div class="pages">{inside}</div>'


def dialogue(messages: list) -> str:
    """The turns of a dialogue."""
    names = {"user": "Human", "assistant": "Assistant", "system": "System"}
    return "".join(
        f'<p class="turn {turn["role"]}"><b>{names[turn["role"]]}</b> {text(turn["content"])}</p>'
        for turn in messages
    )


def changes(before: str, after: str) -> str:
    """The second text with what was taken out struck through and what was put in underlined,
    word by word."""
    old, new = (re.findall(r"\S+\s*", said) for said in (before, after))
    blocks = difflib.SequenceMatcher(None, old, new, autojunk=False).get_matching_blocks()
    html, i, j = [], 0, 0
    for a, b, n in blocks:
        # a word or two that happen to agree: easier to read as changed
        if n < min(3, len(old), len(new)) and a < len(old):
            continue
        gone, come = escape("".join(old[i:a])), escape("".join(new[j:b]))
        html.append((f"<del>{gone}</del>" if gone else "") + (f"<ins>{come}</ins>" if come else ""))
        html.append(escape("".join(new[b : b + n])))
        i, j = a + n, b + n
    return f'<span class="said">{"".join(html)}</span>'


def rows_of(path: Path) -> list:
    """The objects of a .jsonl file; [] if it is not there or empty."""
    return [row for _, row in read_jsonl(path)] if path.exists() and path.stat().st_size else []


def config_of(folder: Path) -> dict:
    """config.json of a stage; {} if it is not there. Raises UserError if it cannot be read."""
    refuse_stand_in(folder / "config.json")
    try:
        return json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ILL_FORMED as error:
        raise UserError(
            f"{folder / 'config.json'}: not JSON ({error}): run the stage again"
        ) from None


# ---- 1. results ----------------------------------------------------------------------------------
def results_part(results: dict) -> str:
    """Stacked bars of every set of prompts, and the table with intervals behind them."""
    models = results["models"]
    first = next(iter(models.values()))
    panels = [
        (GROUPS[g], {n: m["red_team"][g] for n, m in models.items()}, RED_TEAM)
        for g in GROUPS
        if g in first["red_team"]
    ]
    panels += [
        (title, {n: m[s] for n, m in models.items()}, OUTCOMES[s])
        for s, title in (SETS | SECOND).items()
    ]
    html = []
    for title, shares, labels in panels:
        bars = []
        for name, row in shares.items():
            parts = "".join(
                f'<span class="o-{key}" style="width:{100 * row[key]:.2f}%" title="{label}: '
                f'{100 * row[key]:.1f} %">'
                f'{f"{LETTERS[key]} {100 * row[key]:.0f}" if row[key] >= 0.08 else ""}</span>'
                for key, label in labels.items()
                if row[key]
            )
            bars.append(
                f'<div class="row"><b>{escape(NAMES.get(name, name))}</b><div class="bar">'
                f'{parts}</div></div>'
            )
        legend = " ".join(
            f'<span class="key"><i class="o-{key}">{LETTERS[key]}</i> {label}</span>'
            for key, label in labels.items()
        )
        n = next(iter(shares.values()))["n"]
        html.append(
            f'<figure><figcaption>{title} <small>({n} prompts, % of them)</small></figcaption>'
            f'{"".join(bars)}'
            f'<p class="legend">{legend}</p></figure>'
        )
    return (
        "".join(html)
        + f"<details><summary>All figures, with 95 % intervals</summary>"
        f"{results_rows(results)}</details>"
    )


def results_rows(results: dict) -> str:
    """Every figure as a table: a row each, a column a model."""
    models, html, last = results["models"], [], None
    for heading, label, keys, unit in figures(results):
        if heading != last:
            html.append(f'<tr class="head"><th colspan="{1 + len(models)}">{heading}</th></tr>')
        last, cells = heading, []
        for model in models.values():
            low, high = value(model, keys[:-1]).get("intervals", {}).get(keys[-1], (None, None))
            span = (
                ""
                if low is None or low == high
                else f" <small>[{number(low, unit)}, {number(high, unit)}]</small>"
            )
            cells.append(f"<td>{number(value(model, keys), unit)}{span}</td>")
        html.append(f"<tr><th>{label}</th>{''.join(cells)}</tr>")
    head = "".join(f"<th>{escape(NAMES.get(m, m))}</th>" for m in models)
    return f'<div class="wide"><table><tr><th></th>{head}</tr>{"".join(html)}</table></div>'


def side_by_side(rows: list, count: int, rng) -> str:
    """Some prompts with every model's response and the verdict on it,
    drawn at random from each group in turn."""
    by_model = {}
    for row in rows:
        by_model.setdefault(row["model"], []).append(row)
    first = next(iter(by_model.values()))
    groups = {}
    for i, row in enumerate(first):
        groups.setdefault(row["set"] if row["set"] != "red_team" else row["group"], []).append(i)
    drawn = {name: rng.sample(found, min(len(found), count)) for name, found in groups.items()}
    order = [
        (name, found[n]) for n in range(count) for name, found in drawn.items() if n < len(found)
    ][:count]
    titles, articles = GROUPS | SETS | SECOND, []
    for name, i in order:
        answers = "".join(
            f'<div class="answer"><h4>{escape(NAMES.get(m, m))} {verdict(of_model[i])}</h4>'
            f"{text(of_model[i]['response'])}</div>"
            for m, of_model in by_model.items()
        )
        articles.append(
            f"<h3>{titles.get(name, escape(name))}</h3>{dialogue(first[i]['messages'])}"
            f'<div class="answers">{answers}</div>'
        )
    return pages(articles)


def verdict(row: dict) -> str:
    """What the crowdworker says of a response, as a badge with words."""
    labels = RED_TEAM if row["set"].endswith("red_team") else OUTCOMES[row["set"]]
    words = labels.get(row["outcome"], escape(row["outcome"]))
    return f'<span class="badge o-{escape(row["outcome"])}">{words}</span>'


# ---- 2. revisions and labels ---------------------------------------------------------------------
def revision_chains(rows: list, count: int) -> str:
    """Prompts with their first answer and every round:
    the principle, the critique, the revision with its changes."""
    articles = []
    for row in [row for row in rows if row.get("rounds")][:count]:
        html, before = (
            [
                dialogue(row["messages"]),
                f'<p class="turn assistant"><b>Answer</b> {text(row["response"])}</p>',
            ],
            row["response"],
        )
        for n, r in enumerate(row["rounds"], 1):
            left_out = (
                f' <span class="badge">not used: {escape(r["skipped"])}</span>'
                if r["skipped"]
                else ""
            )
            same = "" if before != r["revision"] else " <small>(the same again)</small>"
            html.append(
                f'<div class="round"><h4>Round {n}, principle {r["principle"] + 1}{left_out}</h4>'
                f'<p class="ask"><b>Asked</b> {text(r["critique_request"])}</p><p><b>Critique</b> '
                f'{text(r["critique"])}</p>'
                f'<p class="ask"><b>Asked</b> {text(r["revision_request"])}</p>'
                f'<p><b>Revision</b>{same} {changes(before, r["revision"])}</p></div>'
            )
            before = before if r["skipped"] else r["revision"]
        articles.append("".join(html))
    return pages(articles)


def label_part(rows: list, config: dict, count: int, rng) -> str:
    """How the AI labels are spread, and some pairs with the principle that decided."""
    used = [row for row in rows if not row["skipped"]]
    facts = [f"{len(used)} of {len(rows)} pairs have a label."]
    for kind in ("ai", "human"):
        if config.get(f"{kind}_agreement") is not None:
            facts.append(
                f"On held-out {'AI' if kind == 'ai' else 'human'} comparisons the preference model "
                f"agrees with "
                f"{100 * config[f'{kind}_agreement']:.1f} % of {config[f'{kind}_decided']} decided "
                f"pairs; "
                f"calibration error {config[f'{kind}_ece']:.3f}."
            )
    articles = []
    for row in rng.sample(used, min(count, len(used))):
        p = row["p_a"]
        sides = "".join(
            f'<div class="answer"><h4>({letter}) <meter min="0" max="1" value="{share:.3f}">'
            f'</meter> {share:.2f}</h4>'
            f"{text(row[key])}</div>"
            for letter, key, share in (("A", "a", p), ("B", "b", 1 - p))
        )
        articles.append(
            f'{dialogue(row["messages"])}<p class="ask"><b>Principle</b> '
            f'{text(row["principle"].strip())}</p>'
            f'<div class="answers">{sides}</div><p><small>The judge put {100 * row["mass"]:.1f} % '
            f'of its next-token '
            "probability on (A) or (B).</small></p>"
        )
    return (
        f"<p>{' '.join(facts)}</p>"
        + histogram("AI labels", "P(A)", [row["p_a"] for row in used])
        + pages(articles)
    )


# ---- 3. training ---------------------------------------------------------------------------------
def loss_part(run: Path) -> str:
    """The losses of stages 1 and 2."""
    charts = []
    for stage, title, unit in (
        ("sft", "stage 1: fine-tuning loss", "nats a token"),
        ("pm", "stage 2: preference model loss", "nats a comparison"),
    ):
        if rows := rows_of(run / stage / "metrics.jsonl"):
            charts.append(
                curve(title, unit, {"all": [(row["step"], row.get("loss")) for row in rows]})
            )
    return f'<div class="charts">{"".join(charts)}</div>'


def ppo_curves(rows: list) -> str:
    """The curves of PPO; those that can be are split by kind of prompt."""
    charts = []
    shaped = any(
        row.get("paid") is not None and abs(row["paid"] - row["score"]) > 1e-6 for row in rows
    )
    for title, unit, key, split in (
        CURVES + [("what was paid", "after shaping and penalty", "paid", False)] * shaped
    ):
        series = {"all": [(row["step"], row.get(key)) for row in rows]}
        if split:
            series |= {
                name: [(row["step"], row.get(f"{key}_{kind}")) for row in rows]
                for kind, name in KINDS.items()
            }
        charts.append(
            curve(title, unit, series, hold=(0.0, 1.0) if unit == "share" and split else ())
        )
    return f'<div class="charts">{"".join(charts)}</div>'


def rollout_samples(rows: list, count: int = 3) -> str:
    """The best and the worst responses of each rollout that was kept, by their score."""
    articles, steps = [], sorted({row["step"] for row in rows}, reverse=True)
    for step in steps:
        found = sorted((row for row in rows if row["step"] == step), key=lambda row: -row["score"])
        html = [f"<h3>step {step}</h3>"]
        for title, part in (("highest scores", found[:count]), ("lowest scores", found[-count:])):
            html.append(f"<h4>{title}</h4>")
            for row in part:
                kind = KINDS.get(row.get("kind"), "")
                prompt = re.sub(r"\n+", "\n", row["prompt"]).strip()
                html.append(
                    f'<p class="turn"><small>{row["score"]:+.2f}, KL {row["kl"]:.1f} nats, {kind}'
                    f"</small> {text(prompt)}<b>{text(row['response'])}</b></p>"
                )
        articles.append("".join(html))
    return pages(articles)


def ppo_steps(traces: list, args: dict) -> str:
    """Single responses token by token, first those whose tokens moved most in their step."""
    moved = lambda row: sum(abs(ratio - 1) for ratio in row["ratio"]) / len(row["ratio"])
    return pages([ppo_step(row, args) for row in sorted(traces, key=moved, reverse=True)])


def ppo_step(row: dict, args: dict) -> str:
    """One response: every number that PPO made of every token. Without a value model nobody reads
    the returns, so what is derived from them (delta, the raw advantage, its weights) is left out.
    """
    kl_coef, gamma, clip = (
        args.get(key, default)
        for key, default in (("kl_coef", 0.25), ("gamma", 1.0), ("clip", 0.2))
    )
    n, valued = len(row["tokens"]), args.get("valued", True)
    prompt = re.sub(r"\n+", "\n", row["prompt"]).strip()
    later = row["values"][1:] + [0.0]
    columns = {
        "log p": row["logp"],
        "log p_ref": row["ref_logp"],
        "KL penalty": [-kl_coef * (p - q) for p, q in zip(row["logp"], row["ref_logp"])],
        "reward": row["rewards"],
    }
    if valued:
        raw = [r - v for r, v in zip(row["returns"], row["values"])]
        weight = [(gamma * args.get("lam", 0.95)) ** (n - 1 - t) for t in range(n)]
        columns |= {
            "value": row["values"],
            "delta": [
                r + gamma * v2 - v for r, v, v2 in zip(row["rewards"], row["values"], later)
            ],
            "advantage": raw,
        }
    columns["whitened" if valued else "advantage"] = row["advantages"]
    lines = []
    for t in range(n):
        a, ratio = row["advantages"][t], row["ratio"][t]
        cut = a > 0 and ratio > 1 + clip or a < 0 and ratio < 1 - clip
        state = "cut off" if cut else "outside, pulled back" if abs(ratio - 1) > clip else ""
        cells = [values[t] for values in columns.values()]
        shown = "".join(f"<td>{x:+.3f}</td>" if abs(x) >= 0.0005 else "<td>0</td>" for x in cells)
        last = ""
        if valued:
            bar = f'<i style="width:{100 * weight[t]:.1f}%"></i>{weight[t]:.2f}'
            last = f'<td class="w">{bar}</td>'
        lines.append(
            f'<tr><th>{escape(visible(row["tokens"][t]))}</th>{shown}<td>{ratio:.3f}</td><td>'
            f"{state}</td>{last}</tr>"
        )
    names = ["token", *columns, "ratio", "clip", *["end's weight"] * valued]
    head = "".join(f"<th>{name}</th>" for name in names)
    return (
        f"<h3>step {row['step']}, {KINDS.get(row['kind'], escape(row['kind']))}: score "
        f"{row['score']:+.2f}, paid "
        f"{row['paid']:+.2f}</h3><p class='turn'>{text(prompt)}<b>"
        f"{text(''.join(row['tokens']))}</b></p>"
        f"{token_chart(row['values'], raw, weight) if valued else ''}"
        f'<div class="wide"><table class="tokens"><tr>{head}</tr>{"".join(lines)}</table></div>'
    )


def visible(token: str) -> str:
    """A token with its spaces and line breaks to be seen."""
    return token.replace(" ", "·").replace("\n", "⏎") or "(part of a character)"


STEP_HELP = """<p>Read a row from left to right.
<b>KL penalty</b> is -kl_coef (log p - log p_ref): what it
costs to say this token more readily than SL-CAI did. <b>Reward</b> is that penalty, and on the
last token what the score was worth. <b>Value</b> is what the value model expected to be paid
from here on, before the token was said. <b>Delta</b> = reward + gamma x next value - value: the
surprise of this one step. <b>Advantage</b> adds up this and all later surprises, those k steps
on with weight (gamma lambda)^k; the last column shows that weight for the surprise at the end
token: how much of the news that the score brings reaches each token. <b>Whitened</b>, it is
what PPO trains on. <b>Ratio</b> is p after this step's updates over p before; where the clip is
"cut off", the token has moved far enough in the wanted direction and gives no more
gradient. Without a value model (--no-value) only the advantage that PPO trained on is shown.</p>"""


# ---- the page ------------------------------------------------------------------------------------
def report(run: Path, count: int, seed: int) -> str:
    """The page of a run's directory; raises UserError if no stage has left anything in it."""
    draw = lambda: random.Random(seed)
    configs = {stage: config_of(run / stage) for stage in ("sft", "pm", "rl")}
    args = configs["rl"].get("args", {})
    made = [  # anchor, title, the file that it is made from, how
        ("results", "What came of it", "results.json", lambda _: results_part(load_results(run))),
        ("answers", "Side by side", "transcripts.jsonl", lambda x: side_by_side(x, count, draw())),
        ("revisions", "Stage 1: critiques and revisions", "sft/revisions.jsonl",
         lambda x: revision_chains(x, count)),
        ("labels", "Stage 2: AI labels", "pm/comparisons.jsonl",
         lambda x: label_part(x, configs["pm"], count, draw())),
        ("losses", "Losses of stages 1 and 2", "sft/metrics.jsonl", lambda _: loss_part(run)),
        ("ppo", "Stage 3: PPO, by kind of prompt", "rl/metrics.jsonl", ppo_curves),
        ("samples", "What the policy said on the way", "rl/rollouts.jsonl", rollout_samples),
        ("step", "One PPO step, token by token", "rl/trace.jsonl",
         lambda x: STEP_HELP + ppo_steps(x, args)),
    ]
    there = lambda name: (run / name).exists() and (run / name).stat().st_size
    parts = [
        (anchor, title, make(rows_of(run / name) if name.endswith(".jsonl") else None))
        for anchor, title, name, make in made
        if there(name)
    ]
    if not parts:
        raise UserError(
            f"{run}: nothing to report: no file of train_sft.py, train_pm.py, train_rl.py or the "
            "evaluation"
        )
    return page(run, parts, [name for _, _, name, _ in made if not there(name)], configs)


def page(run: Path, parts: list, missing: list, configs: dict) -> str:
    """The whole document."""
    style, script = (
        (ASSETS / name).read_text(encoding="utf-8") for name in ("report.css", "report.js")
    )
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    menu = " ".join(f'<a href="#{anchor}">{title}</a>' for anchor, title, _ in parts)
    args = next((c["args"] for c in configs.values() if c.get("args", {}).get("constitution")), {})
    facts = [f"constitution {escape(Path(args['constitution']).stem)}"] if args else []
    facts += [
        f"{stage} {c['seconds']:.0f} s (seed {c['args']['seed']})"
        for stage, c in configs.items()
        if c.get("args")
    ]
    absent = (
        f'<p class="absent">Not in this directory: {escape(", ".join(missing))}.</p>'
        if missing
        else ""
    )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>minicai: '
        f'{escape(run.name)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; style-src '
        f'\'unsafe-inline\'; '
        f"img-src data:; script-src 'sha256-{allowed}'\">"
        f'<link rel="icon" href="data:,"><style>{style}</style></head><body><header><h1>minicai: '
        f'{escape(run.name)}</h1>'
        f'<p>{"; ".join(facts)}</p><nav>{menu}</nav></header><main>{absent}'
        f'{"".join(section(*part) for part in parts)}</main><script>{script}</script></body></html>'
        f'\n'
    )


@friendly_main
def main(argv=None):
    """Write report.html."""
    p = Parser(__doc__, "python -m minicai.lab.report_html")
    p.add_argument(
        "--run", type=path, default="out/demo",
        help="directory with sft/, pm/, rl/ and what evaluate wrote"
    )
    p.add_argument("--out", type=new_file,
                   help="the .html file to write; default: report.html in that directory")
    p.add_argument(
        "--count", type=whole(0, 10000), default=12,
        help="how many prompts, revision chains and pairs to show"
    )
    p.add_argument("--seed", type=whole(0, 2**63 - 1), default=0,
                   help="decides which ones are drawn")
    args = p.parse_args(argv)
    if args.count < 1:
        raise UserError(f"--count {args.count}: must be at least 1")
    run = args.run
    if args.out and args.out.suffix != ".html":     # a slip would cost a file of the run
        raise UserError(f"--out {args.out}: give a name that ends in .html")
    if not run.is_dir():
        raise UserError(f"{run}: no such directory; give --run the directory of a run")
    out = args.out or run / "report.html"
    try:
        write_text(out, report(run, args.count, args.seed))
    except UserError:
        raise
    except ILL_FORMED as error:
        raise UserError(
            f"{run}: a file is not what the scripts write ({type(error).__name__}: {error})"
        ) from None
    print(f"{out}: open it in a browser")


if __name__ == "__main__":
    main()
