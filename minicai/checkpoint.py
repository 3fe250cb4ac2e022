"""Model directories in Hugging Face layout: what is saved here opens in transformers, and the other way round.

A directory holds config.json, model.safetensors (or shards with an index) and the tokenizer's files. Two tables do all the
translation: TENSORS (our parameter names <-> theirs) and CONFIG_KEYS (our GPTConfig <-> their config.json), each for the
Llama-like families and for GPT-2. A config that asks for arithmetic which minicai does not know is refused by name: a model
that runs but computes something else is worse than none.
"""

import json
import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn as nn
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from minicai.gpt import GPT, GPTConfig
from minicai.run import UserError
from minicai.tokenizer import Tokenizer

# model_type -> (class name stem, prefix of the trunk's tensors)
FAMILIES = {"llama": ("Llama", "model."), "qwen2": ("Qwen2", "model."), "qwen3": ("Qwen3", "model."),
            "gpt2": ("GPT2", "transformer.")}

# Our parameter, `#` the layer -> their tensors, stacked by rows into ours.
TENSORS = {
    "llama": {
        "embed.": ["embed_tokens."], "norm.": ["norm."],
        "blocks.#.norm1.": ["layers.#.input_layernorm."],
        "blocks.#.attn.qkv.": [f"layers.#.self_attn.{x}_proj." for x in "qkv"],
        "blocks.#.attn.q_norm.": ["layers.#.self_attn.q_norm."], "blocks.#.attn.k_norm.": ["layers.#.self_attn.k_norm."],
        "blocks.#.attn.out.": ["layers.#.self_attn.o_proj."],
        "blocks.#.norm2.": ["layers.#.post_attention_layernorm."],
        "blocks.#.mlp.gate.": ["layers.#.mlp.gate_proj."], "blocks.#.mlp.up.": ["layers.#.mlp.up_proj."],
        "blocks.#.mlp.down.": ["layers.#.mlp.down_proj."]},
    "gpt2": {
        "embed.": ["wte."], "pos_embed.": ["wpe."], "norm.": ["ln_f."],
        "blocks.#.norm1.": ["h.#.ln_1."], "blocks.#.attn.qkv.": ["h.#.attn.c_attn."],
        "blocks.#.attn.out.": ["h.#.attn.c_proj."], "blocks.#.norm2.": ["h.#.ln_2."],
        "blocks.#.mlp.up.": ["h.#.mlp.c_fc."], "blocks.#.mlp.down.": ["h.#.mlp.c_proj."]}}
TRANSPOSED = ("c_attn.weight", "c_proj.weight", "c_fc.weight")     # GPT-2 stores [in, out]

# Our GPTConfig field -> their key.
CONFIG_KEYS = {
    "llama": {"vocab_size": "vocab_size", "n_layer": "num_hidden_layers", "n_head": "num_attention_heads",
              "n_kv_head": "num_key_value_heads", "head_dim": "head_dim", "width": "hidden_size",
              "mlp_width": "intermediate_size", "max_positions": "max_position_embeddings", "norm_eps": "rms_norm_eps"},
    "gpt2": {"vocab_size": "vocab_size", "n_layer": "n_layer", "n_head": "n_head", "width": "n_embd", "mlp_width": "n_inner",
             "max_positions": "n_positions", "norm_eps": "layer_norm_epsilon"}}
# Keys that change the arithmetic, and the only values of them that minicai computes.
FIXED = {"hidden_act": "silu", "activation_function": "gelu_new", "scale_attn_weights": True, "use_sliding_window": False,
         "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False, "rope_interleaved": False,
         "partial_rotary_factor": 1.0, "quantization_config": None, "is_encoder_decoder": False}
