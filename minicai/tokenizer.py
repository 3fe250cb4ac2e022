"""Text to token ids and back, and conversations to ids: a Hugging Face tokenizer.json read into tiktoken.

Whatever a person or a model wrote is encoded as ordinary text: it can spell out `<|im_end|>`, but never become it.
Role markers and end tokens are put between the pieces as ids. Nothing here runs a chat template: three formats cover
the families in checkpoint.py, and a look at the directory's own template tells which is meant:

  plain   <bos>\\n\\nHuman: Hi\\n\\nAssistant: Hello<end>    the paper's; each marker is one id if the vocabulary has it
  chatml  <|im_start|>user\\nHi<|im_end|>\\n...            SmolLM2, Qwen2.5, Qwen3
  llama3  <bos><|start_header_id|>user<|end_header_id|>\\n\\nHi<|eot_id|>...

Left out on purpose: the vendors' default system prompts (values are to come from the constitution; a conversation that
wants one brings a system message), tools, and every way but one to end a turn. In the plain format on a vocabulary
without its markers, a text that contains "\\n\\nHuman:" does look like a turn, as it did in the paper.
"""

import json
import unicodedata
from pathlib import Path

import tiktoken
import torch

from minicai.run import UserError

# How the families cut text into words before bytes are merged. Others are refused: a near miss would go unnoticed.
GPT2 = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
# SmolLM2 first cuts out single digits, so spaces in front of one stay together, as they do at the end of a text.
SMOLLM2 = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?=\p{N})|\s+(?!\S)|\s+"""
QWEN, LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + digits +
                r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+" for digits in ("", "{1,3}"))

# Chat format -> (the marker that shows it in a template, the token that ends a turn).
CHATS = {"chatml": ("<|im_start|>", "<|im_end|>"), "llama3": ("<|start_header_id|>", "<|eot_id|>")}
FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
         "chat_template.jinja", "generation_config.json", "vocab.json", "merges.txt")


def byte_alphabet() -> dict[str, int]:
    """The printable character that stands for each byte in the vocabulary files of byte-level BPE (from GPT-2)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


def split_pattern(pre: dict | None) -> str | None:
    """The regular expression of a tokenizer.json's `pre_tokenizer`, or None if it is not one we know exactly."""
    steps = pre.get("pretokenizers", [pre]) if pre else []
    kinds = [step["type"] for step in steps]
    if kinds[-1:] != ["ByteLevel"] or steps[-1].get("add_prefix_space"):
        return None
    if steps[-1].get("use_regex", True):
        digits = kinds == ["Digits", "ByteLevel"] and steps[0]["individual_digits"]
        return GPT2 if kinds == ["ByteLevel"] else SMOLLM2 if digits else None
    pattern = steps[0].get("pattern", {}).get("Regex")
    exact = kinds == ["Split", "ByteLevel"] and steps[0]["behavior"] == "Isolated" and not steps[0]["invert"]
    return pattern if exact and pattern in (QWEN, LLAMA3) else None


def read_ranks(bpe: dict, special, path) -> dict[bytes, int]:
    """{bytes of a token: id} of a tokenizer.json's model; UserError unless ids are in merge order (tiktoken's)."""
    if bpe["type"] != "BPE" or bpe.get("byte_fallback") or bpe.get("end_of_word_suffix"):
        raise UserError(f"{path}: not a byte-level BPE but {bpe['type']}; minicai reads no other tokenizers")
    alphabet, words = byte_alphabet(), {word: i for word, i in bpe["vocab"].items() if word not in special}
    strange = set("".join(words)) - set(alphabet)
    if strange:
        raise UserError(f"{path}: not a byte-level vocabulary: {min(strange)!r} stands for no byte")
    ranks = {bytes(alphabet[c] for c in word): i for word, i in words.items()}
    missing = [b for b in range(256) if bytes([b]) not in ranks]
    if missing:
        raise UserError(f"{path}: {len(missing)} of the 256 bytes have no token (first: {missing[0]})")
    made = ["".join(m.split(" ") if isinstance(m, str) else m) for m in bpe["merges"]]
    for last, word in zip(made, made[1:]):
        if words[word] < words[last]:
            raise UserError(f"{path}: ids are not in merge order: {word!r} {words[word]} after {last!r} {words[last]}")
    return ranks


