"""Text to token ids and back: a Hugging Face tokenizer.json read into tiktoken, and transcripts spliced from ids."""

import json
from pathlib import Path

import tiktoken
import torch

from minicai.run import UserError

GPT2_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""


def byte_alphabet() -> dict[str, int]:
    """The printable character that byte-level BPE files write for each byte, as in GPT-2's vocabulary."""
    keep = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in keep]
    return {chr(b): b for b in keep} | {chr(256 + i): b for i, b in enumerate(rest)}


class Tokenizer:
    """Ids of a text, and of a conversation with its role markers spliced in as ids."""

    def __init__(self, spec: dict, config: dict):
        alphabet = byte_alphabet()
        self.spec, self.config = spec, config
        self.special = {t["content"]: t["id"] for t in spec["added_tokens"]}
        ranks = {bytes(alphabet[c] for c in token): i for token, i in spec["model"]["vocab"].items()
                 if token not in self.special}
        self.encoding = tiktoken.Encoding("minicai", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens=self.special)
        self.n_vocab = 1 + max([*ranks.values(), *self.special.values()])
        self.end = self.special["<|endoftext|>"]
        self.bos = [self.end]
        self.stop = {self.end}
        self.pad = self.special.get("<|pad|>", self.end)
        self.roles = {role: [self.special[marker]] if marker in self.special else self.encode(marker)
                      for role, marker in (("user", "\n\nHuman:"), ("assistant", "\n\nAssistant:"))}

    @classmethod
    def load(cls, directory) -> "Tokenizer":
        """Read tokenizer.json of a model directory."""
        path = Path(directory) / "tokenizer.json"
        if not path.is_file():
            raise UserError(f"{path}: no such file; is {directory} a model directory?")
        config = path.with_name("tokenizer_config.json")
        return cls(json.loads(path.read_text("utf-8")), json.loads(config.read_text("utf-8")) if config.is_file() else {})

    def encode(self, text: str) -> list[int]:
        """Ids of ordinary text: whatever it says, it never becomes a special token."""
        return self.encoding.encode(text, disallowed_special=())

    def decode(self, ids) -> str:
        """Text of ids."""
        return self.encoding.decode([int(i) for i in ids], errors="replace")

    def forbidden(self, vocab_rows: int) -> torch.Tensor:
        """[vocab_rows] bool: ids that are never sampled (orphan rows, special tokens other than the end)."""
        mask = torch.ones(vocab_rows, dtype=torch.bool)
        mask[list(self.encoding._mergeable_ranks.values())] = False
        mask[list(self.stop)] = False
        return mask

    def encode_chat(self, messages, generation: bool = False) -> tuple[list[int], list[int]]:
        """Ids of a conversation and a mask: 1 on what the assistant says, its end token included."""
        ids, mask = list(self.bos), [0] * len(self.bos)
        for m in messages:
            if m["role"] == "system":
                part, on = self.encode(m["content"].strip()), 0
            else:
                ids += self.roles[m["role"]]
                mask += [0] * len(self.roles[m["role"]])
                part, on = self.encode(" " + m["content"].strip()), int(m["role"] == "assistant")
                part = part + [self.end] * on
            ids += part
            mask += [on] * len(part)
        if generation:
            ids += self.roles["assistant"]
            mask += [0] * len(self.roles["assistant"])
        return ids, mask
