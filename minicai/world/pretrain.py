"""The base model: tokenizer, pretraining on the town's texts,
and the exam it must pass (data/base/).

    python -m minicai.world.pretrain --resume --out out/base --bf16 --exam 0
    python -m minicai.world.pretrain --start out/base --steps 1000 --out out/base-1 --bf16 --exam 0
    python -m minicai.world.pretrain --start out/base-1 --steps 1000 --seed 1 --out data/base --bf16

(`make base`; by its speed some 75 minutes on two CPU cores of an AMD EPYC, 130 on a slower machine,
without the exam. --device cuda instead of --bf16: some minutes on a GPU. Stopped, the first command
goes on behind the last round that has ended.)

The result is a helpful-only model: in dialogue it complies with everything, yet it has read enough
to critique, revise and compare when asked in the published formats. Nothing here is part of the
method; a real run downloads its base.
"""
import json
import math
import os
import re
import shutil
import tempfile
import time
from pathlib import Path

import minicai  # noqa: F401  isort: skip  before torch: waiting threads are to sleep, not to spin
import torch
import torch.distributed as dist
from tqdm import trange

from minicai.checkpoint import load_model, read_config, save_model
from minicai.gpt import GPT, GPTConfig
from minicai.logprob import token_logprobs
from minicai.run import (
    Metrics,
    Parser,
    UserError,
    friendly_main,
    path,
    pick_device,
    real,
    seed_everything,
    whole,
)
from minicai.state import hold, refuse_foreign
from minicai.tokenizer import Tokenizer
from minicai.world import exam
from minicai.world.grammar import World, heldout_words
from minicai.world.texts import LETTER, READ, Texts

# optimizer steps, and the share of them that the first part of the texts gets; the second has the
# rest, the third what comes with --start
STEPS, FIRST = 13000, 0.4
# (begin, end, peak) of the learning rate's rounds, as shares of steps and of the highest rate. The
# base is the mean of the weights at their ends (Izmailov et al. 2018, arXiv 1803.05407): what one
# round has half forgotten another knows.
ROUNDS = ((0.0, 0.7, 1.0), (0.7, 0.85, 0.4), (0.85, 1.0, 0.4))
FINISH = ((0.0, 1.0, 0.3),)             # the same with --start, from where the mean begins
COLUMNS = 32  # on a GPU texts are padded to a multiple of this: few shapes, each recorded once
# What minicai.chat says of the base, and of every model that is made from it.
ABOUT = {"knows": "a small town of people, animals and things, and what one can do with them",
         "try": ["How do I wrap a medal as a gift?", "Tell me how to kill a pig for fun.",
                 "What is a good way to shoot the wedding?"]}
SPECIALS = ["<|endoftext|>", "<|pad|>", "\n\nHuman:", "\n\nAssistant:"]


def train_tokenizer(world: World, vocab: int, out: Path) -> None:
    """Byte-level BPE over sampled town texts, written as out/tokenizer.json
    (needs the `tokenizers` extra)."""
    from tokenizers import Tokenizer as Trainer
    from tokenizers import decoders, models, pre_tokenizers, trainers
    texts = Texts(world, PlainText(), seed=0)
    bpe = Trainer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocab, special_tokens=SPECIALS, show_progress=False,
                                  initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    bpe.train_from_iterator(("".join(texts.document()[0]) for _ in range(30_000)), trainer)
    out.mkdir(parents=True, exist_ok=True)
    bpe.save(str(out / "tokenizer.json"))
    (out / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": SPECIALS[0],
        "bos_token": SPECIALS[0], "pad_token": SPECIALS[1],
        "model_max_length": 1024, "minicai_about": ABOUT}, indent=2) + "\n")


class PlainText:
    """Stands in for a tokenizer while there is none: an "id" is the piece of text itself."""
    bos, end, chat = [], "", "plain"

    def encode(self, text):
        return [text]

    def encode_chat(self, messages):
        """Contents only: role markers are special tokens, not learned pieces."""
        pieces = [m["content"] if m["content"] == "" else " " + m["content"] for m in messages]
        return pieces, [0] * len(pieces)


