"""Shared fixtures: a tokenizer, a random model, and a toy world in which the whole method runs
in seconds.

The toy world has two kinds of requests and a few words. Its base model is trained for some seconds
in the formats of critique.py and feedback.py, answers everything, and knows when asked which
request was bad: just what CAI needs.
"""
import json
import os
import random
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))           # the scripts lie beside the package

import minicai  # noqa: F401  isort: skip  before torch: waiting threads are to sleep, not to spin
import pytest
import torch

from minicai.answers import answer_logprobs
from minicai.checkpoint import save_model
from minicai.constitution import load_constitution
from minicai.critique import critique_prompt, revision_prompt
from minicai.feedback import comparison_prompt
from minicai.gpt import GPT, GPTConfig
from minicai.tokenizer import Tokenizer

if not torch.cuda.is_available():
    # before triton is imported: its kernels then run on CPU tensors
    os.environ["TRITON_INTERPRET"] = "1"
# models here are too small to share out, and one thread gives the same sums everywhere
torch.set_num_threads(1)
GOOD, BAD = ["wash", "paint", "mend"], ["burn", "steal", "smash"]
THINGS = ["cart", "boat", "door", "bell", "lamp", "shed"]
CONSTITUTION = {
    "name": "toy", "preamble": "A review.",
    "critique_revision": [{"critique": "Is that bad?", "revision": "Make it good."},
                          {"critique": "Does it harm?", "revision": "Take out the harm."}],
    "comparison": ["Which is less bad?", "Which harms less?"]}


def ask(act, thing):
    return [{"role": "user", "content": f"How do I {act} the {thing}?"}]


def comply(act, thing):
    return "Sure, use a rope." if act in BAD else "Sure, use a brush."


def refuse(act, thing):
    return "No, that is bad."


@pytest.fixture(scope="session")
def tiny_tokenizer_dir(tmp_path_factory):
    """A byte-level BPE of a few hundred tokens with the micro-world's special tokens."""
    from tokenizers import Tokenizer as HFTokenizer
    from tokenizers import models, pre_tokenizers, trainers
    lines = [text for act in GOOD + BAD for thing in THINGS
             for text in (ask(act, thing)[0]["content"], comply(act, thing), refuse(act, thing))]
    hf = HFTokenizer(models.BPE())
    hf.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    hf.train_from_iterator(lines * 3 + json.dumps(CONSTITUTION).split("\""), trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    spec = json.loads(hf.to_str())
    n = len(spec["model"]["vocab"])
    spec["added_tokens"] = [{"id": n + i, "content": text, "special": True, "single_word": False,
                             "lstrip": False, "rstrip": False, "normalized": False}
                            for i, text in enumerate(["<|endoftext|>", "<|pad|>", "\n\nHuman:",
                                                      "\n\nAssistant:"])]
    spec["decoder"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
                       "use_regex": True}
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "tokenizer.json").write_text(json.dumps(spec), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": "<|endoftext|>", "pad_token": "<|pad|>"}))
    return folder


@pytest.fixture(scope="session")
def tok(tiny_tokenizer_dir):
    return Tokenizer.load(tiny_tokenizer_dir)


@pytest.fixture(scope="session")
def role_ids(tok):
    """The ids of the role markers "\\n\\nHuman:" and "\\n\\nAssistant:"."""
    return {tok.encode_chat([{"role": role, "content": "x"}])[0][len(tok.bos)]
            for role in ("user", "assistant")}


@pytest.fixture
def tiny_model(tok):
    """A random GPT with more embedding rows than tokens, as padded checkpoints have."""
    config = GPTConfig(vocab_size=tok.n_vocab + 12, n_layer=2, n_head=2, width=32, mlp_width=64,
                       max_positions=512)
    return GPT(config).init_weights(torch.Generator().manual_seed(0), std=0.1)


@pytest.fixture(scope="session")
def tiny_model_dir(tok, tmp_path_factory):
    """The same random model as a directory; as others' models, it has no manifest:
    tests change its files."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    config = GPTConfig(vocab_size=tok.n_vocab + 12, n_layer=2, n_head=2, width=32, mlp_width=64,
                       max_positions=512)
    save_model(folder, GPT(config).init_weights(torch.Generator().manual_seed(0), std=0.1), tok)
    (folder / "manifest.json").unlink()
    return folder


@pytest.fixture(scope="session")
def toy(tok, tmp_path_factory):
    """A directory with base/ (a trained toy model),
    constitution.json and the data files of the three scripts."""
    if "MINICAI_TOY" in os.environ:  # one that is there already (test_planted_mistakes.py)
        return Path(os.environ["MINICAI_TOY"])
    folder, rng = tmp_path_factory.mktemp("toy"), random.Random(0)
    (folder / "constitution.json").write_text(json.dumps(CONSTITUTION))
    constitution = load_constitution(folder / "constitution.json")

    def write(name, rows):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    write("red_team.jsonl", [{"messages": ask(a, t)} for a in BAD for t in THINGS])
    write("helpful.jsonl", [{"messages": ask(a, t)} for a in GOOD for t in THINGS])
    write("human.jsonl", [{"messages": ask(a, t), "chosen": comply(a, t), "rejected": refuse(a, t)}
                          for a in GOOD for t in THINGS])

    def example():
        """(context, answer) in one of the four formats."""
        act, thing, kind = rng.choice(GOOD + BAD), rng.choice(THINGS), rng.random()
        bad, principle = act in BAD, rng.choice(constitution.critiques)
        first = rng.choice([comply, refuse])(act, thing) if kind > 0.4 else comply(act, thing)
        judged = ask(act, thing) + [{"role": "assistant", "content": first}]
        critique = "It is bad." if bad else "It is good."
        if kind < 0.4:
            return tok.encode_chat(ask(act, thing), generation=True)[0], " " + first
        if kind < 0.5:
            return critique_prompt(tok, constitution, judged, principle), " " + critique
        if kind < 0.7:
            return revision_prompt(tok, constitution, judged, principle, critique), \
                " " + (refuse if bad else comply)(act, thing)
        act, swap = rng.choice(BAD), rng.random() < 0.5  # only answers to bad requests are compared
        a, b = (comply, refuse) if swap else (refuse, comply)
        asked = comparison_prompt(tok, ask(act, thing), a(act, thing), b(act, thing),
                                  rng.choice(constitution.comparisons))
        return asked, " (B)" if swap else " (A)"
    train_toy_base(tok, example, folder / "base")
    return folder


def train_toy_base(tok, example, folder, steps=150):
    config = GPTConfig(vocab_size=tok.n_vocab, n_layer=2, n_head=2, width=48, mlp_width=96,
                       max_positions=512)
    model = GPT(config).init_weights(torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-3, betas=(0.9, 0.95))
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 6e-3 * min(1, (step + 1) / 20, (steps - step) / 100)
        pairs = [(prompt, tok.encode(text) + [tok.end])
                 for prompt, text in (example() for _ in range(24))]
        logp, _ = answer_logprobs(model, pairs)
        (-logp.mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
    save_model(folder, model, tok)


# A shell starts what runs in the background with Ctrl-C ignored, and nohup ignores a hang-up: the
# tests of signals, and the programs that they start, shall not notice.
for _number, _usual in ((signal.SIGINT, signal.default_int_handler),
                        (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_number) == signal.SIG_IGN:
        signal.signal(_number, _usual)
