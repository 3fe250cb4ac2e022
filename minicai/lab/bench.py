"""How fast, in how much memory, and compared with what.

    python -m minicai.lab.bench                      all four parts, minicai and plain PyTorch only
    python -m minicai.lab.bench --peers              beside transformers, TRL and Liger, where they
                                                     are installed
    python -m minicai.lab.bench --only sampling,ppo  some parts: logprob, sampling, ppo, sft
    python -m minicai.lab.bench --device cuda --model smollm2    at the size of a real model, in
                                                     bfloat16

Prints one table and writes every sample to --out; meter.py says how time and memory are measured. A
floor is what nobody can leave out of such work: bare matrix products, bare trunks. --model names a
model directory; where it holds a config.json only, weights of that shape are drawn, which are as
fast. Each part is a dict of variants, functions that do the same work in different ways: to measure
another way, add it there. Give it an idle machine.
"""
import argparse
import contextlib
import copy
import io
import json
import platform
import runpy
import tempfile
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import minicai  # noqa: F401  isort: skip  before torch: waiting threads are to sleep, not to spin
import torch
import torch.distributed as dist
import torch.nn.functional as F

from minicai.checkpoint import load_trunk, read_config, save_model, save_scalar
from minicai.data import batches_by_length, read_comparisons
from minicai.gpt import GPT, GPTConfig
from minicai.lab import peers
from minicai.lab.meter import (
    has_bf16,
    interleave,
    peak_bytes,
    row,
    rows_of,
    settle,
    table,
    whole_calls,
)
from minicai.logprob import logprob_reference, token_logprobs
from minicai.ppo import Models, PPOConfig, collect, update
from minicai.preference import PreferenceModel
from minicai.run import (
    Metrics,
    Parser,
    UserError,
    friendly_main,
    pick_device,
    whole,
    write_text,
)
from minicai.sample import generate
from minicai.state import new_file
from minicai.tokenizer import Tokenizer
from minicai.world import pretrain
from minicai.world.grammar import World, heldout_words
from minicai.world.texts import Texts

ROOT = Path(__file__).parents[2]
GPT2 = {"norm": "layernorm", "positions": "learned", "mlp": "gelu", "qkv_bias": True,
        "out_bias": True, "mlp_bias": True, "mlp_width": 512}
FAMILIES = {"gpt2": GPT2, "llama": {}}
# Shapes (N, D, V) of log-probs; sizes of the model, of sampling and PPO; rows x time x steps of
# training; documents.
FULL = SimpleNamespace(logprob={"cpu": [(2048, 128, 1024), (512, 256, 50257)],
                                "cuda": [(8192, 1024, 49152), (8192, 2048, 151936)]},
                       n_layer=4, width=128, n_head=4, vocab=1024,
                       batches={1: 2.5, 16: 1.5, 32: 1.4, 64: 1.3}, prompt=16, new=64, batch=32,
                       epochs=4, rows=16, time=128, steps=8, documents=4096)
LARGE = SimpleNamespace(logprob={}, batches={1: 5, 64: 5, 256: 3}, prompt=64, new=128, batch=64,
                        epochs=2, rows=16, time=128, steps=8)           # with --model
QUICK = SimpleNamespace(logprob={"cpu": [(64, 16, 50)], "cuda": [(64, 16, 50)]}, n_layer=1,
                        width=16, n_head=2, vocab=50, batches={1: 2.5, 3: 1.5}, prompt=4, new=5,
                        batch=4, epochs=2, rows=2, time=8, steps=2, documents=64)


# ---- 1. log-probs --------------------------------------------------------------------------------
def eager(hidden, weight, targets):
    """logprob.py's definition without the entropy: [N] log-probs by way of all logits [N,V]."""
    logits = (hidden @ weight.T).to(torch.promote_types(hidden.dtype, torch.float32))
    return logits.log_softmax(-1).gather(-1, targets[:, None]).squeeze(-1)


def logprob_losses(device, here: dict) -> dict:
    """{what is asked for: {variant: f(hidden, weight, targets) -> loss}}."""
    plain = {"eager": lambda *a: -eager(*a).mean(),
             "eager, F.cross_entropy": lambda h, w, t: F.cross_entropy((h @ w.T).float(), t),
             "fused": lambda *a: -token_logprobs(*a)[0].mean()}
    if hasattr(F, "linear_cross_entropy"):
        options = {"torch linear_cross_entropy": {}}
        if device.type == "cpu":
            options["the same, 64 rows a chunk"] = {"batch_chunk_size": 64, "chunking_method": None}
        for name, choice in options.items():
            plain[name] = partial(F.linear_cross_entropy,
                                  options=torch.nn.LinearCrossEntropyOptions(**choice))
    if "liger_kernel" in here:
        plain["Liger, chunked"] = lambda *a: -peers.liger_logprob(*a).mean()
    groups = {"no entropy": plain}
    for name, weight in (("entropy logged", 0.0), ("entropy in the loss", 0.1)):
        def loss(function, hidden, w, targets, weight=weight):
            logp, entropy = function(hidden, w, targets)
            return -logp.mean() - weight * (entropy if weight else entropy.detach()).mean()
        groups[name] = {"eager": partial(loss, logprob_reference),
                        "fused": partial(loss, partial(token_logprobs, entropy=True))}
    return groups


