"""Stage 3, RL-CAI: PPO from SL-CAI against the preference model.

    prompts -> responses -> score - KL penalty -> advantages -> clipped updates, and again

(Bai et al. 2022, section 4; design facts in minicai/ppo.py.) Writes rl_cai/ and value_model/ (model
directories), metrics.jsonl (docs/metrics.md explains it), rollouts.jsonl (responses and their
scores as training goes), trace.jsonl (a few of them token by token) and config.json; with
--save-every the policy along the way in steps/000010 and so on.
"""
import copy
import json
import math
import random
import shutil
import time

import minicai  # noqa: F401  isort: skip  before torch: waiting threads are to sleep, not to spin
import torch
from torch import nn
from tqdm import tqdm

from minicai.answers import token_indices
from minicai.checkpoint import load_model, save_model, save_scalar
from minicai.critique import sampler
from minicai.data import check_room, read_prompts
from minicai.ppo import SHAPES, Models, PPOConfig, collect, evaluate_tokens, summary, update
from minicai.preference import PreferenceModel, load_preference_model
from minicai.run import (
    Parser,
    UserError,
    friendly_main,
    lr_schedule,
    machine_flags,
    path,
    real,
    set_up,
    whole,
    write_config,
)
from minicai.state import MANIFEST, Resume, tidy
from minicai.tokenizer import Tokenizer


def arguments(argv=None):
    p, ppo = Parser(__doc__), PPOConfig()
    a = p.add_argument
    a("--model", type=path, default="out/demo/sft/sl_cai",
      help="model directory to start from, and the KL's reference")
    a("--pm", type=path, default="out/demo/pm/pm",
      help="preference model directory: the reward, and the value model's start")
    a("--red-team", type=path, default="data/red_team.jsonl",
      help="dialogues: docs/data_formats.md says which files it reads")
    a("--helpful", type=path, default="data/helpful.jsonl", help="the same")
    a("--red-team-share", type=real(0, 1), default=0.5, help="share of red-team prompts in a batch")
    a("--out", type=path, default="out/demo/rl", help="directory of everything this script writes")
    a("--steps", type=whole(1), default=50,
      help="rollouts; each is followed by --epochs passes of updates")
    a("--batch", type=whole(1), default=64, help="responses a rollout")
    a("--minibatch", type=whole(1), default=ppo.minibatch, help="responses an optimizer step")
    a("--micro", type=whole(1), default=ppo.micro,
      help="responses a forward; bounds memory, gradients add up to the same")
    a("--epochs", type=whole(1, 1000), default=ppo.epochs, help="passes over each rollout")
    a("--lr", type=real(0, 1), default=2e-4,
      help="Adam's peak learning rate for the policy, decaying linearly to 0")
    a("--value-lr", type=real(0, 1), default=1e-3, help="the same for the value model")
    a("--shared-value", action="store_true",
      help="values from a head on the policy's own trunk: half the update")
    a("--no-value", dest="valued", action="store_false",
      help="no value model: lambda is 1, whitening the only baseline (--lam, --value-lr and "
      "--value-coef change nothing)")
    a("--no-save-value", action="store_true",
      help="do not keep the value model when training is done")
    a("--warmup", type=whole(0), default=5,
      help="steps in which both rates rise: Adam's first ones are large")
    a("--kl-coef", type=real(0), default=ppo.kl_coef,
      help="reward lost for a nat of KL; scores have std 1 (0.001 of a raw score in 2204.05862)")
    a("--reward-shape", choices=SHAPES, default=ppo.reward_shape,
      help="what a score is worth: see minicai/ppo.py")
    a("--end-penalty", type=real(0), default=ppo.end_penalty,
      help="taken off the score if the end token is missing")
    a("--gamma", type=real(0, 1), default=ppo.gamma, help="discount a token")
    a("--lam", type=real(0, 1), default=ppo.lam,
      help="GAE's lambda: 1 trusts rewards only, 0 the value model only")
    a("--no-whiten", dest="whiten", action="store_false",
      help="leave the advantages in the score's unit")
    a("--clip", type=real(0, above=True), default=ppo.clip,
      help="how far the ratio may move before its gain is cut off")
    a("--value-clip", type=real(0, above=True), default=ppo.value_clip,
      help="the same for values, in units of score")
    a("--value-coef", type=real(0), default=ppo.value_coef, help="weight of the value loss")
    a("--max-grad-norm", type=real(0, above=True), default=ppo.max_grad_norm,
      help="gradients longer than this are shortened to it")
    a("--temperature", type=real(0.01, 100), default=ppo.temperature,
      help="of sampling and of every log-prob")
    a("--max-prompt", type=whole(1), default=256, help="drop prompts longer than this many tokens")
    a("--max-new", type=whole(1), default=96, help="most tokens of a response")
    a("--save-every", type=whole(0), default=0,
      help="keep the policy after every so many steps in OUT/steps, to measure it along the way "
      "(figures 2, 8 and 10); 0: only the last one")
    a("--print-every", type=whole(1), default=10, help="show a few responses every so many steps")
    machine_flags(a)
    return p.parse_args(argv)


