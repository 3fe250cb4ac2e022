"""How much memory a run will take, before anything is started:
`python -m minicai.lab.plan MODEL_DIR`.

Reads config.json only, so the weights need not be there. For every phase of the three scripts it
adds up what is alive at the phase's worst moment, from the same flags as the scripts':

  weights      float32; with --dtype bf16 matrices of frozen models in bfloat16, and autocast's
               copies of the others
  gradients    float32, one a trained parameter
  optimizer    Adam's two float32 averages a trained parameter, and what its step needs for a moment
  cache        keys and values of the tokens sampled together
  activations  what the backward will need of every layer, and what a layer needs for itself in
               passing
  scratch      logits: of a chunk of tokens (logprob.py), or of a row's next token (sample.py)

On CUDA steps are recorded (decode.py, graph.py), and what a recording has once needed is kept for
it: the sampler's table and its copy of the weights, a text's activations in both directions and one
more set of gradients. --checkpointing records no training.

The formulas count the tensors that gpt.py really makes; tests/test_plan.py measures them on a CPU.
Left out: what the driver takes (some 500 MB on CUDA) and what the allocator loses to fragmentation
(allow a tenth).

Shapes: P prompt, R response, T = P + R time, C width, H heads, G key/value heads, D head width, M
MLP width, V vocabulary, L layers.
"""
from dataclasses import replace

import torch
from torch import nn

from minicai.checkpoint import read_config
from minicai.decode import ROOM
from minicai.gpt import GPT, GPTConfig
from minicai.graph import rounded
from minicai.run import Parser, UserError, friendly_main, path, whole

COLUMNS = ["weights", "gradients", "optimizer", "cache", "activations", "scratch"]
DEFAULTS = {"sft": {"batch": 16, "micro": 16}, "pm": {"batch": 32, "micro": 32},  # the scripts' own
            "rl": {"batch": 64, "minibatch": 32, "micro": 32}}
LABEL_TOKENS = 16384                                            # read together by feedback.choose


