"""What the figures of docs/paper.md measure, on held-out prompts, judged by the crowdworker.

    python -m minicai.lab.paper_measure answers --run out/demo/rl --start out/demo/sft/sl_cai
    python -m minicai.lab.paper_measure answers --models base=data/base sl_cai=out/demo/sft/sl_cai
    python -m minicai.lab.paper_measure revisions --model data/base --rounds 4
    python -m minicai.lab.paper_measure choices --model data/base
    python -m minicai.lab.paper_measure categories --model data/base
    python -m minicai.lab.paper_measure labels --run out/demo/pm

answers: outcome and rank of every model's answer to every prompt, of a run also along its steps.
revisions: the same of a model's answers and of what it makes of them, round by round.
choices: the multiple choice of stage 2, on pairs of which the better response is known.
categories: does a critique see the harm, and does it name the right kind?
labels: of stage 2's labels, how many are right?

Each writes OUT/result.json. minicai.lab.paper runs them; minicai.lab.paper_figures draws them.
"""
import json
import time
from pathlib import Path
from random import Random

import torch

from minicai.answers import answered_ids
from minicai.checkpoint import load_model
from minicai.constitution import draw_critiques, load_constitution
from minicai.critique import critique_prompt, critique_revise, read_answer, respond, sampler
from minicai.data import read_prompt
from minicai.feedback import label
from minicai.lab.evaluate import outcome, rank, read_sets
from minicai.preference import load_preference_model
from minicai.run import (
    Parser,
    UserError,
    friendly_main,
    path,
    pick_device,
    read_jsonl,
    real,
    whole,
    write_text,
)
from minicai.world.crowdworker import Crowdworker
from minicai.world.exam import HARMFUL, PAIRS, Exam
from minicai.world.grammar import World
from minicai.world.preview import TEMPERATURE
from minicai.world.principles import verdict

SURE = verdict("")                      # how a critique ends that finds nothing wrong


# ---- answers -------------------------------------------------------------------------------------
def snapshots(run: Path, start: Path) -> dict:
    """{step: model directory} of a run of PPO: where it began, what it kept on its way, its end."""
    config = json.loads((run / "config.json").read_text("utf-8"))
    kept = {int(folder.name): folder for folder in sorted((run / "steps").glob("[0-9]*"))}
    return {0: start} | kept | {config["args"]["steps"]: run / "rl_cai"}


def prompts_of(args, world, sets=("red_team", "helpful", "lookalike")) -> list:
    """Held-out prompts of some sets, at most --limit of each group."""
    prompts = read_sets(args.data, args.limit, {a.id: a.category for a in world.activities})
    return [prompt for prompt in prompts if prompt["set"] in sets]


def judged(worker, prompts: list, texts: list) -> dict:
    """{"outcome": [...], "rank": [...]} of one text for each prompt."""
    found = {"outcome": [], "rank": []}
    for prompt, said in zip(prompts, texts):
        red_team, opinion = prompt["set"] == "red_team", worker.verdict(prompt["messages"], said)
        found["outcome"].append(outcome(opinion, red_team))
        found["rank"].append(rank(opinion, red_team))
    return found


def scores(folder: Path, prompts: list, texts: list) -> list:
    """What a preference model gives to one text for each prompt."""
    pm, tok = load_preference_model(folder)
    rows = [answered_ids(tok, p["messages"], text) for p, text in zip(prompts, texts)]
    return [round(score, 4) for score in pm.score_rows(rows).tolist()]


def asked(folder, tok_and_model, prompts: list, args, temperature: float) -> list:
    """One model's answers to all prompts."""
    model, tok = tok_and_model
    generator = torch.Generator().manual_seed(args.seed)
    ask = sampler(model, tok, args.max_new, temperature, generator)
    talks, said = [p["messages"] for p in prompts], f"{folder}, T = {temperature:g}"
    return [row["response"] for row in respond(ask, tok, talks, progress=said)]


def answers(args) -> dict:
    """Every model's answers to every prompt, at each temperature."""
    world = World.load()
    worker, prompts = Crowdworker(world), prompts_of(args, world)
    if bool(args.models) == bool(args.run):
        raise UserError("answers: give --models NAME=DIR ..., or --run DIR and --start DIR")
    if args.run and not args.start:
        raise UserError("answers: --run needs --start, the model from which the run began")
    models = named(args.models) if args.models else snapshots(args.run, args.start)
    measured = {}
    for name, folder in models.items():
        pair, measured[str(name)] = load_model(folder, args.device), {}
        for temperature in args.temperatures:
            texts = asked(folder, pair, prompts, args, temperature)
            found = judged(worker, prompts, texts)
            for pm, where in named(args.pm).items():
                found[f"score_{pm}"] = scores(where, prompts, texts)
            measured[str(name)][f"{temperature:g}"] = found
    facts = {"sets": [p["set"] for p in prompts], "groups": [p["group"] for p in prompts]}
    if args.run:
        facts["kl"] = [row["kl"] for _, row in read_jsonl(args.run / "metrics.jsonl")]
    return facts | {"models": measured}


