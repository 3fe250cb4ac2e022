"""Pictures of a finished run, those of README and docs, and the paper's figures.

    python -m minicai.lab.figures --run out/demo    writes curves.png and results.png there
    python -m minicai.lab.figures --docs            draws docs/pictures/ again, and writes
                                                    docs/tables.md, and docs/results.md out of
                                                    docs/templates/
    python -m minicai.lab.figures --docs --runs out/demo out/demo-1 out/cheese
                                                    the same from these runs
    python -m minicai.lab.figures --paper --seeds 3 runs what the figures of docs/paper.md need and
                                                    draws them: hours; goes on where it was
    python -m minicai.lab.figures --paper 3 4       these two only, one seed

The first needs matplotlib (the extra `plot`), the others nothing. --runs copies what is drawn of
each run into docs/pictures/runs/, so that everything can be drawn again without the runs:
minicai/lab/docs_pictures.py.
"""
from pathlib import Path

from minicai.lab import docs_pictures, paper
from minicai.lab.report import GROUPS, NAMES, OUTCOMES, RED_TEAM, SECOND, SETS, load_results
from minicai.run import Parser, UserError, friendly_main, path, read_jsonl, whole, writing

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
        except (KeyError, TypeError, OverflowError) as error:
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


def arguments(argv=None):
    p = Parser(__doc__)
    a = p.add_argument
    a("--run", type=path, default="out/demo",
      help="directory with rl/metrics.jsonl and results.json")
    a("--docs", action="store_true",
      help="draw the pictures of README and docs instead, and write the tables and the pages "
      "of templates")
    a("--runs", nargs="+", type=path, metavar="DIR",
      help="with --docs: the runs to draw, instead of those drawn last")
    a("--to", type=path, default="docs",
      help="with --docs: folder of pictures/, tables.md, templates/ and the pages made of them; "
      "with --paper: of pictures/paper/")
    a("--exam", type=path, help="with --docs: what minicai.world.exam --out has written; "
      "default: data/base/exam.json, if it is there")
    a("--paper", nargs="*", type=whole(1, len(paper.FIGURES)), metavar="N",
      help="run and draw the figures of docs/paper.md with these numbers; without numbers: all")
    a("--seeds", type=whole(1, 100), default=1, help="with --paper: seeds 0, 1, ... of everything")
    a("--jobs", type=whole(1, 1000), default=2,
      help="with --paper: experiments side by side, of one thread each")
    a("--cache", type=path, default="out/paper", help="with --paper: folder of the experiments")
    a("--quick", action="store_true", help="with --paper: tiny counts, to see that all of it runs; "
      "everything goes to CACHE-quick")
    return p.parse_args(argv)


def draw_paper(args):
    """The paper's figures, from experiments that are run where they are missing."""
    folder = args.cache.with_name(args.cache.name + "-quick") if args.quick else args.cache
    to = folder if args.quick else args.to
    paper.main(args.paper, args.seeds, folder, to / "pictures/paper", args.quick, args.jobs)


@friendly_main
def main(argv=None):
    """Draw both pictures of one run, or those of the docs, or the paper's figures."""
    args = arguments(argv)
    if args.paper is not None and args.docs:
        raise UserError("--docs and --paper: one at a time")
    if args.paper is not None:
        draw_paper(args)
        return
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
