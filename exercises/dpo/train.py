"""DPO from SL-CAI on the comparisons of stage 2, with the dpo_loss of mine.py.

python exercises/dpo/train.py --run out/demo            writes out/demo/dpo/dpo, a model directory
"""

import copy
import importlib.util
import random
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

import minicai  # noqa: E402, F401  isort: skip  before torch: waiting threads sleep, not spin
import torch  # noqa: E402
from tqdm import tqdm  # noqa: E402

from minicai.answers import encode_answer, sequence_logprobs  # noqa: E402
from minicai.checkpoint import load_model, save_model  # noqa: E402
from minicai.data import batches_by_length, read_comparisons  # noqa: E402
from minicai.lab.export_preferences import is_comparison  # noqa: E402
from minicai.run import (  # noqa: E402
    Metrics,
    Parser,
    UserError,
    clip_gradients,
    friendly_main,
    lr_schedule,
    path,
    read_jsonl,
    real,
    whole,
    write_config,
)


def arguments(argv=None):
    """The command line."""
    p = Parser(__doc__)
    a = p.add_argument
    a("--run", type=path, default="out/demo",
      help="directory of a run: sft/ and pm/ are read, dpo/ is written")
    a("--human", type=path, default="data/helpful_comparisons.jsonl",
      help="human comparisons, as in stage 2")
    a("--human-limit", type=whole(0), default=1000, help="use at most this many human comparisons")
    a("--file", choices=["mine", "solution"], default="mine", help="whose dpo_loss")
    a("--beta", type=real(0, above=True), default=0.1,
      help="price of a nat: PPO's --kl-coef in DPO's clothes")
    a("--lr", type=real(0, 1), default=3e-4, help="AdamW's peak learning rate")
    a("--batch", type=whole(1), default=16, help="comparisons a step")
    a("--seed", type=whole(0, 2**63 - 1), default=0, help="decides every draw and shuffle")
    return p.parse_args(argv)


@friendly_main
def main(argv=None):
    """Read comparisons, train on log-probs beside the reference's, save."""
    args, started = arguments(argv), time.time()
    args.out = str(Path(args.run) / "dpo")
    own = HERE / f"{args.file}.py"
    if not own.exists():
        raise UserError(f"{own}: not there; python exercises/check.py dpo makes it from the stub")
    spec = importlib.util.spec_from_file_location("dpo_mine", own)
    mine = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(mine)

    policy, tok = load_model(Path(args.run) / "sft/sl_cai")
    reference = copy.deepcopy(policy).freeze()
    file = Path(args.run) / "pm/comparisons.jsonl"
    found = read_jsonl(file)
    for number, row in found:
        if not is_comparison(row):
            raise UserError(f"{file}:{number}: not a row of train_pm.py's comparisons.jsonl")
    ended = (False, False)              # cut: neither of what people compared
    pairs = [
        (row["messages"], row["a"], row["b"], row["p_a"], row.get("cut") or ended)
        for _, row in found
        if row.get("p_a") is not None and not row.get("skipped")
    ]
    human = read_comparisons(args.human)
    random.Random(args.seed).shuffle(human)
    pairs += [(m, *both, 1.0, ended) for m, *both in human[: args.human_limit]]
    if not pairs:
        raise UserError(f"{file}: no pair can be used; see 'skipped' there, or give --human-limit")
    rows = [
        (encode_answer(tok, m, a, cut[0]), encode_answer(tok, m, b, cut[1]), p)
        for m, a, b, p, cut in pairs
    ]

    optimizer = torch.optim.AdamW(policy.parameters(), lr=args.lr, eps=1e-5, weight_decay=0.0)
    metrics = Metrics(Path(args.out) / "metrics.jsonl")
    lengths = [sum(map(len, a + b)) for a, b, _ in rows]
    batches = batches_by_length(lengths, args.batch, torch.Generator().manual_seed(args.seed))
    for step, batch in enumerate(bar := tqdm(batches, desc="DPO")):
        a, b, p_a = zip(*(rows[i] for i in batch))
        with torch.no_grad():
            ref = [sequence_logprobs(reference, list(side)) for side in (a, b)]
        logp = [sequence_logprobs(policy, list(side)) for side in (a, b)]
        loss = mine.dpo_loss(*logp, *ref, torch.tensor(p_a), args.beta)
        loss.backward()
        norm = clip_gradients(policy.parameters(), 1.0, step, loss.item())
        optimizer.param_groups[0]["lr"] = args.lr * lr_schedule(step, len(batches), 5)
        optimizer.step()
        optimizer.zero_grad()
        margin = ((logp[0] - ref[0]) - (logp[1] - ref[1])).mean().item()
        metrics.log(step=step, loss=loss.item(), margin=margin, grad_norm=norm)
        bar.set_postfix(loss=f"{loss.item():.3f}", margin=f"{margin:.1f}")
    save_model(Path(args.out) / "dpo", policy, tok)
    write_config(args.out, args, started)
    print(f"{len(rows)} comparisons, {time.time() - started:.0f} s -> {Path(args.out) / 'dpo'}")


if __name__ == "__main__":
    main()