class Trunk:
    """Bytes that a model of this shape takes, with products of `dtype` (fp32, bf16) on a kind
    of device."""

    def __init__(self, config: GPTConfig, dtype: str, device: str, checkpointing: bool = False):
        self.config, self.device, self.checkpointing = config, device, checkpointing
        self.product = 2 if dtype == "bf16" else 4  # bytes of a product's numbers
        with torch.device("meta"):  # shapes without memory
            model = GPT(config)
        count = lambda modules: sum(p.numel() for module in modules for p in module.parameters())
        self.parameters = count([model])
        self.matrices = count(module for module in model.blocks.modules()
                              if isinstance(module, nn.Linear))
        self.head = config.vocab_size * config.width
        self.weights = self.gradients = 4 * self.parameters
        self.copies = 2 * self.matrices if self.product == 2 else 0  # autocast's, in bfloat16
        # From forward to backward autograd keeps them all; with checkpointing, those of the layer
        # it is at.
        self.held = self.copies // (config.n_layer if checkpointing else 1)
        self.frozen = self.weights - 2 * self.matrices if self.product == 2 else self.weights
        self.recorded = device == "cuda" and not checkpointing
        self.optimizer = 8 * self.parameters
        # torch updates all tensors of a GPU together, those of a CPU one by one.
        largest = max(p.numel() for p in model.parameters())
        self.optimizer_step = 4 * (self.parameters if self.device == "cuda" else 2 * largest)

    def layer(self, T: int) -> int:
        """Bytes that one layer keeps of one token for the backward, in rows of T tokens."""
        c, b = self.config, self.product
        C, M, q, kv = c.width, c.mlp_width, c.n_head * c.head_dim, c.n_kv_head * c.head_dim
        kept = 2 * self.norm()                              # what enters both norms
        # what enters qkv, up and out; qkv, which v is a part of
        kept += b * (2 * C + q + 2 * kv + q)
        if c.positions == "rope":
            kept += b * (q + kv)                            # turned queries and keys
        if c.qk_norm:
            kept += 4 * (q + kv) * ((b == 2) + (self.device == "cpu"))
        # gate, silu(gate), up, their product; or up, gelu(up)
        kept += b * M * (4 if c.mlp == "swiglu" else 2)
        if b == 2 and self.device == "cpu":  # attention there is float32: its inputs and its result
            kept += 4 * (2 * q + 2 * kv) - b * kv
        kept += 4 * c.n_head + 16                           # one number a head and some a norm
        # torch has no fused attention for this:
        if self.device == "cuda" and b == 4 and c.n_kv_head < c.n_head:
            kept += 4 * (2 * c.n_head * T + 2 * q)  # all pairs' scores, spread keys and values
        return kept

    def norm(self) -> int:
        """Bytes that a norm keeps of one token: what it read,
        and an RMSNorm on a CPU also what it has divided."""
        divided = self.device == "cpu" and self.config.norm == "rmsnorm"
        return 4 * self.config.width * (2 if divided else 1)

    def passing(self) -> int:
        """Bytes that one layer needs of one token for a moment,
        whether or not there is a backward."""
        c, b = self.config, self.product
        q, kv = c.n_head * c.head_dim, c.n_kv_head * c.head_dim
        attention = b * (2 * q + 2 * kv) \
            + (4 * (2 * q + kv) + b * q if c.positions == "rope" else 0) \
            + ((8 if b == 2 else 4) * (q + kv) if c.qk_norm else 0)     # normed in float32
        return 4 * 2 * c.width + b * c.width \
            + max(b * c.mlp_width * (3 if c.mlp == "swiglu" else 2), attention)

    def activations(self, rows: int, T: int) -> tuple[int, int]:
        """(kept from forward to backward, one layer's in the backward) of rows x T tokens."""
        if self.recorded:
            T = min(rounded(T, 64, parts=4), self.config.max_positions)
            rows = rounded(rows, parts=4)
        tokens, C = rows * T, self.config.width
        ends = self.norm() + self.product * C  # the last norm and its result
        within = tokens * (self.product * self.config.mlp_width
                           * (2 if self.config.mlp == "swiglu" else 1) + 4 * C)
        if self.checkpointing:
            return tokens * (self.config.n_layer * 4 * C + ends), tokens * self.layer(T) + within
        return tokens * (self.config.n_layer * self.layer(T) + ends), within

    def cache(self, rows: int, length: int) -> int:
        """Keys and values of texts sampled together; on CUDA in a table of one of a few sizes."""
        c = self.config
        tokens = rows * length
        if self.device == "cuda":
            tokens = rounded(rows) * min(rounded(length, 64, parts=4), c.max_positions)
        numbers = 2 * c.n_layer * c.n_kv_head * c.head_dim * tokens
        return self.product * (max(numbers, ROOM) if self.device == "cuda" else numbers)

    def sampler(self, frozen: bool, *texts: tuple[int, int]) -> dict:
        """What sampling (rows, length) leaves behind on CUDA: a table, and a copy of the weights
        that are not in the type of the products."""
        if self.device != "cuda" or not texts:
            return {}
        copy = self.tables() + (0 if frozen else self.copies) if self.product == 2 else 0
        return {"cache": max(self.cache(*text) for text in texts), "weights": copy}

    def tables(self) -> int:
        """The sampler's copy of the embedding, and of a head of its own, where products are
        bfloat16."""
        own_head = self.device == "cuda" and not self.config.tied
        return 2 * self.head * (2 if own_head else 1)

    def kept(self, rows: int, T: int) -> dict:
        """What recordings of a training of `rows` x T tokens keep, with its backward."""
        if not self.recorded:
            return {}
        kept, within = self.activations(rows, T)
        second = self.gradients - (0 if self.config.tied else 4 * self.head)    # not the trunk's
        return {"activations": max(kept + self.held, second) + within, "gradients": second}

    def logprobs(self, tokens: int, entropy: bool = False) -> tuple[int, int]:
        """What logprob.token_logprobs holds at once, (forward, backward):
        the head in bf16, a chunk's logits, dW."""
        gpu = self.device == "cuda"
        row = (self.product if gpu else 4) * self.config.vocab_size
        chunk = max(2048 * row, 512 * 2**20) if gpu else max(128 * row, 2 * 2**20)
        chunk = min(tokens * row, chunk)
        low = 2 * self.head if self.product == 2 else 0
        forward, backward = chunk * (3 if entropy else 2), chunk * (3 if entropy else 2.5)
        # A chunk's part of dW is a bfloat16 matrix of its own; a CPU makes it float32 to add it.
        if low:
            backward = max(backward,
                           1.5 * chunk + low + (0 if gpu else 4 * self.head))
        return int(forward) + low, int(backward) + low + 4 * self.head

    def sampling(self, rows: int, P: int, R: int, shared: int = 0) -> list[dict]:
        """The moments of sampling R tokens after P, the first of them `shared`:
        reading them, choosing a token."""
        c, b = self.config, self.product
        cache, head = self.cache(rows, P + R), self.tables() if b == 2 else 0
        # the mask: a number a pair
        read = rows * (P - shared) * (self.passing() + (4 if b == 4 else 4 + 2) * P)
        if c.n_kv_head < c.n_head:
            read += rows * P * 2 * b * c.n_head * c.head_dim
        pick = rows * c.vocab_size * (b + 4 + 4 + 8)
        return [{"cache": cache, "activations": read, "scratch": head},
                {"cache": cache, "scratch": head + pick}]