# Keys that minicai may pass over: training-time settings, ids (the tokenizer knows them), bookkeeping.
HARMLESS = {"architectures", "model_type", "dtype", "torch_dtype", "transformers_version", "use_cache", "initializer_range",
            "attention_dropout", "attn_pdrop", "embd_pdrop", "resid_pdrop", "bos_token_id", "eos_token_id", "pad_token_id",
            "pretraining_tp", "is_llama_config", "transformers.js_config", "sliding_window", "max_window_layers", "n_ctx",
            "reorder_and_upcast_attn", "task_specific_params", "num_labels", "id2label", "label2id", "problem_type",
            "summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels", "summary_first_dropout",
            "chunk_size_feed_forward", "output_attentions", "output_hidden_states", "return_dict", "name_or_path",
            "_name_or_path", "unsloth_version", "unsloth_fixed"}


def read_config(directory) -> tuple[GPTConfig, dict]:
    """(our config, their config.json) of a model directory; raises UserError naming whatever minicai cannot compute."""
    path = Path(directory) / "config.json"
    if not Path(directory).is_dir():
        raise UserError(f"{directory}: no such model directory")
    try:
        c = json.loads(path.read_text("utf-8"))
        family = c["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a model's config.json ({type(error).__name__}: {error})") from None
    if family not in FAMILIES:
        raise UserError(f"{path}: unknown architecture {family!r} (known: {', '.join(FAMILIES)})")
    llama = family != "gpt2"
    keys = CONFIG_KEYS["llama" if llama else "gpt2"]
    known = HARMLESS | set(FIXED) | set(keys.values()) | {"tie_word_embeddings", "attention_bias", "mlp_bias", "layer_types",
                                                          "rope_theta", "rope_scaling", "rope_parameters"}
    for key, value in c.items():
        if key not in known and not key.startswith("minicai_"):
            raise UserError(f"{path}: unknown key {key!r} = {value!r}: minicai cannot tell what it changes "
                            "(delete it if that is nothing)")
        if key in FIXED and value != FIXED[key]:
            raise UserError(f"{path}: {key} = {value!r} is not supported, only {FIXED[key]!r}")
    if set(c.get("layer_types") or []) - {"full_attention"}:
        raise UserError(f"{path}: layer_types other than full_attention are not supported")
    ours = {name: c.get(key) for name, key in keys.items()}
    missing = [keys[n] for n, v in ours.items() if v is None and n not in ("n_kv_head", "head_dim", "mlp_width")]
    if missing:
        raise UserError(f"{path}: the key {missing[0]!r} is missing")
    if not llama:
        ours["mlp_width"] = ours["mlp_width"] or 4 * ours["width"]
        return GPTConfig(**ours, norm="layernorm", positions="learned", mlp="gelu", qkv_bias=True, out_bias=True,
                         mlp_bias=True, tied=c.get("tie_word_embeddings", True)), c
    if family == "qwen3" and ours["head_dim"] is None:
        ours["head_dim"] = 128                                            # what transformers takes there
    theta, scaling = read_rope(c, path)
    bias = bool(c.get("attention_bias", False))
    return GPTConfig(**ours, rope_theta=theta, rope_scaling=scaling, qkv_bias=bias or family == "qwen2", out_bias=bias,
                     mlp_bias=bool(c.get("mlp_bias", False)), qk_norm=family == "qwen3",
                     tied=bool(c.get("tie_word_embeddings", False))), c


def read_rope(c: dict, path) -> tuple[float, dict | None]:
    """(theta, Llama-3 scaling or None); transformers 5 writes one dict, transformers 4 a number and a dict."""
    rope = dict(c.get("rope_parameters") or c.get("rope_scaling") or {})
    theta = float(rope.pop("rope_theta", c.get("rope_theta", 10000.0)))
    kind = rope.pop("rope_type", rope.pop("type", "default"))
    rope.pop("type", None)
    if kind == "default":
        return theta, None
    wanted = {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}
    if kind != "llama3" or set(rope) != wanted:
        raise UserError(f"{path}: rope type {kind!r} with {sorted(rope)} is not supported (default, or llama3 with {sorted(wanted)})")
    return theta, rope


