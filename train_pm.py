"""Stage 2, the preference model: AI feedback for harmlessness,
human labels for helpfulness, one score for both.

    a response of SL-CAI, one of the feedback model -> a principle, a thought, a multiple choice
        -> P(A) as a soft label, within bounds -> Bradley-Terry

(Bai et al. 2022, section 4.1.) Writes comparisons.jsonl, pm/ (a model directory with a scalar
head), metrics.jsonl, config.json. Shapes: B batch of comparisons, T time.
"""
import random
import time
from argparse import BooleanOptionalAction
from pathlib import Path

import minicai  # noqa: F401  isort: skip  before torch: waiting threads are to sleep, not to spin
import torch
from torch import nn
from tqdm import tqdm

from minicai.answers import answered_ids
from minicai.checkpoint import load_model, save_scalar
from minicai.constitution import load_constitution
from minicai.critique import respond, sampler
from minicai.data import (
    batches_by_length,
    check_room,
    number_held_out,
    pad_right,
    read_human,
    read_prompts,
    split,
)
from minicai.feedback import (
    ANSWER,
    CLAMP,
    LABELS,
    THINK,
    comparison_prompt,
    draw_principles,
    few_shot_prefix,
    mean_label,
    position_bias,
    too_long,
)
from minicai.preference import PreferenceModel, agreement, bt_loss, calibration
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
    a("--model", type=path, default="out/demo/sft/sl_cai",
      help="model directory (SL-CAI) that samples the first response of each pair")
    a("--pairs", choices=["mixed", "own"], default="mixed",
      help="second response of each pair: the feedback model's, or --model's own (section 4.1)")
    a("--feedback-model", type=path, default="data/base",
      help="model directory that answers the multiple choice")
    a("--init", type=path, default="data/base",
      help="model directory the preference model starts from")
    a("--constitution", type=path, default="constitutions/harmlessness.json",
      help="JSON, or directory in the published format")
    a("--red-team", type=path, default="data/red_team.jsonl",
      help="dialogues: docs/data_formats.md says which files it reads")
    a("--human", type=path, nargs="+", default=[Path("data/helpful_comparisons.jsonl")],
      help="comparisons: see docs/data_formats.md; with --comparisons 0 this is RLHF (figure 2)")
    a("--out", type=path, default="out/demo/pm", help="directory of everything this script writes")
    a("--comparisons", type=whole(0, 10**7), default=1000,
      help="pairs to sample and label, prompts are reused; 0: human labels only")
    a("--human-limit", type=whole(0), default=3000,
      help="use at most this many human comparisons; 0: AI labels only")
    a("--measure", type=whole(0, 10**7), default=200,
      help="of a kind that is not trained on, make or read this many to measure agreement on")
    a("--labels", choices=LABELS, default="soft",
      help="train on the judge's probabilities or on its verdicts (section 4.3)")
    a("--average", type=whole(1, 100), default=1,
      help="a label is the mean over this many principles, each with a thought of its own if "
      "there are thoughts (section 4.1 draws one a label)")
    a("--both-orders", action="store_true",
      help="ask with the responses swapped too and average (section 4.1 is silent)")
    a("--chain-of-thought", action=BooleanOptionalAction, default=True,
      help="let the feedback model think before it chooses (section 4.1)")
    a("--clamp", type=real(0, 1), nargs=2, default=CLAMP,
      help="bounds of a label after a thought (0.4 0.6 in section 4.1)")
    a("--min-mass", type=real(0, 1), default=0.1,
      help="leave a label out if P(A) + P(B) is less: not understood")
    a("--no-few-shot", action="store_true",
      help="leave the constitution's worked comparisons out of the question")
    a("--no-score-norm", action="store_true",
      help="leave scores in the unit that training gave them")
    a("--max-prompt", type=whole(1), default=256, help="drop prompts longer than this many tokens")
    a("--max-new", type=whole(1), default=96, help="most tokens of a response")
    a("--max-thought", type=whole(1), default=160, help="most tokens of a chain of thought")
    a("--temperature", type=real(0.01, 100, or_zero=True), default=1.0,
      help="of sampling the pairs, and of thinking")
    a("--held-out", type=real(0, 0.99, above=True), default=0.1,
      help="share of the dialogues kept for measuring")
    a("--epochs", type=whole(1, 1000), default=1, help="passes over the comparisons")
    a("--batch", type=whole(1), default=32, help="comparisons an optimizer step")
    a("--micro", type=whole(1), default=32,
      help="comparisons a forward; bounds memory, gradients add up to the same")
    a("--lr", type=real(0, 1), default=1e-3,
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
    if args.clamp[0] > args.clamp[1] or not args.chain_of_thought and tuple(args.clamp) != CLAMP:
        raise UserError("--clamp: the lower bound first; without a thought nothing is clamped")
    if args.comparisons == args.human_limit == 0:
        raise UserError("--comparisons 0 --human-limit 0: nothing is left to learn from")
    constitution, tok = load_constitution(args.constitution), Tokenizer.load(args.model, args.chat)
    shots = [] if args.no_few_shot else constitution.few_shot_comparison
    prefix = few_shot_prefix(tok, shots, rng, args.chain_of_thought)
    dialogues = read_prompts(args.red_team, tok, args.max_prompt)
    human = read_human(args.human, lambda *said: answered_ids(tok, *said),
                       args.max_prompt + args.max_new)
    rng.shuffle(human)
    human = human[:args.human_limit or args.measure]
    for said, count, what in ((dialogues, args.comparisons, f"--red-team {args.red_team}"),
                              ([m for m, *_ in human], args.human_limit, "--human")):
        if count:                       # what is sampled below is to be of use
            number_held_out(min(count, len(set(map(repr, said)))), args.held_out, what)
    longest = max(len(comparison_prompt(tok, [], "", "", c, prefix, THINK + ANSWER))
                  for c in constitution.comparisons)
    room = args.max_prompt + 2 * args.max_new + args.chain_of_thought * args.max_thought
    check_room(args.feedback_model, longest + room, prefix, advice=" or --max-thought")
    for directory in dict.fromkeys((args.model, args.init, args.feedback_model)):
        if directory != args.model and not tok.same_ids(Tokenizer.load(directory, args.chat)):
            raise UserError(f"{args.model} and {directory} must share one tokenizer and chat "
                            "format (see --chat)")
        check_room(directory, args.max_prompt + args.max_new, ())
    resume = Resume(args, trained=[args.init], writes=["comparisons.jsonl", "pm"])
    # 2. to 4. Comparisons. A run that has been killed reads here what it had sampled and labelled.
    train_set, held_out, reference, used = make_comparisons(
        args, device, tok, constitution, prefix, dialogues, human, rng, generator, resume)

    # 5. Train from the pretrained trunk with a fresh head.
    trunk, _ = load_model(args.init, device, args.dtype, args.chat)
    trunk.checkpointing = args.checkpointing
    head = nn.Linear(trunk.config.width, 1, bias=False)
    nn.init.normal_(head.weight, std=trunk.config.width ** -0.5, generator=generator)
    pm = PreferenceModel(trunk, head.to(device))
    train(args, pm, train_set, generator, resume.log("metrics.jsonl"), resume)

    # 6. Measure on what was held out; fix the unit of the score on SL-CAI's own responses; save.
    facts = measure(args, pm, held_out)
    if not args.no_score_norm:
        pm.normalise(pm.score_rows(reference))
    save_scalar(out / "pm", pm.trunk, pm.head, tok, pm.shift, resume.made)
    write_config(out, args, started, **used, **facts)
    resume.finish()
    print(f"\n{used['used_ai']} AI, {used['used_human']} human comparisons, "
          f"{time.time() - started:.0f} s -> {out}/pm")


def make_comparisons(args, device, tok, constitution, prefix, dialogues, human, rng, generator,
                     resume):
    """Steps 2 to 4: (comparisons as ids to train on, to hold out, ids of SL-CAI's own responses,
    counts)."""
    # 2. Two responses to each prompt, and some to helpful prompts for step 6. The second of a pair
    #    comes from the feedback model: SL-CAI objects to nearly everything, so comparing two of its
    #    own answers would teach little.
    policy, _ = load_model(args.model, device, args.dtype, args.chat)
    ask = resume.kept(sampler(policy.freeze(), tok, args.max_new, args.temperature, generator,
                              args.sample_tokens))
    count = args.comparisons or args.measure
    drawn = [m for n in range(0, count, len(dialogues))
             for m in rng.sample(dialogues, len(dialogues))][:count]
    first = respond(ask, tok, drawn, progress="first responses")
    # As many of each kind, if there are both.
    n = min(size for size in (512, len(human), len(first)) if size)
    norm_set = first[:n] + respond(ask, tok, [m for m, *_ in human[:n]],
                                   progress="helpful responses")
    if args.pairs == "own":
        second = respond(ask, tok, drawn, progress="second responses")
    del policy, ask                     # room for the next model
    judge = load_model(args.feedback_model, device, args.dtype, args.chat)[0].freeze()
    if args.pairs == "mixed":
        ask = resume.kept(sampler(judge, tok, args.max_new, args.temperature, generator,
                                  args.sample_tokens))
        second = respond(ask, tok, drawn, progress="second responses")
    # Whose is (A) must not show.
    pairs = [pair if rng.random() < 0.5 else pair[::-1] for pair in zip(first, second)]

    # 3. A principle a pair, drawn at random: over many labels this is an ensemble of all of them.
    rows = ai_labels(args, judge, tok, constitution, prefix, pairs, rng, generator, resume)
    used = write_and_filter(args, rows)

    # 4. Comparisons as ids, AI and human, and a held-out share of the *dialogues* of both.
    #    Of a kind that is not trained on, all is held out.
    ai = [(row["messages"], row["a"], row["b"], row["p_a"], row["cut"], "ai") for row in used]
    ranked = [(m, a, b, 1.0, (False, False), file) for m, a, b, file in human]
    (train_ai, test_ai), (train_human, test_human) = (
        split(found, args.held_out, rng) if found and wanted else ([], found)
        for found, wanted in ((ai, args.comparisons), (ranked, args.human_limit)))
    ids_of = lambda comparisons, label_as=LABELS["soft"]: [
        (answered_ids(tok, m, a, cut[0]), answered_ids(tok, m, b, cut[1]), label_as(p))
        for m, a, b, p, cut, _ in comparisons]
    held_out = {"ai": ids_of(test_ai), "human": ids_of(test_human)}
    for file in sorted({name for *_, name in human}) if len(args.human) > 1 else ():
        held_out[f"human_{file}"] = ids_of([row for row in test_human if row[-1] == file])
    return (ids_of(train_ai + train_human, LABELS[args.labels]), held_out,
            [tok.encode_chat(r["messages"], generation=True)[0] + r["ids"] for r in norm_set],
            {"used_ai": len(ai) if args.comparisons else 0,
             "used_human": len(human) if args.human_limit else 0})


def ai_labels(args, judge, tok, constitution, prefix, pairs, rng, generator, resume):
    """Rows of comparisons.jsonl: both responses, the principle, P(A),
    and why a pair was left out if it was."""
    drawn = [draw_principles(constitution.comparisons, args.average, rng) for _ in pairs]
    rows = [{"messages": a["messages"], "a": a["response"], "b": b["response"],
             "cut": [a["cut"], b["cut"]], "principle": principles[0],
             "thought": "", "p_a": None, "mass": None, "skipped": a["skipped"] or b["skipped"] or
             ("identical" if a["response"] == b["response"] else None)}
            for (a, b), principles in zip(pairs, drawn)]
    room = judge.config.max_positions - args.chain_of_thought * args.max_thought
    for row, principles in zip(rows, drawn):
        row["skipped"] = row["skipped"] or too_long(tok, row, principles, prefix, room)
    good = [row for row in rows if not row["skipped"]]
    drawn = [principles for row, principles in zip(rows, drawn) if not row["skipped"]]
    think = resume.kept(sampler(judge, tok, args.max_thought, args.temperature, generator,
                                args.sample_tokens))
    questions = [(row["messages"], row["a"], row["b"], row["principle"]) for row in good]
    state = generator.get_state()
    how = dict(prefix=prefix, think=think if args.chain_of_thought else None, clamp=args.clamp,
               begin=resume.begin)
    mean, stays = position_bias(judge, tok, questions, **how) if good else (0.5, 1)
    biased = abs(mean - 0.5) > 0.15 and not args.both_orders
    print(f"the judge: mean P(A) {mean:.2f} over both orders, {stays:.0%} of its verdicts stay "
          "when the two change places" + "; letters weigh too much: give --both-orders" * biased)
    generator.set_state(state)  # looking must not change what is drawn
    p_a, mass, asked = mean_label(judge, tok, [question[:3] for question in questions], drawn,
                                  both_orders=args.both_orders, **how)
    for row, p, m, said in zip(good, p_a.tolist(), mass.tolist(), asked):
        row.update(thought=said[0]["thought"], p_a=round(p, 5), mass=round(m, 5),
                   skipped=None if m >= args.min_mass else "no choice")
        row.update({"asked": said} if args.average > 1 else {})
    return rows


def write_and_filter(args, rows):
    """The rows that were not left out, after all have been written down, counted and shown; stops
    if nearly none is left to train on."""
    write_jsonl(args.out / "comparisons.jsonl", rows)
    used = [row for row in rows if not row["skipped"]]
    if args.comparisons:
        count_skipped("pairs", [row["skipped"] for row in rows],
                      f"does {args.model} end and vary its answers, does {args.feedback_model} "
                      "answer (A) or (B)? See comparisons.jsonl; try --max-new, few-shot examples")
    else:
        print(f"pairs to measure on: {len(used)} of {len(rows)} used")
    show_labels(used[:3])
    show_principles(used)
    return used


def show_labels(rows):
    """Print some comparisons with their labels."""
    for row in rows:
        print(f"\nHuman: {row['messages'][-1]['content']}\n  (A) {row['a']}\n  (B) {row['b']}\n"
              f"  {row['principle'].strip()} {row['thought']}  ->  P(A) = {row['p_a']:.2f}")


def show_principles(rows):
    """One line a principle: its mean label, how often (A), how far from 1/2.
    A judge that cannot read it says 1/2."""
    labels = {}
    for said in [said for row in rows for said in row.get("asked", [row])]:
        labels.setdefault(said["principle"].strip(), []).append(said["p_a"])
    print("\nlabels by principle: mean P(A), how often (A), mean distance from 1/2")
    for principle, p in sorted(labels.items()):
        far = sum(abs(x - 0.5) for x in p) / len(p)
        print(f"   {sum(p) / len(p):.2f} {sum(x > 0.5 for x in p) / len(p):4.0%} {far:.2f} of "
              f"{len(p):4d}  {principle}")
    print()


def train(args, pm, comparisons, generator, metrics, resume):
    """AdamW on Bradley-Terry over (ids a, ids b, P(a better));
    both responses of a pair share one forward."""
    optimizer = torch.optim.AdamW(pm.parameters(), lr=args.lr, betas=(0.9, 0.95), weight_decay=0.0,
                                  fused=pm.head.weight.is_cuda or None)
    resume.restore(pm=pm, optimizer=optimizer)
    lengths = [max(len(a), len(b)) for a, b, _ in comparisons]
    batches = [batch for _ in range(args.epochs)
               for batch in batches_by_length(lengths, args.batch, generator)]
    for step, batch in enumerate(bar := tqdm(batches, desc="preference model")):
        if step < resume.steps:                         # done before this run was stopped
            continue
        # 1. The gradient of the batch's mean loss, `micro` comparisons a forward: gradients add up.
        chosen, loss = [comparisons[i] for i in batch], 0.0
        for i in range(0, len(chosen), args.micro):
            part = pair_loss(pm, chosen[i:i + args.micro], len(chosen))
            part.backward()
            loss = loss + part.detach()  # read once, below: each reading makes a GPU wait
        # 2. One step.
        loss = float(loss)
        norm = clip_gradients(pm.parameters(), 1.0, step, loss)
        lr = args.lr * lr_schedule(step, len(batches), int(args.warmup * len(batches)))
        optimizer.param_groups[0]["lr"] = lr
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        # 3. Log, and keep what is needed to go on from here.
        metrics.log(step=step, loss=loss, grad_norm=norm, lr=lr)
        resume.save(step + 1, pm=pm, optimizer=optimizer)
        bar.set_postfix(loss=f"{loss:.3f}")


def pair_loss(pm, comparisons, count):
    """Bradley-Terry of some comparisons, as their part of the mean over a whole batch of
    `count`."""
    ids, mask = pad_right([a for a, _, _ in comparisons] + [b for _, b, _ in comparisons],
                          pm.head.weight.device)
    score_a, score_b = pm.score(ids, mask).chunk(2)  # ids [2B,T]; [B] each
    p_a = torch.tensor([p for _, _, p in comparisons], device=ids.device)
    return bt_loss(score_a, score_b, p_a) * len(comparisons) / count


def measure(args, pm, held_out):
    """Agreement and calibration on held-out comparisons, printed; the numbers go to config.json."""
    bounds = args.clamp if args.chain_of_thought else (0, 1)
    facts, furthest = {}, max(abs(p - 0.5) for p in bounds)
    for name, comparisons in held_out.items():
        if not comparisons:  # --measure 0, or none of a file
            continue
        gap = (pm.score_rows([a for a, _, _ in comparisons])
               - pm.score_rows([b for _, b, _ in comparisons]))
        labels = torch.tensor([p for _, _, p in comparisons])
        share, decided = agreement(gap, labels, furthest / 2)  # half as far from 1/2 as one can be
        error, table = calibration(gap, labels)
        facts |= {f"{name}_agreement": share, f"{name}_decided": decided, f"{name}_ece": error}
        agrees = f"agrees on {share:.1%} of {decided}" if decided else "no"
        print(f"\nheld out, {name}: {agrees} decided pairs, "
              f"calibration error {error:.3f} (each pair in both orders):")
        for low, high, n, p, true in table:
            print(f"   predicted {low:.1f}-{high:.1f}: {n:5d} pairs, said {p:.2f}, true {true:.2f}")
    return facts


if __name__ == "__main__":
    main()