# ---- revisions -----------------------------------------------------------------------------------
def revisions(args) -> dict:
    """A model's answers to harmful prompts, and its revisions of them, round by round."""
    world, law = World.load(), load_constitution(args.constitution)
    worker, prompts = Crowdworker(world), prompts_of(args, world, ("red_team",))
    rng, generator = Random(args.seed), torch.Generator().manual_seed(args.seed)
    if args.principles:
        law = draw_critiques(law, args.principles, args.seed)
    model, tok = load_model(args.model, args.device)
    ask = sampler(model, tok, args.max_new, TEMPERATURE, generator)
    prompts = prompts * args.samples
    rows = respond(ask, tok, [p["messages"] for p in prompts], progress="answers")
    critique_revise(ask, tok, law, rows, args.rounds, rng, law.few_shot_critique,
                    direct=args.direct)
    rounds, texts = [], [row["response"] for row in rows]
    for n in range(args.rounds + 1):
        if n:
            texts = [
                row["rounds"][n - 1]["revision"]
                if row.get("rounds") and not row["rounds"][n - 1]["skipped"]
                else text
                for row, text in zip(rows, texts)
            ]
        rounds.append(judged(worker, prompts, texts) | variety(texts, args.samples))
        for name, folder in named(args.pm).items():
            rounds[-1][f"score_{name}"] = scores(folder, prompts, texts)
    return {"groups": [p["group"] for p in prompts], "samples": args.samples, "rounds": rounds}


def variety(texts: list, samples: int) -> dict:
    """How unlike each other texts are: of `samples` to one prompt, and all together.

    distinct: the share of different texts among those to one prompt, mean over prompts, None for
    one sample. trigrams: the share of different runs of three words among all runs of three words.
    """
    apart = len(texts) // samples       # texts to one prompt stand so far from each other
    shares = [len(set(texts[i::apart])) / samples for i in range(apart)]
    words = [text.lower().split() for text in texts]
    runs = [tuple(row[i : i + 3]) for row in words for i in range(len(row) - 2)]
    return {
        "distinct": sum(shares) / len(shares) if samples > 1 else None,
        "trigrams": len(set(runs)) / max(1, len(runs)),
    }


# ---- choices and critiques -----------------------------------------------------------------------
def choices(args) -> dict:
    """P(better response) of every kind of pair, at once and after a thought, in both orders."""
    law, world = load_constitution(args.constitution), World.load()
    model, tok = load_model(args.model, args.device)
    exam, rng = Exam(model, tok, world, args.limit, args.seed), Random(args.seed)
    rows = []
    for name, (*_, groups) in PAIRS.items():
        for group in [g for g in groups if g in HARMFUL]:
            pairs = [(m, a, b, rng.choice(law.comparisons)) for m, a, b, *_ in
                     exam.pair_rows(name, group)]
            for manner in ("at_once", "thought"):
                generator = torch.Generator().manual_seed(args.seed)
                think = sampler(model, tok, 200, 1.0, generator) if manner == "thought" else None
                ask = lambda questions: label(model, tok, questions, think=think, clamp=(0, 1))[0]
                first = ask(pairs)
                second = 1 - ask([(m, b, a, principle) for m, a, b, principle in pairs])
                p = [round(x, 5) for x in [*first.tolist(), *second.tolist()]]
                rows.append({"pair": name, "group": group, "manner": manner, "p": p})
                print(f"{name}, {group}, {manner}: {sum(x > 0.5 for x in p) / len(p):.0%} right")
    return {"rows": rows}


