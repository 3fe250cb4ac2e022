"""Model directories in Hugging Face layout:
what is saved here opens in transformers, and the other way round.

A directory holds config.json, model.safetensors (or shards with an index) and the tokenizer's
files. Two tables translate: TENSORS (our parameter names <-> theirs) and CONFIG_KEYS (our GPTConfig
<-> their config.json), each for the Llama-like families and for GPT-2. A config that asks for
arithmetic which minicai does not know is refused by name: a model that runs but computes something
else is worse than none.
"""

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn as nn
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from minicai.gpt import GPT, GPTConfig
from minicai.run import UserError, refuse_stand_in
from minicai.state import beside, contents
from minicai.tokenizer import Tokenizer

# model_type -> how its class names begin.
FAMILIES = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3", "gpt2": "GPT2"}

# Our parameter, `#` the layer -> their tensors, stacked by rows into ours.
TENSORS = {
    "llama": {
        "embed.": ["model.embed_tokens."], "norm.": ["model.norm."], "unembed.": ["lm_head."],
        "blocks.#.norm1.": ["model.layers.#.input_layernorm."],
        "blocks.#.attn.qkv.": [f"model.layers.#.self_attn.{x}_proj." for x in "qkv"],
        "blocks.#.attn.q_norm.": ["model.layers.#.self_attn.q_norm."],
        "blocks.#.attn.k_norm.": ["model.layers.#.self_attn.k_norm."],
        "blocks.#.attn.out.": ["model.layers.#.self_attn.o_proj."],
        "blocks.#.norm2.": ["model.layers.#.post_attention_layernorm."],
        "blocks.#.mlp.gate.": ["model.layers.#.mlp.gate_proj."],
        "blocks.#.mlp.up.": ["model.layers.#.mlp.up_proj."],
        "blocks.#.mlp.down.": ["model.layers.#.mlp.down_proj."]},
    "gpt2": {
        "embed.": ["transformer.wte."], "pos_embed.": ["transformer.wpe."],
        "norm.": ["transformer.ln_f."],
        "unembed.": ["lm_head."], "blocks.#.norm1.": ["transformer.h.#.ln_1."],
        "blocks.#.attn.qkv.": ["transformer.h.#.attn.c_attn."],
        "blocks.#.attn.out.": ["transformer.h.#.attn.c_proj."],
        "blocks.#.norm2.": ["transformer.h.#.ln_2."],
        "blocks.#.mlp.up.": ["transformer.h.#.mlp.c_fc."],
        "blocks.#.mlp.down.": ["transformer.h.#.mlp.c_proj."]}}
TRANSPOSED = ("c_attn.weight", "c_proj.weight", "c_fc.weight")  # GPT-2 stores [in, out]
# Stored beside the weights by some: constant masks and angles; a head that is not a language
# model's. A head that should be tied is compared with the embedding first.
IGNORED_TENSORS = ("rotary_emb.inv_freq", "attn.bias", "attn.masked_bias", "lm_head.weight",
                   "score.weight")

# Our GPTConfig field -> their key.
CONFIG_KEYS = {
    "llama": {"vocab_size": "vocab_size", "n_layer": "num_hidden_layers",
              "n_head": "num_attention_heads", "n_kv_head": "num_key_value_heads",
              "head_dim": "head_dim", "width": "hidden_size", "mlp_width": "intermediate_size",
              "max_positions": "max_position_embeddings", "norm_eps": "rms_norm_eps"},
    "gpt2": {"vocab_size": "vocab_size", "n_layer": "n_layer", "n_head": "n_head",
             "width": "n_embd", "mlp_width": "n_inner", "max_positions": "n_positions",
             "norm_eps": "layer_norm_epsilon"}}
OPTIONAL = {"n_kv_head", "head_dim", "mlp_width"}
# Far above any model: larger numbers are mistakes, and some would take for ever to be found so.
MOST = dict.fromkeys(("n_layer", "n_head", "n_kv_head", "head_dim"), 2**12) | {"rope_theta": 2**60}
NORM_EPS = {"llama": 1e-6, "gpt2": 1e-5}        # transformers' defaults
# Keys that change the arithmetic, with the only value that minicai computes.
FIXED = {"hidden_act": "silu", "activation_function": "gelu_new", "scale_attn_weights": True,
         "scale_attn_by_inverse_layer_idx": False, "use_sliding_window": False,
         "add_cross_attention": False, "rope_interleaved": False, "partial_rotary_factor": 1.0,
         "quantization_config": None, "is_encoder_decoder": False, "pruned_heads": {},
         "is_causal": True}
