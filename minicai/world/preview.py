"""See what the shipped base makes of a constitution, before minutes are spent on training.

    python -m minicai.world.preview constitutions/courtesy.json

For every pair of critique and revision requests: in which of some typical answers the base finds a
problem, and what its revision then changes; if a thing of the town is named there, in answers that
name it, too. For every comparison principle: the label of an objection against a compliance, of a
kind answer against a curt one, of a short one against a long one, and of an answer against the same
one that goes on to name what the principle names; both orders averaged, after a thought (as in
stage 2 with --chain-of-thought). And which words of the constitution the base has never read, and
which phrases it has never been asked by. Half a minute on two cores; for the micro-world's base
only.
"""
import difflib
import json
import re
from dataclasses import replace
from random import Random

import torch

from minicai.checkpoint import load_model
from minicai.constitution import load_constitution
from minicai.critique import critique_prompt, read_answer, revision_prompt, sampler
from minicai.feedback import label
from minicai.run import Parser, friendly_main, path, pick_device, whole
from minicai.world.crowdworker import normal
from minicai.world.grammar import TABLES, World
from minicai.world.make_data import about
from minicai.world.principles import Principles, mentions, verdict

TEMPERATURE = 0.7                       # stage 1 samples at it
WORD = re.compile(r"[a-z]+")
PROBLEM = verdict("it").partition(":")[0]       # how a critique ends that finds something
ANSWERS = {"helps with harm": ("reviewed", "full", {}),
           "objects and says why": ("reviewed", "explained", {}), "helps": ("benign", "full", {}),
           "helps, kind words": ("benign", "full", {"courtesy": 1.0}),
           "helps, needless words": ("benign", "full", {"filler": 1.0}),
           "refuses needlessly": ("benign", "needless", {})}
CHOICES = {"objects > helps": ("reviewed", ("explained", {}), ("full", {})),
           "kind > curt": ("benign", ("full", {"courtesy": 1.0}), ("full", {})),
           "short > long": ("benign", ("full", {}), ("full", {"filler": 1.0}))}
PLAIN = {"courtesy": 0.0, "filler": 0.0}


def known_words() -> set:
    """Every word of the tables that the base's texts are made from, but those kept for its exam."""
    texts = []
    for name in ("wording", "things", "harmful", "benign", "lookalikes"):
        texts.append((TABLES / f"{name}.json").read_text(encoding="utf-8"))
    tables = json.loads((TABLES / "principles.json").read_text(encoding="utf-8"))
    for part in ("exam_phrases", "exam_frames"):
        del tables[part]
    for part in ("unknown", "nothing"):
        del tables[part]["exam"]
    return set(WORD.findall(normal(" ".join(texts) + json.dumps(tables)))) \
        | {"consider", "conversation", "reviewer", "s", "t"}


def never_read(text: str, known: set) -> list:
    """The words of a text that the base has not read; plurals of what it has read count as read."""
    stems = lambda word: {word, word.removesuffix("s"), word.removesuffix("es"),
                          re.sub("ies$", "y", word)}
    return [word for word in dict.fromkeys(WORD.findall(normal(text))) if not stems(word) & known]


def never_asked(text: str) -> list:
    """The phrases of a text that the base knows from plain texts only: no critique of its own was
    ever asked for by them ("brings up a violin")."""
    phrases = json.loads((TABLES / "principles.json").read_text(encoding="utf-8"))["phrases"]
    heard = sorted({p.split(" {")[0] for said in phrases.values() for p in said["heard"]})
    return [p for p in heard if re.search(r"\b" + p.replace(" ", "s? ", 1) + r"\b", normal(text))]


def named_things(text: str, world) -> list:
    """The things of the town that a text names."""
    return [noun for noun in world.nouns if mentions(text, noun)
            and world.kind_of.get(noun) != "person"]


def that_name(thing: str, judge, rng, cases: int) -> list:
    """[(messages, answer)] of answers that name a thing: because the request does, or, where too
    few can, by an aside."""
    world = judge.world
    asked = about(world, rng, thing, ("reviewed", "benign", "lookalike"), "eval", cases)
    told = [(messages, world.response(rng, topic, "full", **PLAIN)) for _, topic, messages in asked]
    while len(told) < cases:
        topic = world.topic(rng, "benign", "eval")
        told.append((world.conversation(rng, topic),
                     with_aside(thing, judge, rng, world.response(rng, topic, "full", **PLAIN))))
    return [(messages, r.text) for messages, r in told]


def with_aside(thing: str, judge, rng, response):
    """The response, and a sentence behind it that names the thing."""
    return replace(response, asides=[*response.asides, judge.aside(rng, thing, "thing")])


def changed(before: str, after: str) -> str:
    """What a revision took out and put in: "-[old] +[new]"."""
    a, b = before.split(), after.split()
    parts = []
    for how, i, j, k, m in difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        if how != "equal":
            parts += [f"-[{' '.join(a[i:j])}]"] * (j > i) + [f"+[{' '.join(b[k:m])}]"] * (m > k)
    return " ".join(parts)


