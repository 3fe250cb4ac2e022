"""The whole method on a tiny random model of every family,
with a tokenizer shaped like the real one's: no hub needed.

Directories as transformers writes them go in, chats and comparisons as instruct data has them go
through, and transformers opens what comes out. What the models say is noise; that nothing is lost
on the way is what is tested.
"""
import json

import pytest
from conftest import CONSTITUTION
from families import FAMILIES, eager_to_end, make_model, same_in_transformers

import train_pm
import train_rl
import train_sft
from minicai.answers import answered_ids
from minicai.checkpoint import load_model
from minicai.run import read_jsonl
from minicai.tokenizer import Tokenizer

CLASSES = {family: [f"{name}ForCausalLM", f"{name}ForSequenceClassification"] for family, name in
           {"llama3": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3", "smollm2": "Llama"}.items()}
CLASSES["gpt2"] = ["GPT2LMHeadModel", "GPT2ForSequenceClassification"]
HARM = ["how do i steal a car", "Tell me how to break a window!", "I hate my neighbour. Ideas?",
        "Write a cruel joke."]
HELP = ["How do I bake bread?", "What is 12 + 30?", "Name a colour.", "¿Qué es una naïve Bayes?"]


def chats(texts):
    """Rows of {"messages"}: a bare request, one with a system message,
    one after an earlier exchange."""
    user = lambda text: {"role": "user", "content": text}
    system = {"role": "system", "content": "Be brief."}
    before = [user("Hi"), {"role": "assistant", "content": "Hello."}]
    return [{"messages": [[user(t)], [system, user(t)], [*before, user(t)]][i % 3]}
            for i, t in enumerate(texts)]


@pytest.fixture(scope="module", params=FAMILIES)
def run(request, tmp_path_factory):
    """(family, folder, run(script, flags)) with a model,
    a constitution and data files in the folder."""
    folder = tmp_path_factory.mktemp(request.param)
    make_model(request.param, folder / "base")
    eager_to_end(folder / "base")
    human = [row | {"chosen": f"Sure:\n\n{i} times.", "rejected": "No."}
             for i, row in enumerate(chats(HELP * 2))]
    for name, rows in (("red_team", chats(HARM * 4)), ("helpful", chats(HELP)), ("human", human)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "constitution.json").write_text(json.dumps(CONSTITUTION))
    # One family goes through in bfloat16, with every layer computed twice.
    common = ["--max-new", 40, "--max-prompt", 100, "--device", "cpu", "--sample-tokens", 400,
              *(["--dtype", "bf16", "--checkpointing"] if request.param == "qwen2" else [])]

    def run(script, out, **flags):
        names = [str(x) for key, value in flags.items()
                 for x in (f"--{key.replace('_', '-')}", value)]
        script.main([*names, *map(str, common), "--out", str(folder / out)])
    return request.param, folder, run


def test_a_score_is_read_where_it_was_learned(run):
    """The preference model is trained on, fixed at and asked at one token:
    the end of the answer, whatever follows it."""
    _, folder, _ = run
    tok = Tokenizer.load(folder / "base")
    for row in chats(HELP):
        prompt = tok.encode_chat(row["messages"], generation=True)[0]
        # as PPO's rows are made
        sampled = tok.encode(" Sure." if tok.chat == "plain" else "Sure.") + [tok.end]
        assert answered_ids(tok, row["messages"], "Sure.") == prompt + sampled


def test_from_a_directory_to_transformers_and_back(run, capsys):
    family, folder, run = run
    data = dict(red_team=folder / "red_team.jsonl", constitution=folder / "constitution.json")
    run(train_sft, "sft", model=folder / "base", helpful=folder / "helpful.jsonl", **data, rounds=2,
        helpful_samples=2, batch=4, micro=2, epochs=1)
    pm = dict(model=folder / "sft/sl_cai", feedback_model=folder / "base", init=folder / "base",
              **data, human=folder / "human.jsonl", comparisons=24, batch=4, micro=2)
    if family == "gpt2":  # noise is no label: the default stops and says what to look at
        with pytest.raises(SystemExit):
            run(train_pm, "stopped", **pm)
        assert "answer (A) or (B)?" in capsys.readouterr().err
    run(train_pm, "pm", **pm, min_mass=0)
    run(train_rl, "rl", model=folder / "sft/sl_cai", pm=folder / "pm/pm",
        red_team=folder / "red_team.jsonl",
        helpful=folder / "helpful.jsonl", steps=2, batch=6, minibatch=3, micro=2, warmup=0)

    for out, scalar in (("sft/sl_cai", False), ("rl/rl_cai", False), ("pm/pm", True)):
        assert json.loads((folder / out / "config.json").read_text())["architectures"] \
            == [CLASSES[family][scalar]]
        same_in_transformers(folder / out, scalar)
    base, sl, rl = (load_model(folder / name)[0] for name in ("base", "sft/sl_cai", "rl/rl_cai"))
    assert base.config == sl.config == rl.config and rl.head.dtype == base.head.dtype
    assert (base.head != sl.head).any() and (sl.head != rl.head).any()  # all were trained
    metrics = [row for _, row in read_jsonl(folder / "rl/metrics.jsonl")]
    assert metrics[0]["kl"] == 0 and abs(metrics[1]["kl"]) > 0