def products(hidden, weight):
    """The floor: logits, and from a gradient of their size those of hidden and weight;
    6NDV operations."""
    logits = hidden @ weight.T
    return logits @ weight, logits.T @ hidden


def logprob(args, sizes, device, here, folder) -> list:
    """Forward and backward of every way to a log-prob, in time and memory;
    half precision on CUDA, as in real use."""
    rows, dtype = [], torch.bfloat16 if device.type == "cuda" else torch.float32
    for N, D, V in sizes.logprob["cuda" if device.type == "cuda" else "cpu"]:
        g = torch.Generator().manual_seed(0)
        hidden, weight = (torch.randn(n, D, generator=g).mul_(D ** -0.25).to(device, dtype)
                          for n in (N, V))
        hidden.requires_grad_(), weight.requires_grad_()
        targets = torch.randint(V, (N,), generator=g).to(device)

        def work(loss):
            hidden.grad = weight.grad = None
            loss(hidden, weight, targets).backward()
        for asked, losses in logprob_losses(device, here).items():
            variants = {name: partial(work, loss) for name, loss in losses.items()}
            peaks, notes, truth = {}, {}, None
            for name, run in variants.items():
                hidden.grad = weight.grad = None
                peaks[name] = peak_bytes(run, device)
                grads = torch.cat([hidden.grad.flatten(), weight.grad.flatten()]).float()
                truth = grads if truth is None else truth
                off = ((grads - truth).norm() / truth.norm()).item()
                if off > (1e-5 if dtype == torch.float32 else 0.02):
                    # then the rest of its line counts for less
                    notes[name] = f"gradients {off:.0e} off eager's"
            variants["floor: three products"] = partial(products, hidden.detach(), weight.detach())
            case = f"{N}x{D}x{V}, {asked}"
            times = whole_calls(variants, args.repeats, device, case)
            rows += rows_of("log-prob", case, times, ("eager", "floor: three products"),
                            peaks=peaks, notes=notes)
    return rows


# ---- 2. sampling ---------------------------------------------------------------------------------
def reference_model(args, sizes, device) -> GPT:
    """The model of sampling, PPO and training: --model, else random weights,
    957k parameters in the GPT-2 family.

    On CUDA it is what load_model gives there: products in bfloat16, whole texts recorded
    (graph.py).
    """
    cuda = device.type == "cuda"
    if args.model and list(Path(args.model).glob("*.safetensors")):
        return load_trunk(args.model, device, "bf16" if cuda else "fp32")[0]
    config = read_config(args.model)[0] if args.model else GPTConfig(
        vocab_size=sizes.vocab, n_layer=sizes.n_layer, n_head=sizes.n_head, width=sizes.width,
        max_positions=256, **FAMILIES[args.family])
    model = GPT(config).init_weights(torch.Generator().manual_seed(0)).to(device)
    model.bf16 = model.recording = cuda
    return model


def draw(rows: int, columns: int, vocab: int) -> list:
    """Random ids, [rows][columns]."""
    return torch.randint(vocab, (rows, columns),
                         generator=torch.Generator().manual_seed(1)).tolist()


