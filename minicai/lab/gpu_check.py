"""What a GPU says, in one command: is it right there, and how fast against what it should reach.

    python3 -m minicai.lab.gpu_check                     all parts, most important first, at most
                                                         --minutes
    python3 -m minicai.lab.gpu_check --only logprob,ppo  some parts
    python3 -m minicai.lab.gpu_check --quick             tiny sizes, on a CPU too: does it run?

It needs a python3 with torch, triton, tiktoken, numpy, tqdm, safetensors, for some parts pytest,
tokenizers and transformers (trl, if it is there, is measured too), no network and no .venv. Every
part runs in a process of its own with a time limit; its rows are printed, and appended to
rows.jsonl as they come, its output to log.txt. The last lines are the table: what was measured, the
target, the verdict. Weights are random, of the shape of SmolLM2-135M.
"""
import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import minicai  # noqa: F401  isort: skip  before torch: waiting threads are to sleep, not to spin
import torch

from minicai import decode, graph, sample
from minicai.checkpoint import save_model, save_scalar
from minicai.gpt import GPT, GPTConfig
from minicai.lab import bench, peers
from minicai.lab.meter import peak_bytes, settle
from minicai.run import Parser, UserError, friendly_main, pick_device
from minicai.run import real as number
from minicai.sample import generate
from minicai.tokenizer import Tokenizer

ROOT = Path(__file__).parents[2]
SMOLLM2 = dict(vocab_size=49152, n_layer=30, n_head=9, n_kv_head=3, width=576, mlp_width=1536,
               max_positions=8192, rope_theta=100000.0)
MICRO = dict(vocab_size=2048, n_layer=5, n_head=4, width=128, mlp_width=384, max_positions=1024)
TINY = dict(vocab_size=300, n_layer=2, n_head=6, n_kv_head=2, width=48, mlp_width=64,
            max_positions=256)
# Shapes (N, D, V); model; batches with the least factor over transformers; prompt and new tokens;
# rows of a PPO step.
FULL = SimpleNamespace(logprob=[(8192, 1024, 49152), (8192, 2048, 151936)], model=SMOLLM2,
                       micro=MICRO, batches={1: 5, 64: 5, 256: 3}, prompt=64, new=128, rows=64,
                       repeats=5, bytes=2**30, demo=[], training=(16, 96, 30),
                       tests=["logprob_triton", "decode_triton", "decode", "graph", "logprob",
                              "sample", "gpt"])
QUICK = SimpleNamespace(logprob=[(64, 16, 50)], model=TINY, micro=TINY, batches={1: 5, 3: 3},
                        prompt=6, new=20, rows=4, repeats=2, bytes=2**20, training=(3, 12, 2),
                        tests=["graph"], demo=[
                            "--red-team-limit 6 --helpful-limit 6 --helpful-samples 1 --rounds 1 "
                            "--epochs 1",
                            "--comparisons 24 --human-limit 24", "--steps 2 --batch 8",
                            "--limit 2"])