def categories(args) -> dict:
    """Critiques of help with harm and of harmless answers: is it harm, and of which kind?"""
    law, world = load_constitution(args.constitution), World.load()
    model, tok = load_model(args.model, args.device)
    worker, rng = Crowdworker(world), Random(args.seed)
    cases = []
    for group in (*HARMFUL, "benign", "lookalike"):
        count = args.limit * (1 if group in HARMFUL else 2)
        topics = [world.topic(rng, group, "eval") for _ in range(count)]
        kinds = ("full", "partial", "vague")
        cases += [(group, t, world.response(rng, t, rng.choice(kinds)).text) for t in topics]
    talks = [world.conversation(rng, topic) + [{"role": "assistant", "content": said}]
             for _, topic, said in cases]
    generator = torch.Generator().manual_seed(args.seed)
    principle = law.critiques[0]        # one that names no single kind of harm
    prompts = [critique_prompt(tok, law, talk, principle, law.few_shot_critique) for talk in talks]
    ask = sampler(model, tok, args.max_new, 1.0, generator)
    rows = []
    for (group, topic, _), ids in zip(cases, ask(prompts, progress="critiques")):
        text = read_answer(tok, ids)[0]
        kinds = sorted({worker.harm_words[word] for word in worker.harm_said.findall(text.lower())})
        rows.append({"group": group, "category": topic.activity.category, "named": kinds,
                     "finds": SURE not in text, "critique": text})
    return {"request": principle.critique_request, "rows": rows}


def labels(args) -> dict:
    """Stage 2's labels of pairs of which one is better by the crowdworker's ladder."""
    if not args.run:
        raise UserError("labels: give --run DIR, the folder of a comparisons.jsonl")
    worker, right, certain, undecided = Crowdworker(World.load()), [], [], 0
    file = args.run / "comparisons.jsonl"
    for number, row in read_jsonl(file):
        messages = read_prompt(row, f"{file}:{number}")
        a, b = (rank(worker.verdict(messages, row[x]), True) for x in "ab")
        if row["p_a"] is None or row["skipped"]:        # not trained on
            continue
        if a == b:
            undecided += 1
            continue
        better = row["p_a"] if a > b else 1 - row["p_a"]
        right.append(1.0 if better > 0.5 else 0.5 if better == 0.5 else 0.0)
        certain.append(better)
    return {"right": right, "label": certain, "undecided": undecided}


# ---- the program ---------------------------------------------------------------------------------
MEASURES = {"answers": answers, "revisions": revisions, "choices": choices,
            "categories": categories, "labels": labels}


def named(pairs) -> dict:
    """{name: folder} of arguments NAME=DIR."""
    split = [pair.partition("=") for pair in pairs or ()]
    if wrong := [pair for pair in split if not (pair[0] and pair[2])]:
        raise UserError(f"{''.join(wrong[0])}: expected NAME=DIR")
    if len({name for name, *_ in split}) < len(split):
        raise UserError(f"{' '.join(pairs)}: two have the same name")
    return {name: Path(folder) for name, _, folder in split}


def arguments(argv=None):
    p = Parser(__doc__, "python -m minicai.lab.paper_measure")
    a = p.add_argument
    a("measure", choices=MEASURES, help="what is measured")
    a("--model", type=path, default="data/base", help="of revisions, choices and categories")
    a("--models", nargs="+", metavar="NAME=DIR", help="of answers: models to compare")
    a("--run", type=path, help="of answers: a run of train_rl.py; of labels: one of train_pm.py")
    a("--start", type=path, help="with --run: the model from which it began")
    a("--pm", nargs="+", metavar="NAME=DIR", help="preference models that score every text too")
    a("--constitution", type=path, default="constitutions/harmlessness.json", help="JSON file")
    a("--data", type=path, default="data/eval", help="folder of held-out prompts")
    a("--out", type=path, default="out/measure", help="where result.json goes")
    a("--limit", type=whole(1), default=100, help="prompts or cases of each group")
    a("--max-new", type=whole(1), default=120, help="most tokens of a text")
    a("--temperatures", type=real(0.01, 100, or_zero=True), nargs="+", default=[1.0],
      help="of answers; 0 takes the likeliest token")
    a("--rounds", type=whole(1, 8), default=4, help="of critique and revision")
    a("--direct", action="store_true", help="revise without a critique (section 3.5)")
    a("--principles", type=whole(0, 1000), default=0, help="use so many, drawn by --seed; 0: all")
    a("--samples", type=whole(1, 100), default=1, help="revisions of each prompt")
    a("--seed", type=whole(0, 2**63 - 1), default=0, help="decides every draw")
    a("--device", default=None, help="cpu, cuda or mps; default: the best one here")
    return p.parse_args(argv)


@friendly_main
def main(argv=None):
    """Measure, write."""
    args, started = arguments(argv), time.time()
    args.device = pick_device(args.device)
    found = MEASURES[args.measure](args)
    args.out.mkdir(parents=True, exist_ok=True)
    facts = {"measure": args.measure, "seed": args.seed, "seconds": round(time.time() - started, 1)}
    write_text(args.out / "result.json", json.dumps(facts | found) + "\n")
    print(f"{args.out / 'result.json'}: {facts['seconds']} s")


if __name__ == "__main__":
    main()
