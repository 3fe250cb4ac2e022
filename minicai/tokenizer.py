"""Text to token ids and back, and conversations to ids: a Hugging Face tokenizer.json read into tiktoken.

Whatever a person or a model wrote is encoded as ordinary text: it can spell out `<|im_end|>`, but never become it. Role
markers and end tokens are put between the pieces as ids. Nothing here depends on a chat template: three formats cover
the families in checkpoint.py, chosen by looking at the directory's own template:

  plain   <bos>\\n\\nHuman: Hi\\n\\nAssistant: Hello<end>      the paper's; markers are single ids where the vocabulary has them
  chatml  <|im_start|>user\\nHi<|im_end|>\\n...              SmolLM2, Qwen2.5, Qwen3
  llama3  <bos><|start_header_id|>user<|end_header_id|>\\n\\nHi<|eot_id|>...

Left out on purpose: the vendors' default system prompts (values should come from the constitution; a conversation that
wants one brings a system message), tools, and every way but one to end a turn.
"""

import json
import unicodedata
from pathlib import Path

import tiktoken
import torch

from minicai.run import UserError

# How each family cuts text into words before merging bytes; others are refused, since a near miss would go unnoticed.
GPT2 = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
# SmolLM2 first cuts out single digits, so spaces in front of one belong together, as at the end of a text.
SMOLLM2 = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?=\p{N})|\s+(?!\S)|\s+"""
SPLITS = [r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + digits +
          r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+" for digits in ("", "{1,3}")]        # Qwen, Llama 3

FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja",
         "generation_config.json", "vocab.json", "merges.txt")


def byte_alphabet() -> dict[str, int]:
    """The printable character that stands for each byte in the vocabulary files of byte-level BPE (from GPT-2)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


def split_pattern(pre: dict | None) -> str | None:
    """The regular expression of a tokenizer.json's `pre_tokenizer`, or None if it is not one we know exactly."""
    steps = pre.get("pretokenizers", [pre]) if pre else []
    kinds = [s["type"] for s in steps]
    if kinds[-1:] != ["ByteLevel"] or steps[-1].get("add_prefix_space"):
        return None
    if kinds == ["ByteLevel"] and steps[0].get("use_regex", True):
        return GPT2
    if kinds == ["Digits", "ByteLevel"] and steps[0]["individual_digits"] and steps[1].get("use_regex", True):
        return SMOLLM2
    if kinds == ["Split", "ByteLevel"] and not steps[1].get("use_regex", True):
        split = steps[0]
        pattern = split["pattern"].get("Regex")
        return pattern if split["behavior"] == "Isolated" and not split["invert"] and pattern in SPLITS else None
    return None


def read_ranks(spec: dict, special: set[str], path) -> dict[bytes, int]:
    """{token bytes: id} of a tokenizer.json; raises UserError unless id order is merge order, as tiktoken assumes."""
    alphabet, bpe = byte_alphabet(), spec["model"]
    if bpe.get("type") != "BPE" or bpe.get("byte_fallback") or bpe.get("end_of_word_suffix"):
        raise UserError(f"{path}: not a byte-level BPE ({bpe.get('type')}); minicai reads no other tokenizers")
    words = {token: i for token, i in bpe["vocab"].items() if token not in special}
    try:
        ranks = {bytes(alphabet[c] for c in token): i for token, i in words.items()}
    except KeyError as error:
        raise UserError(f"{path}: not a byte-level vocabulary: the character {error} stands for no byte") from None
    missing = [b for b in range(256) if bytes([b]) not in ranks]
    if missing:
        raise UserError(f"{path}: {len(missing)} of the 256 bytes have no token (first: {missing[0]}): text would be lost")
    merges = [m.split(" ") if isinstance(m, str) else m for m in bpe["merges"]]
    order = [words.get(a + b, -1) for a, b in merges]
    for (a, b), last, now in zip(merges[1:], order, order[1:]):
        if now < last:
            raise UserError(f"{path}: ids are not in merge order (at {a + b!r}, id {now} after {last})")
    return ranks