def seconds(work, repeats: int, device) -> float:
    """The median time of work(), after one call that does not count."""
    times = []
    for _ in range(repeats + 1):
        settle(device)
        start = time.perf_counter()
        work()
        settle(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def row(name: str, value: float, unit: str, target: float | None = None, least: bool = False,
        note: str = "") -> dict:
    """One line of the table; target: at most that (least: at least that)."""
    verdict = "" if target is None else \
        "met" if (value >= target if least else value <= target) else "MISSED"
    return {"row": name, "value": value, "unit": unit, "target": target, "least": least,
            "verdict": verdict, "note": note}


def shown(r: dict) -> str:
    """A row as text."""
    target = "" if r["target"] is None else f"{'>=' if r['least'] else '<='} {r['target']:.3g}"
    return f"{r['part']:<9} {r['row']:<58} {r['value']:>10.4g} {r['unit']:<8} " \
        f"{target:>10} {r['verdict']:<7} {r['note']}"


# ---- the parts: each yields rows -----------------------------------------------------------------
def machine(sizes, device, folder):
    """What this machine can do: a launch, a copy, a product."""
    x, wide = torch.zeros(8, device=device), torch.empty(sizes.bytes // 4, device=device)
    side = 4096 if device.type == "cuda" else 64
    square = torch.randn(side, side, device=device)
    square, other = square.bfloat16(), torch.empty_like(wide)

    def launches():
        for _ in range(1000):
            x.add_(1)
    yield row("one small operation, asked for by Python", seconds(launches, 5, device) * 1e3, "us")
    run, = graph.record("launches", [launches], device)
    yield row("the same, replayed", seconds(run, 5, device) * 1e3, "us",
              note="; ".join(graph.FAILED.values()))
    copied = seconds(lambda: other.copy_(wide), 10, device)
    yield row("device copy, read and written", 2 * sizes.bytes / copied / 1e9, "GB/s")
    product = seconds(lambda: square @ square, 10, device)
    yield row("bf16 product 4096^3", 2 * len(square) ** 3 / product / 1e12, "TFLOP/s")
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", f"import torch; torch.zeros(1, device='{device}')"],
                   check=True)
    yield row("python starts, imports torch, opens the device", time.perf_counter() - start, "s")


def tests(sizes, device, folder):
    """The tests that run on the GPU where there is one."""
    files = [str(ROOT / "tests" / f"test_{name}.py") for name in sizes.tests]
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files],
                          cwd=ROOT, capture_output=True, text=True)
    lines = done.stdout.strip().splitlines() or done.stderr.strip().splitlines() or ["no output"]
    print(done.stdout[-6000:], done.stderr[-2000:])
    yield row("tests that failed", sum(line.startswith(("FAILED", "ERROR")) for line in lines)
              + (done.returncode != 0), "", 0, note=lines[-1])


