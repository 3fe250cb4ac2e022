"""The three stages and the evaluation on a real model, with settings meant for it:
`python -m minicai.lab.real`.

`make real` calls this with SmolLM2-135M-Instruct. Two sets of settings, by device: what two CPU
cores do in an hour and what one GPU does in five minutes. Each stage is a script of its own in a
process of its own, so one that is stopped goes on where it was; what is done is not done again.
"""
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

from minicai.run import Parser, UserError, friendly_main, path, pick_device, real, whole, write_text
from minicai.state import unfinished

ROOT = Path(__file__).parents[2]
DATA = "data/real"
# Learning rates for a model of a hundred million parameters; a billion wants about half of them.
SETTINGS = {
    "cpu": {
        # Four passes: after one the model answers as before, and its long answers never end.
        "sft": "--red-team-limit 72 --helpful-limit 72 --helpful-samples 1 --rounds 1 --epochs 4 "
        "--batch 8 --micro 4",
        "pm": "--comparisons 96 --human-limit 160 --epochs 1 --batch 16 --micro 8",
        "rl": "--steps 10 --batch 16 --minibatch 8 --micro 8 --epochs 1 --print-every 2 --warmup 2",
        "evaluate": "--limit 24 --seeds 0", "lengths": "--max-new 80"},
    "cuda": {
        "sft": "--red-team-limit 200 --helpful-limit 200 --helpful-samples 1 --rounds 2 --epochs 2",
        "pm": "--comparisons 400 --human-limit 400 --epochs 1 --batch 32 --micro 32",
        "rl": "--steps 30 --batch 32 --minibatch 16 --micro 16 --epochs 1 --print-every 5 "
        "--warmup 3",
        "evaluate": "--seeds 0 1", "lengths": "--max-new 128"}}
RATES = {"sft": "--lr 2e-5", "pm": "--lr 2e-5", "rl": "--lr 3e-6 --value-lr 2e-5 --kl-coef 0.1"}


def commands(args, device: str) -> list:
    """[(name, the file that is there when it is done, words of the command line)] of all stages."""
    out, sets = Path(args.out), SETTINGS["cuda" if device == "cuda" else "cpu"]
    words = {name: sets[name].split() + RATES.get(name, "").split()
             for name in ("sft", "pm", "rl", "evaluate")}
    both = [*sets["lengths"].split(), "--max-prompt", "256", "--device", device]
    scripts = [*both, "--seed", str(args.seed), "--temperature", str(args.temperature)]
    sl, pm, rl = out / "sft/sl_cai", out / "pm/pm", out / "rl/rl_cai"
    constitution, prompts = ["--constitution", args.constitution], ["--red-team", args.red_team]
    stage1 = ["--model", args.model, *constitution, *prompts, "--helpful", args.helpful, "--out",
              out / "sft"]
    stage2 = ["--model", sl, "--feedback-model", args.model, "--init", args.model, *constitution,
              *prompts, "--human",
              args.human, "--both-orders", "--no-chain-of-thought", "--out", out / "pm"]
    stage3 = ["--model", sl, "--pm", pm, *prompts, "--helpful", args.helpful, "--out", out / "rl"]
    steps = ["--steps", str(args.steps)] if args.steps else []
    compared = ["--models", f"base={args.model}", f"sl_cai={sl}", f"rl_cai={rl}", "--pm", pm,
                "--judge", args.model,
                "--comparisons", args.human, "--limit-comparisons", "60", "--out", out]
    heat = ["--temperature", str(args.temperature)]
    return [
        ("stage 1", sl / "config.json", ["train_sft.py", *stage1, *words["sft"], *scripts]),
        ("stage 2", pm / "config.json", ["train_pm.py", *stage2, *words["pm"], *scripts]),
        # PPO samples from the whole distribution at the temperature at which it computes
        # probabilities.
        ("stage 3", rl / "config.json", ["train_rl.py", *stage3, *words["rl"], *steps, *scripts]),
        ("evaluation", out / "results.json",
         ["-m", "minicai.lab.evaluate_real", *compared, *words["evaluate"], *heat, *both])]


def read_commands(noted: Path) -> dict:
    """{name: words} of the commands that an earlier run has noted; raises UserError for anything
    else."""
    try:
        before = json.loads(noted.read_text("utf-8"))
        if not all(isinstance(words, list) for words in before.values()):
            raise TypeError("lists of words expected")
        return before
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{noted}: not what this program has written ({type(error).__name__}: "
                        f"{error}); remove it, or give another --out") from None


@friendly_main
def main(argv: list[str] | None = None) -> None:
    """Run what is not there yet, one stage after the other."""
    parser = Parser(__doc__, "python -m minicai.lab.real")
    a = parser.add_argument
    a("--model", type=path, default="out/smollm2",
      help="model directory; minicai.gguf makes one from a GGUF file")
    a("--out", type=path, default="out/real", help="directory of everything that is written")
    a("--constitution", type=path, default="constitutions/small.json",
      help="JSON; general.json for models of a billion and more")
    a("--red-team", type=path, default=f"{DATA}/red_team.jsonl", help="prompts of stages 1 to 3")
    a("--helpful", type=path, default=f"{DATA}/helpful.jsonl", help="the same")
    a("--human", type=path, default=f"{DATA}/helpful_comparisons.jsonl",
      help="comparisons of helpfulness, for stage 2")
    a("--temperature", type=real(0.01, 100), default=0.5,
      help="of all sampling: a small model garbles at 1")
    a("--steps", type=whole(1), help="of PPO; default: 10 on a CPU, 30 on a GPU")
    a("--seed", type=whole(0, 2**63 - 1), default=0, help="of the three stages")
    a("--device", default=None, help="cpu, cuda or mps; default: the best one here")
    args = parser.parse_args(argv)
    device, started = pick_device(args.device).type, time.time()
    if Path.cwd() != ROOT:                      # where the stages run, and the default paths begin
        raise UserError(f"give this command in the repository's folder: cd {ROOT}")
    noted = args.out / "commands.json"
    before = read_commands(noted)
    for name, done, words in commands(args, device):
        words = [*map(str, words)]
        if done.is_file() and not any(unfinished(folder) for folder in list(done.parents)[:2]):
            if before.get(name, words) != words:
                raise UserError(f"{done}: made by another command ({noted} has it): give another "
                                "--out, or remove that folder")
            print(f"{name}: {done} is there already")
            continue
        noted.parent.mkdir(parents=True, exist_ok=True)
        write_text(noted, json.dumps(before := before | {name: words}, indent=1) + "\n")
        words = [sys.executable, *words]
        print(f"\n{name}, {time.time() - started:.0f} s: {shlex.join(words)}", flush=True)
        if subprocess.run(words, cwd=ROOT, env=os.environ | {"PYTHONUNBUFFERED": "1"}).returncode:
            raise UserError(f"{name} stopped; the same command goes on from there")
    print(f"\n{time.time() - started:.0f} s on {device} -> {args.out}")


if __name__ == "__main__":
    main()
