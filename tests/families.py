"""Tiny random models of every family, written by transformers,
with tokenizers shaped like the real ones."""
import json
import random

import pytest

from minicai.tokenizer import byte_alphabet

FAMILIES = ["gpt2", "llama3", "qwen2", "qwen3", "smollm2"]

CHATML = ("{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
          "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
LLAMA3 = ("{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}"
          "<|end_header_id|>\n\n{{ m.content }}<|eot_id|>{% endfor %}{% if add_generation_prompt %}"
          "<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}")
SMOLLM2 = ("{% for m in messages %}{% if loop.first and messages[0].role != 'system' %}"
           "<|im_start|>system\nYou are a vendor's model.<|im_end|>\n{% endif %}"
           "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
           "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
# The answer that nothing follows is shown with its (empty) thought, those before it without.
QWEN3 = ("{% for m in messages %}<|im_start|>{{ m.role }}\n"
         "{% if loop.last and m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
         "{{ m.content }}<|im_end|>\n{% endfor %}"
         "{% if add_generation_prompt %}<|im_start|>assistant\n"
         "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n"
         "{% endif %}{% endif %}")
# Written down from the published tokenizers: the regular expressions are theirs, not minicai's
# constants.
LLAMA3_SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
                r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN_SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
              r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
SPECIAL = {"gpt2": ["<|endoftext|>"],
           "llama3": ["<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad_id|>",
                      "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
           "qwen2": ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>"],
           "qwen3": ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"],
           "smollm2": ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>"]}
CONFIG = {"gpt2": {}, "llama3": {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>",
                                 "chat_template": LLAMA3},
          "qwen2": {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>",
                    "chat_template": CHATML},
          "qwen3": {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>",
                    "chat_template": QWEN3},
          "smollm2": {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>",
                      "pad_token": "<|im_end|>", "chat_template": SMOLLM2}}

# of the real SmolLM2
LOST, NO_UTF8 = "\x04\x06\x13\x14\x16\x1d", (0xF1, 0xF2, 0xC0, 0xC1, *range(0xF5, 256))
WORDS = ["the", "The", " cat", " sat", "naïve", " don't", "'LL", "it's", "été",
         " 東京", "日本語", "мир",
         " 12", "345", "6", "\n", "\n\n", "  ", "\t", "\r\n", "   ", "!", "?!", "...", " (A)", "$%",
         "😀", "👩‍👩‍👧", "e\u0301", "\u00a0", "\u2028", "\u3000",
         "<|im_end|>", "<|endoftext|>", "\n\nHuman:", "\n\nAssistant: ", "def f(x):\n    return x",
         "'", "ſ", "Ⅷ", "²", "०१", "\x00", "\x7f", "\x04", "!\x06!", " \x1d", "\U00050000"]


def fuzz(count, seed=0):
    """Strings of words, spaces, digits, scripts and oddities that byte-level tokenizers differ
    on."""
    rng = random.Random(seed)
    letters = [chr(rng.choice([rng.randrange(32, 127), rng.randrange(0xA0, 0x600),
                               rng.randrange(0x3040, 0x3100), rng.randrange(0x1F300, 0x1F650),
                               rng.randrange(1, 0xD800)])) for _ in range(4000)]
    return ["".join(rng.choice(WORDS) if rng.random() < 0.6 else rng.choice(letters)
                    for _ in range(rng.randrange(1, 16)))
            for _ in range(count)]


def make_tokenizer(family, folder):
    """Train and write a small tokenizer of this family's shape;
    returns the `tokenizers` object without added tokens."""
    tokenizers = pytest.importorskip("tokenizers")
    from tokenizers import (
        AddedToken,
        Regex,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
        trainers,
    )
    hf = tokenizers.Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    quiet = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    split = {"llama3": LLAMA3_SPLIT, "qwen2": QWEN_SPLIT, "qwen3": QWEN_SPLIT}.get(family)
    if split:
        hf.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(split), "isolated"),
                                                    quiet])
    elif family == "smollm2":
        hf.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                                                    byte_level])
    else:
        hf.pre_tokenizer = byte_level
    if family.startswith("qwen"):
        hf.normalizer = normalizers.NFC()
    hf.decoder = decoders.ByteLevel()
    # SmolLM2 keeps its special tokens in front of the bytes, the others behind the merges. The real
    # one has no token for 21 bytes: for eight that texts can hold, and for those that UTF-8 never
    # uses.
    first = SPECIAL[family] if family == "smollm2" else []
    lost = LOST if family == "smollm2" else ""
    alphabet = [c for c, byte in byte_alphabet().items()
                if not (lost and chr(byte) in lost or lost and byte in NO_UTF8)]
    texts = [text.translate({ord(c): None for c in lost}) for text in fuzz(1500, seed=1)]
    hf.train_from_iterator([t for t in texts if not lost or max(t, default="") < "\U00040000"],
                           trainers.BpeTrainer(
        vocab_size=700, initial_alphabet=alphabet, special_tokens=first, show_progress=False))
    plain = tokenizers.Tokenizer.from_str(hf.to_str())
    hf.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL[family]])
    if family == "llama3":
        hf.post_processor = processors.Sequence([
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single="<|begin_of_text|> $A", pair="<|begin_of_text|> $A <|begin_of_text|> $B",
                special_tokens=[("<|begin_of_text|>", hf.token_to_id("<|begin_of_text|>"))])])
    folder.mkdir(parents=True, exist_ok=True)
    hf.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **CONFIG[family]}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    # its special tokens sit in the vocabulary itself: take them out of the plain one
    if family == "smollm2":
        spec = json.loads(plain.to_str())
        plain = tokenizers.Tokenizer.from_str(json.dumps(spec | {"added_tokens": []}))
    return plain