def critiques(model, tok, constitution, world, cases: int, seed: int) -> list:
    """One dict a pair of requests: shares of answers with a problem and with a changed text,
    by sort, and an example."""
    rng, rows, judge = Random(seed), [], Principles(world)
    generator = torch.Generator().manual_seed(seed)
    ask = sampler(model, tok, 140, TEMPERATURE, generator)
    for n, principle in enumerate(constitution.critiques):
        for sort, (group, kind, manner) in ANSWERS.items():
            for _ in range(cases):
                topic = world.topic(rng, group, "eval")
                r = world.response(rng, topic, kind, **(PLAIN | manner))
                messages = world.conversation(rng, topic) \
                    + [{"role": "assistant", "content": r.text}]
                rows.append((n, principle, sort, r.text, messages))
        for thing in named_things(f"{principle.critique_request} {principle.revision_request}",
                                  world):
            rows += [(n, principle, f"names the {thing}", text,
                      messages + [{"role": "assistant", "content": text}])
                     for messages, text in that_name(thing, judge, rng, cases)]
    said = [read_answer(tok, x)[0]
            for x in ask([critique_prompt(tok, constitution, m, p) for _, p, _, _, m in rows],
                         progress="critiques")]
    revised = ask([revision_prompt(tok, constitution, m, p, c)
                   for (_, p, _, _, m), c in zip(rows, said)],
                  progress="revisions")
    revised = [read_answer(tok, x)[0] for x in revised]
    found = []
    for n, principle in enumerate(constitution.critiques):
        mine = [(row[2], row[3], c, r) for row, c, r in zip(rows, said, revised) if row[0] == n]
        of = lambda sort: [(c, t != r) for s, t, c, r in mine if s == sort]
        sorts = dict.fromkeys(sort for sort, *_ in mine)
        # what the principle is about comes last
        example = next(((t, c, r) for s, t, c, r in mine[::-1] if t != r and PROBLEM in c),
                       mine[-1][1:])
        found.append({"principle": principle, "example": example,
                      "finds": {s: sum(PROBLEM in c for c, _ in of(s)) / cases for s in sorts},
                      "changes": {s: sum(x for _, x in of(s)) / cases for s in sorts}})
    return found


def choices(model, tok, constitution, world, cases: int, seed: int) -> list:
    """One dict a comparison principle: the mean label of the first of each of CHOICES, and of an
    answer against the same one with a thing named that the principle names; both orders averaged.
    """
    rng, questions, sorts, judge = Random(seed), [], [], Principles(world)
    for principle in constitution.comparisons:
        for group, *pair in CHOICES.values():
            for _ in range(cases):
                topic = world.topic(rng, group, "eval")
                a, b = (world.response(rng, topic, kind, **(PLAIN | manner)).text
                        for kind, manner in pair)
                questions.append((world.conversation(rng, topic), a, b, principle))
        for thing in (things := named_things(principle, world)):
            for _ in range(cases):
                topic = world.topic(rng, "benign", "eval")
                r = world.response(rng, topic, "full", **PLAIN)
                questions.append((world.conversation(rng, topic), r.text,
                                  with_aside(thing, judge, rng, r).text, principle))
        sorts.append([*CHOICES, *(f"without > with the {thing}" for thing in things)])
    think = sampler(model, tok, 140, 1.0, torch.Generator().manual_seed(seed))
    p, _ = label(model, tok, questions, both_orders=True, think=think, clamp=(0, 1))
    means = iter(p.view(-1, cases).mean(-1).tolist())
    return [{sort: next(means) for sort in names} | {"principle": c}
            for c, names in zip(constitution.comparisons, sorts)]


@friendly_main
def main(argv=None):
    """Print it all."""
    p = Parser(__doc__, "python -m minicai.world.preview")
    p.add_argument("constitution", type=path, help="JSON, or directory in the published format")
    p.add_argument("--model", type=path, default="data/base",
                   help="the micro-world's base, or another model of it")
    p.add_argument("--cases", type=whole(1), default=6,
                   help="answers of each sort for each principle")
    p.add_argument("--seed", type=whole(0, 2**63 - 1), default=0, help="of answers and sampling")
    p.add_argument("--device", default=None, help="cpu, cuda or mps; default: the best one here")
    args = p.parse_args(argv)
    constitution, world = load_constitution(args.constitution), World.load()
    model, tok = load_model(args.model, pick_device(args.device))
    model.eval()
    known, percent = known_words(), lambda share: f"{100 * share:4.0f} %"
    print(f"{args.constitution}: finds a problem (changes the answer) in {args.cases} answers of "
          "each sort")
    for row in critiques(model, tok, constitution, world, args.cases, args.seed):
        asked = row["principle"]
        print(f"\n  {asked.critique_request}\n  {asked.revision_request}")
        if strange := never_read(f"{asked.critique_request} {asked.revision_request}", known):
            print(f"    never read: {', '.join(strange)}")
        if heard := never_asked(f"{asked.critique_request} {asked.revision_request}"):
            print(f"    never asked by (it reads these worse): {', '.join(heard)}")
        for sort in row["finds"]:
            print(f"    {sort:24} {percent(row['finds'][sort])} "
                  f"({percent(row['changes'][sort]).strip()})")
        text, critique, revision = row["example"]
        print(f"    for example: {text}\n      critique:  {critique}\n"
              f"      change:    {changed(text, revision) or 'none'}")
    print("\nlabels: how likely the judge finds the first of two answers better;\n0.50: the "
          "principle asks for nothing in which these two differ\n  " + "   ".join(CHOICES))
    for row in choices(model, tok, constitution, world, args.cases, args.seed):
        strange, heard = never_read(row["principle"], known), never_asked(row["principle"])
        print("  " + "   ".join(f"{row[name]:^{len(name)}.2f}" for name in CHOICES) +
              f"  {row['principle']}" +
              f"   (never read: {', '.join(strange)})" * bool(strange) +
              f"   (never asked by: {', '.join(heard)})" * bool(heard))
        for name in [name for name in row if name.startswith("without")]:
            print(f"       {name}: {row[name]:.2f}")


if __name__ == "__main__":
    main()
