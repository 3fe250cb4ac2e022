"""Stage 1, SL-CAI: a model criticises and revises its own answers,
then learns to answer like the revisions.

    red-team prompt -> response -> (critique -> revision) x rounds
        -> fine-tune the same model on the revisions

(Bai et al. 2022, section 3.) Helpful prompts are answered as they are and mixed in, so that being
harmless does not cost being useful. Writes revisions.jsonl and answers.jsonl (all that was said on
the way), sl_cai/ (a model directory), metrics.jsonl and config.json. Shapes: B batch, T time, N
trained tokens.
"""
import random
import time

import minicai  # noqa: F401  isort: skip  before torch: waiting threads are to sleep, not to spin
import torch
from tqdm import tqdm

from minicai.answers import answer_logprobs
from minicai.checkpoint import load_model, save_model
from minicai.constitution import draw_critiques, load_constitution
from minicai.critique import critique_revise, read_answer, respond, revision_prompt, sampler
from minicai.data import batches_by_length, check_room, read_prompts
from minicai.run import (
    Parser,
    UserError,
    clip_gradients,
    count_skipped,
    friendly_main,
    lr_schedule,
    machine_flags,
    path,
    real,
    set_up,
    whole,
    write_config,
    write_jsonl,
)
from minicai.state import Resume
from minicai.tokenizer import Tokenizer


def arguments(argv=None):
    p = Parser(__doc__)
    a = p.add_argument
    a("--model", type=path, default="data/base",
      help="helpful-only model directory: answers, criticises, revises, is tuned")
    a("--constitution", type=path, default="constitutions/harmlessness.json",
      help="JSON, or directory in the published format")
    a("--red-team", type=path, default="data/red_team.jsonl",
      help="dialogues: docs/data_formats.md says which files it reads")
    a("--helpful", type=path, default="data/helpful.jsonl",
      help="the same, answered without revision")
    a("--out", type=path, default="out/demo/sft", help="directory of everything this script writes")
    a("--red-team-limit", type=whole(0), default=800, help="use at most this many red-team prompts")
    a("--helpful-limit", type=whole(0), default=600, help="use at most this many helpful prompts")
    a("--helpful-samples", type=whole(0, 1000), default=3,
      help="samples trained on for each helpful prompt (2 in the paper)")
    # One critique finds all there is in the town; other prompts teach more than more rounds.
    a("--rounds", type=whole(0, 1000), default=2,
      help="critique-revision rounds; each draws a principle anew (4 in the paper, 0 to 4 in "
      "section 3.4); 0: train on the first answers; then --direct and --last-only change nothing")
    a("--direct", action="store_true", help="ask for revisions without a critique (section 3.5)")
    a("--principles", type=whole(1),
      help="use only this many distinct principles, drawn by seed (section 3.4); default: all")
    a("--joined", type=real(0, 1), default=0.5,
      help="share of the examples that follow another dialogue and its answer")
    a("--last-only", action="store_true",
      help="train on the last revision only, not on those of all rounds (section 3.1)")
    a("--no-few-shot", action="store_true",
      help="leave the constitution's worked critiques out of the contexts")
    a("--max-prompt", type=whole(1), default=256, help="drop prompts longer than this many tokens")
    a("--max-new", type=whole(1), default=96,
      help="most tokens of a response, a critique, a revision")
    # At 1 a small model's slips are among the examples, and fine-tuning copies them.
    a("--temperature", type=real(0.01, 100, or_zero=True), default=0.7,
      help="of all sampling; 0 takes the likeliest token")
    a("--epochs", type=whole(1, 1000), default=3,
      help="passes over the examples (1 in the paper, which has 300 times more)")
    a("--batch", type=whole(1), default=16, help="examples an optimizer step")
    a("--micro", type=whole(1), default=16,
      help="examples a forward; bounds memory, gradients add up to the same")
    a("--lr", type=real(0, 1), default=7e-4,
      help="AdamW's peak learning rate; about 1e-5 for a billion parameters")
    a("--warmup", type=real(0, 1), default=0.05,
      help="share of the steps in which the learning rate rises")
    machine_flags(a)
    return p.parse_args(argv)