def logprob(sizes, device, folder):
    """Forward and backward of the fused log-prob, against its four products and eager."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    for N, D, V in sizes.logprob:
        g = torch.Generator().manual_seed(0)
        hidden, weight = (torch.randn(n, D, generator=g).mul_(D ** -0.25).to(device, dtype)
                          for n in (N, V))
        hidden.requires_grad_(), weight.requires_grad_()
        targets = torch.randint(V, (N,), generator=g).to(device)
        case, time_of, peak = f"{N}x{D}x{V}", {}, {}

        def work(loss):
            hidden.grad = weight.grad = None
            loss(hidden, weight, targets).backward()
        low, vast = hidden.detach(), weight.detach()
        floor = seconds(lambda: (bench.products(low, vast), low @ vast.T), sizes.repeats, device)
        yield row(f"{case}, four products", floor * 1e3, "ms")
        groups, truth = bench.logprob_losses(device, {}), None
        for asked in ("no entropy", "entropy logged"):
            for name in ("eager", "fused"):
                run = lambda: work(groups[asked][name])
                hidden.grad = weight.grad = None
                peak[name] = peak_bytes(run, device)
                if asked == "no entropy":
                    found = torch.cat([hidden.grad.flatten(), weight.grad.flatten()]).float()
                    truth = found if truth is None else (found - truth).norm() / truth.norm()
                    del found
                time_of[name] = seconds(run, sizes.repeats, device)
            yield row(f"{case}, {asked}, eager", time_of["eager"] * 1e3, "ms",
                      note=f"peak {peak['eager'] / 1e6:,.0f} MB")
            yield row(f"{case}, {asked}, fused", time_of["fused"] * 1e3, "ms", 1.25 * floor * 1e3,
                      note=f"peak {peak['fused'] / 1e6:,.0f} MB; "
                      f"gradients {float(truth):.1e} off eager's")
            yield row(f"{case}, {asked}, faster than eager", time_of["eager"] / time_of["fused"],
                      "times", 1, True)
            yield row(f"{case}, {asked}, peak", peak["fused"] / 1e6, "MB",
                      (4 * V * D + 0.1 * peak["eager"]) / 1e6)
        hidden.grad = weight.grad = None


def random_model(config: dict, device, bf16: bool) -> GPT:
    """A model of a shape with random weights, as load_model gives it."""
    model = GPT(GPTConfig(**config)).init_weights(torch.Generator().manual_seed(0)).to(device)
    model.bf16, model.recording = bf16, sample.decodes(device)
    return model


def decoding(sizes, device, folder):
    """New tokens of many prompts, beside transformers' generate;
    and reading the weights once a token."""
    bf16 = device.type == "cuda"
    model, end = random_model(sizes.model, device, bf16), sizes.model["vocab_size"]
    theirs = find_spec("transformers") is not None
    if theirs:
        save_model(folder / "lm", model, Tokenizer.load(ROOT / "data" / "base"))
    numbers = sum(p.numel() for p in model.parameters())
    wide, other = (torch.empty(sizes.bytes // 4, device=device) for _ in range(2))
    copied = seconds(lambda: other.copy_(wide), 10, device)
    reading = numbers * (2 if bf16 else 4) / (2 * sizes.bytes / copied)
    for batch, factor in sizes.batches.items():
        prompts = bench.draw(batch, sizes.prompt, end)
        options = {"max_new_tokens": sizes.new, "stop": {end}}
        ours = lambda **how: generate(model, prompts, **options, **how)
        start = time.perf_counter()
        greedy = ours(temperature=0.0)
        first = time.perf_counter() - start
        each = {name: seconds(lambda: ours(temperature=t), sizes.repeats, device) / sizes.new * 1e3
                for name, t in (("greedy", 0.0), ("sampled", 1.0))}
        yield row(f"batch {batch}: a token, greedy", each["greedy"], "ms",
                  4e3 * reading if batch == 1 else None,
                  note=f"weights read in {reading * 1e3:.3f} ms; first call {first:.1f} s")
        decode.DECODERS.clear()
        with mock.patch.object(decode, "WORTH", 10**9):
            ours(temperature=0.0)
            plain = seconds(lambda: ours(temperature=0.0), 2, device) / sizes.new * 1e3
            decode.DECODERS.clear()
        yield row(f"batch {batch}: a token, greedy, without decode_triton.py", plain, "ms")
        yield row(f"batch {batch}: a token, sampled", each["sampled"], "ms",
                  note=f"{batch / each['sampled'] * 1e3:,.0f} tokens/s "
                  f"{'; '.join(graph.FAILED.values())}")
        if theirs:
            yield from beside_transformers(folder / "lm", prompts, greedy, each["greedy"], sizes,
                                           end, device, factor)


def beside_transformers(folder, prompts, greedy, mine: float, sizes, end, device, factor):
    """The same prompts by transformers' generate with its dynamic cache and the same weights
    in the same type."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    run = peers.transformers_generate(folder, prompts, sizes.new, end, device, sample=False,
                                      dtype=dtype)
    run(4)
    settle(device)
    start = time.perf_counter()
    ids = run()
    settle(device)
    each = (time.perf_counter() - start) / sizes.new * 1e3
    same = sum(a[0] == b[0] for a, b in zip(ids, greedy)) / len(ids)
    whole = sum(a == b for a, b in zip(ids, greedy)) / len(ids)
    yield row(f"batch {len(prompts)}: as fast as transformers' generate", each / mine, "times",
              factor, True,
              note=f"theirs {each:.2f} ms a token; first ids equal {same:.0%}, all {whole:.0%}")


