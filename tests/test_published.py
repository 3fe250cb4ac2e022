"""Published files, where they are: `pytest -m real`. Nothing is downloaded here.

SmolLM2-135M-Instruct in out/smollm2 (the first step of `make real`), or a directory named by
MINICAI_SMOLLM2; tokenizers as published in the folders of the directory that MINICAI_TOKENIZERS
names.
"""
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from families import fuzz

from minicai.checkpoint import load_model
from minicai.lab import plan
from minicai.run import read_jsonl
from minicai.sample import generate
from minicai.tokenizer import Tokenizer

ROOT = Path(__file__).parents[1]
SMOLLM2 = Path(os.environ.get("MINICAI_SMOLLM2") or ROOT / "out/smollm2")
TOKENIZERS = sorted(
    Path(os.environ.get("MINICAI_TOKENIZERS", "/nowhere")).glob("*/**/tokenizer.json"))
pytestmark = pytest.mark.real
here = pytest.mark.skipif(not SMOLLM2.is_dir(), reason="no SmolLM2: see the top of this file")
TALK = [{"role": "user", "content": "Hi 12?"}, {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "And\n\nthen?"}, {"role": "assistant", "content": "So."}]


@pytest.mark.parametrize("path", TOKENIZERS, ids=str)
def test_ids_and_chats_of_published_tokenizers(path):
    """20,000 strings as `tokenizers` cuts them; chats as the directory's own template writes them,
    from the first human turn on (vendors put a system message of their own before it, which we
    leave out)."""
    import tokenizers
    import transformers
    tok, spec = Tokenizer.load(path.parent), json.loads(path.read_text())
    plain = tokenizers.Tokenizer.from_str(
        json.dumps(spec | {"added_tokens": [], "post_processor": None}))
    texts = fuzz(20_000, seed=11)
    wrong = [t for t, e in zip(texts, plain.encode_batch(texts, add_special_tokens=False))
             if tok.encode(t) != e.ids]
    assert not wrong, wrong[:2]
    if tok.chat == "plain":
        return
    theirs = transformers.AutoTokenizer.from_pretrained(path.parent)
    header = tok.header("user")
    for system in ([], [{"role": "system", "content": "Be kind."}]):
        for messages, generation in ((TALK[:1], True), (TALK[:3], True), (TALK, False)):
            want = theirs.apply_chat_template(system + messages, add_generation_prompt=generation,
                                              return_dict=False, enable_thinking=False)
            got = tok.encode_chat(system + messages, generation)[0]
            start = lambda ids: next(i for i in range(len(ids)) if ids[i:i + len(header)] == header)
            rest = want[start(want):]
            # Llama 3.0's asks for an answer even if there is one
            if not generation and rest != got[start(got):]:
                rest = rest[:len(rest) - len(tok.header("assistant"))]
            assert rest == got[start(got):] and want[:1] == got[:1]


@here
@torch.no_grad()
def test_smollm2_is_what_transformers_computes():
    import transformers
    model, tok = load_model(SMOLLM2)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(SMOLLM2).eval()
    their_tok = transformers.AutoTokenizer.from_pretrained(SMOLLM2)
    assert tok.lost and (their_tok.eos_token_id, their_tok.pad_token_id) == (tok.end, tok.pad)
    for question, answer in (("What is the capital of France?", "Paris"), ("Name 3 colours.", "")):
        ids, _ = tok.encode_chat([{"role": "user", "content": question}], generation=True)
        ours = model(torch.tensor([ids]))[0, -1] @ model.head.T
        assert (ours - theirs(torch.tensor([ids])).logits[0, -1]).abs().max() < 1e-3
        said = generate(model, [ids], max_new_tokens=24, stop=tok.stop, temperature=0)[0]
        out = theirs.generate(torch.tensor([ids]), max_new_tokens=24,
                              do_sample=False)[0, len(ids):].tolist()
        assert said == out and answer in tok.decode(said)