@friendly_main
def main(argv=None):
    args, started = arguments(argv), time.time()
    out, (device, generator) = args.out, set_up(args)
    config = PPOConfig(**{name: getattr(args, name) for name in vars(PPOConfig())})

    # 1. Read and check everything that can be wrong before a model is built.
    if args.shared_value and not args.valued:
        raise UserError("--shared-value and --no-value exclude each other: give one of them")
    tok = Tokenizer.load(args.model, args.chat)
    if not tok.same_ids(Tokenizer.load(args.pm)):
        raise UserError(f"{args.model}, {args.pm} must share one tokenizer and chat format")
    prompts = {kind: [tok.encode_chat(m, generation=True)[0]
                      for m in read_prompts(file, tok, args.max_prompt)]
               for kind, file in (("red_team", args.red_team), ("helpful", args.helpful))}
    check_room(args.model, args.max_prompt + args.max_new, ())
    check_room(args.pm, args.max_prompt + args.max_new, (), scorer=True)
    resume = Resume(args, trained=[args.model, args.pm],
                    writes=["rollouts.jsonl", "trace.jsonl", "rl_cai", "value_model", "steps"])

    # 2. Models, optimizer, sampler.
    models, tok = load_models(args, device)
    optimizer = torch.optim.Adam([{"params": models.policy.parameters(), "lr": args.lr},
                                  {"params": models.value_parameters(), "lr": args.value_lr}],
                                 eps=1e-5, fused=models.policy.head.is_cuda or None)
    ask = sampler(models.policy, tok, args.max_new, args.temperature, generator, args.sample_tokens)
    forbidden = tok.forbidden(models.policy.config.vocab_size).to(device)
    logs = {name: resume.log(f"{name}.jsonl") for name in ("metrics", "rollouts", "trace")}
    ended = [json.loads(row)["ended"] for row in logs["metrics"].kept.splitlines()]
    parts = {"policy": models.policy, "optimizer": optimizer, "generator": generator}
    parts |= {"value_model": models.value_model} if args.valued else {}
    resume.restore(**parts)  # what a stopped run had learned; the reference is what it was

    # 3. PPO.
    for step in (bar := tqdm(range(resume.steps, args.steps), desc="PPO", initial=resume.steps,
                             total=args.steps)):
        for group, lr in zip(optimizer.param_groups, (args.lr, args.value_lr)):
            group["lr"] = lr * lr_schedule(step, args.steps, args.warmup)
        kinds, asked = zip(*draw(prompts, args, step))
        rollout = collect(models, ask, asked, config, tok.stop, forbidden)
        facts = summary(rollout, kinds)
        assert step or facts["kl"] == 0, f"KL {facts['kl']} before any update"
        facts |= update(models, optimizer, rollout, config, forbidden, generator, step)
        logs["metrics"].log(step=step, lr=optimizer.param_groups[0]["lr"], **facts)
        bar.set_postfix({key: f"{facts[key]:.2f}" for key in ("score", "kl", "entropy", "ended")})
        ended.append(facts["ended"])
        if step % args.print_every == 0 or step == args.steps - 1 or hardly_any(ended, args.batch):
            show(tok, models, rollout, kinds, step, config, forbidden, logs)
        if hardly_any(ended, args.batch):
            raise UserError(f"step {step}: hardly any of the responses ended: try --max-new")
        snapshot(args, models.policy, tok, resume.made, step + 1)
        if step + 1 < args.steps:
            resume.save(step + 1, **parts)

    save_model(out / "rl_cai", models.policy, tok, resume.made)
    if (value := models.value_model) and not args.no_save_value:
        save_scalar(out / "value_model", value.trunk, value.head, tok, made=resume.made)
    write_config(out, args, started, score=facts["score"], kl=facts["kl"])
    resume.finish()
    print(f"\n{args.steps} steps, {time.time() - started:.0f} s -> {out / 'rl_cai'}")


