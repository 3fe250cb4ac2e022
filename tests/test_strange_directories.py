"""Directories that are a little unlike the published ones: read rightly, or refused by name."""
import json
import math

import pytest
import torch
from families import make_model, make_tokenizer
from safetensors.torch import load_file, save_file

from minicai.checkpoint import load_model, load_scalar, save_model, save_scalar
from minicai.data import is_transcript, read_comparisons
from minicai.run import UserError
from minicai.tokenizer import Tokenizer

TALK = [{"role": "user", "content": "  hi "}, {"role": "assistant", "content": "def f():\n    1\n"},
        {"role": "user", "content": "more"}]


def edit(path, change):
    """Rewrite a JSON file by change(what it holds)."""
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def chatml(end="<|im_end|>\n", after="<|im_start|>assistant\n"):
    return ("{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}" + end +
            "{% endfor %}{% if add_generation_prompt %}" + after + "{% endif %}")


# ---- tokenizers ----------------------------------------------------------------------------------
@pytest.mark.parametrize("family", ["gpt2", "llama3", "qwen2"])
def test_a_word_that_somebody_calls_special_stays_a_word(tmp_path, family):
    hf = make_tokenizer(family, tmp_path)
    word = json.loads((tmp_path / "tokenizer.json").read_text())["model"]["merges"][0]
    word = "".join(word.split(" ") if isinstance(word, str) else word)
    added = [{"id": hf.token_to_id(w), "content": w, "special": True} for w in ("!", word)]
    edit(tmp_path / "tokenizer.json",
         lambda spec: spec | {"added_tokens": spec["added_tokens"] + added})
    edit(tmp_path / "tokenizer_config.json", lambda c: c | {"pad_token": "!"})
    tok = Tokenizer.load(tmp_path)
    assert tok.decode(tok.encode("Stop! Go!!")) == "Stop! Go!!"
    assert tok.encode("the cat!") == hf.encode("the cat!").ids
    assert tok.pad != hf.token_to_id("!")


def test_a_word_that_no_merge_makes_is_never_reached(tmp_path):
    make_tokenizer("gpt2", tmp_path)
    tokenizers = pytest.importorskip("tokenizers")
    edit(tmp_path / "tokenizer.json", lambda spec: spec | {"model": spec["model"] | {
        "vocab": spec["model"]["vocab"] | {"zqzqzq": 900}}})
    hf = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert Tokenizer.load(tmp_path).encode("zqzqzq") == hf.encode("zqzqzq").ids


def test_transformers_reads_what_was_saved_whatever_class_the_file_named(tmp_path):
    transformers = pytest.importorskip("transformers")
    make_tokenizer("smollm2", tmp_path / "a")
    edit(tmp_path / "a/tokenizer_config.json", lambda c: c | {"tokenizer_class": "GPT2Tokenizer"})
    tok = Tokenizer.load(tmp_path / "a")
    (tmp_path / "b").mkdir()
    tok.save(tmp_path / "b")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "b")
    for text in ("12  345", "a\n\n345", "it's 7"):
        assert theirs(text, add_special_tokens=False).input_ids == tok.encode(text)


@pytest.mark.parametrize("family", ["qwen2", "smollm2", "llama3"])
def test_edges_are_trimmed_where_the_template_trims_them(tmp_path, family):
    transformers = pytest.importorskip("transformers")
    make_tokenizer(family, tmp_path)
    system = [{"role": "system", "content": "Be kind."}]        # else some put in their own
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ids = theirs.apply_chat_template(system + TALK, add_generation_prompt=True, tokenize=True,
                                     return_dict=False)
    assert Tokenizer.load(tmp_path).encode_chat(system + TALK, generation=True)[0] == ids


@pytest.mark.parametrize("template, mark", [
    (chatml(after="<|im_start|>assistant\n<think>\n"), "<think>"),
    (chatml(after="<|im_start|>assistant\\n<think>\\n"), "<think>"),
    (chatml().replace("\n{{ m.content }}", "<|im_sep|>{{ m.content }}"), "<|im_sep|>")])
def test_what_only_looks_like_chatml_is_refused(tmp_path, template, mark):
    make_tokenizer("qwen2", tmp_path)
    edit(tmp_path / "tokenizer_config.json", lambda c: c | {"chat_template": template})
    with pytest.raises(UserError, match=r"which is not ChatML: --chat chatml"):
        Tokenizer.load(tmp_path)
    assert Tokenizer.load(tmp_path, "chatml").chat == "chatml"      # on purpose


def test_a_bos_that_nobody_names_is_nothing(tmp_path):
    make_tokenizer("qwen2", tmp_path)
    edit(tmp_path / "tokenizer_config.json",
         lambda c: c | {"chat_template": "{{ bos_token }}" + chatml()})
    assert Tokenizer.load(tmp_path).bos == []


