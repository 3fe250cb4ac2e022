"""A GGUF file, as local runners keep them, to a model directory: `python -m minicai.gguf FILE OUT`.

One file holds weights (often quantised), the shape, the vocabulary and the chat template; the
`gguf` package (`pip install gguf`) unpacks whatever type the weights have. What llama.cpp's
converter changed is put back: in the llama architecture the rows of queries and keys were reordered
so that the two dimensions that turn together are neighbours. Llama, Qwen2, Qwen3 and GPT-2 are
read; what cannot be computed here is refused by name.
"""
import json
import tempfile
from pathlib import Path

import torch

from minicai.checkpoint import MOST, save_model
from minicai.gpt import GPT, GPTConfig, rope_frequencies
from minicai.run import Parser, UserError, friendly_main, path
from minicai.state import read_manifest, refuse_foreign, refuse_overlap
from minicai.tokenizer import GPT2, LLAMA3, QWEN, SMOLLM2, Tokenizer

# Our parameter, `#` the layer -> their tensors, stacked by rows into ours.
TENSORS = {"embed.": ["token_embd."], "pos_embed.": ["position_embd."], "norm.": ["output_norm."],
           "unembed.": ["output."], "blocks.#.norm1.": ["blk.#.attn_norm."],
           "blocks.#.attn.qkv.": ["blk.#.attn_q.", "blk.#.attn_k.", "blk.#.attn_v."],
           "blocks.#.attn.q_norm.": ["blk.#.attn_q_norm."],
           "blocks.#.attn.k_norm.": ["blk.#.attn_k_norm."],
           "blocks.#.attn.out.": ["blk.#.attn_output."], "blocks.#.norm2.": ["blk.#.ffn_norm."],
           "blocks.#.mlp.gate.": ["blk.#.ffn_gate."], "blocks.#.mlp.up.": ["blk.#.ffn_up."],
           "blocks.#.mlp.down.": ["blk.#.ffn_down."]}
# Our GPTConfig field -> their key behind the architecture's name.
KEYS = {"n_layer": "block_count", "n_head": "attention.head_count",
        "n_kv_head": "attention.head_count_kv", "head_dim": "attention.key_length",
        "width": "embedding_length", "mlp_width": "feed_forward_length",
        "max_positions": "context_length", "rope_theta": "rope.freq_base"}
# Looked at or without effect; any other key of the architecture must be zero, false or empty.
KNOWN = {*KEYS.values(), "attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon",
         "vocab_size", "rope.dimension_count", "attention.value_length", "rope.scaling.type"}
CAUSAL = "attention.causal"  # the other way round: false means that every position sees all others
# How the file calls the way its vocabulary cuts words.
SPLITS = {"gpt-2": GPT2, "smollm": SMOLLM2, "qwen2": QWEN, "llama-bpe": LLAMA3, "llama3": LLAMA3,
          "llama-v3": LLAMA3}