def training(trunks: list, rows: int, T: int, logprobs: tuple[int, int],
             accumulate: bool) -> list[dict]:
    """The moments of one optimizer step: `rows` x T tokens a forward through every trunk, one loss.

    logprobs: bytes that log-probs under the first trunk need for a moment. accumulate: gradients of
    an earlier part of the batch are there already.
    """
    weights, gradients, optimizer = (sum(getattr(t, name) for t in trunks) for name in COLUMNS[:3])
    held, first = sum(t.held for t in trunks), trunks[0]
    kept, within = zip(*(t.activations(rows, T) for t in trunks))
    there = gradients if accumulate else 0
    rest = gradients - first.gradients  # the trunk that came last goes first in the backward
    moments = [
        # 1. The last trunk's last layer: nothing that was kept has been freed yet.
        {"weights": weights + held, "gradients": there, "optimizer": optimizer,
         "activations": sum(kept) + within[-1]},
        # 2. The log-probs, before the other trunk is gone through, and after.
        *({"weights": weights + first.held, "gradients": grads, "optimizer": optimizer,
           "activations": kept[0], "scratch": scratch}
          for grads, scratch in zip((there, there or rest), logprobs)),
        # 3. The end of the backward: all gradients and the first layer, or the embedding's gradient
        #    once more.
        {"weights": weights, "gradients": gradients, "optimizer": optimizer,
         "activations": within[0]},
        {"weights": weights, "gradients": gradients + 4 * first.head, "optimizer": optimizer},
        # 4. The optimizer's step.
        {"weights": weights, "gradients": gradients,
         "optimizer": optimizer + max(t.optimizer_step for t in trunks)}]
    # A size that comes for the first time is gone through without a recording, beside what those of
    # other sizes keep.
    return plus(moments, *(t.kept(rows, T) for t in trunks))


def plus(moments: list[dict], *there: dict, **bytes_) -> list[dict]:
    """The moments, with all that is there all the time."""
    there = [*there, bytes_]
    return [{key: sum(one.get(key, 0) for one in (moment, *there))
             for key in {*moment}.union(*there)} for moment in moments]