def make_model(family, folder, tied=None, padded_rows=10):
    """Write a tiny random model of the family with its tokenizer; returns transformers' model."""
    transformers = pytest.importorskip("transformers")
    import torch
    make_tokenizer(family, folder)
    spec = json.loads((folder / "tokenizer.json").read_text())
    rows = padded_rows + 1 + max([*spec["model"]["vocab"].values(),
                                  *(t["id"] for t in spec["added_tokens"])])
    common = dict(vocab_size=rows, hidden_size=48, intermediate_size=80, num_hidden_layers=3,
                  num_attention_heads=4,
                  num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.2)
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
               "high_freq_factor": 4.0,
               "original_max_position_embeddings": 64, "rope_theta": 10000.0}
    T = transformers
    config = {
        "gpt2": lambda: T.GPT2Config(vocab_size=rows, n_embd=48, n_layer=3, n_head=4,
                                     n_positions=512, initializer_range=0.2),
        "llama3": lambda: T.LlamaConfig(**common, rope_parameters=scaling,
                                        tie_word_embeddings=True if tied is None else tied),
        "smollm2": lambda: T.LlamaConfig(
            **common, rope_parameters={"rope_type": "default", "rope_theta": 1e5},
            tie_word_embeddings=True if tied is None else tied),
        "qwen2": lambda: T.Qwen2Config(**common,
                                       rope_parameters={"rope_type": "default", "rope_theta": 1e6},
                                       rms_norm_eps=1e-6, tie_word_embeddings=bool(tied)),
        "qwen3": lambda: T.Qwen3Config(
            **common, head_dim=20, rope_parameters={"rope_type": "default", "rope_theta": 1e6},
            tie_word_embeddings=True if tied is None else tied)}[family]()
    torch.manual_seed(0)
    model = T.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():  # transformers starts biases at 0 and norms at 1: move them
        for name, p in model.named_parameters():
            if p.dim() == 1:
                p += 0.3 * torch.randn_like(p)
    model.save_pretrained(folder)
    return model


def eager_to_end(folder):
    """Make the random model of a directory end its answers after a few tokens,
    as a trained one would."""
    import torch

    from minicai.checkpoint import load_model, save_model
    model, tok = load_model(folder)
    with torch.no_grad():
        # measured where answers begin and go on: after requests, in texts of chance
        noise = torch.randint(tok.n_vocab, (8, 12),
                              generator=torch.Generator().manual_seed(0)).tolist()
        asked = [tok.encode(f"{tok.decode(n)}\n\n{ask}:") for n in noise
                 for ask in ("Critique", "Revision")]
        hidden = torch.cat([model(torch.tensor([ids + n]))[0, len(ids) - 1:]
                            for ids, n in zip(asked, noise + noise)])
        mean, others = hidden.mean(0), (hidden @ model.head.T).logsumexp(-1).mean()
        # on average one token in six
        model.head[tok.end] = mean * (others - 1.7) / mean.square().sum()
    save_model(folder, model, tok)


def same_in_transformers(folder, scalar=False):
    """Assert that transformers computes what minicai computes from a directory,
    from texts to logits or scores."""
    transformers = pytest.importorskip("transformers")
    import torch

    from minicai.checkpoint import load_model
    from minicai.preference import load_preference_model
    auto = transformers.AutoModelForSequenceClassification if scalar else \
        transformers.AutoModelForCausalLM
    theirs = auto.from_pretrained(folder).eval()
    their_tok = transformers.AutoTokenizer.from_pretrained(folder)
    ours, tok = load_preference_model(folder) if scalar else load_model(folder)
    texts = ["How do I wash the cart?", "It is 12 degrees.\n\nStay in!"]
    assert [their_tok(t, add_special_tokens=False).input_ids
            for t in texts] == [tok.encode(t) for t in texts]
    turns = lambda text: [{"role": "user", "content": text},
                          {"role": "assistant", "content": "Sure."}]
    rows = [tok.encode_chat(turns(text))[0] for text in texts]
    with torch.no_grad():
        for row in rows:  # one by one: no padding that could differ
            ids = torch.tensor([row])
            got = theirs(ids).logits
            want = ours.score(ids, ids >= 0)[:, None] - ours.shift if scalar else \
                ours(ids) @ ours.head.T
            assert (got - want).abs().max() <= 1e-4 * want.abs().clamp(min=1).max(), (got, want)
