"""Stage 3, RL-CAI: PPO from SL-CAI against the preference model.

    prompts -> responses -> score - KL penalty -> advantages -> clipped updates, and again

(Bai et al. 2022, section 4; design facts in minicai/ppo.py.) Writes rl_cai/ (a model directory), metrics.jsonl,
rollouts.jsonl (responses and their scores as training goes) and config.json.
"""
import copy
import random
import time

import minicai  # noqa: F401  before torch: it makes waiting threads sleep instead of spin
import torch
from torch import nn
from tqdm import tqdm

from minicai.checkpoint import load_model, save_model
from minicai.critique import sampler
from minicai.data import check_room, read_prompts
from minicai.ppo import PPOConfig, collect, summary, update
from minicai.preference import PreferenceModel, load_preference_model
from minicai.run import (Parser, UserError, friendly_main, lr_schedule, machine_flags, path, real, set_up, whole,
                         write_config)
from minicai.state import Resume
from minicai.tokenizer import Tokenizer


def arguments(argv=None):
    p, ppo = Parser(__doc__), PPOConfig()
    a = p.add_argument
    a("--model", type=path, default="out/demo/sft/sl_cai", help="model directory to start from, and the KL's reference")
    a("--pm", type=path, default="out/demo/pm/pm", help="preference model directory: the reward, and the value model's start")
    a("--red-team", type=path, default="data/red_team.jsonl", help="dialogues: README.md says which files it reads")
    a("--helpful", type=path, default="data/helpful.jsonl", help="the same")
    a("--red-team-share", type=real(0, 1), default=0.5, help="share of red-team prompts in a batch")
    a("--out", type=path, default="out/demo/rl", help="directory of everything this script writes")
    a("--steps", type=whole(1), default=50, help="rollouts; each is followed by --epochs passes of updates")
    a("--batch", type=whole(1), default=64, help="responses a rollout")
    a("--minibatch", type=whole(1), default=ppo.minibatch, help="responses an optimizer step")
    a("--micro", type=whole(1), default=ppo.micro, help="responses a forward; bounds memory, does not change results")
    a("--epochs", type=whole(1, 1000), default=ppo.epochs, help="passes over each rollout")
    a("--lr", type=real(0, 1), default=5e-4, help="Adam's peak learning rate for the policy, decaying linearly to 0")
    a("--value-lr", type=real(0, 1), default=1e-3, help="the same for the value model")
    a("--shared-value", action="store_true", help="values from a head on the policy's own trunk: half the update")
    a("--warmup", type=whole(0), default=5, help="steps in which both rates rise: Adam's first ones are large")
    a("--kl-coef", type=real(0), default=ppo.kl_coef, help="reward lost for a nat of KL; scores have std 1")
    a("--end-penalty", type=real(0), default=ppo.end_penalty, help="taken off the score if the end token is missing")
    a("--gamma", type=real(0, 1), default=ppo.gamma, help="discount a token")
    a("--lam", type=real(0, 1), default=ppo.lam, help="GAE's lambda: 1 trusts rewards only, 0 the value model only")
    a("--clip", type=real(0, above=True), default=ppo.clip, help="how far the ratio may move before its gain is cut off")
    a("--value-clip", type=real(0, above=True), default=ppo.value_clip, help="the same for values, in units of score")
    a("--value-coef", type=real(0), default=ppo.value_coef, help="weight of the value loss")
    a("--max-grad-norm", type=real(0, above=True), default=ppo.max_grad_norm, help="gradients longer than this are shortened to it")
    a("--temperature", type=real(0.01, 100), default=ppo.temperature, help="of sampling and of every log-prob")
    a("--max-prompt", type=whole(1), default=256, help="drop prompts longer than this many tokens")
    a("--max-new", type=whole(1), default=96, help="most tokens of a response")
    a("--print-every", type=whole(1), default=10, help="show a few responses every so many steps")
    machine_flags(a)
    return p.parse_args(argv)