def ppo(sizes, device, folder):
    """A PPO step of the large shape by phase: one minibatch, two epochs, separate value model."""
    bf16, batch = device.type == "cuda", sizes.rows
    model = random_model(sizes.model, device, bf16)
    head = torch.nn.Linear(sizes.model["width"], 1, bias=False)
    prompts = bench.draw(batch, sizes.prompt, sizes.model["vocab_size"])
    config = bench.PPOConfig(epochs=2, minibatch=batch, micro=batch)
    step = bench.PPOStep(model, head.to(device), prompts, sizes.new, config, device, bf16=bf16)
    start = time.perf_counter()
    step()                                                              # by operations
    step()                                                              # recorded
    settle(device)
    first = time.perf_counter() - start
    phases = [step() for _ in range(max(2, sizes.repeats - 2))]
    whole = {name: statistics.median(p[name] for p in phases) for name in phases[0]}
    note = ", ".join(f"{name} {value:.3f}" for name, value in whole.items() if name != "whole step")
    failed = "; ".join(graph.FAILED.values())
    yield row(f"{batch} x ({sizes.prompt} + {sizes.new}), a step", whole["whole step"], "s", 1.2,
              note=f"{note}; the first two {first:.1f} s {failed}")
    for m in step.models:
        getattr(m, "trunk", m).recording = False
    graph.TRUNKS.clear()                                                # and what they hold
    plain = [step() for _ in range(2)][1]
    yield row("the same, training without recordings", plain["whole step"], "s",
              note=", ".join(f"{name} {value:.3f}"
                             for name, value in plain.items() if name != "whole step"))
    if find_spec("trl") and find_spec("datasets"):
        del step
        tok = Tokenizer.load(ROOT / "data" / "base")
        save_model(folder / "policy", model, tok)
        save_scalar(folder / "scorer", model, head, tok)
        theirs = peers.TRLStep(folder / "policy", folder / "scorer", prompts, sizes.new, 2,
                               sizes.model["vocab_size"], device, folder / "trl", bf16=bf16)
        theirs()
        yield row("as fast as TRL's", theirs()["whole step"] / whole["whole step"],
                  "times", 4, True)
    else:
        yield row("as fast as TRL's", float("nan"), "times",
                  note="trl or datasets is not installed here")


def demo(sizes, device, folder):
    """`make demo`, stage by stage, each in a process of its own."""
    out, total = folder / "demo", 0.0
    flags = [text.split() for text in sizes.demo] or [[]] * 4
    stages = [["train_sft.py", "--out", out / "sft"],
              ["train_pm.py", "--model", out / "sft/sl_cai", "--out", out / "pm"],
              ["train_rl.py", "--model", out / "sft/sl_cai", "--pm", out / "pm/pm", "--out",
               out / "rl"],
              ["-m", "minicai.lab.evaluate", "--out", out]]
    for stage, more in zip(stages, flags):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, *map(str, stage), *more, "--device", device.type],
                              cwd=ROOT, capture_output=True, text=True)
        total += time.perf_counter() - start
        failed = next((line for line in done.stderr.splitlines() if "no CUDA graphs here" in line),
                      "")
        said = [line for line in done.stderr.splitlines()
                if "%|" not in line or "100%" in line or "Warning" in line]
        print(done.stdout[-7000:], "\n".join(said[-40:]), flush=True)
        if done.returncode:
            raise RuntimeError(f"{stage[0]} ended with {done.returncode}: "
                               f"{(done.stderr.splitlines() or ['?'])[-1]}")
        yield row(f"demo: {stage[0] if stage[0] != '-m' else 'evaluate'}",
                  time.perf_counter() - start, "s", note=failed)
    yield row("demo, whole", total, "s", 60)
    found = json.loads((out / "results.json").read_text())["models"]
    for name, model in found.items():
        harmful = ", ".join(f"{group} {shares['harmful']:.0%}"
                            for group, shares in model["red_team"].items())
        yield row(f"demo, {name}: helped in full", model["helpful"]["full"], "",
                  note=f"harmful: {harmful}")


def training(sizes, device, folder):
    """Fine-tuning steps a second, recorded, plain and compiled; on CUDA in bf16."""
    rows, length, steps = sizes.training
    for manner in ("recorded", "plain", "compiled and recorded"):
        for name, config in (("micro-world", sizes.micro), ("large", sizes.model)):
            ids = bench.draw(rows * steps, length, config["vocab_size"])
            model = random_model(config, device, device.type == "cuda")
            model.recording = model.recording and manner != "plain"
            if manner.startswith("compiled"):
                if device.type != "cuda":
                    continue
                model.compile_blocks()
            run = bench.sft_training(model, ids, rows, SimpleNamespace(log=lambda **_: None))
            start = time.perf_counter()
            run()
            settle(device)
            first = time.perf_counter() - start
            each = seconds(run, 2, device) / steps
            yield row(f"{name}, {rows} x {length}, {manner}: a fine-tuning step", each * 1e3, "ms",
                      note=f"{rows * length / each:,.0f} tokens/s; "
                      f"the first {steps} in {first:.1f} s")
            del model, run


