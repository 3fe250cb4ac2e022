"""Pictures of a finished run, and those of README and docs.

    python -m minicai.lab.figures --run out/demo    writes curves.png and results.png there
    python -m minicai.lab.figures --docs            draws docs/pictures/ again, and writes
                                                    docs/tables.md
    python -m minicai.lab.figures --docs --runs out/demo out/demo-1 out/cheese
                                                    the same from these runs

The first needs matplotlib (the extra `plot`), the others nothing. --runs copies what is drawn of
each run into docs/pictures/runs/, so that everything can be drawn again without the runs:
minicai/lab/docs_pictures.py.
"""
from pathlib import Path

from minicai.lab import docs_pictures
from minicai.lab.report import GROUPS, NAMES, OUTCOMES, RED_TEAM, SECOND, SETS, load_results
from minicai.run import Parser, UserError, friendly_main, path, read_jsonl, writing

CURVES = {"score": "score of the preference model", "kl": "KL to SL-CAI, nats a response",
          "response_length": "tokens a response", "entropy": "entropy, nats a token"}
# What is wanted is green, what is to go is red, on harmful and on harmless requests.
COLOURS = {"harmful": "tab:red", "explained": "tab:green", "evasive": "tab:orange",
           "other": "tab:olive", "full": "tab:green", "partial": "tab:olive",
           "unhelpful": "tab:orange", "refused": "tab:red", "incoherent": "silver"}


def read_curves(path) -> list:
    """The rows of a metrics.jsonl of PPO, null (not finite) as nan;
    raises UserError for one that lacks a number."""
    rows = []
    for number, row in read_jsonl(path):
        try:
            rows.append({key: float("nan") if row[key] is None else row[key] + 0.0
                         for key in ("step", *CURVES)})
        except (KeyError, TypeError) as error:
            raise UserError(f"{path}:{number}: not a row of train_rl.py's log "
                            f"({type(error).__name__}: {error})") from None
    return rows


def curves(plt, rows: list):
    """One panel for each of CURVES, over the steps of PPO."""
    figure, axes = plt.subplots(1, len(CURVES), figsize=(4 * len(CURVES), 3))
    for axis, key in zip(axes, CURVES):
        axis.plot([row["step"] for row in rows], [row[key] for row in rows])
        axis.set(title=CURVES[key], xlabel="step")
    return figure


def bars(plt, models: dict):
    """Stacked outcomes of every set of prompts, one bar a model."""
    panels = [(GROUPS[g], {n: m["red_team"][g] for n, m in models.items()}, RED_TEAM)
              for g in GROUPS if g in next(iter(models.values()))["red_team"]]
    panels += [(title, {n: m[s] for n, m in models.items()}, OUTCOMES[s])
               for s, title in (SETS | SECOND).items()]
    figure, axes = plt.subplots(len(panels), 1, figsize=(8, 1.7 * len(panels)), squeeze=False)
    for axis, (title, shares, labels) in zip(axes[:, 0], panels):
        left = [0.0] * len(shares)
        for key, label in labels.items():
            width = [100 * row[key] for row in shares.values()]
            axis.barh([NAMES.get(n, n) for n in shares], width, left=left, label=label,
                      color=COLOURS[key])
            left = [a + b for a, b in zip(left, width)]
        axis.invert_yaxis()                                       # the first model on top
        axis.set_title(title, fontsize=9)
        axis.set_xlim(0, 100)
        axis.legend(fontsize=6, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


@friendly_main
def main(argv=None):
    """Draw both pictures of one run, or those of the docs."""
    p = Parser(__doc__)
    p.add_argument("--run", type=path, default="out/demo",
                   help="directory with rl/metrics.jsonl and results.json")
    p.add_argument("--docs", action="store_true",
                   help="draw the pictures of README and docs instead, and write the tables")
    p.add_argument("--runs", nargs="+", type=path, metavar="DIR",
                   help="with --docs: the runs to draw, instead of those drawn last")
    p.add_argument("--to", type=path, default="docs",
                   help="with --docs: folder of pictures/ and tables.md")
    p.add_argument("--exam", type=path,
                   help="with --docs: what minicai.world.exam --out has written; "
                   "default: data/base/exam.json, if it is there")
    args = p.parse_args(argv)
    if args.docs:
        usual = Path("data/base/exam.json")
        docs_pictures.write(args.to, args.exam or (usual if usual.exists() else None), args.runs)
        return
    if args.runs:
        raise UserError("--runs goes with --docs; --run DIR draws one run")
    run = args.run
    steps, models = read_curves(run / "rl" / "metrics.jsonl"), load_results(run)["models"]
    try:
        import matplotlib
    except ImportError:
        raise UserError(
            "matplotlib is missing: pip install -c constraints.txt matplotlib") from None
    matplotlib.use("Agg")  # draws into files, needs no screen
    import matplotlib.pyplot as plt
    for name, draw in {"curves.png": lambda: curves(plt, steps),
                       "results.png": lambda: bars(plt, models)}.items():
        figure = draw()
        figure.tight_layout()
        with writing(run / name):
            figure.savefig(run / name, dpi=150)
        print(run / name)


if __name__ == "__main__":
    main()