def hardly_any(ended: list, batch: int) -> bool:
    """Whether of the last rollouts' responses, ten at least, less than a tenth ended
    (`ended`: shares): scores of what was cut off teach nothing."""
    last = ended[-math.ceil(10 / batch):]
    return len(last) * batch >= 10 and sum(last) / len(last) < 0.1


def snapshot(args, policy, tok, made, step):
    """Keep the policy after `step` steps in OUT/steps, if --save-every asks for that step. What an
    earlier run has kept there goes with the first one, or, if none is asked for, at the end."""
    folder, every = args.out / "steps", args.save_every
    if step == min(every or args.steps, args.steps):
        for found in folder.glob("[0-9]" * 6):
            if (found / MANIFEST).exists():  # a model, and nothing that others may have put there
                shutil.rmtree(found)
    if every and step % every == 0:
        tidy(folder)
        save_model(folder / f"{step:06d}", policy, tok, made | {"step": step})


def load_models(args, device):
    """(Models, tokenizer). Policy and reference start equal; the value model may be None."""
    policy, tok = load_model(args.model, device, args.dtype, args.chat)
    reference = copy.deepcopy(policy).freeze()
    reward_model, _ = load_preference_model(args.pm, device, args.dtype)
    policy.checkpointing = reward_model.trunk.checkpointing = args.checkpointing
    value_model = None
    if args.valued:
        # Values come from a network that starts as the preference model, which knows what a good
        # answer looks like, or from a head on the policy's own trunk. Either head starts at zero:
        # at first it predicts 0, the mean of the normalised score.
        trunk = policy if args.shared_value else copy.deepcopy(reward_model.trunk)
        head = nn.Linear(trunk.config.width, 1, bias=False, device=device)
        value_model = PreferenceModel(trunk, head)
        nn.init.zeros_(value_model.head.weight)
    reward_model.trunk.freeze()
    reward_model.requires_grad_(False)
    return Models(policy, reference, reward_model, value_model), tok


def draw(prompts: dict, args, step):
    """(kind, prompt) of one step, a function of (seed, step) alone:
    runs can be compared and taken up again."""
    rng, wanted = random.Random(f"{args.seed} {step}"), args.batch * args.red_team_share
    n = round((step + 1) * wanted) - round(step * wanted)       # on average, in small batches too
    counts = {"red_team": n, "helpful": args.batch - n}
    return [(kind, prompt) for kind, count in counts.items()
            for prompt in rng.choices(prompts[kind], k=count)]


def show(tok, models, rollout, kinds, step, config, forbidden, logs):
    """Append a rollout to rollouts.jsonl, one response of each kind to trace.jsonl,
    and print those: numbers alone hide a policy gone mad."""
    kl = ((rollout.logp - rollout.ref_logp) * rollout.mask).sum(1)
    texts = []
    for ids, mask in zip(rollout.ids, rollout.mask):
        start, end = int(mask.int().argmax()), int(mask.nonzero()[-1]) + 1
        texts.append((tok.decode(ids[:start].tolist()), tok.decode(ids[start:end].tolist())))
    for row, (prompt, response) in enumerate(texts):
        logs["rollouts"].log(step=step, kind=kinds[row], prompt=prompt, response=response,
                             score=round(rollout.scores[row].item(), 3),
                             paid=round(rollout.paid[row].item(), 3),
                             kl=round(kl[row].item(), 3))
    rng = random.Random(step)
    for kind in dict.fromkeys(kinds):
        row = rng.choice([i for i, k in enumerate(kinds) if k == kind])
        logs["trace"].log(step=step, kind=kind, prompt=texts[row][0],
                          **trace(tok, models.policy, rollout.pick([row]), config, forbidden))
        tqdm.write(f"[{step}] {kind}: score {rollout.scores[row]:+.2f} kl {kl[row]:.1f} "
                   f"{''.join(texts[row])}\n")


@torch.no_grad()
def trace(tok, policy, one, config, forbidden) -> dict:
    """Every number of one response (a Rollout of one row), a list each over its tokens,
    and the ratio p_new / p_old after this step's updates."""
    at = token_indices(one.mask)
    logp, _, _ = evaluate_tokens(policy, None, one.ids, at, config, forbidden)
    names = ("logp", "ref_logp", "rewards", "values", "advantages", "returns")
    numbers = {name: getattr(one, name)[at] for name in names}
    numbers["ratio"] = (logp - numbers["logp"]).exp()
    return {"score": round(one.scores.item(), 5), "paid": round(one.paid.item(), 5),
            "tokens": [tok.decode([i]) for i in one.ids[at].tolist()],
            **{name: [round(x, 5) for x in values.tolist()] for name, values in numbers.items()}}


if __name__ == "__main__":
    main()