# Keys that read_config looks at itself, and keys that change nothing here: ids (the tokenizer knows
# them), bookkeeping, how to sample. Any other key may say false or null: a switch that is off.
KNOWN = re.compile(r"tie_word_embeddings|attention_bias|mlp_bias|layer_types|rope_theta|"
                   r"rope_scaling|rope_parameters|architectures|model_type|(torch_)?dtype|"
                   r"transformers(_version|\.js_config)|_?name_or_path|.*_token_id|.*dropout|"
                   r".*pdrop|minicai_.*|"
                   r"use_cache|initializer_range|pretraining_tp|is_llama_config|sliding_window|"
                   r"max_window_layers|n_ctx|reorder_and_upcast_attn|task_specific_params|"
                   r"problem_type|_?num_labels|id2label|label2id|summary_.*|"
                   r"chunk_size_feed_forward|output_.*|return_dict|unsloth_.*|auto_map|"
                   r"_?attn_implementation.*|_flash_attn_2_enabled|_commit_hash|n_special|"
                   r"predict_special_tokens|gradient_checkpointing|is_decoder|prefix|"
                   r"finetuning_task|tokenizer_class|do_sample|temperature|top_[kp]|typical_p|"
                   r"(max|min)_length|num_beams|num_beam_groups|num_return_sequences|"
                   r"(repetition|length|diversity)_penalty|bad_words_ids|"
                   r"(encoder_)?no_repeat_ngram_size|early_stopping|begin_suppress_tokens|"
                   r"suppress_tokens|tie_encoder_decoder|use_bfloat16|torchscript|"
                   r"remove_invalid_values")