@friendly_main
def main(argv=None):
    args, started = arguments(argv), time.time()
    out, rng = args.out, random.Random(args.seed)
    device, generator = set_up(args)

    # 1. Read and check everything that can be wrong before a model is built.
    constitution, tok = load_constitution(args.constitution), Tokenizer.load(args.model, args.chat)
    if args.principles:
        constitution = draw_critiques(constitution, args.principles, args.seed)
    shots = [] if args.no_few_shot else constitution.few_shot_critique
    red_team, helpful = (read_prompts(path, tok, args.max_prompt)
                         for path in (args.red_team, args.helpful))
    rng.shuffle(red_team)
    rng.shuffle(helpful)
    red_team, helpful = red_team[:args.red_team_limit], helpful[:args.helpful_limit]
    longest = max(len(revision_prompt(tok, constitution, [], p, "", shots))
                  for p in constitution.critiques)
    longest += args.max_prompt * (tok.chat != "plain")  # a chat is told again what had been asked
    # + dialogue, response, both answers
    check_room(args.model, longest + args.max_prompt + 3 * args.max_new, shots)
    if not red_team + helpful * args.helpful_samples:
        raise UserError("nothing to learn from: --red-team-limit, "
                        "or --helpful-limit and --helpful-samples, must be above 0")
    resume = Resume(args, trained=[args.model],
                    writes=["revisions.jsonl", "answers.jsonl", "sl_cai"])
    model, tok = load_model(args.model, device, args.dtype, args.chat)
    model.checkpointing = args.checkpointing
    ask = resume.kept(sampler(model, tok, args.max_new, args.temperature, generator,
                              args.sample_tokens))

    # 2. Answer, criticise, revise. A run that has been killed reads here what it had sampled.
    examples, rows = make_examples(args, ask, tok, constitution, red_team, helpful, shots, rng)

    # 3. Fine-tune: next-token loss on the sampled tokens only,
    #    one mean over all of a batch's tokens.
    trained = train(args, model, examples, generator, resume.log("metrics.jsonl"), resume)

    # 4. The same prompts again: what has changed?
    for row, new in zip(rows, respond(ask, tok, red_team[:3])):
        print(f"\nHuman: {row['messages'][-1]['content']}\n  before: {row['response']}\n"
              f"  after:  {new['response']}")
    save_model(out / "sl_cai", model, tok, resume.made)
    write_config(out, args, started, examples=len(examples), trained_tokens=trained)
    resume.finish()
    print(f"\n{len(examples)} examples, {trained} trained tokens, "
          f"{time.time() - started:.0f} s -> {out / 'sl_cai'}")


def make_examples(args, ask, tok, constitution, red_team, helpful, shots, rng):
    """([(ids of a prompt, ids that were sampled for it)], the first rows, to be shown);
    writes all that was said."""
    rows = respond(ask, tok, red_team, progress="red-team responses")
    critique_revise(ask, tok, constitution, rows, args.rounds, rng, shots, direct=args.direct)
    write_said(args.out / "revisions.jsonl", rows)
    answers = respond(ask, tok, helpful * args.helpful_samples, progress="helpful responses")
    write_said(args.out / "answers.jsonl", answers)
    show_revisions(rows[:3])
    show_principles(constitution, rows)
    # What cannot be read is left out. The rest keeps the ids it was sampled as, if it can
    # (critique.py: not where it went on into the next turn).
    examples = []
    for row in rows:
        said = row.get("rounds", []) if args.rounds else [row]
        revised = [(row["messages"], r["ids"]) for r in said if not r["skipped"]]
        examples += revised[-1:] if args.last_only else revised
    examples += [(row["messages"], row["ids"]) for row in answers if not row["skipped"]]
    follow_another_dialogue(examples, args.joined, tok, args.max_prompt, rng)
    return [(tok.encode_chat(messages, generation=True)[0], ids)
            for messages, ids in examples], rows[:3]


def follow_another_dialogue(examples, share, tok, max_prompt, rng):
    """Put another dialogue and its answer in front of a share of the examples (messages, ids),
    where there is room: what was asked before, and whether it was objected to, must not decide
    about what is asked now. (One in many is drawn for itself.)"""
    alone = list(examples)
    for i in rng.sample(range(len(alone)), round(share * len(alone))):
        (before, said), (messages, ids) = rng.choice(alone), alone[i]
        if messages[0]["role"] == "system":  # opens a conversation, and never stands inside one
            continue
        together = before + [{"role": "assistant", "content": read_answer(tok, said)[0]}] + messages
        if len(tok.encode_chat(together, generation=True)[0]) <= max_prompt:
            examples[i] = together, ids