def sampled_rows(args, device: str, P: int, R: int, wanted: int | None = None) -> int:
    """Rows that sample.generate takes together for prompts of P tokens and R new ones."""
    budget = args.sample_tokens or (2**14 if device == "cpu" else 2**17)
    return min(wanted or budget, max(1, budget // (P + R)))


def sizes(args, stage: str) -> tuple:
    """(--batch, rows an optimizer step, --micro) of a script."""
    names = ("batch", "minibatch", "micro")
    batch, minibatch, micro = (getattr(args, name) or DEFAULTS[stage].get(name) for name in names)
    step = min(minibatch, batch) if stage == "rl" else batch
    return batch, step, min(micro, step)


def plan_sft(args, trunk) -> dict:
    """Phases of train_sft.py; a revision's context also holds response,
    critique and some 150 tokens of requests."""
    P, T = args.shots + args.max_prompt + 2 * args.max_new + 150, args.max_prompt + args.max_new
    rows, (batch, _, micro) = sampled_rows(args, trunk.device, P, args.max_new), sizes(args, "sft")
    sampling = trunk.sampling(rows, P, args.max_new, args.shots)
    tuning = training([trunk], micro, T, trunk.logprobs(micro * args.max_new), micro < batch)
    return {"SFT sampling": plus(sampling, weights=trunk.weights + trunk.copies),
            "SFT training": plus(tuning, **trunk.sampler(False, (rows, P + args.max_new)))}


def plan_pm(args, trunk, judge, scorer) -> dict:
    """Phases of train_pm.py: both responses of a comparison go through one forward. The policy
    samples, then the feedback model does; a question holds both responses and some 150 tokens."""
    P, T, (batch, _, micro) = args.max_prompt, args.max_prompt + args.max_new, sizes(args, "pm")
    rows, asking = sampled_rows(args, trunk.device, P, args.max_new), T + args.max_new + 150
    thoughts = sampled_rows(args, trunk.device, asking, args.max_thought)
    asked = {"activations": LABEL_TOKENS * judge.passing(),
             "scratch": judge.logprobs(LABEL_TOKENS // T)[0]}
    sampling, thinking = plus(trunk.sampling(rows, P, args.max_new), weights=trunk.frozen), []
    said = []                                           # what the judge samples
    if args.pairs == "mixed":
        sampling += plus(judge.sampling(rows, P, args.max_new), weights=judge.frozen)
        said.append((rows, T))
    if args.chain_of_thought:
        thinking = judge.sampling(thoughts, asking, args.max_thought)
        said.append((thoughts, asking + args.max_thought))
    asked, = plus([asked], **judge.sampler(True, *said))
    return {"PM sampling": sampling,
            "PM labelling": plus([asked, *thinking], weights=judge.frozen),
            "PM training": training([scorer], 2 * micro, T, (0, 0), micro < batch)}


def plan_rl(args, trunk, scorer) -> dict:
    """Phases of train_rl.py, from its second step on: policy, reference, reward model and value
    model are all there (with --shared-value the last is a row of numbers on the policy's trunk)."""
    T, (batch, minibatch, micro) = args.max_prompt + args.max_new, sizes(args, "rl")
    rows = sampled_rows(args, trunk.device, args.max_prompt, args.max_new, batch)
    trained = [trunk] if args.shared_value else [trunk, scorer]
    there = {"weights": sum(t.weights for t in trained) + trunk.frozen + scorer.frozen,
             "optimizer": sum(t.optimizer for t in trained)}
    score = [{"weights": model.copies, "activations": micro * T * model.passing()}
             for model in trained]
    score.append({"activations": micro * T * trunk.product * trunk.config.width,
                  "scratch": trunk.logprobs(micro * args.max_new)[0]})
    update = training(trained, micro, T, trunk.logprobs(micro * args.max_new, entropy=True),
                      micro < minibatch)
    update = plus(update, weights=trunk.frozen + scorer.frozen)
    sampling = plus(trunk.sampling(rows, args.max_prompt, args.max_new), weights=trunk.copies)
    left, kept = trunk.sampler(False, (rows, T)), [t.kept(micro, T) for t in trained]
    return {"RL sampling": plus(sampling, there, *kept),
            "RL scoring": plus(score, there, left, *kept),
            "RL update": plus(update, **left)}


def arguments(argv=None):
    """The scripts' flags that decide about memory, by the same names."""
    p = Parser(__doc__, "python -m minicai.lab.plan")
    a = p.add_argument
    a("model", type=path,
      help="model directory (its config.json is enough): --model of the three scripts")
    a("--stage", choices=["sft", "pm", "rl"],
      help="one script only, to plan with its own flags; default: all three")
    a("--feedback-model", type=path, help="model directory that labels; default: as the model")
    a("--init", type=path,
      help="model directory the preference and value models start from; default: as the model")
    a("--batch", type=whole(1), help="as in the scripts; default: theirs")
    a("--minibatch", type=whole(1), help="as in train_rl.py; default: its own")
    a("--micro", type=whole(1), help="as in the scripts; default: theirs")
    a("--max-prompt", type=whole(1), default=256, help="longest prompt in tokens")
    a("--max-new", type=whole(1), default=96, help="longest response in tokens")
    a("--max-thought", type=whole(1), default=160, help="as in train_pm.py")
    a("--no-chain-of-thought", dest="chain_of_thought", action="store_false",
      help="as in train_pm.py")
    a("--pairs", choices=["mixed", "own"], default="mixed", help="as in train_pm.py")
    a("--shots", type=whole(0), default=0,
      help="tokens of the constitution's worked critiques, which open every context of stage 1 "
      "(worked comparisons are not counted)")
    a("--sample-tokens", type=whole(1),
      help="rows x columns sampled together; default: 16k on a CPU, else 128k")
    a("--device", choices=["cpu", "cuda"], help="default: cuda if there is one")
    a("--dtype", choices=["fp32", "bf16"], help="default: bf16 on cuda, else fp32")
    a("--checkpointing", action="store_true",
      help="keep a layer's input only and compute the rest again")
    a("--shared-value", action="store_true",
      help="as in train_rl.py: no value model, a head on the policy's trunk")
    return p.parse_args(argv)


def plan(args) -> dict:
    """{phase: {column: bytes}} of its worst moment."""
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = args.dtype or ("bf16" if device == "cuda" else "fp32")
    folders = (args.model, args.feedback_model or args.model, args.init or args.model)
    configs = [read_config(folder)[0] for folder in folders]
    if args.max_prompt + args.max_new > min(config.max_positions for config in configs):
        names = " or ".join(map(str, dict.fromkeys(folders)))
        raise UserError(f"--max-prompt and --max-new: {names} reads fewer tokens")
    configs[2] = replace(configs[2], tied=True)             # a scorer has no language head
    trunk, judge, scorer = (Trunk(config, dtype, device, args.checkpointing) for config in configs)
    phases = {}
    if args.stage in (None, "sft"):
        phases |= plan_sft(args, trunk)
    if args.stage in (None, "pm"):
        phases |= plan_pm(args, trunk, judge, scorer)
    if args.stage in (None, "rl"):
        phases |= plan_rl(args, trunk, scorer)
    return {name: max(moments, key=lambda m: sum(m.values())) for name, moments in phases.items()}


@friendly_main
def main(argv=None):
    """Print the table."""
    args = arguments(argv)
    phases = plan(args)
    print(f"{'MiB':14}" + "".join(f"{name:>12}" for name in [*COLUMNS, "together"]))
    for name, moment in phases.items():
        numbers = [moment.get(column, 0) for column in COLUMNS]
        print(f"{name:14}" + "".join(f"{n / 2**20:12,.1f}" for n in [*numbers, sum(numbers)]))


if __name__ == "__main__":
    main()