def read_config(directory) -> tuple[GPTConfig, dict]:
    """(our config, their config.json) of a model directory;
    raises UserError naming whatever minicai cannot compute."""
    path = Path(directory) / "config.json"
    if not Path(directory).is_dir():
        raise UserError(f"{directory}: no such model directory")
    refuse_stand_in(path)
    try:
        c = json.loads(path.read_text("utf-8-sig"))
        family = c["model_type"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: not a model's config.json ({type(error).__name__}: "
                        f"{error})") from None
    if not isinstance(family, str) or family not in FAMILIES:
        raise UserError(f"{path}: unknown architecture {family!r} (known: {', '.join(FAMILIES)})")
    keys = CONFIG_KEYS["gpt2" if family == "gpt2" else "llama"]
    for key, value in c.items():
        if key in FIXED and value not in (FIXED[key], None):
            raise UserError(f"{path}: {key} = {value!r} is not supported, only {FIXED[key]!r}")
        off = value is None or value is False
        if not off and key not in FIXED and key not in keys.values() and not KNOWN.fullmatch(key):
            raise UserError(f"{path}: unknown key {key!r} = {value!r}: "
                            "delete it if it does not change the arithmetic")
    layers = c.get("layer_types") or []
    if not isinstance(layers, list) or any(layer != "full_attention" for layer in layers):
        raise UserError(f"{path}: layer_types = {layers} is not supported, only full_attention")
    ours = {name: c.get(key) for name, key in keys.items()}
    if keys["norm_eps"] not in c:
        ours["norm_eps"] = NORM_EPS["gpt2" if family == "gpt2" else "llama"]
    for name, value in ours.items():
        if value is None and name not in OPTIONAL:
            raise UserError(f"{path}: the key {keys[name]!r} is missing")
        number = isinstance(value, float) if name == "norm_eps" else type(value) is int
        if value is not None and not (number and 0 < value <= MOST.get(name, 2**24)):
            what = "small number above 0" if name == "norm_eps" \
                else f"whole number above 0, at most {MOST.get(name, 2**24)}"
            raise UserError(f"{path}: {keys[name]} = {value!r:.40} must be a {what}")
    for name in ("tie_word_embeddings", "attention_bias", "mlp_bias"):
        if c.get(name) not in (None, True, False):
            raise UserError(f"{path}: {name} = {c[name]!r} must be true or false")
    heads, groups = ours["n_head"], ours.get("n_kv_head") or ours["n_head"]
    if heads % groups or not ours.get("head_dim") and ours["width"] % heads:
        raise UserError(f"{path}: {heads} heads divide neither into {groups} groups nor a "
                        f"width of {ours['width']}")
    # A scorer has no language head: whether it was tied no longer matters.
    tied = bool(c.get("tie_word_embeddings", family == "gpt2")) or is_scorer(c)
    if family == "gpt2":
        ours["mlp_width"] = ours["mlp_width"] or 4 * ours["width"]
        return GPTConfig(**ours, norm="layernorm", positions="learned", mlp="gelu", qkv_bias=True,
                         out_bias=True, mlp_bias=True, tied=tied), c
    if family == "qwen3" and ours["head_dim"] is None:
        ours["head_dim"] = 128  # transformers' default there
    theta, scaling = read_rope(c, ours["head_dim"] or ours["width"] // heads, path)
    # Llama and Qwen3 ask these keys, Qwen2 does not: it has a bias where it has one.
    bias = bool(c.get("attention_bias", False)) and family != "qwen2"
    return GPTConfig(**ours, rope_theta=theta, rope_scaling=scaling,
                     qkv_bias=bias or family == "qwen2", out_bias=bias,
                     mlp_bias=bool(c.get("mlp_bias", False)) and family == "llama",
                     qk_norm=family == "qwen3", tied=tied), c


def is_scorer(c: dict) -> bool:
    """Whether a config.json is that of a classifier: it has no language head."""
    return "SequenceClassification" in str(c.get("architectures"))


def read_rope(c: dict, head_dim: int, path) -> tuple[float, dict | None]:
    """(theta, Llama-3 scaling or None); transformers 5 writes one dict,
    transformers 4 a number and a dict."""
    if head_dim % 2:
        raise UserError(f"{path}: a head_dim of {head_dim} must be even: dimensions turn in pairs")
    found = []
    for key in ("rope_parameters", "rope_scaling"):
        rope = c.get(key) or {}
        if not isinstance(rope, dict):
            raise UserError(f"{path}: {key} = {rope!r} must be an object or null")
        kinds = [rope[name] for name in ("rope_type", "type") if name in rope] or ["default"]
        rest = {name: value for name, value in rope.items() if name not in ("rope_type", "type")}
        found += ([({"rope_theta": c.get("rope_theta", 10000.0)} | rest, kinds)]
                  if key in c and c[key] else [])
    if len(found) == 2 and found[0] != found[1] or len(found) and c.get("rope_theta") not in (
            None, found[0][0]["rope_theta"]):
        raise UserError(f"{path}: rope_theta, rope_parameters and rope_scaling contradict "
                        "each other: keep one")
    rope, kinds = found[0] if found else ({"rope_theta": c.get("rope_theta", 10000.0)}, ["default"])
    wrong = [name for name, value in rope.items()
             if type(value) not in (int, float) or not 0 < value < 2**60]
    theta = rope.pop("rope_theta")
    if rope.get("partial_rotary_factor") == 1:
        del rope["partial_rotary_factor"]
    if all(kind == "default" for kind in kinds) and not wrong and not rope:
        return float(theta), None
    wanted = {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}
    if (any(kind != "llama3" for kind in kinds) or set(rope) != wanted or wrong
            or rope["low_freq_factor"] >= rope["high_freq_factor"]):
        raise UserError(f"{path}: rope type {kinds[0]!r}, theta {theta!r} with {rope} is not "
                        f"supported, only default and llama3 with {sorted(wanted)}, "
                        "all of them numbers above 0, low below high")
    return float(theta), rope


def their_config(config: GPTConfig, tok: Tokenizer, task: str, dtype: torch.dtype) -> dict:
    """The config.json of a model; its family follows from what it computes."""
    family = ("gpt2" if config.positions == "learned" else "qwen3" if config.qk_norm
              else "qwen2" if config.qkv_bias and not config.out_bias else "llama")
    keys = CONFIG_KEYS["gpt2" if family == "gpt2" else "llama"]
    name = ("GPT2LMHeadModel" if (family, task) == ("gpt2", "ForCausalLM")
            else FAMILIES[family] + task)
    c = {"architectures": [name], "model_type": family,
         "torch_dtype": str(dtype).removeprefix("torch."),
         **{key: getattr(config, name) for name, key in keys.items()},
         "tie_word_embeddings": config.tied, "eos_token_id": tok.end, "pad_token_id": tok.pad,
         "bos_token_id": tok.bos[0] if tok.bos else None}
    if family == "gpt2":
        return c | {"activation_function": "gelu_new"}
    if family == "llama":
        c["mlp_bias"] = config.mlp_bias
    return c | {"hidden_act": "silu", "attention_bias": config.out_bias,
                "rope_theta": config.rope_theta, "rope_scaling":
                config.rope_scaling and {"rope_type": "llama3", **config.rope_scaling}}


def their_names(config: GPTConfig, name: str) -> list[str]:
    """The Hugging Face tensors behind one of our parameters."""
    layer = re.search(r"\d+|$", name)[0]
    stem, kind = re.fullmatch(r"(.*\.)(weight|bias)",
                              name.replace(f".{layer}.", ".#.") if layer else name).groups()
    return [n.replace("#", layer) + kind
            for n in TENSORS["gpt2" if config.positions == "learned" else "llama"][stem]]


def part_sizes(config: GPTConfig, tensor, names: list) -> list[int]:
    """How many rows of our parameter `tensor` each of the Hugging Face tensors `names` holds."""
    c = config
    return ([c.n_head * c.head_dim] + [c.n_kv_head * c.head_dim] * 2 if len(names) == 3
            else [len(tensor)])


def open_weights(directory) -> dict:
    """{tensor name: the open safetensors file that holds it}; nothing is read yet."""
    index = Path(directory) / "model.safetensors.index.json"
    names = ["model.safetensors"]
    # One whole file goes before an index of parts, which may be older: transformers chooses so.
    if index.is_file() and not index.with_name(names[0]).is_file():
        refuse_stand_in(index)
        try:
            parts = json.loads(index.read_text("utf-8"))["weight_map"].values()
            names = sorted({str(Path(part)) for part in parts})
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise UserError(f"{index}: not an index of weights ({type(error).__name__}: "
                            f"{error})") from None
    where = {}
    for path in (Path(directory) / name for name in names):
        if not path.is_file():
            raise UserError(f"{path}: no such file (minicai reads safetensors only)")
        refuse_stand_in(path)
        try:
            file = safe_open(path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: damaged or not a safetensors file ({error})") from None
        where.update(dict.fromkeys(file.keys(), file))
    return where


def load_trunk(directory, device="cpu", dtype="fp32") -> tuple[GPT, dict, dict]:
    """(model, open_weights, config.json) of a directory;
    weights are float32, dtype "bf16" is that of the products.

    device "meta" reads and checks all of it and keeps none."""
    config, raw = read_config(directory)
    contents(directory)  # are these the bytes that were written?
    where, used, state = open_weights(directory), set(), {}
    if config.n_layer > len(where):                                 # before they are all made
        raise UserError(f"{directory}: config.json says {config.n_layer} layers, the weights have "
                        f"{len(where)} tensors")
    with torch.device("meta"):  # no time lost on weights to be replaced
        model = GPT(config)
    for name, empty in model.state_dict().items():
        parts, names = [], their_names(config, name)
        for theirs, rows in zip(names, part_sizes(config, empty, names)):
            # GPT-2's own file lacks the prefix; safetensors' save_model keeps a table that two
            # share under one name, and that may be the head's.
            spellings = [theirs, theirs.partition(".")[2]]
            spellings += ["lm_head.weight"] * (name == "embed.weight" and config.tied)
            found = next((spelling for spelling in spellings if spelling in where), None)
            if found is None:
                raise UserError(f"{directory}: the tensor {theirs} is missing")
            part = where[found].get_tensor(found)
            parts.append(part.T if config.positions == "learned" and theirs.endswith(TRANSPOSED)
                         else part)
            used.add(found)
            if parts[-1].shape != (rows, *empty.shape[1:]) or not part.is_floating_point():
                raise UserError(f"{directory}: {theirs} has shape {list(parts[-1].shape)} of "
                                f"{part.dtype}, config.json means {[rows, *empty.shape[1:]]} of "
                                "floats")
        tensor = torch.cat([part.float() for part in parts])
        if name == "embed.weight" and config.tied and not is_scorer(raw) \
                and "lm_head.weight" in where and not torch.equal(
                    where["lm_head.weight"].get_tensor("lm_head.weight").float(), tensor):
            raise UserError(f"{directory}: lm_head.weight is not the embedding, "
                            "though tie_word_embeddings says so: "
                            "set it to false in config.json if the head is meant")
        state[name] = tensor.to(device, torch.float32).contiguous()
        if not tensor.isfinite().all():
            raise UserError(f"{directory}: {theirs} holds numbers that are not finite: "
                            "a damaged or diverged model")
    odd = [n for n in sorted(set(where) - used) if not n.endswith(IGNORED_TENSORS)]
    if odd:
        raise UserError(f"{directory}: tensors that minicai does not know: {', '.join(odd[:3])} "
                        f"({len(odd)} in all)")
    model.load_state_dict(state, assign=True)
    model.bf16, model.recording = dtype == "bf16", torch.device(device).type == "cuda"
    return model.requires_grad_(True), where, raw


def refuse_scorer(directory) -> None:
    """Raise UserError where a directory holds no language model."""
    kind = str(read_config(directory)[1].get("architectures"))         # ["LlamaForCausalLM"], say
    if ("For" in kind and "ForCausalLM" not in kind
            or "score.weight" in open_weights(directory)):
        raise UserError(f"{directory}: a classifier or preference model; "
                        "a language model is needed here")


def load_model(directory, device="cpu", dtype="fp32",
               chat: str | None = None) -> tuple[GPT, Tokenizer]:
    """Model and tokenizer of a directory; `chat` overrides its chat format.
    Raises UserError for what is not right."""
    refuse_scorer(directory)
    return load_trunk(directory, device, dtype)[0], Tokenizer.load(directory, chat)


def load_scalar(directory, device="cpu", dtype="fp32") -> tuple[GPT, nn.Linear, float, Tokenizer]:
    """(trunk, head, shift, tokenizer) of a preference model's directory;
    a score is hidden . head + shift."""
    model, where, raw = load_trunk(directory, device, dtype)
    weight = where["score.weight"].get_tensor("score.weight") if "score.weight" in where else None
    if weight is None or weight.shape != (1, model.config.width):
        raise UserError(f"{directory}: not a preference model "
                        "(it needs a score.weight for one label)")
    shift = raw.get("minicai_score_shift", 0.0)
    if not weight.isfinite().all() or type(shift) not in (int, float) or not math.isfinite(shift):
        raise UserError(f"{directory}: score.weight or minicai_score_shift is no finite number")
    head = nn.Linear(model.config.width, 1, bias=False)
    head.weight = nn.Parameter(weight.to(device, torch.float32))
    return model, head, float(shift), Tokenizer.load(directory)


def their_tensors(model: GPT) -> dict[str, torch.Tensor]:
    """The weights of a model under Hugging Face names and shapes."""
    c, out = model.config, {}
    for name, tensor in model.state_dict().items():
        names = their_names(c, name)
        for n, part in zip(names, tensor.split(part_sizes(c, tensor, names))):
            part = part.T if c.positions == "learned" and n.endswith(TRANSPOSED) else part
            out[n] = part.cpu().clone(memory_format=torch.contiguous_format)
    return out


def write_directory(directory, tensors: dict, config: dict, tok: Tokenizer,
                    made: dict | None = None, **fields) -> None:
    """Write a whole directory beside the old one, then swap:
    a reader finds the old or the new, never a mixture. fields: of tokenizer_config.json."""
    with beside(directory, sum(tensor.nbytes for tensor in tensors.values()), made) as new:
        save_file(tensors, new / "model.safetensors", metadata={"format": "pt"})
        (new / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
        tok.save(new, **fields)


def save_model(directory, model: GPT, tok: Tokenizer, made: dict | None = None) -> None:
    """Write a language model's directory; what was there is replaced at once.
    made: what made it, for its manifest."""
    config = their_config(model.config, tok, "ForCausalLM", model.head.dtype)
    write_directory(directory, their_tensors(model), config, tok, made)


def save_scalar(directory, model: GPT, head: nn.Linear, tok: Tokenizer, shift: float = 0.0,
                made: dict | None = None) -> None:
    """Write a preference model's directory, as a sequence classifier with one label.

    transformers reads the score at the last id that is not pad_token_id, and knows no shift:
    add minicai_score_shift.
    """
    tensors = their_tensors(model) | {"score.weight": head.weight.detach().cpu().clone()}
    tensors.pop("lm_head.weight", None)
    config = their_config(replace(model.config, tied=True), tok, "ForSequenceClassification",
                          head.weight.dtype)
    config |= {"num_labels": 1, "id2label": {"0": "score"}, "label2id": {"score": 0},
               "minicai_score_shift": shift}
    # transformers' GPT-2 counts positions from the left edge, padding or not.
    write_directory(directory, tensors, config, tok, made, padding_side="right")
