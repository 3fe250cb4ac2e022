"""GGUF files, written with the gguf package's own table of names,
come back as the model and tokenizer they were."""
import json

import numpy as np
import pytest
import torch
from families import FAMILIES, fuzz, make_model

from minicai.checkpoint import load_model
from minicai.gguf import main, read_gguf
from minicai.run import UserError

gguf = pytest.importorskip("gguf")
PRE = {"gpt2": "gpt-2", "llama3": "llama-bpe", "qwen2": "qwen2", "qwen3": "qwen2",
       "smollm2": "smollm"}


def permuted(rows, heads):
    """Rows of q and k as llama.cpp's converter puts them:
    index (head, half, i) goes to (head, i, half)."""
    size = len(rows) // heads
    order = [h * size + half * (size // 2) + i for h in range(heads) for i in range(size // 2)
             for half in (0, 1)]
    return rows[order]


def write_gguf(family, folder, path, quantize=None, **changes):
    """Write a directory of transformers as llama.cpp's converter would;
    `changes` replace or (None) leave out fields."""
    c = json.loads((folder / "config.json").read_text())
    arch = {"gpt2": "gpt2", "qwen2": "qwen2", "qwen3": "qwen3"}.get(family, "llama")
    layers = c.get("num_hidden_layers") or c["n_layer"]
    heads, width = c.get("num_attention_heads") or c["n_head"], c.get("hidden_size") or c["n_embd"]
    groups, rope = c.get("num_key_value_heads") or heads, c.get("rope_parameters") or {}
    fields = {f"{arch}.block_count": layers, f"{arch}.attention.head_count": heads,
              f"{arch}.embedding_length": width,
              f"{arch}.feed_forward_length": c.get("intermediate_size") or 4 * width,
              f"{arch}.context_length": c.get("max_position_embeddings") or c["n_positions"]}
    if family == "gpt2":
        fields[f"{arch}.attention.layer_norm_epsilon"] = c["layer_norm_epsilon"]
    else:
        fields |= {f"{arch}.attention.head_count_kv": groups,
                   f"{arch}.rope.freq_base": float(rope["rope_theta"]),
                   f"{arch}.attention.layer_norm_rms_epsilon": c["rms_norm_eps"]}
    if c.get("head_dim"):
        fields |= {f"{arch}.attention.key_length": c["head_dim"],
                   f"{arch}.attention.value_length": c["head_dim"]}
    writer = gguf.GGUFWriter(path, arch)
    for key, value in (fields | changes).items():
        if value is not None:
            {int: writer.add_uint32, float: writer.add_float32,
             str: writer.add_string}[type(value)](key, value)
    write_tokenizer(family, folder, writer, c["vocab_size"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[arch.upper()], layers)
    tensors = {}
    from safetensors.torch import load_file
    for name, w in load_file(folder / "model.safetensors").items():
        stem, kind = name.rsplit(".", 1)
        if family == "gpt2" and name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
            w = w.T
        if arch == "llama" and stem.endswith(("q_proj", "k_proj")):
            w = permuted(w, heads if stem.endswith("q_proj") else groups)
        tensors[f"{names.get_name(stem)}.{kind}"] = w.contiguous().numpy()
    if family == "llama3":
        tensors["rope_freqs.weight"] = slowing(c, rope, width // heads)
    for name, w in tensors.items():
        if quantize and w.ndim == 2 and w.shape[1] % 32 == 0:
            writer.add_tensor(name, gguf.quants.quantize(w, quantize), raw_dtype=quantize)
        else:
            writer.add_tensor(name, w)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def slowing(c, rope, size):
    """What Llama 3.1 divides each frequency by, from transformers' own function."""
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    config = transformers.LlamaConfig(**{k: v for k, v in c.items()
                                         if k not in ("model_type", "architectures", "dtype")})
    slow, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = rope["rope_theta"] ** -(torch.arange(0, size, 2) / size)
    return (plain / slow).numpy().astype(np.float32)


def write_tokenizer(family, folder, writer, rows):
    spec = json.loads((folder / "tokenizer.json").read_text())
    config = json.loads((folder / "tokenizer_config.json").read_text())
    vocab = spec["model"]["vocab"] | {t["content"]: t["id"] for t in spec["added_tokens"]}
    special = {t["id"] for t in spec["added_tokens"]}
    words = {i: word for word, i in vocab.items()}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(PRE[family])
    writer.add_token_list([words.get(i, f"[PAD{i}]") for i in range(rows)])
    writer.add_token_types([3 if i in special else 1 if i in words else 5 for i in range(rows)])
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m)
                             for m in spec["model"]["merges"]])
    for key, add in (("bos_token", writer.add_bos_token_id), ("eos_token", writer.add_eos_token_id),
                     ("pad_token", writer.add_pad_token_id)):
        if key in config:
            add(vocab[config[key]])
    if family == "gpt2":
        writer.add_eos_token_id(vocab["<|endoftext|>"])
    if "chat_template" in config:
        writer.add_chat_template(config["chat_template"])