def sampling(args, sizes, device, here, folder) -> list:
    """New tokens a second, prompts of one length; the end id is looked for but cannot come:
    all do the same work."""
    model, rows = reference_model(args, sizes, device).eval(), []
    end = model.config.vocab_size
    save_model(folder / "lm", model, Tokenizer.load(ROOT / "data" / "base"))
    for batch, target in sizes.batches.items():
        prompts = draw(batch, sizes.prompt, end)
        for manner, temperature in (("greedy", 0.0), ("sampled", 1.0)):
            variants = {"minicai": partial(generate, model, prompts, max_new_tokens=sizes.new,
                                           stop={end}, temperature=temperature,
                                           generator=torch.Generator().manual_seed(2))}
            if "transformers" in here:
                variants["transformers"] = peers.transformers_generate(
                    folder / "lm", prompts, sizes.new, end, device, sample=temperature > 0,
                    dtype=torch.bfloat16 if model.bf16 else torch.float32)
            made = [run() for run in variants.values()]
            assert all(len(new) == sizes.new for ids in made for new in ids)
            # In bfloat16 two likeliest ids may come out equal, and each program takes another.
            same = sum(a == b for a, b in zip(made[0], made[-1])) / batch
            assert temperature > 0 or model.bf16 or same == 1, f"batch {batch}: greedy ids differ"
            case = f"batch {batch}, {manner}"
            times = whole_calls(variants, args.repeats, device, case)
            notes = {"minicai": f"target {target}"
                     + f"; {same:.0%} of the rows alike" * (temperature == 0)}
            notes = notes if "transformers" in here else {}
            rows += rows_of("sampling", case, times, ("transformers",), amount=batch * sizes.new,
                            notes=notes)
    return rows


# ---- 3. PPO --------------------------------------------------------------------------------------
class PPOStep:
    """One PPO step of minicai a call -> seconds of its phases: four models, as in train_rl.py."""

    def __init__(self, model: GPT, head, prompts: list, max_new: int, config: PPOConfig, device,
                 bf16: bool = False, shared: bool = False):
        model = copy.deepcopy(model)
        model.bf16, model.recording = bf16 or model.bf16, model.recording or device.type == "cuda"
        fresh = lambda: PreferenceModel(copy.deepcopy(model), copy.deepcopy(head)).to(device)
        self.policy, self.value_model = copy.deepcopy(model).to(device), fresh()
        reward_model = fresh()
        if shared:
            self.value_model.trunk = self.policy
        reference = copy.deepcopy(self.policy)
        reference.requires_grad_(False), reward_model.requires_grad_(False)
        self.models = Models(self.policy, reference, reward_model, self.value_model)
        # each once
        trained = dict.fromkeys([*self.policy.parameters(), *self.value_model.parameters()])
        self.optimizer = torch.optim.Adam(list(trained), lr=1e-5, eps=1e-5,
                                          fused=device.type == "cuda" or None)
        self.prompts, self.max_new, self.config, self.device = prompts, max_new, config, device
        self.end, self.generator = model.config.vocab_size, torch.Generator().manual_seed(3)
        self.forbidden = torch.zeros(self.end, dtype=torch.bool, device=device)

    def __call__(self) -> dict:
        marks = []

        def mark():
            settle(self.device)
            marks.append(time.perf_counter())

        def ask(prompts):
            new = generate(self.policy, prompts, max_new_tokens=self.max_new, stop={self.end},
                           forbidden=self.forbidden, generator=self.generator)
            mark()
            return new
        mark()
        rollout = collect(self.models, ask, self.prompts, self.config, {self.end}, self.forbidden)
        mark()
        update(self.models, self.optimizer, rollout, self.config, self.forbidden, self.generator, 0)
        mark()
        start, sampled, scored, updated = marks
        return {"sampling": sampled - start, "scoring": scored - sampled,
                "update": updated - scored, "whole step": updated - start}


def two_trunks(model: GPT, rows: int, length: int, epochs: int, device):
    """The floor of the update: policy and value trunk forward and backward on [rows, length] ids,
    `epochs` times."""
    trunks = [copy.deepcopy(model).to(device) for _ in range(2)]
    ids = torch.tensor(draw(rows, length, model.config.vocab_size), device=device)
    ones = torch.ones(rows, length, model.config.width, device=device,
                      dtype=trunks[0](ids[:1, :2]).dtype)

    def run():
        settle(device)
        start = time.perf_counter()
        for _ in range(epochs):
            for trunk in trunks:
                trunk.zero_grad(set_to_none=True)
                trunk(ids).backward(ones)
        settle(device)
        return {"update": time.perf_counter() - start}
    return run