class Tokenizer:
    """A directory's tokenizer; the chat formats are shown at the top of this file.

    n_vocab: real ids (an embedding may have more rows). bos: the ids a text starts with. end: the id that closes an
    assistant's turn; stop: {end}. pad: an id that no text contains. chat: "plain", "chatml" or "llama3".
    """

    def __init__(self, spec: dict, config: dict, files: dict[str, bytes], chat: str | None, path):
        self.spec, self.config, self.files, self.path = spec, config, files, path
        self.special = {token["content"]: token["id"] for token in spec.get("added_tokens", [])}
        normalizer = (spec.get("normalizer") or {}).get("type")
        pattern = split_pattern(spec.get("pre_tokenizer"))
        if normalizer not in (None, "NFC") or pattern is None:
            name, what = ("pre_tokenizer", spec.get("pre_tokenizer")) if pattern is None else ("normalizer", normalizer)
            raise UserError(f"{path}: unknown {name} {json.dumps(what)[:200]}; minicai will not guess")
        self.nfc = normalizer == "NFC"
        self.ranks = read_ranks(spec["model"], self.special, path)
        self.bpe = tiktoken.Encoding(str(path), pat_str=pattern, mergeable_ranks=self.ranks,
                                     special_tokens=self.special)
        self.n_vocab = 1 + max(*self.ranks.values(), *self.special.values())
        self.choose_chat(chat)
        # No text holds the byte 0xFF, so its id can stand for padding where the directory has no id of its own for it.
        names = (self.named("pad_token"), "<|pad|>", "<|finetune_right_pad_id|>", "<|endoftext|>")
        ids = [self.special[name] for name in names if name in self.special]
        self.pad = next((i for i in ids if i != self.end and i not in self.bos), self.ranks[b"\xff"])

    @classmethod
    def load(cls, directory, chat: str | None = None) -> "Tokenizer":
        """Read tokenizer.json (or GPT-2's vocab.json and merges.txt); `chat` overrides the directory's own format."""
        path = Path(directory) / "tokenizer.json"
        files = {name: path.with_name(name).read_bytes() for name in FILES if path.with_name(name).is_file()}
        if "tokenizer.json" not in files and not {"vocab.json", "merges.txt"} <= set(files):
            raise UserError(f"{path}: no such file; is {directory} a model directory?")
        try:
            spec = json.loads(files["tokenizer.json"]) if "tokenizer.json" in files else gpt2_spec(files)
            return cls(spec, json.loads(files.get("tokenizer_config.json", b"{}")), files, chat, path)
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: not a tokenizer's file ({type(error).__name__}: {error})") from None

    def save(self, directory) -> None:
        """Write the files it was read from, byte for byte; only an overridden chat format is noted in the config."""
        for name, content in self.files.items():
            (Path(directory) / name).write_bytes(content)
        if self.config.get("minicai_chat") != self.override:
            config = json.dumps(self.config | {"minicai_chat": self.override}, indent=2, ensure_ascii=False)
            (Path(directory) / "tokenizer_config.json").write_text(config + "\n", "utf-8")

    def named(self, key: str) -> str | None:
        """The token that tokenizer_config.json calls, say, "eos_token"."""
        value = self.config.get(key)
        return value["content"] if isinstance(value, dict) else value

    def choose_chat(self, chat: str | None) -> None:
        """Settle format, bos and end; raises UserError for an unknown template and for a format's missing tokens."""
        template = str(self.config.get("chat_template") or "") + self.files.get("chat_template.jinja", b"").decode()
        shown = next((name for name, (marker, _) in CHATS.items() if marker in template), None)
        self.override = chat or self.config.get("minicai_chat")
        self.chat = self.override or (shown if template else "plain")
        if self.chat not in ("plain", *CHATS):
            raise UserError(f"{self.path}: unknown chat format {self.chat or template[:60]!r}; "
                            "give plain, chatml or llama3")
        ends = ("<|endoftext|>", "<|end_of_text|>", self.named("eos_token"))
        text_end = next((token for token in ends if token in self.special), None)
        needed = CHATS.get(self.chat, (text_end,))
        if not set(needed) <= set(self.special):
            missing = next(token for token in needed if token not in self.special) or "an eos_token"
            raise UserError(f"{self.path}: the {self.chat} format needs {missing}, which is not there")
        self.end = self.special[needed[-1]]
        self.stop = {self.end}
        # A text starts as in training: as the post-processor says, or after the token that ended the text before it.
        post = self.spec.get("post_processor") or {}
        first = [piece["SpecialToken"]["id"] for step in post.get("processors", [post])
                 for piece in step.get("single", []) if "SpecialToken" in piece]
        self.bos = [self.special[token] for token in first or ([text_end] if self.chat == "plain" else [])]

    def encode(self, text: str) -> list[int]:
        """Ids of ordinary text: whatever it says, none of them is a special token."""
        try:
            return self.bpe.encode(unicodedata.normalize("NFC", text) if self.nfc else text, disallowed_special=())
        except ValueError as error:                                       # a million spaces in a row, for one
            raise UserError(f"a text of {len(text)} characters cannot be split into words ({error})") from None

    def decode(self, ids) -> str:
        """Text of ids, special tokens spelt out; bytes that are no UTF-8 become U+FFFD."""
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", errors="replace")

    def token_bytes(self, i: int) -> bytes:
        """Bytes of one id; an embedding row without a token has none."""
        try:
            return self.bpe.decode_single_token_bytes(int(i))
        except KeyError:
            return b""

    def forbidden(self, vocab_rows: int) -> torch.Tensor:
        """[vocab_rows] bool: ids never to be sampled: rows without a token, padding, all special tokens but `end`."""
        mask = torch.ones(vocab_rows, dtype=torch.bool)
        mask[list(self.ranks.values())] = False
        mask[self.end], mask[self.pad] = False, True
        return mask

    def header(self, role: str) -> list[int]:
        """The ids in front of a message of this role."""
        special = self.special
        if self.chat == "plain":
            marker = {"user": "\n\nHuman:", "assistant": "\n\nAssistant:", "system": ""}[role]
            return [special[marker]] if marker in special else self.encode(marker)
        if self.chat == "llama3":
            opening, closing = special["<|start_header_id|>"], special["<|end_header_id|>"]
            return [opening, *self.encode(role), closing, *self.encode("\n\n")]
        ids = [special["<|im_start|>"], *self.encode(role + "\n")]
        if role == "assistant" and "<think>" in special:      # Qwen3 thinks first, unless shown that it already has
            ids += [special["<think>"], *self.encode("\n\n"), special["</think>"], *self.encode("\n\n")]
        return ids

    def encode_chat(self, messages: list[dict], generation: bool = False) -> tuple[list[int], list[int]]:
        """(ids, mask) of a conversation: mask is 1 on what the assistant says, its end token included.

        generation: close with the assistant's header, for the model to go on. Raises UserError for what is no message.
        """
        parts = [(self.bos, 0)]
        newline = self.encode("\n") if self.chat == "chatml" else []
        for m in messages:
            role, text = m.get("role"), m.get("content")
            if role not in ("system", "user", "assistant") or not isinstance(text, str):
                raise UserError(f"a message needs a role (system, user, assistant) and a text, not {str(m)[:80]}")
            says, plain = int(role == "assistant"), self.chat == "plain"
            space = " " if plain and role != "system" else ""
            closing = [self.end] if says or not plain else []
            parts += [(self.header(role), 0), (self.encode(space + text.strip()) + closing, says), (newline, 0)]
        if generation:
            parts.append((self.header("assistant"), 0))
        return [i for ids, _ in parts for i in ids], [on for ids, on in parts for _ in ids]


def gpt2_spec(files: dict[str, bytes]) -> dict:
    """What a tokenizer.json would say for GPT-2's original two files."""
    vocab = json.loads(files["vocab.json"])
    merges = [line for line in files["merges.txt"].decode().split("\n") if line and not line.startswith("#version")]
    return {"model": {"type": "BPE", "vocab": vocab, "merges": merges}, "pre_tokenizer": {"type": "ByteLevel"},
            "added_tokens": [{"content": "<|endoftext|>", "id": vocab["<|endoftext|>"]}]}
