"""Red-team prompts written by a model, after some that people wrote (Bai et al. 2022, section 3.2).

    python -m minicai.red_team --model data/base --count 500 --out out/red_team.jsonl

The paper has 42,496 prompts of people and 140,335 of a pretrained model, which was shown some of
the first. So here: a model reads a few requests as turns of a human, and writes the human's next
turn. What it writes is dropped if it is empty, has no end, or says again what a person or the model
itself has said. Nothing checks that a prompt asks for harm: of one that does not, critiques find
nothing to change. Each row holds its prompt and the requests that were shown ("after"). Killed and
started again, it goes on with what it had sampled (in OUT.run/ until it ends).
"""
import argparse
import contextlib
import random
import re

import minicai  # noqa: F401  before torch: it makes waiting threads sleep instead of spin
from minicai.checkpoint import load_model
from minicai.data import check_room, read_prompts
from minicai.run import (
    Parser,
    UserError,
    count_skipped,
    friendly_main,
    path,
    real,
    set_up,
    whole,
    write_jsonl,
)
from minicai.sample import generate
from minicai.state import Resume, new_file, refuse_overlap, tidy
from minicai.tokenizer import Tokenizer


def arguments(argv=None):
    p = Parser(__doc__, "python -m minicai.red_team")
    a = p.add_argument
    a("--model", type=path, default="data/base", help="model directory that writes the prompts")
    a("--prompts", type=path, default="data/red_team.jsonl",
      help="dialogues that it is shown the last human turns of")
    a("--count", type=whole(1), default=500, help="prompts to write")
    a("--out", type=new_file, default="out/red_team.jsonl",
      help="what the scripts read as --red-team (to use both: cat the two files into one)")
    a("--shots", type=whole(0, 100), default=1,
      help="requests shown for each new one: the town's base wants 1, real models some 8")
    a("--temperature", type=real(0.01, 100), default=0.7, help="higher: more varied, more garbled")
    a("--max-new", type=whole(1), default=48, help="drop what is longer than this many tokens")
    a("--max-prompt", type=whole(1), default=256, help="leave out longer dialogues of --prompts")
    a("--seed", type=whole(0, 2**63 - 1), default=0, help="decides what is shown and sampled")
    a("--chat", choices=["plain", "chatml", "llama3"],
      help="chat format of the model, if not its directory's own")
    a("--device", default=None, help="cpu, cuda or mps; default: the best one here")
    a("--dtype", choices=["fp32", "bf16"], help="default: bf16 on cuda, else fp32")
    a("--sample-tokens", type=whole(1), help="rows x columns sampled together, for memory")
    a("--fresh", action="store_true", help="drop what an unfinished run has left")
    return p.parse_args(argv)


@friendly_main
def main(argv=None):
    """Read prompts, write more of them."""
    args = arguments(argv)
    device, generator = set_up(args)
    tok = Tokenizer.load(args.model, args.chat)
    shown = [dialogue[-1]["content"] for dialogue in read_prompts(args.prompts, tok,
                                                                  args.max_prompt)]
    if args.shots > len(shown):
        raise UserError(f"--shots {args.shots}: {args.prompts} has only {len(shown)} dialogues")
    check_room(args.model, args.shots * args.max_prompt + args.max_new, ())
    refuse_overlap(args.out.parent, {"--prompts": args.prompts, "--model": args.model},
                   [args.out.name])
    tidy(args.out.parent, args.out.name)
    place = args.out.with_name(args.out.name + ".run")  # until the file can be written
    resume = Resume(argparse.Namespace(**vars(args) | {"out": place}))
    model, tok = load_model(args.model, device, args.dtype, args.chat)
    rows = write_prompts(model, tok, shown, args, random.Random(args.seed), generator, resume)
    count_skipped("written prompts", [row["skipped"] for row in rows],
                  "does this model write a human's turn? Try --shots, --temperature, --max-new")
    kept = [row for row in rows if not row["skipped"]]
    for row in kept[:10]:
        print(f"   {row['messages'][0]['content']}")
    if len(kept) < args.count:
        print(f"only {len(kept)} of {args.count}: this model goes on to say the same things")
    write_jsonl(args.out, [{"messages": row["messages"], "after": row["after"]} for row in kept])
    resume.finish()
    with contextlib.suppress(OSError):  # somebody may have put something there
        resume.folder.rmdir()
    print(f"{len(kept)} prompts -> {args.out}")


def write_prompts(model, tok, shown, args, rng, generator, resume) -> list:
    """Rows {"messages", "after", "skipped"} until `args.count` are not skipped, or ten times as
    many have been tried; `skipped` is None, "empty", "no end", "shown" or "written twice"."""
    rows, known = [], {bare(text): "shown" for text in shown}
    while (missing := args.count - sum(not row["skipped"] for row in rows)) \
            and len(rows) < 10 * args.count:
        after = [rng.sample(shown, args.shots) for _ in range(missing)]
        turns = human_turns(model, tok, after, args, generator, resume)
        for texts, (text, ended) in zip(after, turns):
            reason = known.get(bare(text)) if ended else "no end"
            reason = reason if bare(text) else "empty"
            if not reason:
                known[bare(text)] = "written twice"
            rows.append({"messages": [{"role": "user", "content": text}], "after": texts,
                         "skipped": reason})
    return rows


def human_turns(model, tok, after: list, args, generator, resume) -> list:
    """(text, whether it ended) of a human's next turn, sampled after each list of earlier ones.

    A turn ends where a model opens the next one, or with a blank line: prompts are one paragraph.
    Markers of turns are ids that nothing else here may sample, so that no answer forges a turn.
    """
    heads = {tok.header(role)[0] for role in ("user", "assistant")} & set(tok.special.values())
    forbidden = tok.forbidden(model.config.vocab_size)
    forbidden[list(heads)] = False
    stop = tok.stop | heads
    turns = [[{"role": "user", "content": text} for text in texts] for texts in after]
    contexts = [tok.encode_chat(messages)[0] + tok.header("user") for messages in turns]
    sampled = generate(model, contexts, max_new_tokens=args.max_new, stop=stop,
                       forbidden=forbidden, temperature=args.temperature, generator=generator,
                       batch_tokens=args.sample_tokens, progress="red-team prompts",
                       done=resume.begin(contexts))
    found = []
    for ids in sampled:
        ended = ids[-1] in stop
        text, blank, _ = tok.decode(ids[:-1] if ended else ids).partition("\n\n")
        found.append((text.strip(), ended or bool(blank)))
    return found


def bare(text: str) -> str:
    """A text's words, in lower case: what two requests that differ in a comma have in common."""
    return " ".join(re.findall(r"\w+", text.lower()))


if __name__ == "__main__":
    main()
