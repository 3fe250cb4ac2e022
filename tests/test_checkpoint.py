"""Directories: the same numbers as transformers in both directions, and clear refusals."""
import dataclasses
import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from families import FAMILIES, make_model
from safetensors.torch import load_file, save_file

from minicai import checkpoint
from minicai.checkpoint import load_model, load_scalar, read_config, save_model, save_scalar
from minicai.gpt import GPT, GPTConfig
from minicai.run import UserError
from minicai.sample import generate

BASE = Path(__file__).parents[1] / "data" / "base"


def same(ours, theirs, tolerance=1e-4):
    assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max(), \
        (ours - theirs).abs().max() / theirs.abs().max()


def random_ids(rows, shape, seed=0):
    return torch.randint(0, rows, shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    """(directory, transformers' model) of one family."""
    folder = tmp_path_factory.mktemp(request.param)
    return folder, make_model(request.param, folder)


@torch.no_grad()
def test_logits_equal_transformers(family):
    folder, theirs = family
    model, tok = load_model(folder)
    ids = random_ids(tok.n_vocab, (3, 150))  # longer than the Llama-3 scaling's original context
    same(model(ids) @ model.head.T, theirs(ids).logits)


@pytest.mark.skipif(not (BASE / "model.safetensors").exists(), reason="the base is not made yet")
@torch.no_grad()
def test_the_shipped_base_in_transformers():
    transformers = pytest.importorskip("transformers")
    model, tok = load_model(BASE)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(BASE)
    ids, _ = tok.encode_chat([{"role": "user", "content": "How do I bake a cake?"}],
                             generation=True)
    assert type(theirs).__name__ == "LlamaForCausalLM"
    same(model(torch.tensor([ids])) @ model.head.T, theirs(torch.tensor([ids])).logits)


@torch.no_grad()
def test_greedy_continuation_equals_transformers(family):
    folder, theirs = family
    model, tok = load_model(folder)
    prompt = random_ids(tok.n_vocab, (1, 20), seed=3)
    out = theirs.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=24,
                          do_sample=False, eos_token_id=None, pad_token_id=0)
    ours = generate(model, prompt.tolist(), max_new_tokens=24, stop=set(), temperature=0)
    assert ours[0] == out[0, 20:].tolist()


@torch.no_grad()
def test_what_we_save_transformers_loads(family, tmp_path):
    transformers = pytest.importorskip("transformers")
    folder, theirs = family
    model, tok = load_model(folder)
    save_model(tmp_path / "out", model, tok)
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert type(back) is type(theirs)
    ids = random_ids(tok.n_vocab, (2, 90))
    same(back(ids).logits, theirs(ids).logits, 1e-6)
    again, _ = load_model(tmp_path / "out")
    assert again.config == model.config
    assert all(torch.equal(a, b)
               for a, b in zip(again.state_dict().values(), model.state_dict().values()))
    theirs_tok = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert theirs_tok("A cat sat.", add_special_tokens=False).input_ids == tok.encode("A cat sat.")


@torch.no_grad()
def test_scalar_models_open_as_sequence_classifiers(family, tmp_path):
    transformers = pytest.importorskip("transformers")
    folder, _ = family
    model, tok = load_model(folder)
    head = torch.nn.Linear(model.config.width, 1, bias=False)
    save_scalar(tmp_path / "pm", model, head, tok, shift=0.75)
    trunk, loaded, shift, _ = load_scalar(tmp_path / "pm")
    assert shift == 0.75 and torch.equal(loaded.weight, head.weight)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "pm")
    rows = [tok.encode("one two three") + [tok.end], tok.encode("four") + [tok.end]]
    ids = torch.tensor([row + [tok.pad] * (max(map(len, rows)) - len(row)) for row in rows])
    ours = torch.stack([loaded(trunk(torch.tensor([row])))[0, -1, 0] for row in rows])
    scores = theirs(ids, attention_mask=(ids != tok.pad).long()).logits[:, 0]
    assert len(rows[0]) != len(rows[1]) and torch.allclose(ours, scores, atol=1e-4)


