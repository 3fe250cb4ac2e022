"""Everything under data/ that the three scripts and the evaluation read,
from the tables and a seed.

    python -m minicai.world.make_data --seed 0          rewrites the shipped files byte for byte
    python -m minicai.world.make_data --about duck --out out/ducks
                                for a constitution about one thing: red_team.jsonl and eval/, below

    red_team.jsonl              requests for harm: reviewed and read-about activities, "cai" pairs
    helpful.jsonl               everyday requests and look-alikes, "cai" pairs
    helpful_comparisons.jsonl   which of two answers helps more, as the crowdworker (with human-like
                                slips) sees it; harmless requests only: no label here says what is
                                harmful
    eval/*.jsonl                held-out prompts with their group; "eval" pairs, which no training
                                text contains
    baselines/harmless_comparisons.jsonl
                                for the baseline HH-RLHF only: which of two answers to a request for
                                harm does less of it, as a crowdworker of the earlier style sees it
"""
import json
from pathlib import Path
from random import Random

from minicai.run import Parser, UserError, friendly_main, path, whole, write_jsonl
from minicai.world.crowdworker import Crowdworker, EarlierCrowdworker
from minicai.world.grammar import Response, Topic, World

SIZES = {"red_team": 1000, "helpful": 600, "comparisons": 4000, "eval": 500, "eval_group": 250,
         "harmless": 2000}
ABOUT = 400             # requests that name one thing; held out are a quarter as many, of each set
SLIP = 0.05             # how often the labeller picks the worse answer
READ_ABOUT_SHARE = 0.25     # of red-team prompts: activities that the base has only read about


def conversations(world: World, rng: Random, groups: dict, split: str, n: int) -> list:
    """`n` different conversations as (group, topic, messages), groups drawn by their weights."""
    rows, seen = [], set()
    while len(rows) < n:
        group = rng.choices(list(groups), list(groups.values()))[0]
        topic = world.topic(rng, group, split)
        messages = world.conversation(rng, topic)
        key = json.dumps(messages)
        if key not in seen:
            seen.add(key)
            rows.append((group, topic, messages))
    return rows


def about(world: World, rng: Random, thing: str, groups: tuple, split: str, n: int) -> list:
    """At most `n` different conversations about one thing as (group, topic, messages), its pairs in
    a split drawn evenly: there may not be as many."""
    pairs, rows = [pair for g in groups for pair in world.pairs(g, split) if pair[1] == thing], {}
    for _ in range(20 * n * bool(pairs)):
        activity, _ = rng.choice(pairs)
        topic = world.topic_of(rng, activity, thing)
        messages = world.conversation(rng, topic)
        rows.setdefault(json.dumps(messages), (activity.group, topic, messages))
    return list(rows.values())[:n]


def muddled(world: World, rng: Random, topic: Topic) -> Response:
    """Right words, wrong answer: steps out of order, a step said twice,
    or another thing than the one asked about."""
    steps, how = list(topic.steps), rng.randrange(3)
    if how == 0:
        steps.reverse()
    elif how == 1:
        steps[rng.randrange(1, len(steps))] = steps[0]
    else:
        other = rng.choice([t for t in world.things(topic.activity)
                            if t != topic.thing and world.split(topic.activity, t) != "eval"])
        steps = Topic(topic.activity, other, topic.owner, topic.definite).steps
    return Response("muddled", world._steps(rng, steps))


def garbled(world: World, rng: Random, text: str) -> str:
    """What a language model's slips look like: one to three words replaced by others,
    or cut and run together."""
    words, harmless = text.split(" "), [a for a in world.activities if not a.harmful]
    for place in rng.sample(range(len(words)), min(len(words), rng.choice((1, 1, 2, 3)))):
        other = rng.choice(rng.choice(harmless).steps[0].split(" ") + [rng.choice(world.nouns)])
        other = "the" if "{" in other else other
        words[place] = other if rng.random() < 0.7 else words[place][:3] + other
    return " ".join(words)


def answer(world: World, rng: Random, topic: Topic) -> str:
    """One of the ways to answer an everyday request, from very good to no use at all;
    models' slips are among them."""
    kind = rng.choices(("full", "partial", "vague", "wrong", "muddled", "dodge", "evasive",
                        "needless", "garbled"),
                       (36, 12, 10, 8, 12, 6, 4, 16, 16))[0]
    # models do say it: no, and then that it is a good thing
    if kind == "needless" and rng.random() < 0.4:
        return f"{rng.choice(world.words['refusals']['explained']).format(act=topic.act)} " \
            f"{world.fact(rng, topic)}"
    if kind == "garbled":
        return garbled(world, rng,
                       world.response(rng, topic, rng.choice(("full", "full", "partial"))).text)
    return (muddled(world, rng, topic) if kind == "muddled"
            else world.response(rng, topic, kind)).text


def worth(verdict) -> int:
    """How helpful an answer to an everyday request is: a refusal least, then nothing, muddle, part,
    all."""
    if verdict.refused:
        return 0
    return {"none": 1, "partial": 2, "full": 3}[verdict.helpful] if verdict.coherent else 1


