"""The base model: tokenizer, pretraining on the town's texts, and the exam it must pass (data/base/).

    python -m minicai.world.pretrain --out data/base [--bf16]       about an hour on two CPU cores

The result is a helpful-only model: in dialogue it complies with everything, yet it has read enough to critique, revise
and compare when asked in the published formats. Nothing here is part of the method; a real run downloads its base.
"""
import argparse
import json
import math
import os
import tempfile
import time
from pathlib import Path

import minicai  # noqa: F401  before torch
import torch
import torch.distributed as dist
from tqdm import trange

from minicai.checkpoint import load_model, save_model
from minicai.gpt import GPT, GPTConfig
from minicai.logprob import token_logprobs
from minicai.run import Metrics, seed_everything
from minicai.tokenizer import Tokenizer
from minicai.world import exam
from minicai.world.grammar import World, heldout_words
from minicai.world.texts import LETTER, READ, Texts

STEPS, SHARES = 9500, (0.4, 0.6)        # optimizer steps, and the share of them that each part of the texts gets
SPECIALS = ["<|endoftext|>", "<|pad|>", "\n\nHuman:", "\n\nAssistant:"]


def train_tokenizer(world: World, vocab: int, out: Path) -> None:
    """Byte-level BPE over sampled town texts, written as out/tokenizer.json (needs the `tokenizers` extra)."""
    from tokenizers import Tokenizer as Trainer, decoders, models, pre_tokenizers, trainers
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
        "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": SPECIALS[0], "bos_token": SPECIALS[0],
        "pad_token": SPECIALS[1], "model_max_length": 1024}, indent=2) + "\n")


class PlainText:
    """Stands in for a tokenizer while there is none: an "id" is the piece of text itself."""
    bos, end = [], ""

    def encode(self, text):
        return [text]

    def encode_chat(self, messages):
        """Contents only: role markers are special tokens, not learned pieces."""
        pieces = [m["content"] if m["content"] == "" else " " + m["content"] for m in messages]
        return pieces, [0] * len(pieces)


def batches(texts: Texts, tokens: int, pool: int = 4096):
    """Endless right-padded batches of about `tokens` ids; documents of like length go together: little is padding."""
    while True:
        documents = sorted((texts.document() for _ in range(pool)), key=lambda d: len(d[0]))
        rows, start = [], 0
        while start < pool:
            end = start + 1
            while end < pool and (end + 1 - start) * len(documents[end][0]) <= tokens:
                end += 1
            rows.append(documents[start:end])
            start = end
        texts.rng.shuffle(rows)
        yield from (padded(r) for r in rows)


def padded(documents):
    """ids, targets [B, T] long and weights [B, T] float of documents, zeros at the right; and the sorts' names [B]."""
    T = max(len(d[0]) for d in documents)
    fill = lambda part, kind: torch.tensor([list(d[part]) + [0] * (T - len(d[part])) for d in documents], dtype=kind)
    return fill(0, torch.long), fill(1, torch.long), fill(2, torch.float32), [d[3] for d in documents]


def optimizers(model: GPT, muon_lr: float, adam_lr: float):
    """Muon for the matrices inside the blocks, AdamW for embedding and norms."""
    matrices = [p for n, p in model.named_parameters() if p.dim() == 2 and "blocks" in n]
    others = [p for n, p in model.named_parameters() if not (p.dim() == 2 and "blocks" in n)]
    return [torch.optim.Muon(matrices, lr=muon_lr, weight_decay=0.0, momentum=0.95),
            torch.optim.AdamW(others, lr=adam_lr, betas=(0.9, 0.95), weight_decay=0.0)]


def average_gradients(model: GPT) -> None:
    """Mean of the gradients of all processes, in place: each has read a batch of its own."""
    grads = [p.grad for p in model.parameters()]
    flat = torch.cat([g.reshape(-1) for g in grads])
    dist.all_reduce(flat)
    for g, mean in zip(grads, flat.div_(dist.get_world_size()).split([g.numel() for g in grads])):
        g.copy_(mean.view_as(g))