LLAMA3_SCALINGS = [{"factor": float(factor), "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 8192} for factor in (8, 16, 32)]
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4                                     # kinds of token


def read_gguf(path) -> tuple[GPT, dict, dict]:
    """(model in float32, tokenizer.json, tokenizer_config.json) of a GGUF file;
    raises UserError for what it lacks."""
    try:
        from gguf import GGUFReader
        from gguf.quants import dequantize
    except ImportError:
        raise UserError("reading GGUF files needs one more package: pip install gguf") from None
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file")
    try:
        reader = GGUFReader(path)
        fields = {name: field.contents() for name, field in reader.fields.items()}
    except (ValueError, LookupError, OSError, TypeError) as error:
        raise UserError(f"{path}: damaged or not a GGUF file ({type(error).__name__}: "
                        f"{error})") from None
    stored = {tensor.name: tensor for tensor in reader.tensors}

    def tensor(name):
        if name not in stored:
            raise UserError(f"{path}: the tensor {name} is missing")
        found = stored.pop(name)
        try:
            # the copy lets go of the file, which the reader maps into memory
            return torch.tensor(dequantize(found.data, found.tensor_type), dtype=torch.float32)
        except (ValueError, NotImplementedError, KeyError) as error:
            raise UserError(f"{path}: {name} of type {found.tensor_type.name} cannot be unpacked "
                            f"({error})") from None
    config = read_shape(fields, stored, tensor, path)
    model = fill(config, fields["general.architecture"] == "llama", tensor, path)
    if stored:
        raise UserError(f"{path}: tensors that minicai does not know: "
                        f"{', '.join(sorted(stored)[:3])}")
    return model, *read_vocabulary(fields, path)


def read_shape(fields: dict, stored: dict, tensor, path) -> GPTConfig:
    """Our config of a file's fields and the names of its tensors;
    raises UserError for other arithmetic."""
    family = fields.get("general.architecture")
    if family not in ("llama", "qwen2", "qwen3", "gpt2"):
        raise UserError(f"{path}: architecture {family!r} is not supported, only llama, qwen2, "
                        "qwen3, gpt2")
    theirs = {key.removeprefix(f"{family}."): value for key, value in fields.items()
              if key.startswith(f"{family}.")}
    odd = {key: value for key, value in theirs.items()
           if (not value if key == CAUSAL else value and key not in KNOWN)}
    whole = fields.get("split.count", 1) in (0, 1)
    if theirs.get("rope.scaling.type", "none") != "none" or odd or not whole:
        raise UserError(
            f"{path}: {odd or 'rope scaling or a file in several parts'} is not supported")
    ours = {name: theirs[key] for name, key in KEYS.items() if key in theirs}
    eps = theirs.get("attention.layer_norm_rms_epsilon", theirs.get("attention.layer_norm_epsilon"))
    missing = [KEYS[name] for name in ("n_layer", "n_head", "width", "mlp_width", "max_positions")
               if name not in ours]
    kind = lambda name: float if name in ("eps", "rope_theta") else int
    if missing or not all(type(value) is kind(name) and 0 < value <= MOST.get(name, 2**24)
                          for name, value in (ours | {"eps": eps}).items()):
        raise UserError(f"{path}: {(missing or ['a number'])[0]} is missing or not one "
                        "sensible number above 0 for all layers")
    if "token_embd.weight" not in stored:
        raise UserError(f"{path}: the tensor token_embd.weight is missing")
    has = lambda name: f"blk.0.{name}" in stored
    ours |= {"vocab_size": int(stored["token_embd.weight"].shape[-1]),
             "tied": "output.weight" not in stored, "norm_eps": float(f"{eps:.6g}"),
             "qkv_bias": has("attn_q.bias") or has("attn_qkv.bias"),
             "out_bias": has("attn_output.bias"), "mlp_bias": has("ffn_up.bias"),
             "qk_norm": has("attn_q_norm.weight")}
    if family == "gpt2":
        ours |= {"norm": "layernorm", "positions": "learned", "mlp": "gelu"}
    config = GPTConfig(**ours)
    turned = theirs.get("rope.dimension_count", config.head_dim)
    if family != "gpt2" and (turned != config.head_dim or turned % 2):
        raise UserError(f"{path}: rotary positions on {turned} of the {config.head_dim} dimensions "
                        "of a head are not supported")
    # Llama 3.1 and later: what each pair of dimensions is slowed by
    if "rope_freqs.weight" in stored:
        slowed, plain = tensor("rope_freqs.weight"), rope_frequencies(config)
        for scaling in LLAMA3_SCALINGS:
            config = GPTConfig(**ours, rope_scaling=scaling)
            meant = rope_frequencies(config)
            if slowed.shape == plain.shape and torch.allclose(plain / slowed, meant, rtol=1e-4):
                return config
        raise UserError(f"{path}: rope_freqs.weight is not Llama 3.1's scaling with a factor of 8, "
                        "16 or 32")
    return config


def fill(config: GPTConfig, reordered: bool, tensor, path) -> GPT:
    """A model with the weights that `tensor(name)` gives;
    `reordered`: rows of q and k are llama.cpp's."""
    with torch.device("meta"):
        model = GPT(config)
    state = {}
    for name, empty in model.state_dict().items():
        layer = name.split(".")[1] if name.startswith("blocks.") else ""
        stem, kind = name.replace(f".{layer}.", ".#.", bool(layer)).rsplit(".", 1)
        names = [n.replace("#", layer) + kind for n in TENSORS[stem + "."]]
        if config.positions == "learned" and len(names) == 3:
            names = [f"blk.{layer}.attn_qkv.{kind}"]                        # GPT-2's three are one
        parts = [tensor(n) for n in names]
        heads = (config.n_head, config.n_kv_head)
        # What has another number of rows is refused below, by its shape.
        if reordered and len(names) == 3 and all(len(rows) == n * config.head_dim
                                                 for rows, n in zip(parts, heads)):
            parts[:2] = [in_halves(rows, n) for rows, n in zip(parts, heads)]
        state[name] = torch.cat(parts)
        if state[name].shape != empty.shape or not state[name].isfinite().all():
            raise UserError(f"{path}: {names[0]} has shape {list(state[name].shape)}, "
                            f"meant is {list(empty.shape)}, or holds numbers that are not finite")
    model.load_state_dict(state, assign=True)
    return model


def in_halves(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows [H * D, ...] of q or k from llama.cpp's order (the two that turn together side by side)
    to ours: first halves, then second halves of each head."""
    pairs = rows.reshape(heads, -1, 2, *rows.shape[1:])                     # [H, D/2, 2, ...]
    return pairs.transpose(1, 2).reshape(rows.shape)


def read_vocabulary(fields: dict, path) -> tuple[dict, dict]:
    """(tokenizer.json, tokenizer_config.json) of a file's fields;
    raises UserError for other kinds of tokenizer."""
    get = lambda key, default=None: fields.get(f"tokenizer.{key}", default)
    if get("ggml.model") != "gpt2" or get("ggml.pre") not in SPLITS:
        raise UserError(f"{path}: a tokenizer of kind {get('ggml.model')!r}, "
                        f"{get('ggml.pre')!r} is not supported, "
                        f"only 'gpt2' with one of {sorted(SPLITS)}")
    words, pattern = get("ggml.tokens"), SPLITS[get("ggml.pre")]
    if not words or get("ggml.merges") is None:
        raise UserError(f"{path}: tokenizer.ggml.tokens or tokenizer.ggml.merges is missing")
    kinds = get("ggml.token_type", [NORMAL] * len(words))
    if len(kinds) != len(words):
        raise UserError(f"{path}: {len(words)} tokens of {len(kinds)} kinds")
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
                  "use_regex": True}
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated",
             "invert": False}
    digits = {"type": "Digits", "individual_digits": True}
    steps = {GPT2: [], SMOLLM2: [digits]}.get(pattern, [split])
    steps = [*steps, byte_level | {"use_regex": split not in steps}]
    added = [{"id": i, "content": word, "single_word": False, "lstrip": False, "rstrip": False,
              "normalized": False, "special": kind == CONTROL}
             for i, (word, kind) in enumerate(zip(words, kinds)) if kind in (CONTROL, USER_DEFINED)]
    spec = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
            "normalizer": {"type": "NFC"} if pattern == QWEN else None,
            "pre_tokenizer": (steps[0] if len(steps) == 1
                              else {"type": "Sequence", "pretokenizers": steps}),
            "post_processor": byte_level, "decoder": byte_level,
            "model": {"type": "BPE", "dropout": None, "unk_token": None,
                      "continuing_subword_prefix": None, "end_of_word_suffix": None,
                      "fuse_unk": False, "byte_fallback": False,
                      "ignore_merges": pattern == LLAMA3, "merges": get("ggml.merges"),
                      # words of other kinds pad the table
                      "vocab": {word: i for i, (word, kind) in enumerate(zip(words, kinds))
                                if kind in (NORMAL, CONTROL, USER_DEFINED)}}}
    ids = {name: get(f"ggml.{name}_token_id") for name in ("bos", "eos", "padding", "unknown")}
    if not all(i is None or type(i) is int and 0 <= i < len(words) for i in ids.values()):
        raise UserError(f"{path}: special tokens {ids} beyond the vocabulary of {len(words)}")
    if get("ggml.add_bos_token", pattern == LLAMA3) and ids["bos"] is not None:
        bos = words[ids["bos"]]
        spec["post_processor"] = {"type": "TemplateProcessing", "single": [
            {"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}},
                     {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {bos: {"id": bos, "ids": [ids["bos"]], "tokens": [bos]}}}
    names = {"bos": "bos_token", "eos": "eos_token", "padding": "pad_token", "unknown": "unk_token"}
    config = {key: words[ids[name]] for name, key in names.items() if ids[name] is not None}
    config |= {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    return spec, config | ({"chat_template": get("chat_template")} if get("chat_template") else {})


@friendly_main
def main(argv: list[str] | None = None) -> None:
    """Read the file, write the directory."""
    parser = Parser(__doc__, "python -m minicai.gguf")
    parser.add_argument("file", type=path,
                        help="GGUF file of a llama, qwen2, qwen3 or gpt2 model, quantised or not")
    parser.add_argument("out", type=path, help="model directory to write, in float32")
    parser.add_argument("--chat", choices=["plain", "chatml", "llama3"],
                        help="chat format, if the file names none")
    args = parser.parse_args(argv)
    refuse_overlap(args.out.parent, {"FILE": args.file}, [args.out.name])
    refuse_foreign(args.out)
    if made := (read_manifest(args.out) or {}).get("made"):
        raise UserError(f"{args.out}: a model that {made.get('command', 'a run')!r:.60} has made; "
                        "give another folder")
    model, spec, config = read_gguf(args.file)
    with tempfile.TemporaryDirectory() as folder:
        for name, content in (("tokenizer.json", spec), ("tokenizer_config.json", config)):
            (Path(folder) / name).write_text(json.dumps(content, ensure_ascii=False), "utf-8")
        try:
            tok = Tokenizer.load(folder, args.chat)
        except UserError as error:      # the file that people know is the GGUF
            said = str(error).replace(f"{folder}/tokenizer.json", str(args.file))
            raise UserError(said) from None
    if tok.n_vocab > model.config.vocab_size:
        raise UserError(f"{args.file}: {tok.n_vocab} tokens, "
                        f"but {model.config.vocab_size} rows of weights")
    save_model(args.out, model, tok)
    count = sum(p.numel() for p in model.parameters())
    print(f"{args.file}: {count / 1e6:.1f}M parameters, {tok.n_vocab} tokens, "
          f"chat format {tok.chat} -> {args.out}")


if __name__ == "__main__":
    main()