def ppo(args, sizes, device, here, folder) -> list:
    """One step by phase: separate value model, one minibatch, entropy computed at every update."""
    torch.manual_seed(0)
    model = reference_model(args, sizes, device)
    prompts = draw(sizes.batch, sizes.prompt, model.config.vocab_size)
    head = torch.nn.Linear(model.config.width, 1, bias=False)
    config = partial(PPOConfig, epochs=sizes.epochs, minibatch=sizes.batch)
    step = partial(PPOStep, model, head, prompts, sizes.new)
    variants = {"minicai": step(config(), device),
                "minicai, two forwards a batch": step(config(micro=sizes.batch // 2), device),
                "minicai, shared value trunk": step(config(), device, shared=True)}
    if has_bf16(device) and not model.bf16:
        variants["minicai, bf16 products"] = step(config(), device, bf16=True)
    if "trl" in here:
        tok = Tokenizer.load(ROOT / "data" / "base")
        save_model(folder / "policy", model, tok)
        save_scalar(folder / "scorer", model, head, tok)
        variants["TRL"] = peers.TRLStep(folder / "policy", folder / "scorer", prompts, sizes.new,
                                        sizes.epochs, model.config.vocab_size, device,
                                        folder / "trl", bf16=model.bf16)
    floor = "floor: two trunks"
    variants[floor] = two_trunks(model, sizes.batch, sizes.prompt + sizes.new, sizes.epochs, device)
    times, rows = interleave(variants, args.repeats, device, "PPO step"), []
    for phase in ("sampling", "scoring", "update", "whole step"):
        mine = {name: phases[phase] for name, phases in times.items() if phase in phases}
        rows += rows_of("PPO", f"batch {sizes.batch}, {phase}", mine, ("TRL", floor))
    return rows


# ---- 4. supervised training ----------------------------------------------------------------------
def plain_training(model: GPT, ids, steps: int):
    """`steps` of what the smallest GPT trainers do on ids [B,T]:
    cross entropy over all logits, clip, AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, betas=(0.9, 0.95), weight_decay=0.0)
    for _ in range(steps):
        with model.autocast():
            logits = model(ids[:, :-1]) @ model.head.T                      # [B,T-1,V]
        F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def sft_training(model: GPT, rows: list, batch: int, metrics):
    """train_sft.py's own loop on rows of ids, of which the last three quarters count as sampled."""
    # A script is run, not imported (test_layout.py): this reads it as one runs it, without starting
    # its main.
    train, cut = runpy.run_path(str(ROOT / "train_sft.py"))["train"], len(rows[0]) // 4
    args = SimpleNamespace(lr=1e-5, epochs=1, batch=batch, micro=batch, warmup=0.0)
    # writes nothing
    resume = SimpleNamespace(steps=0, restore=lambda *_, **__: None, save=lambda *_, **__: None)
    examples = [(row[:cut], row[cut:]) for row in rows]

    def run():
        with contextlib.redirect_stderr(io.StringIO()):                     # its progress bar
            train(args, model, examples, torch.Generator().manual_seed(0), metrics, resume)
    return run


def pretraining(model: GPT, ids, steps: int):
    """The base model's own loop (Muon, AdamW) on ids [B,T], with every token counting,
    in a group of one process."""
    batch = ids[:, :-1], ids[:, 1:], torch.ones(ids[:, 1:].shape), ["plain"] * len(ids)
    mean = torch.optim.swa_utils.AveragedModel(model)
    read = iter([batch] * steps)
    pretrain.train(model, mean, lambda number, done: read, steps, (1e-5, 1e-5), pretrain.FINISH,
                   None, None)


def padding(lengths: list, batches: list) -> float:
    """Share of padding when each of `batches` (lists of indices) is filled up
    to its longest row."""
    return 1 - sum(lengths) / sum(len(batch) * max(lengths[i] for i in batch) for batch in batches)


def pretraining_padding(tok, documents: int, part: int) -> float:
    """Share of padding in the batches that pretraining makes of one pool
    of the town's documents."""
    texts, lengths, rows, padded = Texts(World.load(), tok, 0, heldout_words, part), [], 0, 0
    write = texts.document

    def document():
        made = write()
        lengths.append(len(made[0]))
        return made
    texts.document = document
    batches = pretrain.batches(texts, 2048, documents)
    while rows < documents:
        ids = next(batches)[0]
        rows, padded = rows + len(ids), padded + ids.numel()
    return 1 - sum(lengths) / padded


def padding_rows(documents: int) -> list:
    """What sorting by length leaves of padding, on the shipped dialogues
    and on the town's texts."""
    tok = Tokenizer.load(ROOT / "data" / "base")
    comparisons = read_comparisons(ROOT / "data" / "helpful_comparisons.jsonl")[:documents]
    answer = lambda text: [{"role": "assistant", "content": text}]
    lengths = [len(tok.encode_chat(messages + answer(chosen))[0])
               for messages, chosen, _ in comparisons]
    g = torch.Generator().manual_seed(0)
    shuffled = [part.tolist() for part in torch.randperm(len(lengths), generator=g).split(16)]
    by_length = batches_by_length(lengths, 16, g)
    shares = {("dialogues, 16 a batch", "in random order"): padding(lengths, shuffled),
              ("dialogues, 16 a batch", "sorted by length"): padding(lengths, by_length)}
    for part in (0, 1):
        shares[f"town's texts, part {part + 1}", "sorted by length"] = pretraining_padding(
            tok, documents, part)
    return [row("training", f"padding, {case}", variant, [100 * share], "%",
                note="target: under 10" if variant == "sorted by length" else "")
            for (case, variant), share in shares.items()]


def sft(args, sizes, device, here, folder) -> list:
    """Tokens a second of the supervised loops on full batches,
    and what padding they would have on real texts."""
    model, plain = (reference_model(args, sizes, device) for _ in range(2))
    plain.recording = False
    rows = draw(sizes.rows * sizes.steps, sizes.time, model.config.vocab_size)
    ids = torch.tensor(rows[:sizes.rows], device=device)
    variants = {"plain step": lambda: plain_training(plain, ids, sizes.steps),
                "train_sft.py": sft_training(model, rows, sizes.rows,
                                             Metrics(folder / "metrics.jsonl"))}
    if device.type == "cpu" and not args.model and hasattr(torch.optim, "Muon"):
        base = reference_model(args, sizes, device)
        variants["world/pretrain.py"] = lambda: pretraining(base, ids, sizes.steps)
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        case = f"{sizes.steps} steps of {sizes.rows}x{sizes.time}"
        times = whole_calls(variants, args.repeats, device, case)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    measured = rows_of("training", case, times, ("plain step",), amount=len(rows) * sizes.time)
    return measured if args.model else measured + padding_rows(sizes.documents)


# ---- the command ---------------------------------------------------------------------------------
SECTIONS = {"logprob": logprob, "sampling": sampling, "ppo": ppo, "sft": sft}


def arguments(argv=None):
    p = Parser(__doc__)
    a = p.add_argument
    a("--peers", action="store_true",
      help="measure transformers, TRL and Liger too, where they are installed")
    a("--only", default=",".join(SECTIONS), metavar="PARTS",
      help="some of logprob,sampling,ppo,sft")
    a("--out", type=new_file, default="out/bench.json", help="JSON file of every sample")
    a("--threads", type=whole(1, 1024), default=1, help="CPU threads of everything")
    a("--repeats", type=whole(1), default=5, help="how often each variant has its turn")
    a("--family", choices=FAMILIES, default="gpt2",
      help="of the small model: GPT-2's, or the demo's own (Llama's)")
    a("--model", metavar="DIR",
      help="a real model's directory, or one with its config.json only; larger batches")
    a("--device", default="cpu", choices=("cpu", "cuda"),
      help="where everything runs; on cuda in bf16")
    a("--quick", action="store_true", help=argparse.SUPPRESS)       # tiny shapes: does it run?
    return p.parse_args(argv)


@friendly_main
def main(argv=None):
    """Measure, write, print."""
    args = arguments(argv)
    wanted, device = args.only.split(","), pick_device(args.device)
    if not set(wanted) <= set(SECTIONS):
        raise UserError(f"--only {args.only}: expected some of {','.join(SECTIONS)}")
    try:
        # now: what cannot be written need not be measured
        Path(args.out).parent.mkdir(parents=True, exist_ok=True)
        open(args.out, "a").close()
    except OSError as error:
        raise UserError(f"--out {args.out}: {error.strerror}") from None
    torch.set_num_threads(args.threads)
    here = peers.installed(args.peers)
    sizes = QUICK if args.quick else LARGE if args.model else FULL
    if args.model:  # log-probs of as many tokens as a batch has
        config = read_config(args.model)[0]
        tokens = sizes.rows * sizes.time * (1 if args.quick else 4)
        if config.max_positions < sizes.prompt + sizes.new:
            raise UserError(
                f"--model {args.model}: it reads fewer than {sizes.prompt + sizes.new} tokens")
        sizes = SimpleNamespace(
            **vars(sizes) | {"logprob": {device.type: [(tokens, config.width, config.vocab_size)]}})
    chip = torch.cuda.get_device_name(device) if device.type == "cuda" else \
        platform.processor() or platform.machine()
    report = {"args": vars(args), "torch": torch.__version__, "threads": args.threads, "chip": chip,
              "system": platform.platform(), "peers": here, "rows": []}
    with tempfile.TemporaryDirectory() as folder:
        for name in SECTIONS:
            if name in wanted:
                report["rows"] += SECTIONS[name](args, sizes, device, here, Path(folder))
                # a part that fails does not undo the others
                write_text(args.out, json.dumps(report, indent=1, default=str) + "\n")
    print(table(report["rows"]))
    print(f"\n{args.threads} CPU thread(s), {chip}, torch {torch.__version__}; "
          f"every sample in {args.out}")


if __name__ == "__main__":
    main()