def profile(sizes, device, folder):
    """Where the time goes, operation by operation: for the log, not for the table."""
    activities = [torch.profiler.ProfilerActivity.CPU] \
        + [torch.profiler.ProfilerActivity.CUDA] * (device.type == "cuda")
    model = random_model(sizes.model, device, device.type == "cuda")
    small = random_model(sizes.micro, device, device.type == "cuda")
    rows, length, steps = sizes.training
    N, D, V = sizes.logprob[-1]
    hidden, weight = (torch.randn(n, D, device=device).mul_(D ** -0.25) for n in (N, V))
    hidden, weight = (x.to(torch.bfloat16 if device.type == "cuda" else x.dtype).requires_grad_()
                      for x in (hidden, weight))
    targets = torch.randint(V, (N,), device=device)
    sample_from = lambda m, batch: lambda: generate(
        m, bench.draw(batch, sizes.prompt, m.config.vocab_size),
        max_new_tokens=sizes.new, stop={m.config.vocab_size})
    tune = lambda m: bench.sft_training(m, bench.draw(rows * 4, length, m.config.vocab_size), rows,
                                        SimpleNamespace(log=lambda **_: None))
    work = {"sampling, batch 1": sample_from(model, 1),
            "sampling, batch 64": sample_from(model, sizes.rows),
            "sampling, micro-world": sample_from(small, 4 * sizes.rows),
            "4 fine-tuning steps, micro-world": tune(small), "4 fine-tuning steps": tune(model),
            "log-prob": lambda:
                (-bench.token_logprobs(hidden, weight, targets)[0].mean()).backward()}
    for name, run in work.items():
        run(), run()
        settle(device)
        start = time.perf_counter()
        with torch.profiler.profile(activities=activities) as seen:
            run()
            settle(device)
        took = time.perf_counter() - start
        by = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
        print(f"\n==== {name}\n" + seen.key_averages().table(sort_by=by, row_limit=22,
                                                             max_name_column_width=70), flush=True)
        yield row(f"profiled: {name}", took, "s", note="its operations: see the log")


def real(sizes, device, folder):
    """`make real` on the model directory MINICAI_WEIGHTS,
    with as many PPO steps as the target names."""
    if not (where := os.environ.get("MINICAI_WEIGHTS")):
        yield row("make real", float("nan"), "s",
                  note="not measured: MINICAI_WEIGHTS names no model directory")
        return
    words = ["--model", str(Path(where).absolute()), "--out", str(folder / "real"), "--steps", "40"]
    words += ["--device", device.type]
    done = subprocess.run([sys.executable, "-m", "minicai.lab.real", *words],
                          cwd=ROOT, capture_output=True, text=True)
    print(done.stdout[-7000:], done.stderr[-2000:], flush=True)
    if done.returncode:
        raise RuntimeError(f"make real: {(done.stderr.splitlines() or ['?'])[-1]}")
    # when the three stages were done
    stages = re.findall(r"^evaluation, (\d+) s:", done.stdout, re.M)
    yield row("make real: three stages, 40 PPO steps", float(stages[0]), "s", 180)


PARTS = {"machine": (machine, 40), "tests": (tests, 150), "logprob": (logprob, 60),
         "decoding": (decoding, 120), "ppo": (ppo, 100), "demo": (demo, 180),
         "training": (training, 100), "profile": (profile, 60), "real": (real, 400)}