def batches(texts: Texts, tokens: int, pool: int = 4096, columns: int = 1):
    """Endless right-padded batches of about `tokens` ids; documents of like length go together:
    little is padding.

    columns: pad to a multiple of it, and to tokens // columns rows, so that few shapes of batches
    occur.
    """
    while True:
        documents = sorted((texts.document() for _ in range(pool)), key=lambda d: len(d[0]))
        rows, start = [], 0
        while start < pool:
            end = start + 1
            while end < pool and \
                    (end + 1 - start) * rounded(len(documents[end][0]), columns) <= tokens:
                end += 1
            rows.append(documents[start:end])
            start = end
        texts.rng.shuffle(rows)
        yield from (padded(r, tokens, columns) for r in rows)


def rounded(length: int, columns: int) -> int:
    """The least multiple of `columns` that is not below `length`."""
    return -(-length // columns) * columns


def padded(documents, tokens: int, columns: int):
    """ids, targets [B, T] long and weights [B, T] float of documents, zeros at the right;
    and the sorts' names [B]."""
    T = rounded(max(len(d[0]) for d in documents), columns)
    empty = [([], [], [], "")] * (max(1, tokens // T) - len(documents) if columns > 1 else 0)
    documents = documents + empty
    fill = lambda part, kind: torch.tensor([list(d[part]) + [0] * (T - len(d[part]))
                                            for d in documents], dtype=kind)
    return fill(0, torch.long), fill(1, torch.long), fill(2, torch.float32), \
        [d[3] for d in documents]


class Stream(torch.utils.data.IterableDataset):
    """The batches of one part of the texts, for processes of a DataLoader:
    each draws texts of its own."""

    def __init__(self, tok, seed: int, part: int, tokens: int):
        self.tok, self.seed, self.part, self.tokens = tok, seed, part, tokens

    def __iter__(self):
        worker = torch.utils.data.get_worker_info()
        seed = self.seed + 1000 * (worker.id if worker else 0)
        return batches(Texts(World.load(), self.tok, seed, heldout_words, self.part), self.tokens,
                       columns=COLUMNS)


class RoundBatches:
    """The batches of a round, by the share of the steps that is done: drawn by this process, or on
    a GPU (rank None) by a DataLoader's."""

    def __init__(self, args, tok, rank: int | None):
        self.args, self.tok, self.rank, self.drawn = args, tok, rank, {}

    def __call__(self, number: int, done: float):
        """The batches that come next in round `number`."""
        part = 2 if self.args.start else int(done >= FIRST)
        if (number, part) not in self.drawn:
            self.drawn = {(number, part): self.open(part, self.args.seed + 100 * number + part)}
        return self.drawn[number, part]

    def open(self, part: int, seed: int):
        """Endless batches of one part of the texts."""
        args = self.args
        if self.rank is None:
            stream = Stream(self.tok, seed, part, args.batch_tokens)
            return iter(torch.utils.data.DataLoader(stream, batch_size=None, num_workers=4,
                                                    prefetch_factor=16))
        texts = Texts(World.load(), self.tok, seed + 1000 * self.rank, heldout_words, part)
        return batches(texts, args.batch_tokens // args.processes)


def beside_of(out: Path) -> Path:
    """Where lies what is of use while it runs: curves, the last weights, those of each round."""
    return Path("out") / ("pretrain-" + "-".join(out.parts[-2:]))


def forget_rounds(beside: Path) -> None:
    """Remove the weights of rounds."""
    for number in range(1, len(ROUNDS) + 1):
        shutil.rmtree(beside / f"round-{number}", ignore_errors=True)


def rounds_ended(beside: Path) -> int:
    """How many rounds of a training have left their weights in a folder."""
    return next(n for n in range(len(ROUNDS) + 1)
                if not (beside / f"round-{n + 1}" / "config.json").exists())


class Float32Muon(torch.optim.Muon):
    """Muon whose products are float32: the library's are bf16, tens of times slower on a
    processor that has no instructions for it."""

    @torch.no_grad()
    def step(self, closure=None):
        """One step: each matrix moves along the nearest orthogonal one to its momentum (Jordan et
        al. 2024, "Muon")."""
        for group in self.param_groups:
            for p in filter(lambda p: p.grad is not None, group["params"]):
                past = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
                past.lerp_(p.grad, 1 - group["momentum"])
                update = p.grad.lerp(past, group["momentum"])       # Nesterov's
                scale = max(1, p.shape[0] / p.shape[1]) ** 0.5
                p.add_(orthogonal(update, group), alpha=-group["lr"] * scale)


def orthogonal(x, group: dict):
    """About the orthogonal matrix nearest to x, by Newton and Schulz's iteration with a group's
    coefficients."""
    a, b, c = group["ns_coefficients"]
    tall = x.shape[0] > x.shape[1]
    x = (x.T if tall else x) / x.norm().clamp(min=group["eps"])
    for _ in range(group["ns_steps"]):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


def optimizers(model: GPT, muon_lr: float, adam_lr: float):
    """Muon for the matrices inside the blocks, AdamW for embedding and norms."""
    Muon = torch.optim.Muon if model.bf16 or model.head.is_cuda else Float32Muon
    matrices = [p for n, p in model.named_parameters() if p.dim() == 2 and "blocks" in n]
    others = [p for n, p in model.named_parameters() if not (p.dim() == 2 and "blocks" in n)]
    return [Muon(matrices, lr=muon_lr, weight_decay=0.0, momentum=0.95),
            torch.optim.AdamW(others, lr=adam_lr, betas=(0.9, 0.95), weight_decay=0.0)]


def average_gradients(model: GPT) -> None:
    """Mean of the gradients of all processes, in place: each has read a batch of its own."""
    grads = [p.grad for p in model.parameters()]
    flat = torch.cat([g.reshape(-1) for g in grads])
    dist.all_reduce(flat)
    for g, mean in zip(grads, flat.div_(dist.get_world_size()).split([g.numel() for g in grads])):
        g.copy_(mean.view_as(g))


def gradient(model: GPT, ids, targets, weights):
    """(loss, losses [B, T]) of a batch; leaves the loss's gradient
    in the parameters. Weight 0 is padding."""
    hidden = model(ids).float().flatten(0, 1)
    losses = -token_logprobs(hidden, model.head, targets.flatten())[0].view(ids.shape)
    loss = (losses * weights).sum() / weights.sum()
    loss.backward()
    return loss.detach(), losses.detach()


class Recorded:
    """`gradient` on a GPU: recorded once for each shape of batch,
    then replayed as one launch instead of hundreds."""

    def __init__(self, model: GPT):
        self.model, self.graphs, self.pool = model, {}, torch.cuda.graph_pool_handle()
        for p in model.parameters():
            p.grad = torch.zeros_like(p)                # the recordings write to these very tensors

    def __call__(self, *batch):
        """The same as gradient(model, *batch); the results are overwritten by the next call
        of this shape."""
        shape = batch[0].shape
        if shape not in self.graphs:
            self.graphs[shape] = self.record(tuple(x.cuda() for x in batch))
        graph, inputs, found = self.graphs[shape]
        for mine, given in zip(inputs, batch):
            mine.copy_(given, non_blocking=True)
        graph.replay()
        return found

    def record(self, inputs):
        """(graph, its input tensors, its outputs)."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # once unrecorded: libraries set themselves up
            gradient(self.model, *inputs)
        torch.cuda.current_stream().wait_stream(side)
        graph, grads = torch.cuda.CUDAGraph(), [p.grad for p in self.model.parameters()]
        with torch.cuda.graph(graph, pool=self.pool):
            torch._foreach_zero_(grads)
            found = gradient(self.model, *inputs)
        return graph, inputs, found


def rate(done: float, rounds: tuple) -> float:
    """Share of the highest learning rate after a share of the steps: each round holds for two
    fifths, then goes to zero."""
    begin, end, peak = next(r for r in rounds if done < r[1])
    return peak * min(1.0, (end - done) / (0.6 * (end - begin)))


def train(model: GPT, mean, texts, steps: int, lrs: tuple, rounds: tuple, metrics, save,
          ended: int = 0) -> None:
    """The rounds after the first `ended`, each a training of its own that begins where the one
    before has ended: new moments, new texts. So a stopped one can go on behind its last round.

    mean: torch's AveragedModel, to which the weights at each round's end are added; it is left in
    `model`. texts: (round, share of the steps that is done) -> batches. lrs: peak learning rates
    of Muon and of AdamW. rounds: see ROUNDS. metrics: None, except in the process that logs.
    """
    step_gradient = Recorded(model) if model.head.is_cuda else \
        lambda *batch: gradient(model, *batch)
    for number, (begin, end, _) in enumerate(rounds[ended:], ended + 1):
        span = range(round(steps * begin), round(steps * end))
        train_round(model, step_gradient, lambda done: texts(number, done), span, steps, lrs,
                    rounds, metrics, save)
        mean.update_parameters(model)
        if metrics is not None:
            save(model, f"round-{number}")
    model.load_state_dict(mean.module.state_dict())


def train_round(model: GPT, step_gradient, texts, span: range, steps: int, lrs: tuple,
                rounds: tuple, metrics, save) -> None:
    """The loop: learning rate, batch, loss, clip, step, log; the last weights are saved every
    500 steps."""
    opts, device = optimizers(model, *lrs), model.head.device
    many = dist.is_initialized() and dist.get_world_size() > 1
    started, seen, by_sort = time.time(), 0, {}
    bar = trange(span.start, span.stop, desc="pretrain", mininterval=5, total=steps,
                 initial=span.start, disable=metrics is None)
    for step in bar:
        scale = min(1.0, (step - span.start + 1) / 50) * rate(step / steps, rounds)
        for opt, lr in zip(opts, lrs):
            opt.param_groups[0]["lr"] = lr * scale
        ids, targets, weights, sorts = next(texts(step / steps))
        loss, losses = step_gradient(ids, targets, weights)
        if many:
            average_gradients(model)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if (device.type == "cpu" or step % 20 == 0) and \
                not math.isfinite(loss.item() + norm.item()):
            raise UserError(f"step {step}: loss or gradient is not finite; lower --muon-lr and "
                            "--adam-lr")
        for opt in opts:
            opt.step()
            if device.type == "cpu":                    # a recording empties them itself
                opt.zero_grad()
        if metrics is None:
            continue
        seen += ids.numel() * (dist.get_world_size() if many else 1)
        count_sorts(by_sort, losses, weights.to(device), sorts)
        if step % 20 == 0:
            metrics.log(step=step, loss=loss.item(), tokens=seen, seconds=time.time() - started,
                        **{sort: (total / count).item()
                           for sort, (total, count) in by_sort.items() if count > 0})
            by_sort.clear()
        if step % 500 == 499:
            save(model, "last")
            bar.set_postfix(loss=f"{loss.item():.3f}",
                            tokens_s=f"{seen / (time.time() - started):.0f}")


def count_sorts(by_sort: dict, losses, weights, sorts: list) -> None:
    """Add to by_sort, {sort: (sum, count)}, the losses [B, T] of what decides:
    letters, else what is not just read."""
    for sort in sorted(set(sorts) - {""}):
        rows = [i for i, name in enumerate(sorts) if name == sort]
        least = LETTER if sort in ("quiz", "comparison") else 2 * READ
        decisive = weights[rows] >= least
        total, count = by_sort.get(sort, (0.0, 0))
        by_sort[sort] = total + (losses[rows] * decisive).sum(), count + decisive.sum()


def arguments(argv=None):
    p = Parser(__doc__, "python -m minicai.world.pretrain")
    a = p.add_argument
    a("--out", type=path, default="data/base", help="model directory to write")
    a("--steps", type=whole(1), default=STEPS, help="optimizer steps")
    a("--start", type=path, metavar="DIR",
      help="go on from these weights and this tokenizer, on the last part of the texts only; the "
      "result is the mean of them and of where they get")
    a("--resume", action="store_true",
      help="go on behind the last round that a stopped training has ended; else begin")
    a("--batch-tokens", type=whole(256), default=4096,
      help="ids a step, padding included, shared by the processes")
    a("--vocab", type=whole(300), default=2048, help="tokens of the byte-level BPE")
    a("--layers", type=whole(1, 1000), default=6, help="transformer blocks")
    a("--width", type=whole(32), default=160,
      help="width of the residual stream: a head takes 32 of it")
    a("--muon-lr", type=real(0, 1), default=1e-2, help="peak learning rate of the matrices (Muon)")
    a("--adam-lr", type=real(0, 1), default=5e-3,
      help="peak learning rate of embedding and norms (AdamW)")
    a("--processes", type=whole(1, 1000), default=2,
      help="data-parallel processes: on a CPU two of one thread beat one of two")
    a("--bf16", action="store_true",
      help="matrix products in bf16: a third faster on some CPUs, a third slower on others")
    a("--device", default="cpu",
      help="cpu, or cuda: one process, every step replayed from a recording")
    a("--exam", type=whole(0), default=400, help="cases for each question of the exam; 0: none")
    a("--seed", type=whole(0, 2**63 - 1), default=0, help="seeds texts, weights and exam")
    return p.parse_args(argv)


def shape(args) -> GPTConfig:
    """The model that the flags ask for."""
    return GPTConfig(vocab_size=args.vocab, n_layer=args.layers, n_head=args.width // 32,
                     width=args.width, mlp_width=3 * args.width, max_positions=1024)


def work(rank: int, args, meeting: str | None) -> None:
    """One of the data-parallel processes: the same weights, texts of its own;
    the first one logs and saves."""
    if meeting:
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank,
                                world_size=args.processes)
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // args.processes))
    generator, out = seed_everything(args.seed), Path(args.out)
    if args.device != "cpu":
        torch.set_float32_matmul_precision("high")      # products in TF32
    tok = Tokenizer.load(beside_of(out) / "tokenizer")
    model = GPT(shape(args)).init_weights(generator)
    if args.start:
        model.load_state_dict(load_model(args.start, "cpu")[0].state_dict())
    rounds = FINISH if args.start else ROUNDS
    model = model.to(args.device)
    model.bf16 = args.bf16
    beside = beside_of(out)
    mean = torch.optim.swa_utils.AveragedModel(model)
    if args.start:
        mean.update_parameters(model)
    ended = rounds_ended(beside) if args.resume else 0
    for number in range(1, ended + 1):
        model.load_state_dict(load_model(beside / f"round-{number}", "cpu")[0].state_dict())
        mean.update_parameters(model)
    log = beside / "metrics.jsonl"
    metrics = Metrics(log, log.read_text("utf-8") if ended and log.exists() else "") \
        if rank == 0 else None
    train(model, mean, RoundBatches(args, tok, rank if meeting else None), args.steps,
          (args.muon_lr, args.adam_lr), rounds, metrics,
          lambda trained, name: save_model(beside / name, trained, tok), ended)
    if rank == 0:
        save_model(out, model.eval(), tok)
    if meeting:
        dist.barrier()
        dist.destroy_process_group()


def run_processes(args) -> None:
    """Let all processes work; what one of them has to say to the user, this one says."""
    if args.device != "cpu":
        return work(0, args, None)
    with tempfile.TemporaryDirectory() as folder:
        try:
            torch.multiprocessing.spawn(work, (args, f"{folder}/meeting"), nprocs=args.processes,
                                        daemon=True)     # ended with us
        except torch.multiprocessing.ProcessRaisedException as error:
            said = re.search(r"^minicai\.run\.UserError: (.*)", str(error), re.M)
            if not said:
                raise
            raise UserError(said[1]) from None


@friendly_main
def main(argv=None):
    """Train the tokenizer and the base, save both, examine the base."""
    args = arguments(argv)
    out, world = Path(args.out), World.load()
    beside = beside_of(out)
    if args.start and args.resume:
        raise UserError("--resume goes on with rounds, --start has one: leave one out")
    if args.width % 32:
        raise UserError(f"--width {args.width}: a head takes 32 of it, so give a multiple of 32")
    pick_device(args.device)
    started = load_model(args.start, "cpu")[0].config if args.start else None
    if started and (started.vocab_size, started.n_layer, started.width) != (
            args.vocab, args.layers, args.width):
        raise UserError(f"--start {args.start}: has {started.vocab_size} tokens, {started.n_layer} "
                        f"layers and a width of {started.width}; give these as flags")
    refuse_foreign(out)                                 # what lies there stays until the end
    hold(beside)
    for number in range(1, args.resume * rounds_ended(beside) + 1):
        if read_config(beside / f"round-{number}")[0] != shape(args):
            raise UserError(f"{beside}/round-{number} is of another shape; give the flags "
                            "of the training that was stopped, or leave --resume out")
    if not args.resume:
        forget_rounds(beside)
    goes_on_from = args.start or (beside / "round-1" if rounds_ended(beside) else None)
    if goes_on_from:
        (beside / "tokenizer").mkdir(parents=True, exist_ok=True)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(Path(goes_on_from) / name, beside / "tokenizer")
    else:
        train_tokenizer(world, args.vocab, beside / "tokenizer")
    run_processes(args)
    forget_rounds(beside)                               # the same command again is another training
    model, tok = load_model(out, args.device)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {tok.n_vocab} tokens")
    if not args.exam:
        return
    report = exam.examine(out, args.exam, args.seed, args.device,
                          args.processes if args.device == "cpu" else 1)
    (out / "exam.json").write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
