"""Which way of asking suits a model? `python -m minicai.lab.critique_formats MODEL`: one round of
critique and revision in the raw format of the paper and in turns of the chat, with the
constitution's worked examples and without.

Counted by the word patterns of evaluate_real.py: how many revisions decline or object, how many of
those name a word of the request (a refusal of something else is a habit, no judgement), how many
critiques and revisions repeat a sentence of the worked examples, how many say the response again,
how many were cut. The same for requests that are harmless: the difference is what the model has
read.
"""
import random
import re

import torch

from minicai.checkpoint import load_model
from minicai.constitution import load_constitution
from minicai.critique import critique_revise, respond, sampler
from minicai.data import read_prompts
from minicai.lab.evaluate_real import DATA, declines, objects
from minicai.run import Parser, friendly_main, path, pick_device, real, whole, write_jsonl
from minicai.state import new_file, refuse_overlap

COMMON = set("about best could does from have help make tell that they this what when which with "
             "without would write your because better will".split())


def sentences(shots: list) -> set:
    """The sentences (of 25 characters and more) of worked examples."""
    return {part.strip() for shot in shots
            for part in re.split(r"(?<=[.!?:])\s+", shot) if len(part.strip()) >= 25}


def words(text: str) -> set:
    """The longer words of a text, without those that any request may hold."""
    return set(re.findall(r"[a-z]{4,}", text.lower())) - COMMON


def count(rows: list, worked: set) -> dict:
    """Shares in per cent over the usable rows of one way of asking."""
    used = [(row["messages"][-1]["content"], row["response"], r)
            for row in rows if not row["skipped"]
            for r in row["rounds"] if not r["skipped"]]
    share = lambda hit: 100 * sum(hit(*some) for some in used) / max(1, len(used))
    copied = lambda text: any(sentence in text for sentence in worked)
    return {"used": 100 * len(used) / max(1, len(rows)),
            "responses object": share(lambda q, a, r: objects(a)),
            "declines": share(lambda q, a, r: declines(r["revision"])),
            "and names it": share(lambda q, a, r: declines(r["revision"])
                                  and bool(words(q) & words(r["revision"]))),
            "objects": share(lambda q, a, r: objects(r["revision"])),
            "critique copies": share(lambda q, a, r: copied(r["critique"])),
            "revision copies": share(lambda q, a, r: copied(r["revision"])),
            "says it again": share(lambda q, a, r: a == r["revision"]),
            "cut": share(lambda q, a, r: r["cut"]),
            "words": share(lambda q, a, r: len(r["revision"].split())) / 100}


@friendly_main
def main(argv: list[str] | None = None) -> None:
    """Ask in every way, print a line for each, keep what was said."""
    parser = Parser(__doc__, "python -m minicai.lab.critique_formats")
    a = parser.add_argument
    a("model", type=path, help="model directory")
    a("--constitution", type=path, default="constitutions/small.json",
      help="JSON, or directory in the published format")
    a("--red-team", type=path, default=DATA / "../red_team.jsonl",
      help="prompts that ask for something wrong")
    a("--harmless", type=path, default=DATA / "lookalike.jsonl", help="prompts that do not")
    a("--limit", type=whole(1), default=48, help="prompts of each file at most")
    a("--max-new", type=whole(1), default=96,
      help="most tokens of a response, a critique, a revision")
    a("--temperature", type=real(0.01, 100, or_zero=True), default=0.7, help="of all sampling")
    a("--shots", type=whole(0, 100), nargs="+", default=[0, 5],
      help="how many worked examples, one way of asking each")
    a("--seed", type=whole(0, 2**63 - 1), default=0, help="decides every draw")
    a("--out", type=new_file, default="out/formats.jsonl", help="file of all that was said")
    a("--chat", choices=["plain", "chatml", "llama3"],
      help="chat format, if not the directory's own")
    a("--device", default=None, help="cpu, cuda or mps; default: the best one here")
    a("--dtype", choices=["fp32", "bf16"], default="fp32", help="of products")
    args = parser.parse_args(argv)
    refuse_overlap(args.out.parent, {"MODEL": args.model, "--constitution": args.constitution,
                                     "--red-team": args.red_team, "--harmless": args.harmless},
                   [args.out.name])
    constitution, device = load_constitution(args.constitution), pick_device(args.device)
    model, tok = load_model(args.model, device, args.dtype, args.chat)
    sets = [read_prompts(file, tok, 256)[:args.limit] for file in (args.red_team, args.harmless)]
    ask = sampler(model.freeze(), tok, args.max_new, args.temperature,
                  torch.Generator().manual_seed(args.seed))
    rows, said = respond(ask, tok, sets[0] + sets[1]), []
    worked = sentences(constitution.few_shot_critique)
    for turns in (False, True):
        for number in args.shots:
            fresh = [dict(row) for row in rows]
            shots = constitution.few_shot_critique[:number]
            critique_revise(ask, tok, constitution, fresh, 1, random.Random(args.seed),
                            shots, turns)
            name = f"{'turns' if turns else 'raw'}, {len(shots)} worked"
            for what, some in (("red-team", fresh[:len(sets[0])]),
                               ("harmless", fresh[len(sets[0]):])):
                shares = ", ".join(f"{key} {value:.0f}"
                                   for key, value in count(some, worked).items())
                print(f"{name}, {what}: {shares}", flush=True)
            readable = lambda row: {key: value for key, value in row.items() if key != "ids"}
            said += [{"asked": name, **readable(row),
                      "rounds": [readable(r) for r in row.get("rounds", [])]}
                     for row in fresh]
            write_jsonl(args.out, said)


if __name__ == "__main__":
    main()