def write_config(config: GPTConfig, tok: Tokenizer, task: str = "ForCausalLM") -> dict:
    """The config.json of a model: the family follows from what it computes."""
    family = ("gpt2" if config.positions == "learned" else "qwen3" if config.qk_norm
              else "qwen2" if config.qkv_bias and not config.out_bias else "llama")
    keys = CONFIG_KEYS["gpt2" if family == "gpt2" else "llama"]
    c = {"architectures": [FAMILIES[family][0] + task], "model_type": family,
         **{key: getattr(config, name) for name, key in keys.items()}, "tie_word_embeddings": config.tied,
         "bos_token_id": tok.bos[0] if tok.bos else None, "eos_token_id": tok.end, "pad_token_id": tok.pad}
    if family == "gpt2":
        return c | {"activation_function": "gelu_new"}
    scaling = config.rope_scaling and {"rope_type": "llama3", **config.rope_scaling}
    return c | {"hidden_act": "silu", "rope_theta": config.rope_theta, "rope_scaling": scaling,
                "attention_bias": config.out_bias} | ({"mlp_bias": config.mlp_bias} if family == "llama" else {})


def their_names(name: str, gpt2: bool) -> list[str]:
    """The Hugging Face tensors behind one of our parameters."""
    if name == "unembed.weight":
        return ["lm_head.weight"]
    number = next((part for part in name.split(".") if part.isdigit()), "")
    stem, _, kind = name.replace(f".{number}.", ".#.", 1).rpartition(".")
    table, prefix = TENSORS["gpt2" if gpt2 else "llama"], FAMILIES["gpt2" if gpt2 else "llama"][1]
    return [prefix + n.replace("#", number) + kind for n in table[stem + "."]]


class Weights:
    """The tensors of a directory's safetensors files by name, read one at a time; remembers which were asked for."""

    def __init__(self, directory):
        self.index, directory = {}, Path(directory)
        shards = directory / "model.safetensors.index.json"
        files = sorted(set(json.loads(shards.read_text())["weight_map"].values())) if shards.is_file() else ["model.safetensors"]
        for file in files:
            path = directory / file
            if not path.is_file():
                raise UserError(f"{path}: no such file (minicai reads safetensors only)")
            try:
                opened = safe_open(path, framework="pt")
            except (SafetensorError, OSError) as error:
                raise UserError(f"{path}: damaged or not a safetensors file ({error})") from None
            self.index.update(dict.fromkeys(opened.keys(), opened))
        self.unused, self.directory = set(self.index), directory

    def read(self, name: str, transpose: bool = False) -> torch.Tensor:
        """One tensor; the trunk's prefix may be missing, as in files saved from a bare trunk."""
        name = name if name in self.index else name.partition(".")[2]
        if name not in self.index:
            raise KeyError(name)
        self.unused.discard(name)
        tensor = self.index[name].get_tensor(name)
        return tensor.T if transpose else tensor


def load_trunk(directory, device, dtype) -> tuple[GPT, Weights, dict]:
    """The model of a directory, its other tensors, and its config.json."""
    config, raw = read_config(directory)
    if str(raw.get("architectures")).find("SequenceClassification") >= 0:
        config = replace(config, tied=True)                               # a classifier has no language head to load
    weights = Weights(directory)
    gpt2 = config.positions == "learned"
    with torch.device("meta"):                                            # no time lost on weights to be replaced
        model = GPT(config)
    state = {}
    for name, empty in model.state_dict().items():
        theirs = their_names(name, gpt2)
        try:
            tensor = torch.cat([weights.read(n, gpt2 and n.endswith(TRANSPOSED)) for n in theirs])
        except KeyError:
            raise UserError(f"{directory}: the tensor {theirs[0]} is missing") from None
        if tensor.shape != empty.shape:
            raise UserError(f"{directory}: {theirs[0]} has shape {list(tensor.shape)}, config.json says {list(empty.shape)}")
        state[name] = tensor.to(device, dtype).contiguous()
    model.load_state_dict(state, assign=True)
    # A tied head may be stored twice, and old files hold constant masks and angles; anything else is arithmetic we lack.
    odd = [n for n in sorted(weights.unused) if not n.endswith(("lm_head.weight", "score.weight", "rotary_emb.inv_freq",
                                                                "attn.bias", "attn.masked_bias"))]
    if odd:
        raise UserError(f"{directory}: tensors that minicai does not know: {', '.join(odd[:3])} ({len(odd)} in all)")
    return model.requires_grad_(True), weights, raw