def train(model: GPT, parts: list, steps: int, lrs: tuple, metrics, save) -> None:
    """The loop: learning rate, batch, loss, clip, step, log; `save()` every 500 steps.

    parts: [(share of the steps, batches)]. lrs: peak learning rates of Muon and of AdamW. metrics: None, except in the
    process that logs.
    """
    opts = optimizers(model, *lrs)
    started, seen, by_sort = time.time(), 0, {}
    ends = [sum(share for share, _ in parts[:i + 1]) for i in range(len(parts))]
    bar = trange(steps, desc="pretrain", mininterval=5, disable=metrics is None)
    for step in bar:
        done = step / steps
        scale = min(1.0, (step + 1) / 50) * min(1.0, (1 - done) / 0.6)     # warm up, hold, then down to zero
        for opt, lr in zip(opts, lrs):
            opt.param_groups[0]["lr"] = lr * scale
        ids, targets, weights, sorts = next(parts[next(i for i, end in enumerate(ends) if done < end)][1])
        keep = weights > 0                                                  # all but padding
        losses = -token_logprobs(model(ids)[keep].float(), model.head, targets[keep])[0]
        loss = (losses * weights[keep]).sum() / weights[keep].sum()
        loss.backward()
        average_gradients(model)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if not math.isfinite(loss.item() + norm.item()):
            raise SystemExit(f"error: step {step}: loss or gradient is not finite")
        for opt in opts:
            opt.step()
            opt.zero_grad()
        if metrics is None:
            continue
        seen += ids.numel() * dist.get_world_size()
        rows = keep.nonzero()[:, 0]                                         # which document each token is of
        for sort in set(sorts):
            mine = torch.tensor([s == sort for s in sorts])[rows]
            decisive = mine & (weights[keep] == LETTER if sort in ("quiz", "comparison") else weights[keep] > READ)
            if decisive.any():
                by_sort.setdefault(sort, []).append(losses[decisive].mean().item())
        if step % 20 == 0:
            metrics.log(step=step, loss=loss.item(), tokens=seen, seconds=time.time() - started,
                        **{sort: sum(v) / len(v) for sort, v in by_sort.items()})
            by_sort.clear()
        if step % 500 == 499:
            save()
            bar.set_postfix(loss=f"{loss.item():.3f}", tokens_s=f"{seen / (time.time() - started):.0f}")


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a = p.add_argument
    a("--out", default="data/base", help="model directory to write")
    a("--steps", type=int, default=STEPS, help="optimizer steps")
    a("--batch-tokens", type=int, default=4096, help="ids a step, padding included, shared by the processes")
    a("--vocab", type=int, default=2048, help="tokens of the byte-level BPE")
    a("--layers", type=int, default=5, help="transformer blocks")
    a("--width", type=int, default=128, help="width of the residual stream")
    a("--muon-lr", type=float, default=1e-2, help="peak learning rate of the matrices (Muon)")
    a("--adam-lr", type=float, default=5e-3, help="peak learning rate of embedding and norms (AdamW)")
    a("--processes", type=int, default=2, help="data-parallel processes: on a CPU two of one thread beat one of two")
    a("--bf16", action="store_true", help="matrix products in bf16: a third faster where the CPU has it, else slower")
    a("--exam", type=int, default=400, help="cases for each question of the exam")
    a("--seed", type=int, default=0, help="seeds texts, weights and exam")
    return p.parse_args()


def work(rank: int, args, meeting: str) -> None:
    """One of the data-parallel processes: the same weights, texts of its own; the first one logs and saves."""
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=args.processes)
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // args.processes))
    generator, world, out = seed_everything(args.seed), World.load(), Path(args.out)
    tok = Tokenizer.load(out)
    config = GPTConfig(vocab_size=args.vocab, n_layer=args.layers, n_head=args.width // 32, width=args.width,
                       mlp_width=3 * args.width, max_positions=1024)
    model = GPT(config).init_weights(generator)
    model.bf16 = args.bf16
    parts = [(share, batches(Texts(world, tok, args.seed + 1000 * rank + part, heldout_words, part),
                             args.batch_tokens // args.processes)) for part, share in enumerate(SHARES)]
    metrics = Metrics(Path("out") / f"pretrain-{out.name}.jsonl") if rank == 0 else None
    train(model, parts, args.steps, (args.muon_lr, args.adam_lr), metrics, lambda: save_model(out, model, tok))
    if rank == 0:
        save_model(out, model.eval(), tok)
    dist.barrier()
    dist.destroy_process_group()


def main():
    """Train the tokenizer and the base, save both, examine the base."""
    args = arguments()
    out, world = Path(args.out), World.load()
    train_tokenizer(world, args.vocab, out)
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(work, (args, f"{folder}/meeting"), nprocs=args.processes)
    model, tok = load_model(out)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {tok.n_vocab} tokens")
    report = exam.examine(model, tok, world, cases=args.exam, seed=args.seed)
    (out / "exam.json").write_text(json.dumps(report, indent=2) + "\n")
    print(exam.table(report))


if __name__ == "__main__":
    main()