def comparisons(world: World, rng: Random, n: int) -> list:
    """Rows {"messages", "chosen", "rejected"}: the crowdworker's choice by helpfulness alone,
    with slips."""
    worker, rows = Crowdworker(world), []
    while len(rows) < n:
        topic = world.topic(rng, rng.choices(("benign", "lookalike"), (60, 40))[0], "cai")
        messages, a = world.conversation(rng, topic), answer(world, rng, topic)
        b = garbled(world, rng, a) if rng.random() < 0.25 else answer(world, rng, topic)
        left, right = (worth(worker.verdict(messages, t)) for t in (a, b))
        if left == right:
            continue
        chosen, rejected = (a, b) if (left > right) != (rng.random() < SLIP) else (b, a)
        rows.append({"messages": messages, "chosen": chosen, "rejected": rejected})
    return rows


def bad_answer(world: World, rng: Random, topic: Topic) -> str:
    """One of the ways in which models of that time answer a request for harm; they seldom object
    with a reason."""
    kind = rng.choices(("full", "partial", "vague", "evasive", "explained", "misexplained",
                        "garbled"), (34, 14, 8, 24, 8, 4, 8))[0]
    if kind == "garbled":
        kind = rng.choice(("full", "evasive", "explained"))
        return garbled(world, rng, world.response(rng, topic, kind).text)
    return world.response(rng, topic, kind).text


def harmless_comparisons(world: World, rng: Random, groups: dict, n: int) -> list:
    """Rows {"messages", "chosen", "rejected"} of requests for harm: the choice of a crowdworker of
    the earlier style, with slips; what is equal to it is left out."""
    worker, rows = EarlierCrowdworker(world), []
    while len(rows) < n:
        topic = world.topic(rng, rng.choices(list(groups), list(groups.values()))[0], "cai")
        messages = world.conversation(rng, topic)
        a, b = (bad_answer(world, rng, topic) for _ in range(2))
        left, right = (worker.worth(messages, text) for text in (a, b))
        if left == right:
            continue
        chosen, rejected = (a, b) if (left > right) != (rng.random() < SLIP) else (b, a)
        rows.append({"messages": messages, "chosen": chosen, "rejected": rejected})
    return rows


def labelled(rows) -> list:
    """Evaluation rows: messages with the group, activity and thing they were made from."""
    return [{"messages": m, "group": g, "activity": t.activity.id, "thing": t.thing}
            for g, t, m in rows]


@friendly_main
def main(argv=None):
    """Write all data files."""
    p = Parser(__doc__, "python -m minicai.world.make_data")
    p.add_argument("--out", type=path, default="data", help="folder to write")
    p.add_argument("--seed", type=whole(0, 2**63 - 1), default=0, help="seeds every draw")
    p.add_argument("--about", metavar="THING",
                   help="write requests that name this thing of the town, to train on (red_team) "
                   "and, beside others, to evaluate with (eval/); --out must be another folder")
    args = p.parse_args(argv)
    world, out = World.load(), Path(args.out)
    # one stream a file: changing one leaves the others alone
    rng = lambda name: Random(f"{name}/{args.seed}")
    about_one = args.about is not None
    files = files_about(world, rng, args.about, out) if about_one else shipped_files(world, rng)
    for name, rows in files.items():
        write_jsonl(out / f"{name}.jsonl", rows)
        print(f"{out / name}.jsonl: {len(rows)} rows")


def bare(rows) -> list:
    """Training rows: messages only."""
    return [{"messages": m} for _, _, m in rows]


def files_about(world: World, rng, thing: str, out: Path) -> dict:
    """{name: rows} of the files for a constitution about one thing. The evaluation's have as many
    of the shipped sort beside them: what should not have changed."""
    if out.resolve() == Path("data").resolve():
        raise UserError(f"--about {thing}: give a folder of its own by --out; data/ is shipped")
    met = ("reviewed", "read_about", "benign", "lookalike")     # CAI never meets what is unseen
    files = {"red_team": bare(about(world, rng("about"), thing, met, "cai", ABOUT))}
    if not files["red_team"]:
        raise UserError(f"--about {thing}: no request of the town can name it; "
                        "data/world/things.json has what can be named")
    for name, groups in (("eval/red_team", ("reviewed", "read_about", "unseen")),
                         ("eval/helpful", ("benign",)), ("eval/lookalike", ("lookalike",))):
        named = about(world, rng(f"{name}/about"), thing, groups, "eval", ABOUT // 4)
        others = conversations(world, rng(f"{name}/others"), {groups[0]: 1}, "eval", ABOUT // 4)
        files[name] = labelled(named + others)
    return files


def shipped_files(world: World, rng) -> dict:
    """{name: rows} of all that is shipped."""
    red = {"reviewed": 1 - READ_ABOUT_SHARE, "read_about": READ_ABOUT_SHARE}
    return {
        "red_team": bare(conversations(world, rng("red_team"), red, "cai", SIZES["red_team"])),
        "helpful": bare(conversations(world, rng("helpful"), {"benign": 3, "lookalike": 2}, "cai",
                                      SIZES["helpful"])),
        "helpful_comparisons": comparisons(world, rng("comparisons"), SIZES["comparisons"]),
        "baselines/harmless_comparisons":
            harmless_comparisons(world, rng("harmless"), red, SIZES["harmless"]),
        "eval/red_team": [row for g in ("reviewed", "read_about", "unseen") for row in
                          labelled(conversations(world, rng(f"eval/{g}"), {g: 1}, "eval",
                                                 SIZES["eval_group"]))],
        "eval/helpful": labelled(conversations(world, rng("eval/helpful"), {"benign": 1}, "eval",
                                               SIZES["eval"])),
        "eval/lookalike":
            labelled(conversations(world, rng("eval/lookalike"), {"lookalike": 1}, "eval",
                                   SIZES["eval"])),
    }


if __name__ == "__main__":
    main()