@torch.no_grad()
def test_untied_heads_and_attention_biases_come_back(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(vocab_size=60, hidden_size=32, intermediate_size=40,
                                      num_hidden_layers=2, num_attention_heads=4,
                                      attention_bias=True, mlp_bias=True, tie_word_embeddings=False,
                                      initializer_range=0.3)
    torch.manual_seed(1)
    theirs = transformers.LlamaForCausalLM(config).eval()
    for name, p in theirs.named_parameters():
        if name.endswith("bias"):
            p.normal_()
    theirs.save_pretrained(tmp_path)
    model, weights, _ = checkpoint.load_trunk(tmp_path)
    ids = random_ids(60, (2, 12))
    same(model(ids) @ model.head.T, theirs(ids).logits)
    assert not model.config.tied and model.config.out_bias
    assert set(weights) == {n for p in model.state_dict()
                            for n in checkpoint.their_names(model.config, p)}


@torch.no_grad()
def test_shards_read_as_one(tmp_path):
    theirs = make_model("qwen2", tmp_path / "whole")
    whole, _ = load_model(tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "shards",
                    ignore=shutil.ignore_patterns("*.safetensors"))
    theirs.save_pretrained(tmp_path / "shards", max_shard_size="60KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    model, _ = load_model(tmp_path / "shards")
    assert all(torch.equal(a, b)
               for a, b in zip(model.state_dict().values(), whole.state_dict().values()))
    next((tmp_path / "shards").glob("*00002*.safetensors")).unlink()
    with pytest.raises(UserError, match="00002.*no such file"):
        load_model(tmp_path / "shards")


def test_tensors_without_the_trunks_prefix(tmp_path):
    """GPT-2's own file on the hub was saved from the bare trunk."""
    theirs = make_model("gpt2", tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    bare = {name: p.clone() for name, p in theirs.transformer.state_dict().items()}
    checkpoint.save_file(bare, tmp_path / "b" / "model.safetensors")
    a, b = (load_model(tmp_path / x)[0] for x in "ab")
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters()))


def test_bfloat16_weights_keep_exact_angles(tiny_model_dir):
    model = load_model(tiny_model_dir)[0].bfloat16()
    model(torch.tensor([[1, 2, 3]]))
    assert model.head.dtype == torch.bfloat16 and model.freq.dtype == torch.float32
    assert torch.equal(model.freq, load_model(tiny_model_dir)[0].freq)


def edit(folder, target, **changes):
    """Copy a directory and change keys of its config.json (None removes)."""
    shutil.copytree(folder, target)
    config = json.loads((target / "config.json").read_text())
    config = {k: v for k, v in (config | changes).items() if not (k in changes and v is None)}
    (target / "config.json").write_text(json.dumps(config))
    return target


@pytest.mark.parametrize("changes, message", [
    ({"model_type": "mamba"}, "unknown architecture 'mamba'"),
    ({"model_type": None}, "model_type"),
    ({"hidden_act": "relu"}, "hidden_act = 'relu'"),
    ({"logits_scaling": 8.0}, "unknown key 'logits_scaling' = 8.0"),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope type 'yarn'"),
    ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0,
                       "high_freq_factor": 4.0, "original_max_position_embeddings": 64}},
     "low below high"),                                 # between the two lies what is divided by
    ({"layer_types": ["sliding_attention", "full_attention"]}, "layer_types"),
    ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ({"hidden_size": None}, "'hidden_size' is missing"),
    ({"num_hidden_layers": 3}, r"layers.2.input_layernorm.weight is missing"),
    ({"num_hidden_layers": 1}, "does not know: model.layers.1"),
    ({"intermediate_size": 65}, "has shape"),
    ({"head_dim": 7}, "a head_dim of 7 must be even"),
    ({"use_mrope": True}, "unknown key 'use_mrope'"),
    ({"num_key_value_heads": 3}, "2 heads divide neither into 3 groups"),
    ({"rope_scaling": {"type": "default", "mrope_section": [1, 2]}}, "mrope_section"),
    ({"rope_parameters": {"rope_type": "default"},
      "rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "contradict"),
    ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}, "rope_theta": 1e4},
     "contradict"),
    ({"tie_word_embeddings": "yes"}, "must be true or false"),
    ({"num_attention_heads": -2}, "must be a whole number above 0"),
])
def test_what_cannot_be_computed_is_refused_by_name(tiny_model_dir, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        load_model(edit(tiny_model_dir, tmp_path / "x", **changes))


HARMLESS = {"use_mrope": False, "_num_labels": 2, "unsloth_fixed": True,
            "unsloth_version": "2025.1", "is_decoder": True, "_attn_implementation_autoset": True,
            "gradient_checkpointing": True, "do_sample": True, "prefix": None,
            "auto_map": {"AutoModel": "x.Y"}, "some_new_switch": False, "another": None,
            "pruned_heads": {},
            "top_p": 0.9, "max_length": 20, "rope_parameters": None, "torch_dtype": "bfloat16"}


def test_keys_that_change_nothing_do_not_stop_a_published_model(tiny_model_dir, tmp_path):
    changed = edit(tiny_model_dir, tmp_path / "x",
                   **{k: v for k, v in HARMLESS.items() if v is not None})
    assert read_config(changed)[0] == read_config(tiny_model_dir)[0]
    for key in HARMLESS:  # and null passes for every one of them
        read_config(edit(tiny_model_dir, tmp_path / key, prefix=None) if key == "prefix"
                    else changed)


@pytest.mark.parametrize("family", ["gpt2", "llama3"])
def test_a_wrong_value_in_a_config_is_one_line(tmp_path, family):
    """Every key made something else, of another type or sign:
    read, or refused in one line that names the file."""
    make_model(family, tmp_path)
    before, refused = json.loads((tmp_path / "config.json").read_text()), 0
    for key, old in before.items():
        inner = list(old) if isinstance(old, dict) else []
        for value in (None, -1, 0, 1e300, float("nan"), "x", [], {}, [1], {"a": None}, True):
            for changed in [before | {key: value}] + [before | {key: old | {k: value}}
                                                      for k in inner]:
                (tmp_path / "config.json").write_text(json.dumps(changed))
                try:
                    read_config(tmp_path)
                except UserError as error:
                    refused += 1
                    assert str(error).startswith(f"{tmp_path}/config.json: ")
                    assert "\n" not in str(error)
    assert refused > 50
    for text in ("[]", "3", "null", '"x"', '{"model_type": []}', "[" * 100000):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(UserError, match="config.json"):
            read_config(tmp_path)


def rewrite(folder, change):
    """Change the tensors of a directory: change({name: tensor})."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "model.safetensors",
              {"format": "pt"})


def test_a_head_that_should_be_tied_is_compared(tiny_model_dir, tmp_path):
    shutil.copytree(tiny_model_dir, tmp_path / "same")
    rewrite(tmp_path / "same",
            lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    load_model(tmp_path / "same")
    shutil.copytree(tmp_path / "same", tmp_path / "other")
    rewrite(tmp_path / "other", lambda t: t["lm_head.weight"][3, 3].add_(1))
    with pytest.raises(UserError, match="lm_head.weight is not the embedding"):
        load_model(tmp_path / "other")


def test_weights_that_are_not_finite_are_named(tiny_model_dir, tok, tmp_path):
    for bad in ("nan", "inf"):
        shutil.copytree(tiny_model_dir, tmp_path / bad)
        rewrite(tmp_path / bad,
                lambda t: t["model.layers.1.mlp.up_proj.weight"][0, :1].fill_(float(bad)))
        with pytest.raises(UserError,
                           match="layers.1.mlp.up_proj.weight holds numbers that are not finite"):
            load_model(tmp_path / bad)
    save_scalar(tmp_path / "pm", load_model(tiny_model_dir)[0],
                torch.nn.Linear(32, 1, bias=False), tok)
    (tmp_path / "pm/manifest.json").unlink()
    rewrite(tmp_path / "pm", lambda t: t["score.weight"].fill_(float("nan")))
    with pytest.raises(UserError, match="score.weight"):
        load_scalar(tmp_path / "pm")


def test_a_preference_model_is_no_language_model(tiny_model, tok, tmp_path):
    save_scalar(tmp_path / "pm", tiny_model, torch.nn.Linear(32, 1, bias=False), tok)
    with pytest.raises(UserError, match="a language model is needed"):
        load_model(tmp_path / "pm")


def test_a_whole_file_goes_before_a_stale_index(tiny_model_dir, tmp_path):
    """As in transformers; the parts that the index names may be of an older model."""
    transformers = pytest.importorskip("transformers")
    shutil.copytree(tiny_model_dir, tmp_path / "m")
    tensors = {k: v * 0 for k, v in load_file(tmp_path / "m/model.safetensors").items()}
    save_file(tensors, tmp_path / "m/old.safetensors", {"format": "pt"})
    (tmp_path / "m/model.safetensors.index.json").write_text(
        json.dumps({"weight_map": dict.fromkeys(tensors, "old.safetensors")}))
    ours = load_model(tmp_path / "m")[0]
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    assert ours.head.abs().sum() > 0 and torch.equal(ours.head, theirs.lm_head.weight)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_git_lfs_pointers_are_named(tiny_model_dir, tmp_path, name):
    shutil.copytree(tiny_model_dir, tmp_path / "m")
    (tmp_path / "m" / name).write_text("version https://git-lfs.github.com/spec/v1\noid "
                                       "sha256:00\nsize 9\n")
    with pytest.raises(UserError, match=f"{name}: a git-lfs pointer.*git lfs pull"):
        load_model(tmp_path / "m")


@torch.no_grad()
def test_a_padded_batch_scores_in_transformers_as_each_row_alone(family, tmp_path):
    """Padded by the tokenizer that lies in the directory, as users do."""
    transformers = pytest.importorskip("transformers")
    model, tok = load_model(family[0])
    head = torch.nn.Linear(model.config.width, 1, bias=False)
    save_scalar(tmp_path / "pm", model, head, tok)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "pm").eval()
    their_tok = transformers.AutoTokenizer.from_pretrained(tmp_path / "pm")
    rows = [tok.encode(text) + [tok.end] for text in ("one two three four", "five", "six seven")]
    batch = their_tok.pad({"input_ids": rows}, return_tensors="pt")
    alone = torch.cat([theirs(torch.tensor([row])).logits for row in rows])
    ours = torch.cat([head(model(torch.tensor([row])))[:, -1] for row in rows])
    assert torch.allclose(theirs(**batch).logits, alone, atol=1e-4)
    assert torch.allclose(alone, ours, atol=1e-4)
    assert (alone[0] - alone[1]).abs() > 1e-3


def test_missing_and_damaged_files(tiny_model_dir, tmp_path):
    with pytest.raises(UserError, match="no such model directory"):
        load_model(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="config.json"):
        load_model(tmp_path / "empty")
    for name, message in (("model.safetensors", "no such file"),
                          ("tokenizer.json", "no such file")):
        shutil.copytree(tiny_model_dir, tmp_path / name)
        (tmp_path / name / name).unlink()
        with pytest.raises(UserError, match=f"{name}: {message}"):
            load_model(tmp_path / name)
    shutil.copytree(tiny_model_dir, tmp_path / "torn")
    os.truncate(tmp_path / "torn" / "model.safetensors", 1000)
    with pytest.raises(UserError, match="damaged"):
        load_model(tmp_path / "torn")
    (tmp_path / "torn" / "config.json").write_text("{")
    with pytest.raises(UserError, match="not a model's config.json"):
        read_config(tmp_path / "torn")
    with pytest.raises(UserError, match="not a preference model"):
        load_scalar(tiny_model_dir)


def test_a_save_that_fails_leaves_the_old_directory(tiny_model, tok, tmp_path, monkeypatch):
    save_model(tmp_path / "m", tiny_model, tok)
    before = {f.name: f.read_bytes() for f in (tmp_path / "m").iterdir()}

    def full_disk(tensors, path, **_):
        path.write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(checkpoint, "save_file", full_disk)
    with pytest.raises(UserError, match="m: cannot be written .No space left on device.; "
                       "it takes 0.. MB, .* are free"):
        save_model(tmp_path / "m", tiny_model.init_weights(), tok)
    assert {f.name: f.read_bytes() for f in (tmp_path / "m").iterdir()} == before
    assert [f.name for f in tmp_path.iterdir()] == ["m"]


def test_saving_over_a_directory_replaces_models_only(tiny_model, tok, tmp_path):
    save_model(tmp_path / "m", tiny_model, tok)
    (tmp_path / "m" / "left_over.bin").write_text("old")
    save_model(tmp_path / "m", tiny_model, tok)
    assert not (tmp_path / "m" / "left_over.bin").exists()
    (tmp_path / "diary").mkdir()
    (tmp_path / "diary" / "monday.txt").write_text("dear diary")
    with pytest.raises(UserError, match="no model directory"):
        save_model(tmp_path / "diary", tiny_model, tok)
    assert (tmp_path / "diary" / "monday.txt").exists()


def test_a_preference_model_of_an_untied_trunk_needs_no_language_head(tok, tmp_path):
    config = GPTConfig(vocab_size=tok.n_vocab, n_layer=1, n_head=2, width=16,
                       max_positions=64, tied=False)
    model = GPT(config).init_weights(torch.Generator().manual_seed(0))
    save_scalar(tmp_path / "pm", model, torch.nn.Linear(16, 1, bias=False), tok)
    trunk, *_ = load_scalar(tmp_path / "pm")
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(trunk(ids), model(ids))
    assert trunk.config == dataclasses.replace(config, tied=True)
