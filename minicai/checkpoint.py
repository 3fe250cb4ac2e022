"""Model directories in Hugging Face layout: what is saved here opens in transformers, and the other way round."""

import json
import os
import shutil
import tempfile
from pathlib import Path

import torch
import torch.nn as nn
from safetensors.torch import load_file, save_file

from minicai.gpt import GPT, GPTConfig
from minicai.run import UserError
from minicai.tokenizer import Tokenizer

# Our parameter <- the Hugging Face tensors it is stacked from (rows).
LLAMA = {
    "embed.weight": ["model.embed_tokens.weight"],
    "norm.weight": ["model.norm.weight"],
    "unembed.weight": ["lm_head.weight"],
    "blocks.#.norm1.weight": ["model.layers.#.input_layernorm.weight"],
    "blocks.#.norm2.weight": ["model.layers.#.post_attention_layernorm.weight"],
    "blocks.#.attn.qkv.weight": [f"model.layers.#.self_attn.{x}_proj.weight" for x in "qkv"],
    "blocks.#.attn.out.weight": ["model.layers.#.self_attn.o_proj.weight"],
    "blocks.#.mlp.gate.weight": ["model.layers.#.mlp.gate_proj.weight"],
    "blocks.#.mlp.up.weight": ["model.layers.#.mlp.up_proj.weight"],
    "blocks.#.mlp.down.weight": ["model.layers.#.mlp.down_proj.weight"],
}


def names_of(name: str) -> list[str]:
    number = next((p for p in name.split(".") if p.isdigit()), "")
    return [n.replace("#", number) for n in LLAMA[name.replace(f".{number}.", ".#.") if number else name]]


def row_sizes(config: GPTConfig, name: str) -> list[int] | None:
    if ".attn.qkv." in name:
        return [n * config.head_dim for n in (config.n_head, config.n_kv_head, config.n_kv_head)]
    return None


def read_config(directory) -> tuple[GPTConfig, dict]:
    path = Path(directory) / "config.json"
    if not path.is_file():
        raise UserError(f"{path}: no such file; is {directory} a model directory?")
    c = json.loads(path.read_text("utf-8"))
    rope = c.get("rope_parameters") or {}
    return GPTConfig(
        vocab_size=c["vocab_size"], n_layer=c["num_hidden_layers"], n_head=c["num_attention_heads"],
        n_kv_head=c.get("num_key_value_heads"), head_dim=c.get("head_dim"), width=c["hidden_size"],
        mlp_width=c["intermediate_size"], max_positions=c["max_position_embeddings"], norm_eps=c["rms_norm_eps"],
        rope_theta=c.get("rope_theta") or rope.get("rope_theta", 10000.0), tied=c.get("tie_word_embeddings", False)), c


def write_config(config: GPTConfig, tok: Tokenizer, **extra) -> dict:
    return {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": config.vocab_size,
            "hidden_size": config.width, "intermediate_size": config.mlp_width, "num_hidden_layers": config.n_layer,
            "num_attention_heads": config.n_head, "num_key_value_heads": config.n_kv_head, "head_dim": config.head_dim,
            "max_position_embeddings": config.max_positions, "rms_norm_eps": config.norm_eps,
            "rope_theta": config.rope_theta, "rope_scaling": config.rope_scaling, "hidden_act": "silu",
            "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": config.tied, "torch_dtype": "float32",
            "bos_token_id": tok.bos[0], "eos_token_id": tok.end, "pad_token_id": tok.pad, **extra}


def load_trunk(directory, device, dtype) -> tuple[GPT, dict, dict]:
    if not Path(directory).is_dir():
        raise UserError(f"{directory}: no such model directory")
    config, raw = read_config(directory)
    file = Path(directory) / "model.safetensors"
    if not file.is_file():
        raise UserError(f"{file}: no such file")
    stored = load_file(file)
    with torch.device("meta"):
        model = GPT(config)
    model.freq = GPT(GPTConfig(n_layer=0, width=config.width, n_head=config.n_head, head_dim=config.head_dim,
                               rope_theta=config.rope_theta, vocab_size=1)).freq
    try:
        state = {name: torch.cat([stored.pop(n) for n in names_of(name)]).to(dtype) for name in model.state_dict()}
    except KeyError as e:
        raise UserError(f"{file}: tensor {e.args[0]} is missing") from None
    model.load_state_dict(state, assign=True)
    for p in model.parameters():
        p.requires_grad_(True)
    return model.to(device), stored, raw


def load_model(directory, device="cpu", dtype=torch.float32) -> tuple[GPT, Tokenizer]:
    """Model and tokenizer of a directory."""
    model, _, _ = load_trunk(directory, device, dtype)
    return model, Tokenizer.load(directory)


def load_scalar(directory, device="cpu", dtype=torch.float32) -> tuple[GPT, nn.Linear, Tokenizer]:
    """Trunk, scalar head and tokenizer of a preference model's directory."""
    model, rest, raw = load_trunk(directory, device, dtype)
    head = nn.Linear(model.config.width, 1, bias=False)
    if "score.weight" not in rest:
        raise UserError(f"{directory}: not a preference model (no score.weight)")
    head.weight.data = rest["score.weight"].to(dtype)
    head.shift = float(raw.get("minicai_score_shift", 0.0))
    return model, head.to(device), Tokenizer.load(directory)


def to_hugging_face(model: GPT) -> dict[str, torch.Tensor]:
    out = {}
    for name, p in model.state_dict().items():
        parts = p.split(sizes) if (sizes := row_sizes(model.config, name)) else [p]
        for n, part in zip(names_of(name), parts, strict=True):
            out[n] = part.detach().cpu().contiguous().clone()
    return out


def write_directory(directory, tensors: dict, config: dict, tok: Tokenizer) -> None:
    directory = Path(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=directory.parent, prefix=f".{directory.name}."))
    save_file(tensors, temporary / "model.safetensors", metadata={"format": "pt"})
    for name, content in (("config.json", config), ("tokenizer.json", tok.spec), ("tokenizer_config.json", tok.config)):
        (temporary / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")
    if directory.exists():
        shutil.rmtree(directory)
    os.replace(temporary, directory)


def save_model(directory, model: GPT, tok: Tokenizer) -> None:
    """Write a causal language model's directory."""
    write_directory(directory, to_hugging_face(model), write_config(model.config, tok), tok)


def save_scalar(directory, model: GPT, head: nn.Linear, tok: Tokenizer, shift: float = 0.0) -> None:
    """Write a preference model's directory: score = hidden . head + shift."""
    tensors = to_hugging_face(model) | {"score.weight": head.weight.detach().cpu().clone()}
    tensors.pop("lm_head.weight", None)
    config = write_config(model.config, tok, architectures=["LlamaForSequenceClassification"], num_labels=1,
                          id2label={"0": "SCORE"}, label2id={"SCORE": 0}, minicai_score_shift=shift)
    write_directory(directory, tensors, config, tok)