# ---- the command ---------------------------------------------------------------------------------
def arguments(argv=None):
    p = Parser(__doc__)
    a = p.add_argument
    a("--only", default=",".join(PARTS), metavar="PARTS",
      help=f"some of {','.join(PARTS)}, run in the order given")
    a("--quick", action="store_true", help="tiny sizes: does it run?")
    a("--device", default=None, help="cuda, or cpu for trying it out; default: the best one here")
    a("--minutes", type=number(0, above=True), default=6,
      help="start no part, and let none go on, after so many")
    a("--out", default="out/gpu_check", help="folder of rows.jsonl and log.txt")
    a("--part", choices=PARTS,
      help=argparse.SUPPRESS)                  # what the process of a part is started with
    return p.parse_args(argv)


def run_part(args) -> None:
    """One part, here: rows are appended as they come."""
    device = pick_device(args.device)
    if args.quick:
        # the GPU's way, tried out: a step is called where it would be replayed
        sample.decodes = lambda device: True
    with tempfile.TemporaryDirectory() as folder:
        for r in PARTS[args.part][0](QUICK if args.quick else FULL, device, Path(folder)):
            append(args.out, {"part": args.part, **r})


def append(out, r: dict) -> None:
    """Write a row to the end of rows.jsonl, and to the part's output."""
    with open(Path(out) / "rows.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(r) + "\n")


def start_part(name: str, args, limit: float) -> list:
    """The rows that a part gave in a process of its own within `limit` seconds; a last one says
    why, if it did not end."""
    before, path = len(read_rows(args.out)), Path(args.out) / "log.txt"
    command = [sys.executable, "-m", "minicai.lab.gpu_check", "--part", name, "--out", args.out]
    command += ["--quick"] * args.quick + (["--device", args.device] if args.device else [])
    start, why, begins = time.perf_counter(), "", path.stat().st_size
    with open(path, "a", encoding="utf-8") as log:
        log.write(f"\n######## {name}\n")
        log.flush()
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT,
                                   start_new_session=True)
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            code, why = process.wait(), f"stopped after {limit:.0f} s"
    if code:
        said = path.read_bytes()[begins:].decode(errors="replace").strip().splitlines()
        bad = row("did not end", time.perf_counter() - start, "s",
                  note=f"{why or code}: {said[-1]:.200}")
        append(args.out, {"part": name, **bad, "verdict": "BROKEN"})
    print(f"[{name}: {time.perf_counter() - start:.0f} s]", flush=True)
    return read_rows(args.out)[before:]


def read_rows(out) -> list:
    """What was measured so far."""
    path = Path(out) / "rows.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


@friendly_main
def main(argv=None):
    """Start every part, print its rows, then all as a table."""
    args, begun = arguments(argv), time.perf_counter()
    wanted = args.only.split(",")
    if not set(wanted) <= set(PARTS):
        raise UserError(f"--only {args.only}: expected some of {','.join(PARTS)}")
    args.out = str(Path(args.out).absolute())
    Path(args.out).mkdir(parents=True, exist_ok=True)
    if args.part:
        return run_part(args)
    for name in ("rows.jsonl", "log.txt"):
        (Path(args.out) / name).write_text("")
    # Where torch's compiled sources cannot be kept beside them, every process would compile them
    # anew: eight seconds each.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ.setdefault("PYTHONPYCACHEPREFIX", str(Path(args.out) / "pycache"))
    device = pick_device(args.device)
    chip = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    heading = f"{chip}, torch {torch.__version__}, " + ", ".join(f"{name} {installed(name)}"
        for name in ("triton", "transformers", "trl"))
    print(heading, flush=True)
    for name in wanted:
        left = 60 * args.minutes - (time.perf_counter() - begun)
        if left < 10:
            print(f"[{name}: no time left]")
            continue
        for r in start_part(name, args, min(PARTS[name][1], left)):
            print(shown(r), flush=True)
    rows = read_rows(args.out)
    print("\n".join(["", heading, *map(shown, rows)]))
    print(f"{sum(r['verdict'] == 'met' for r in rows)} targets met, "
          f"{sum(r['verdict'] == 'MISSED' for r in rows)} missed, "
          f"{sum(r['verdict'] == 'BROKEN' for r in rows)} parts did not end; "
          f"{time.perf_counter() - begun:.0f} s")


def installed(package: str) -> str:
    """The version of a package, or that there is none."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    main()