def test_what_a_post_processor_puts_behind_a_text_is_no_bos(tmp_path):
    make_tokenizer("llama3", tmp_path)
    end = {"SpecialToken": {"id": "<|end_of_text|>", "type_id": 0}}
    edit(tmp_path / "tokenizer.json", lambda spec: spec | {"post_processor": {
        "type": "TemplateProcessing", "pair": [], "special_tokens": {}, "single": [
            {"SpecialToken": {"id": "<|begin_of_text|>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}}, end]}})
    tok = Tokenizer.load(tmp_path, "plain")
    assert tok.bos == [tok.special["<|begin_of_text|>"]]


@pytest.mark.parametrize("file, content, says", [
    ("tokenizer_config.json", {"add_prefix_space": True}, "add_prefix_space"),
    ("generation_config.json", [], "generation_config.json is no object"),
    ("config.json", {"model_type": "qwen2"}, "for GPT-2 only, not for qwen2")])
def test_what_would_give_other_ids_or_stop_a_save_is_refused(tmp_path, file, content, says):
    make_tokenizer("gpt2", tmp_path)
    if file == "config.json":           # an old directory of two files, of another family
        spec = json.loads((tmp_path / "tokenizer.json").read_text())["model"]
        (tmp_path / "tokenizer.json").unlink()
        (tmp_path / "vocab.json").write_text(json.dumps(spec["vocab"]))
        (tmp_path / "merges.txt").write_text("\n".join(
            m if isinstance(m, str) else " ".join(m) for m in spec["merges"]))
    (tmp_path / file).write_text(json.dumps(content))
    with pytest.raises(UserError, match=says):
        Tokenizer.load(tmp_path)


# ---- weights -------------------------------------------------------------------------------------
def refused(folder, says):
    with pytest.raises(UserError, match=says):
        load_model(folder)


@pytest.mark.parametrize("change, says", [
    (lambda k: k[:, 1:], "has shape"), (lambda k: k[0], "has shape"),
    (lambda k: k[0, 0], "has shape"), (lambda k: k.to(torch.int8), "int8"),
    (lambda k: k > 0, "bool"), (lambda k: torch.cat([k, k]), "has shape")])
def test_a_part_of_a_weight_is_checked_before_it_is_joined(tmp_path, change, says):
    make_model("llama3", tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    name = "model.layers.0.self_attn.k_proj.weight"
    save_file(weights | {name: change(weights[name]).contiguous()}, tmp_path / "model.safetensors")
    refused(tmp_path, f"k_proj.*{says}")


def test_rows_do_not_wander_between_the_parts(tmp_path):
    make_model("llama3", tmp_path)
    weights, at = load_file(tmp_path / "model.safetensors"), "model.layers.0.self_attn."
    k, v = (weights[f"{at}{part}_proj.weight"] for part in "kv")
    weights |= {f"{at}k_proj.weight": k[:-1].clone(),
                f"{at}v_proj.weight": torch.cat([k[-1:], v])}
    save_file(weights, tmp_path / "model.safetensors")
    refused(tmp_path, "k_proj.*has shape")


@pytest.mark.parametrize("kind", [None, [], ["LlamaForTokenClassification"],
                                  ["LlamaForRewardModel"], ["LlamaForSequenceClassification"]])
def test_no_classifier_passes_as_a_language_model(tmp_path, kind):
    make_model("llama3", tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file(weights | {"score.weight": torch.zeros(1, weights["model.norm.weight"].numel())},
              tmp_path / "model.safetensors")
    edit(tmp_path / "config.json", lambda c: c | {"architectures": kind})
    refused(tmp_path, "a classifier or preference model")


def test_a_scorer_scores_padded_batches_as_alone_in_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    make_model("gpt2", tmp_path / "a")
    edit(tmp_path / "a/tokenizer_config.json", lambda c: c | {"padding_side": "left"})
    model, tok = load_model(tmp_path / "a")
    head = torch.nn.Linear(model.config.width, 1, bias=False)
    save_scalar(tmp_path / "b", model, head, tok)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "b")
    scorer = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "b").eval()
    texts = ["the cat sat on it", "hi", "12 345"]
    batch = scorer(**theirs(texts, padding=True, return_tensors="pt")).logits
    alone = torch.cat([scorer(**theirs(text, return_tensors="pt")).logits for text in texts])
    torch.testing.assert_close(batch, alone, atol=1e-5, rtol=1e-4)


def test_a_shift_is_a_number(tmp_path):
    make_model("gpt2", tmp_path / "a")
    model, tok = load_model(tmp_path / "a")
    save_scalar(tmp_path / "b", model, torch.nn.Linear(model.config.width, 1, bias=False), tok,
                shift=math.nan)
    (tmp_path / "b/manifest.json").unlink(missing_ok=True)
    with pytest.raises(UserError, match="no finite number"):
        load_scalar(tmp_path / "b")


def test_a_policy_that_went_through_transformers_fits_its_preference_model(tmp_path):
    transformers = pytest.importorskip("transformers")
    make_model("gpt2", tmp_path / "a")
    model, tok = load_model(tmp_path / "a")
    save_model(tmp_path / "b", model, tok)
    for kind in (transformers.AutoModelForCausalLM, transformers.AutoTokenizer):
        kind.from_pretrained(tmp_path / "b").save_pretrained(tmp_path / "c")
    assert Tokenizer.load(tmp_path / "c").same_ids(Tokenizer.load(tmp_path / "b"))


# ---- comparisons ---------------------------------------------------------------------------------
def turn(role, content):
    return {"role": role, "content": content}


@pytest.mark.parametrize("row, messages", [
    # two answers that look like transcripts
    ({"prompt": "Write a dialogue.", "chosen": "Human: Hi!\n\nAssistant: A",
      "rejected": "Human: Hi!\n\nAssistant: B"}, [turn("user", "Write a dialogue.")]),
    # a system message beside dialogues that lack it
    ({"messages": [turn("system", "S"), turn("user", "Q")],
      "chosen": [turn("user", "Q"), turn("assistant", "A")],
      "rejected": [turn("user", "Q"), turn("assistant", "B")]},
     [turn("system", "S"), turn("user", "Q")]),
    # dialogues with more than the prompt says
    ({"prompt": "Q", "chosen": [turn("system", "S"), turn("user", "Q"), turn("assistant", "A")],
      "rejected": [turn("system", "S"), turn("user", "Q"), turn("assistant", "B")]},
     [turn("system", "S"), turn("user", "Q")])])
def test_what_stands_beside_a_prompt_goes_on_from_it(tmp_path, row, messages):
    (tmp_path / "x.jsonl").write_text(json.dumps(row))
    assert read_comparisons(tmp_path / "x.jsonl")[0][0] == messages


@pytest.mark.parametrize("prompt", ["A", [turn("user", "B"), turn("assistant", "b"),
                                          turn("user", "C")]])
def test_a_dialogue_that_begins_otherwise_is_not_used(tmp_path, prompt):
    row = {"messages" if isinstance(prompt, list) else "prompt": prompt,
           "chosen": [turn("user", "C"), turn("assistant", "x")],
           "rejected": [turn("user", "C"), turn("assistant", "y")]}
    (tmp_path / "x.jsonl").write_text(json.dumps(row))
    with pytest.raises(UserError, match="does not begin as the prompt beside it does"):
        read_comparisons(tmp_path / "x.jsonl")


@pytest.mark.parametrize("start", ["\n\n", " \n\n", "\n", "\n\n\n", "\r\n\r\n"])
def test_blank_lines_in_front_do_not_hide_a_transcript(start):
    assert is_transcript(f"{start}Human: hi\n\nAssistant:")
    assert not is_transcript("Human: is this a transcript?")


@pytest.mark.parametrize("spelling", ["Human: Q", "\n\nHuman: Q", "\n\nHuman: Q\n\nAssistant:"])
def test_a_prompt_in_the_form_of_a_transcript_opens_those_beside_it(tmp_path, spelling):
    told = "\n\nHuman: Q\n\nAssistant: "
    row = {"prompt": spelling, "chosen": told + "A", "rejected": told + "B"}
    (tmp_path / "x.jsonl").write_text(json.dumps(row))
    assert read_comparisons(tmp_path / "x.jsonl") == [([turn("user", "Q")], "A", "B")]


def test_an_answer_is_the_same_in_every_layout(tmp_path):
    told = "\n\nHuman: Q\n\nAssistant: "
    rows = [{"chosen": told + "A b", "rejected": told + "B"},
            {"prompt": "Q", "chosen": " A b", "rejected": " B\n"}]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    first, second = read_comparisons(tmp_path / "x.jsonl")
    assert first == second == ([turn("user", "Q")], "A b", "B")


# ---- more of config.json -------------------------------------------------------------------------
@pytest.mark.parametrize("family, change", [
    ("qwen3", {"is_causal": False}), ("qwen2", {"is_causal": False}),
    ("llama3", {"transformers_weights": "other.safetensors"})])
def test_a_key_whose_value_would_change_the_numbers_is_refused(tmp_path, family, change):
    make_model(family, tmp_path)
    edit(tmp_path / "config.json", lambda c: c | change)
    refused(tmp_path, next(iter(change)))


@pytest.mark.parametrize("family, change, missing", [
    ("gpt2", {"n_special": 0, "predict_special_tokens": True}, "layer_norm_epsilon"),
    ("qwen2", {"attention_bias": True, "mlp_bias": True, "_flash_attn_2_enabled": True}, None),
    ("qwen3", {"mlp_bias": True, "is_causal": True}, "rms_norm_eps"),
    ("llama3", {}, "rms_norm_eps")])
def test_keys_that_transformers_does_not_ask_change_nothing(tmp_path, family, change, missing):
    transformers = pytest.importorskip("transformers")
    make_model(family, tmp_path)
    edit(tmp_path / "config.json",
         lambda c: {key: value for key, value in (c | change).items() if key != missing})
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    model, _ = load_model(tmp_path)
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        torch.testing.assert_close(model(ids) @ model.head.T, theirs(ids).logits, atol=1e-4,
                                   rtol=1e-4)


def test_a_table_that_two_share_may_be_stored_under_either_name(tmp_path):
    for family in ("gpt2", "llama3"):
        make_model(family, tmp_path / family)
        weights = load_file(tmp_path / family / "model.safetensors")
        ours = load_model(tmp_path / family)[0].state_dict()
        name = next(n for n in weights if n.endswith(("wte.weight", "embed_tokens.weight")))
        weights["lm_head.weight"] = weights.pop(name)
        save_file(weights, tmp_path / family / "model.safetensors", metadata={"format": "pt"})
        again = load_model(tmp_path / family)[0].state_dict()
        assert all(torch.equal(ours[key], again[key]) for key in ours)


@pytest.mark.parametrize("key, value", [("num_hidden_layers", 10**5), ("hidden_size", 2**39),
                                        ("head_dim", 2**31), ("vocab_size", 2**40)])
def test_a_size_beyond_all_models_is_refused_before_it_is_built(tmp_path, key, value):
    make_model("qwen3", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {key: value}))
    refused(tmp_path, f"{key} = {value} must be a whole number above 0, at most")


def test_more_layers_than_there_are_weights_are_not_built_first(tmp_path):
    make_model("llama3", tmp_path)
    edit(tmp_path / "config.json", lambda c: c | {"num_hidden_layers": 2_000})
    refused(tmp_path, "says 2000 layers")


# ---- more of templates ---------------------------------------------------------------------------
@pytest.mark.parametrize("text", ["  indented", "\nline", " \n x", "plain"])
@pytest.mark.parametrize("family", ["qwen2", "smollm2"])
def test_white_space_joins_the_line_break_of_the_header(tmp_path, family, text):
    transformers = pytest.importorskip("transformers")
    make_tokenizer(family, tmp_path)
    talk = [{"role": "system", "content": text}, {"role": "user", "content": text}]
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert Tokenizer.load(tmp_path).encode_chat(talk, generation=True)[0] == \
        theirs.apply_chat_template(talk, add_generation_prompt=True, return_dict=False)


@pytest.mark.parametrize("content, trims", [
    ("message['content'].strip()", True), ("message['content'] | trim", True),
    ("message.content|trim", True), ("message['content']", False),
    ("message['content'] }}{# others: message['content'] | trim #}{{ ''", False)])
def test_what_is_trimmed_is_what_the_template_trims(tmp_path, content, trims):
    transformers = pytest.importorskip("transformers")
    make_tokenizer("qwen2", tmp_path)
    edit(tmp_path / "tokenizer_config.json", lambda c: c | {
        "chat_template": chatml().replace("for m in", "for message in")
        .replace("m.role", "message.role").replace("m.content", content)})
    tok, theirs = Tokenizer.load(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert tok.trims is trims
    talk = [turn("user", "  hi "), turn("assistant", "yo"), turn("user", "more ")]
    assert tok.encode_chat(talk, generation=True)[0] == \
        theirs.apply_chat_template(talk, add_generation_prompt=True, return_dict=False)


def test_a_template_that_trims_the_system_message_alone_trims_nobody_else(tmp_path):
    make_tokenizer("qwen2", tmp_path)
    edit(tmp_path / "tokenizer_config.json", lambda c: c | {
        "chat_template": "{% set system = messages[0]['content'] | trim %}" + chatml()})
    assert not Tokenizer.load(tmp_path).trims


def test_what_was_thought_before_an_answer_is_left_out_as_in_qwen3s_template(tmp_path):
    make_tokenizer("qwen3", tmp_path)
    tok = Tokenizer.load(tmp_path)
    said = "<think>\nhm\n</think>\n\nyo"
    thought, bare = ([turn("user", "hi"), turn("assistant", text), turn("user", "x")]
                     for text in (said, "yo"))
    # A past answer has no thought, the last one begins behind an empty one, as when it is sampled.
    for turns in (3, 2):
        assert tok.encode_chat(thought[:turns], turns == 3) == tok.encode_chat(bare[:turns],
                                                                               turns == 3)
    make_tokenizer("qwen2", tmp_path / "b")         # without that switch it is text as any other
    tok = Tokenizer.load(tmp_path / "b")
    assert tok.encode_chat(thought) != tok.encode_chat(bare)