class Tokenizer:
    """Reads one directory's tokenizer; see the top of this file for the chat formats.

    n_vocab: real ids (an embedding may have more rows). bos: ids every text starts with. end: the id that closes an
    assistant turn; stop: {end}. pad: an id that no text contains. chat: "plain" | "chatml" | "llama3".
    """

    def __init__(self, spec: dict, config: dict, files: dict[str, bytes], chat: str | None, path):
        self.spec, self.config, self.files, self.path = spec, config, files, path
        self.special = {t["content"]: t["id"] for t in spec.get("added_tokens", [])}
        normalizer = spec.get("normalizer")
        self.nfc = bool(normalizer)
        if normalizer and normalizer["type"] != "NFC":
            raise UserError(f"{path}: unknown normalizer {normalizer['type']!r} (known: NFC, none)")
        pattern = split_pattern(spec.get("pre_tokenizer"))
        if pattern is None:
            raise UserError(f"{path}: unknown pre-tokenizer {json.dumps(spec.get('pre_tokenizer'))[:200]}")
        ranks = read_ranks(spec, set(self.special), path)
        self.ordinary = sorted(ranks.values())
        self.bpe = tiktoken.Encoding(str(path), pat_str=pattern, mergeable_ranks=ranks, special_tokens=self.special)
        self.n_vocab = 1 + max(*self.ordinary, *self.special.values())
        self.choose_chat(chat)
        # No text holds the byte 0xFF, so its id can stand for padding where the directory has no id of its own for it.
        names = [self.named("pad_token"), "<|pad|>", "<|finetune_right_pad_id|>", "<|endoftext|>"]
        ids = [self.special[n] for n in names if n in self.special]
        self.pad = next((i for i in ids if i != self.end and i not in self.bos), ranks[b"\xff"])

    @classmethod
    def load(cls, directory, chat: str | None = None) -> "Tokenizer":
        """Read tokenizer.json (or GPT-2's vocab.json + merges.txt); `chat` overrides the directory's own format."""
        directory = Path(directory)
        files = {name: (directory / name).read_bytes() for name in FILES if (directory / name).is_file()}
        path = directory / "tokenizer.json"
        try:
            config = json.loads(files.get("tokenizer_config.json", b"{}"))
            if "tokenizer.json" in files:
                spec = json.loads(files["tokenizer.json"])
            elif "vocab.json" in files and "merges.txt" in files:
                spec = gpt2_spec(json.loads(files["vocab.json"]), files["merges.txt"].decode())
            else:
                raise UserError(f"{path}: no such file; is {directory} a model directory?")
            return cls(spec, config, files, chat, path)
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: not a tokenizer file ({type(error).__name__}: {error})") from None

    def save(self, directory) -> None:
        """Write the files it was read from, byte for byte, and an overridden chat format into tokenizer_config.json."""
        for name, content in self.files.items():
            (Path(directory) / name).write_bytes(content)
        if self.config.get("minicai_chat") != self.chat_override:
            config = json.dumps(self.config | {"minicai_chat": self.chat_override}, indent=2, ensure_ascii=False)
            (Path(directory) / "tokenizer_config.json").write_text(config + "\n", "utf-8")

    def named(self, key: str) -> str | None:
        """A token that tokenizer_config.json names, as "eos_token"."""
        value = self.config.get(key)
        return value["content"] if isinstance(value, dict) else value

    def choose_chat(self, chat: str | None) -> None:
        """Settle format, bos, end and the ids around a message; raises UserError if the directory lacks its tokens."""
        template = str(self.config.get("chat_template") or "") + self.files.get("chat_template.jinja", b"").decode()
        self.chat_override = chat or self.config.get("minicai_chat")
        markers = {"chatml": "<|im_start|>", "llama3": "<|start_header_id|>"}
        self.chat = self.chat_override or ("plain" if not template else
                                           next((c for c, m in markers.items() if m in template), None))
        if self.chat not in ("plain", *markers):
            raise UserError(f"{self.path}: unknown chat format {self.chat or template[:60]!r}; give plain, chatml or llama3")
        text_end = next((t for t in ("<|endoftext|>", "<|end_of_text|>", self.named("eos_token")) if t in self.special), None)
        needed = {"chatml": "<|im_end|>", "llama3": "<|eot_id|>"}.get(self.chat, text_end)
        if needed not in self.special or markers.get(self.chat, needed) not in self.special:
            raise UserError(f"{self.path}: no token ends a turn in the {self.chat} format ({needed or 'eos_token'} is missing)")
        self.end, self.stop = self.special[needed], {self.special[needed]}
        # A text starts as in training: as the post-processor says, or after the token that ended the last one.
        starts = [t["SpecialToken"]["id"] for step in walk(self.spec.get("post_processor"))
                  for t in step.get("single", []) if "SpecialToken" in t]
        self.bos = [self.special[t] for t in starts] or ([self.special[text_end]] if self.chat == "plain" else [])

    def encode(self, text: str) -> list[int]:
        """Ids of ordinary text: whatever it says, none of them is a special token."""
        try:
            return self.bpe.encode(unicodedata.normalize("NFC", text) if self.nfc else text, disallowed_special=())
        except ValueError as error:                                       # a million spaces in a row, for one
            raise UserError(f"a text of {len(text)} characters cannot be split into words ({error})") from None

    def decode(self, ids) -> str:
        """Text of ids, special tokens written out; bytes that are no UTF-8 become U+FFFD."""
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", errors="replace")

    def token_bytes(self, i: int) -> bytes:
        """Bytes of one id; an embedding row without a token has none."""
        try:
            return self.bpe.decode_single_token_bytes(int(i))
        except KeyError:
            return b""

    def forbidden(self, vocab_rows: int) -> torch.Tensor:
        """[vocab_rows] bool: ids never to be sampled: rows without a token, padding, role markers, specials but `end`."""
        mask = torch.ones(vocab_rows, dtype=torch.bool)
        mask[self.ordinary] = False
        mask[self.end], mask[self.pad] = False, True
        return mask

    def header(self, role: str) -> list[int]:
        """The ids in front of a message of this role."""
        s = self.special
        if self.chat == "plain":
            marker = {"user": "\n\nHuman:", "assistant": "\n\nAssistant:", "system": ""}[role]
            return [s[marker]] if marker in s else self.encode(marker)
        if self.chat == "llama3":
            return [s["<|start_header_id|>"], *self.encode(role), s["<|end_header_id|>"], *self.encode("\n\n")]
        ids = [s["<|im_start|>"], *self.encode(role + "\n")]
        if role == "assistant" and "<think>" in s:    # Qwen3 thinks first unless shown that it already has
            ids += [s["<think>"], *self.encode("\n\n"), s["</think>"], *self.encode("\n\n")]
        return ids

    def encode_chat(self, messages: list[dict], generation: bool = False) -> tuple[list[int], list[int]]:
        """(ids, mask) of a conversation: mask is 1 on what the assistant says, its end token included.

        generation: close with the assistant's header, for the model to go on. Raises UserError for an unknown role.
        """
        ids, mask = list(self.bos), [0] * len(self.bos)
        closing = {"chatml": self.encode("\n")}.get(self.chat, [])
        for m in messages:
            role, content = m.get("role"), m.get("content")
            if role not in ("system", "user", "assistant") or not isinstance(content, str):
                raise UserError(f"a message needs a role (system, user, assistant) and a text, not {str(m)[:80]}")
            space = " " if self.chat == "plain" and role != "system" else ""
            head, text = self.header(role), self.encode(space + content.strip())
            said = text + [self.end] if role == "assistant" else text
            tail = closing if role == "assistant" else [] if self.chat == "plain" else [self.end, *closing]
            ids += head + said + tail
            mask += [0] * len(head) + [int(role == "assistant")] * len(said) + [0] * len(tail)
        if generation:
            head = self.header("assistant")
            ids, mask = ids + head, mask + [0] * len(head)
        return ids, mask


def walk(step: dict | None) -> list[dict]:
    """The steps of a post-processor, which may be one or a sequence."""
    return [] if not step else step.get("processors", [step])


def gpt2_spec(vocab: dict, merges: str) -> dict:
    """What a tokenizer.json would say for GPT-2's original two files."""
    lines = [line for line in merges.split("\n") if line and not line.startswith("#version")]
    return {"model": {"type": "BPE", "vocab": vocab, "merges": lines}, "pre_tokenizer": {"type": "ByteLevel"},
            "added_tokens": [{"content": "<|endoftext|>", "id": vocab["<|endoftext|>"]}]}