@here
def test_three_stages_on_smollm2(tmp_path):
    """48 prompts go through; nine rows in ten are used;
    transformers opens what comes out, padded batches score alike."""
    import transformers
    rows = [row for _, row in read_jsonl(ROOT / "data/real/red_team.jsonl")][:48]
    (tmp_path / "red.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = ["--constitution", "constitutions/small.json", "--red-team", tmp_path / "red.jsonl",
              "--device", "cpu"]
    lengths = ["--max-new", "80", "--max-prompt", "200", "--temperature", "0.5", "--micro", "4"]

    def run(script, *words):
        done = subprocess.run([sys.executable, script, *map(str, [*words, *lengths])], cwd=ROOT,
                              capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-500:]
        return done.stdout
    # passes, helpful prompts and lengths of `make real`: with less hardly any answer ends, and PPO
    # stops at that
    run("train_sft.py", "--model", SMOLLM2, *common, "--helpful", "data/real/helpful.jsonl",
        "--helpful-limit", 72, "--helpful-samples", 1, "--rounds", 1, "--epochs", 4, "--batch", 8,
        "--lr", "2e-5", "--out", tmp_path / "sft")
    # What the process took at its worst against the plan for the longest rows; Python and torch
    # themselves take some.
    measured = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024  # KiB on Linux
    planned = plan.plan(plan.arguments([str(SMOLLM2), "--stage", "sft", "--batch", "8", "--micro",
                                        "4", "--max-prompt", "200",
                                        "--max-new", "80", "--shots", "1000", "--device", "cpu"]))
    planned = max(sum(moment.values()) for moment in planned.values())
    print(f"peak {measured / 2**30:.2f} GiB, planned {planned / 2**30:.2f} GiB")
    assert 0.6 * planned < measured < 1.2 * planned + 2**30
    said = [row for _, row in read_jsonl(tmp_path / "sft/revisions.jsonl")]
    used = [r for row in said for r in [row, *row.get("rounds", [])] if not r["skipped"]]
    assert len(said) == 48
    assert len(used) >= 0.9 * sum(1 + len(row.get("rounds", [])) for row in said)
    sl, pm = tmp_path / "sft/sl_cai", tmp_path / "pm/pm"
    run("train_pm.py", "--model", sl, "--feedback-model", SMOLLM2, "--init", SMOLLM2, *common,
        "--human", "data/real/helpful_comparisons.jsonl", "--human-limit", 24, "--comparisons", 24,
        "--batch", 8, "--lr", "2e-5", "--out", tmp_path / "pm")
    run("train_rl.py", "--model", sl, "--pm", pm, "--red-team", tmp_path / "red.jsonl", "--helpful",
        "data/real/helpful.jsonl", "--steps", 2, "--batch", 16, "--minibatch", 8, "--lr", "2e-6",
        "--value-lr", "1e-5", "--device", "cpu", "--out", tmp_path / "rl")
    tok = Tokenizer.load(tmp_path / "rl/rl_cai")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "rl/rl_cai").eval()
    ids = torch.tensor([tok.encode_chat(TALK[:1], generation=True)[0]])
    ours = load_model(tmp_path / "rl/rl_cai")[0]
    with torch.no_grad():
        assert (ours(ids)[0] @ ours.head.T - theirs(ids).logits[0]).abs().max() < 1e-3
        scorer = transformers.AutoModelForSequenceClassification.from_pretrained(pm).eval()
        their_tok = transformers.AutoTokenizer.from_pretrained(pm)
        # up to the end token
        texts = [tok.encode_chat(TALK[:2])[0][:-1], tok.encode_chat(TALK)[0][:-1]]
        batch = their_tok.pad({"input_ids": texts}, return_tensors="pt")
        alone = torch.cat([scorer(torch.tensor([row])).logits for row in texts])
        assert torch.allclose(scorer(**batch).logits, alone, atol=1e-3)