@friendly_main
def main(argv=None):
    args, started = arguments(argv), time.time()
    out, (device, generator) = args.out, set_up(args)
    config = PPOConfig(**{name: getattr(args, name) for name in vars(PPOConfig())})

    # 1. Read and check everything that can be wrong before a model is built.
    tok = Tokenizer.load(args.model, args.chat)
    if not tok.same_ids(Tokenizer.load(args.pm)):
        raise UserError(f"{args.model} and {args.pm} must share one tokenizer and chat format")
    red_team, helpful = ([tok.encode_chat(m, generation=True)[0] for m in read_prompts(path, tok, args.max_prompt)]
                         for path in (args.red_team, args.helpful))
    check_room(args.model, args.max_prompt + args.max_new, ())
    check_room(args.pm, args.max_prompt + args.max_new, (), scorer=True)
    resume = Resume(args, trained=[args.model, args.pm], writes=["rollouts.jsonl", "rl_cai"])

    # 2. The models are of one class. Values come from a network that starts as the preference model, which knows what
    #    a good answer looks like, or from a head on the policy's own trunk. Either head starts at zero: at first it
    #    predicts 0, the mean of the normalised score.
    policy, tok = load_model(args.model, device, args.dtype, args.chat)
    reference = copy.deepcopy(policy).freeze()
    reward_model, _ = load_preference_model(args.pm, device, args.dtype)
    policy.checkpointing = reward_model.trunk.checkpointing = args.checkpointing
    trunk = policy if args.shared_value else copy.deepcopy(reward_model.trunk)
    value_model = PreferenceModel(trunk, nn.Linear(trunk.config.width, 1, bias=False, device=device))
    nn.init.zeros_(value_model.head.weight)
    own = value_model.head if args.shared_value else value_model
    reward_model.trunk.freeze()
    reward_model.requires_grad_(False)
    optimizer = torch.optim.Adam([{"params": policy.parameters(), "lr": args.lr},
                                  {"params": own.parameters(), "lr": args.value_lr}], eps=1e-5)
    ask = sampler(policy, tok, args.max_new, args.temperature, generator, args.sample_tokens)
    forbidden = tok.forbidden(policy.config.vocab_size).to(device)
    metrics, rollouts = resume.log("metrics.jsonl"), resume.log("rollouts.jsonl")

    # 3. PPO. What a killed run had learned is taken up; the reference is what it was.
    parts = {"policy": policy, "value_model": value_model, "optimizer": optimizer, "generator": generator}
    resume.restore(**parts)
    for step in (bar := tqdm(range(resume.steps, args.steps), desc="PPO", initial=resume.steps, total=args.steps)):
        for group, lr in zip(optimizer.param_groups, (args.lr, args.value_lr)):
            group["lr"] = lr * lr_schedule(step, args.steps, args.warmup)
        prompts = draw(red_team, helpful, args, step)
        rollout = collect(ask, policy, reference, reward_model, value_model, prompts, tok.stop, forbidden, config)
        facts = summary(rollout)
        assert step > 0 or facts["kl"] == 0, f"KL {facts['kl']} before any update: policy and reference differ"
        facts |= update(policy, value_model, optimizer, rollout, forbidden, config, generator, step)
        metrics.log(step=step, lr=optimizer.param_groups[0]["lr"], **facts)
        bar.set_postfix({key: f"{facts[key]:.2f}" for key in ("score", "kl", "entropy", "ended")})
        if step % args.print_every == 0 or step == args.steps - 1 or facts["ended"] < 0.1:
            show(tok, rollout, step, rollouts)
        if facts["ended"] < 0.1:                    # scores of stumps: nothing to learn from
            raise UserError(f"step {step}: only {facts['ended']:.1%} of the responses ended: try --max-new")
        if step + 1 < args.steps:
            resume.save(step + 1, **parts)

    save_model(out / "rl_cai", policy, tok, resume.made)
    write_config(out, args, started, score=facts["score"], kl=facts["kl"])
    resume.finish()
    print(f"\n{args.steps} steps, {time.time() - started:.0f} s -> {out / 'rl_cai'}")


def draw(red_team, helpful, args, step):
    """The prompts of one step, a function of (seed, step) alone: runs can be compared and taken up again."""
    rng, n = random.Random(f"{args.seed} {step}"), round(args.batch * args.red_team_share)
    return rng.choices(red_team, k=n) + rng.choices(helpful, k=args.batch - n)


def show(tok, rollout, step, log, shown=2):
    """Append every response of a rollout to rollouts.jsonl and print a few: numbers alone hide a policy gone mad."""
    rows = []
    for ids, mask, score, logp, ref in zip(rollout.ids, rollout.mask, rollout.scores, rollout.logp, rollout.ref_logp):
        start, end = int(mask.int().argmax()), int(mask.nonzero()[-1]) + 1
        rows.append({"step": step, "prompt": tok.decode(ids[:start].tolist()),
                     "response": tok.decode(ids[start:end].tolist()), "score": round(score.item(), 3),
                     "kl": round(((logp - ref) * mask).sum().item(), 3)})
        log.log(**rows[-1])
    for row in random.Random(step).sample(rows, min(shown, len(rows))):
        tqdm.write(f"[{step}] score {row['score']:+.2f} kl {row['kl']:.1f} {row['prompt']}{row['response']}\n")


if __name__ == "__main__":
    main()