def write_said(path, rows):
    """Write all that was said, without token ids;
    count what cannot be read, and stop if that is nearly everything."""
    readable = lambda row: {key: value for key, value in row.items() if key != "ids"}
    write_jsonl(path, [readable(row | {"rounds": [readable(r) for r in row.get("rounds", [])]})
                       for row in rows])
    for what, outputs in (("responses", rows),
                          ("revisions", [r for row in rows for r in row.get("rounds", [])])):
        if outputs:
            count_skipped(f"{path}: {what}", [output["skipped"] for output in outputs],
                  "does this model know the format? Try --max-new, a constitution with worked "
                          "examples (constitutions/general.json), a larger model")
            share = sum(output["cut"] for output in outputs) / len(outputs)
            print(f"   {share:.1%} of them cut at --max-new"
                  + ": too short, or a model that does not know this chat format's end token "
                  "(see --chat)" * (share > 0.9))


def show_revisions(rows):
    """Print some dialogues with their first critiques and revisions."""
    for row in rows:
        print(f"\nHuman: {row['messages'][-1]['content']}\nAssistant: {row['response']}")
        for r in row.get("rounds", [])[:2]:
            print(f"  Critique: {r['critique'] or '(none)'}\n  Revision: {r['revision']}")


def show_principles(constitution, rows):
    """One line a principle: how many of its critiques led to a changed answer.
    Does the model read it at all?"""
    changes = {}
    for row in rows:
        answer = row["response"]
        for r in row.get("rounds", []):
            if not r["skipped"]:
                changes.setdefault(r["principle"], []).append(r["revision"] != answer)
                answer = r["revision"]
    print("\ncritiques that led to a changed answer, by principle:")
    for n, changed in sorted(changes.items()):
        print(f"   {sum(changed) / len(changed):4.0%} of {len(changed):4d}  "
              f"{constitution.critiques[n].critique_request}")
    print()


def train(args, model, examples, generator, metrics, resume):
    """AdamW over `examples` (prompt ids, sampled ids); returns the number of tokens trained on."""
    # Adam divides each gradient by its own size. So even the tiny gradient of a word that no
    # example holds would move its row of the tied embedding at full speed, and the word be
    # forgotten. A larger eps than the usual 1e-8 prevents that.
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.95), eps=1e-5,
                                  weight_decay=0.0, fused=model.head.is_cuda or None)
    resume.restore(model=model, optimizer=optimizer)
    lengths = [len(prompt) + len(answer) for prompt, answer in examples]
    batches = [batch for _ in range(args.epochs)
               for batch in batches_by_length(lengths, args.batch, generator)]
    trained = 0
    for step, batch in enumerate(bar := tqdm(batches, desc="fine-tuning")):
        chosen = [examples[i] for i in batch]
        tokens = sum(len(answer) for _, answer in chosen)
        trained += tokens
        if step < resume.steps:                         # done before this run was stopped
            continue
        # 1. The gradient of the batch's mean loss a token, `micro` examples a forward:
        #    gradients add up.
        loss = 0.0
        for i in range(0, len(chosen), args.micro):
            part = answer_loss(model, chosen[i:i + args.micro], tokens)
            part.backward()
            loss = loss + part.detach()  # read once, below: each reading makes a GPU wait
        # 2. One step.
        loss = float(loss)
        norm = clip_gradients(model.parameters(), 1.0, step, loss)
        lr = args.lr * lr_schedule(step, len(batches), int(args.warmup * len(batches)))
        optimizer.param_groups[0]["lr"] = lr
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        # 3. Log, and keep what is needed to go on from here.
        metrics.log(step=step, loss=loss, grad_norm=norm, lr=lr, tokens=trained)
        resume.save(step + 1, model=model, optimizer=optimizer)
        bar.set_postfix(loss=f"{loss:.3f}")
    return trained


def answer_loss(model, examples, tokens):
    """Minus the log-likelihood of the answers of (prompt ids, answer ids) pairs,
    over a whole batch's `tokens`."""
    logp, _ = answer_logprobs(model, examples)  # [N]
    sampled = sum(len(answer) for _, answer in examples)
    assert len(logp) == sampled, "not just what was sampled is trained on"
    return -logp.sum() / tokens


if __name__ == "__main__":
    main()