@pytest.fixture(params=FAMILIES)
def family(request, tmp_path):
    make_model(request.param, tmp_path / "hf")
    # the file says how each pair is slowed, not by which rule: known ones only
    if request.param == "llama3":
        config = json.loads((tmp_path / "hf/config.json").read_text())
        config["rope_parameters"]["original_max_position_embeddings"] = 8192
        (tmp_path / "hf/config.json").write_text(json.dumps(config))
    return request.param, tmp_path


def test_a_file_of_every_family_comes_back_equal(family):
    name, folder = family
    write_gguf(name, folder / "hf", folder / "m.gguf")
    main([str(folder / "m.gguf"), str(folder / "back")])
    (model, tok), (again, tok2) = load_model(folder / "hf"), load_model(folder / "back")
    assert model.config == again.config
    for (key, a), b in zip(model.state_dict().items(), again.state_dict().values()):
        assert torch.equal(a, b), key
    assert tok.same_ids(tok2) and tok.pad == tok2.pad and tok.thinks == tok2.thinks
    assert all(tok.encode(text) == tok2.encode(text) for text in fuzz(300))
    theirs = pytest.importorskip("transformers").AutoTokenizer.from_pretrained(folder / "back")
    assert all(theirs(t, add_special_tokens=False, split_special_tokens=True).input_ids
               == tok.encode(t) for t in fuzz(300))


def test_quantised_weights_are_unpacked(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM
    make_model("smollm2", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) \
        | {"hidden_size": 64, "intermediate_size": 96}
    LlamaForCausalLM(LlamaConfig(**config)).save_pretrained(tmp_path)
    exact = load_model(tmp_path)[0].state_dict()
    for kind in ("Q8_0", "Q4_1", "F16", "BF16"):
        write_gguf("smollm2", tmp_path, tmp_path / "q.gguf", gguf.GGMLQuantizationType[kind])
        read = read_gguf(tmp_path / "q.gguf")[0].state_dict()
        off = max(((read[k] - w).abs().max() / w.abs().max()).item() for k, w in exact.items())
        assert 0 < off < {"Q4_1": 0.1}.get(kind, 0.01), (kind, off)


@pytest.mark.parametrize("changes, says", [
    ({"general.architecture": "mamba"}, "architecture 'mamba' is not supported"),
    ({"llama.expert_count": 4}, "expert_count': 4"), ({"llama.expert_count": 0}, None),
    ({"llama.rope.scaling.type": "yarn"}, "rope scaling"),
    ({"llama.block_count": None}, "block_count is missing"),
    ({"llama.block_count": 4}, "blk.3.attn_norm.weight is missing"),
    ({"split.count": 2}, "several parts"), ({"llama.block_count": 2}, "does not know: blk.2."),
    ({"llama.feed_forward_length": 81}, "has shape"),
    ({"tokenizer.ggml.pre": "tekken"}, "'tekken' is not supported"),
    ({"llama.rope.dimension_count": 6}, "6 of the 12 dimensions"),
    ({"llama.attention.head_count": 3, "llama.attention.key_length": 16}, "has shape")])
def test_what_cannot_be_read_is_named(tmp_path, changes, says, capsys, monkeypatch):
    make_model("smollm2", tmp_path)
    if "tokenizer.ggml.pre" in changes:
        monkeypatch.setitem(PRE, "smollm2", changes.pop("tokenizer.ggml.pre"))
    if "general.architecture" in changes:
        monkeypatch.setattr(gguf.GGUFWriter, "add_architecture",
                            lambda self: self.add_string("general.architecture", "mamba"))
        changes = {}
    write_gguf("smollm2", tmp_path, tmp_path / "m.gguf", **changes)
    if says is None:
        read_gguf(tmp_path / "m.gguf")
        return
    with pytest.raises(UserError, match=says):
        read_gguf(tmp_path / "m.gguf")
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main([str(tmp_path / "m.gguf"), str(tmp_path / "out")])
    assert capsys.readouterr().err.count("\n") == 1 and not (tmp_path / "out").exists()


def test_damaged_files_are_one_line(tmp_path):
    make_model("smollm2", tmp_path)
    write_gguf("smollm2", tmp_path, tmp_path / "m.gguf")
    whole = (tmp_path / "m.gguf").read_bytes()
    for cut in (0, 3, 20, 100, 5000, len(whole) // 2, len(whole) - 5):
        (tmp_path / "torn.gguf").write_bytes(whole[:cut])
        with pytest.raises(UserError, match="torn.gguf"):
            read_gguf(tmp_path / "torn.gguf")
    (tmp_path / "text.gguf").write_text("version https://git-lfs.github.com/spec/v1\n" * 20)
    for name in ("text.gguf", "nowhere.gguf"):
        with pytest.raises(UserError, match=name):
            read_gguf(tmp_path / name)