def load_model(directory, device="cpu", dtype=torch.float32, chat: str | None = None) -> tuple[GPT, Tokenizer]:
    """Model and tokenizer of a directory; `chat` overrides its chat format. Raises UserError for whatever is not right."""
    model, _, _ = load_trunk(directory, device, dtype)
    return model, Tokenizer.load(directory, chat)


def load_scalar(directory, device="cpu", dtype=torch.float32, chat: str | None = None) -> tuple[GPT, nn.Linear, Tokenizer]:
    """(trunk, head, tokenizer) of a preference model's directory; score = hidden . head + head.shift."""
    model, weights, raw = load_trunk(directory, device, dtype)
    if "score.weight" not in weights.index:
        raise UserError(f"{directory}: not a preference model (it has no score.weight)")
    head = nn.Linear(model.config.width, 1, bias=False)
    head.weight = nn.Parameter(weights.read("score.weight").to(device, dtype))
    head.shift = float(raw.get("minicai_score_shift", 0.0))
    return model, head, Tokenizer.load(directory, chat)


def their_tensors(model: GPT) -> dict[str, torch.Tensor]:
    """The state of a model under Hugging Face names and shapes."""
    c, out = model.config, {}
    gpt2 = c.positions == "learned"
    for name, tensor in model.state_dict().items():
        theirs = their_names(name, gpt2)
        sizes = [c.n_head * c.head_dim] + [c.n_kv_head * c.head_dim] * 2 if len(theirs) == 3 else [len(tensor)]
        for n, part in zip(theirs, tensor.split(sizes)):
            out[n] = (part.T if gpt2 and n.endswith(TRANSPOSED) else part).detach().cpu().contiguous().clone()
    return out


def write_directory(directory, tensors: dict, config: dict, tok: Tokenizer) -> None:
    """Write a whole directory beside the old one, then swap: a reader finds the old or the new, never a mixture."""
    directory = Path(directory)
    if directory.exists() and any(directory.iterdir()) and not (directory / "tokenizer.json").exists():
        raise UserError(f"{directory}: exists and is no model directory; it will not be overwritten")
    directory.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(dir=directory.parent, prefix=f".{directory.name}."))
    try:
        new.chmod(0o755)
        save_file(tensors, new / "model.safetensors", metadata={"format": "pt"})
        (new / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
        tok.save(new)
        for file in new.iterdir():
            with open(file, "rb") as f:
                os.fsync(f.fileno())                                      # the bytes first, then the name
        old = new.with_name(new.name + ".old")
        if directory.exists():
            os.replace(directory, old)
        os.replace(new, directory)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def save_model(directory, model: GPT, tok: Tokenizer) -> None:
    """Write a language model's directory; what was there is replaced at once."""
    dtype = str(model.head.dtype).removeprefix("torch.")
    write_directory(directory, their_tensors(model), write_config(model.config, tok) | {"torch_dtype": dtype}, tok)


def save_scalar(directory, model: GPT, head: nn.Linear, tok: Tokenizer, shift: float = 0.0) -> None:
    """Write a preference model's directory, as a sequence classifier with one label.

    transformers reads the score at the last token that is not padding and knows no shift: there, add minicai_score_shift.
    """
    tensors = their_tensors(model) | {"score.weight": head.weight.detach().cpu().clone()}
    tensors.pop("lm_head.weight", None)                                   # a classifier has none
    config = write_config(model.config, tok, "ForSequenceClassification")
    config |= {"num_labels": 1, "id2label": {"0": "score"}, "label2id": {"score": 0}, "minicai_score_shift": shift,
               "torch_dtype": str(head.weight.dtype).removeprefix("torch.")}
    write_directory(directory, tensors, config, tok)
