"""Text to token ids and back, and conversations to ids:
a Hugging Face tokenizer.json read into tiktoken.

Whatever a person or a model wrote is encoded as ordinary text: it can spell out `<|im_end|>`, but
never become it. Role markers and end tokens are put between the pieces as ids. Nothing here runs a
chat template: three formats cover the families in checkpoint.py, and a look at the directory's own
template tells which is meant:

  plain   <bos>\\n\\nHuman: Hi\\n\\nAssistant: Hello<end>    the paper's; a marker may be one id
  chatml  <|im_start|>user\\nHi<|im_end|>\\n...            SmolLM2, Qwen2.5, Qwen3
  llama3  <bos><|start_header_id|>user<|end_header_id|>\\n\\nHi<|eot_id|>...

Left out on purpose: the vendors' default system prompts (values are to come from the constitution;
a conversation that wants one brings a system message), tools, and every way but one to end a turn.
In the plain format on a vocabulary without its markers, a text that contains "\\n\\nHuman:" does
look like a turn, as it did in the paper.
"""

import itertools
import json
import re
import unicodedata
from pathlib import Path

import regex
import tiktoken
import torch

from minicai.run import UserError, refuse_stand_in

# How the families cut text into words before bytes are merged.
# Others are refused: a near miss would go unnoticed.
GPT2 = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
# SmolLM2 first cuts out single digits, so spaces in front of one stay together,
# as they do at the end of a text.
SMOLLM2 = (r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?=\p{N})|"
           r"\s+(?!\S)|\s+")
QWEN, LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + digits +
                r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+" for digits in ("", "{1,3}"))

# Chat format -> (the marker that shows it in a template, the token that ends a turn).
CHATS = {"chatml": ("<|im_start|>", "<|im_end|>"), "llama3": ("<|start_header_id|>", "<|eot_id|>")}
# What stands between the pieces of a conversation.
MARKERS = {"\n\nHuman:", "\n\nAssistant:", "<|endoftext|>", "<|end_header_id|>",
           *(token for pair in CHATS.values() for token in pair)}
# What a saved directory says of its format where its own template says something else,
# or where it has none.
TEMPLATES = {
    "plain": "{% if m.role != 'system' %}"
             "{{ '\n\nHuman: ' if m.role == 'user' else '\n\nAssistant: ' }}{% endif %}"
             "{{ m.content | trim }}{{ eos_token if m.role == 'assistant' }}{% endfor %}"
             "{{ '\n\nAssistant:' if add_generation_prompt }}",
    "chatml": "{{ '<|im_start|>' + m.role + '\n' + m.content | trim + '<|im_end|>\n' }}{% endfor %}"
              "{{ '<|im_start|>assistant\n' if add_generation_prompt }}",
    "llama3": "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' "
              "+ m.content | trim + '<|eot_id|>' }}{% endfor %}"
              "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' if add_generation_prompt }}"}
# What templates write that are not ChatML, though they share its markers.
NEARLY = ("<|im_sep|>", "<|im_start|>assistant\n<think>")
# A template that trims what anybody says, not the system's messages[0]['content'] alone.
TRIMS = re.compile(r"(?:\w(?:\[['\"]content['\"]\]|\.content)|(?<!['\".])\bcontent)\s*\)?\s*"
                   r"(?:\|\s*trim|\.strip\(\))")
# Ids for padding, the best first: a text holds none of them.
PADS = ("<|pad|>", "<|finetune_right_pad_id|>", "<|endoftext|>", "<|reserved_special_token_0|>",
        "<|fim_pad|>", "<|vision_pad|>")
FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
         "chat_template.jinja", "generation_config.json", "vocab.json", "merges.txt")


def byte_alphabet() -> dict[str, int]:
    """The printable character that stands for each byte in the vocabulary files of byte-level BPE
    (from GPT-2)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


def split_pattern(pre: dict | None) -> str | None:
    """The regular expression of a tokenizer.json's `pre_tokenizer`,
    or None if it is not one we know exactly."""
    steps = pre.get("pretokenizers", [pre]) if pre else []
    kinds = [step["type"] for step in steps]
    if kinds[-1:] != ["ByteLevel"] or steps[-1].get("add_prefix_space"):
        return None
    if steps[-1].get("use_regex", True):
        digits = kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits")
        return GPT2 if kinds == ["ByteLevel"] else SMOLLM2 if digits else None
    pattern = steps[0].get("pattern", {}).get("Regex")
    exact = (kinds == ["Split", "ByteLevel"] and steps[0].get("behavior") == "Isolated"
             and not steps[0].get("invert"))
    return pattern if exact and pattern in (QWEN, LLAMA3) else None


def read_ranks(bpe: dict, special, path) -> dict[bytes, int]:
    """{bytes of a token: id} of a tokenizer.json's model;
    UserError unless ids are in merge order (tiktoken's)."""
    strange = "byte_fallback", "end_of_word_suffix", "continuing_subword_prefix", "dropout"
    other = [key for key in strange if bpe.get(key)]
    kind = bpe.get("type", "BPE" if "merges" in bpe else None)              # old files name no type
    if kind != "BPE" or other:
        raise UserError(f"{path}: not a byte-level BPE but {kind} {' '.join(other)}; "
                        "minicai reads no other tokenizers")
    alphabet = byte_alphabet()
    words = {word: i for word, i in bpe["vocab"].items() if word not in special}
    strange = set("".join(words)) - set(alphabet)
    if strange:
        raise UserError(f"{path}: not a byte-level vocabulary: {min(strange)!r} stands for no byte")
    if any(len(halves(merge)) != 2 or not words.keys() >= {*halves(merge), joined(merge)}
           for merge in bpe["merges"]):
        raise UserError(f"{path}: a merge that does not join two of the words to a third")
    made = list(map(joined, bpe["merges"]))
    reached = words if bpe.get("ignore_merges") else {*alphabet, *made}
    ranks = {bytes(alphabet[c] for c in word): i for word, i in words.items() if word in reached}
    ids = [*ranks.values(), *special.values()]
    if not all(type(i) is int and 0 <= i < 2**31 for i in ids) or len(set(ids)) < len(ids):
        raise UserError(f"{path}: ids must be whole numbers from 0, each given to one token")
    for last, word in zip(made, made[1:]):
        if words[word] < words[last]:
            raise UserError(f"{path}: ids are not in merge order: {word!r} {words[word]} after "
                            f"{last!r} {words[last]}")
    pairs = {tuple(bytes(alphabet[c] for c in part) for part in halves(merge))
             for merge in bpe["merges"]}
    for word in ranks:
        if len(parts := merged_below(word, ranks)) == 2 and parts not in pairs:
            raise UserError(f"{path}: no merge makes {word!r} of {parts[0]!r} and {parts[1]!r}; "
                            "a vocabulary that was extended or cut is not supported")
    if bpe.get("unk_token") and lost_bytes(ranks):
        raise UserError(f"{path}: some bytes have no token but {bpe['unk_token']!r}; "
                        "minicai knows no unknown token")
    return ranks


def halves(merge) -> list[str]:
    """The two words that a merge joins; files spell merges in two ways."""
    return merge.split(" ") if isinstance(merge, str) else merge


def joined(merge) -> str:
    """The word that a merge makes."""
    return "".join(halves(merge))


def merged_below(word: bytes, ranks: dict[bytes, int]) -> tuple[bytes, ...]:
    """The parts of a word before its own merge: any two neighbours that make a token of a lower
    rank are joined, the lowest first, as tiktoken does (`tokenizers` joins listed pairs only)."""
    parts, own = [word[i:i + 1] for i in range(len(word))], ranks[word]
    while len(parts) > 2:
        rank, i = min((ranks.get(a + b, own), i) for i, (a, b) in enumerate(zip(parts, parts[1:])))
        if rank >= own:
            break
        parts[i:i + 2] = [parts[i] + parts[i + 1]]
    return tuple(parts)


def lost_bytes(ranks: dict[bytes, int]) -> bytes:
    """The bytes that texts may hold but that have no token:
    `tokenizers` drops them and merges across.

    The real SmolLM2 has none for six control characters, F1 and F2.
    UTF-8 never uses C0, C1 and F5 to FF.
    """
    return bytes(b for b in range(0xF5) if b not in (0xC0, 0xC1) and bytes([b]) not in ranks)


class Tokenizer:
    """A directory's tokenizer; the chat formats are shown at the top of this file.

    n_vocab: real ids (an embedding may have more rows). bos: the ids a text starts with. end: the
    id that closes an assistant's turn; stop: {end}. pad: an id that no text contains. chat:
    "plain", "chatml" or "llama3".
    """

    def __init__(self, spec: dict, config: dict, files: dict[str, bytes], chat: str | None, path,
                 rows=None):
        self.spec, self.config, self.files, self.path = spec, config, files, path
        # Some vocabularies have grown a token beyond the embedding's rows: it can never be used.
        # Some call an ordinary word special ("!" for padding): texts go on holding it.
        ordinary = {*byte_alphabet(), *map(joined, spec["model"]["merges"])}
        self.special = {token["content"]: token["id"] for token in spec.get("added_tokens", [])
                        if (rows is None or token["id"] < rows)
                        and token["content"] not in ordinary}
        for token in spec.get("added_tokens", []):
            word, spoken = token["content"], not token.get("special", True)
            strips = any(map(token.get, ("lstrip", "rstrip", "single_word")))
            if word in self.special and (strips and word in MARKERS or spoken
                                         and not re.fullmatch(r"<.*>|\[.*\]", word, re.S)):
                raise UserError(f"{path}: the added token {word!r} stands for a word of texts, or "
                                "takes the white space beside it, which is not supported")
        normalizer = (spec.get("normalizer") or {}).get("type")
        self.pattern = split_pattern(spec.get("pre_tokenizer"))
        if normalizer not in (None, "NFC") or self.pattern is None:
            name, what = (("normalizer", normalizer) if self.pattern
                          else ("pre_tokenizer", spec.get("pre_tokenizer")))
            raise UserError(f"{path}: unknown {name} {json.dumps(what)[:200]}; "
                            "minicai will not guess")
        self.nfc = normalizer == "NFC"
        self.ranks = read_ranks(spec["model"], self.special, path)
        self.lost = lost_bytes(self.ranks)
        self.bpe = tiktoken.Encoding(str(path), pat_str=self.pattern, mergeable_ranks=self.ranks,
                                     special_tokens=self.special)
        self.n_vocab = 1 + max(*self.ranks.values(), *self.special.values())
        if rows is not None and self.n_vocab > rows:
            raise UserError(f"{path}: has ids up to {self.n_vocab - 1}, "
                            f"the model's embedding {rows} rows: another model's tokenizer?")
        self.choose_chat(chat)
        # No text holds the byte 0xFF, so its id can stand for padding where no token is left for
        # it.
        used = {self.end, *self.bos, *(i for role in ("system", "user", "assistant")
                                       for i in self.header(role))}
        ids = [self.special.get(name) for name in (self.named("pad_token"), *PADS, *self.special)]
        ids = [i for i in (*ids, self.ranks.get(b"\xff")) if i is not None and i not in used]
        if not ids:
            raise UserError(f"{path}: no id is left for padding; add a token <|pad|>")
        self.pad = ids[0]

    @classmethod
    def load(cls, directory, chat: str | None = None) -> "Tokenizer":
        """Read tokenizer.json (or GPT-2's vocab.json and merges.txt);
        `chat` overrides the directory's own format."""
        path = Path(directory) / "tokenizer.json"
        files = {name: path.with_name(name).read_bytes() for name in FILES
                 if path.with_name(name).is_file()}
        if "tokenizer.json" not in files and not {"vocab.json", "merges.txt"} <= set(files):
            raise UserError(f"{path}: no such file; is {directory} a model directory?")
        for name in files:
            refuse_stand_in(path.with_name(name))
        try:
            for where in map(path.with_name, files):
                said = files[where.name]
                said = json.loads(said) if where.suffix == ".json" else {"": said.decode()}
                if type(said) is not dict:
                    raise ValueError(f"{where.name} is no object")
            where, beside = path, path.with_name("config.json")
            config = json.loads(files.get("tokenizer_config.json", b"{}"))
            model = json.loads(beside.read_bytes()) if beside.is_file() else {}
            if config.get("add_prefix_space"):
                raise UserError(f"{path}: add_prefix_space (tokenizer_config.json): not supported")
            rows, family = model.get("vocab_size"), model.get("model_type", "gpt2")
            if "tokenizer.json" not in files and family != "gpt2":
                raise UserError(f"{path}: no such file, and vocab.json with merges.txt is enough "
                                f"for GPT-2 only, not for {family}: save it from transformers")
            spec = (json.loads(files["tokenizer.json"]) if "tokenizer.json" in files
                    else gpt2_spec(files))
            # Older directories name their special tokens in a file of their own; the newer one
            # counts, and one that lists all tokens counts alone (as in transformers).
            older = json.loads(files.get("special_tokens_map.json", b"{}"))
            config = ({} if "added_tokens_decoder" in config else older) | {
                key: value for key, value in config.items() if value is not None}
            return cls(spec, config, files, chat, path, rows)
        except UserError:
            raise
        except (LookupError, TypeError, AttributeError, ValueError, RecursionError) as error:
            raise UserError(f"{where}: not a tokenizer's file ({type(error).__name__}: "
                            f"{error})") from None

    def save(self, directory, **fields) -> None:
        """Write the files it was read from; all of those that name the end,
        the padding or the format say the same. fields: more of tokenizer_config.json."""
        names = {i: name for name, i in self.special.items()}
        tokens = {"eos_token": names[self.end], "pad_token": names.get(self.pad) or {
            # a byte that no text holds, spelt as a letter that some do:
            # as a word of its own at most
            "__type": "AddedToken", "content": "\u00ff", "single_word": True, "lstrip": False,
            "rstrip": False, "normalized": False, "special": True}}
        ids = {"eos_token_id": self.end, "pad_token_id": self.pad}
        if self.bos:
            tokens["bos_token"], ids["bos_token_id"] = names[self.bos[0]], self.bos[0]
        config = self.config | tokens | fields
        if "tokenizer.json" in self.files:  # for "GPT2Tokenizer" transformers would split its way
            config["tokenizer_class"] = "PreTrainedTokenizerFast"
        files = {name: content for name, content in self.files.items()
                 if name != "special_tokens_map.json"}
        if self.chat != self.shown:  # the directory's template is for another format, or missing
            files.pop("chat_template.jinja", None)
            start = "{{ bos_token }}" * bool(self.bos) + "{% for m in messages %}"
            config |= {"minicai_chat": self.chat, "chat_template": start + TEMPLATES[self.chat]}
        files["tokenizer_config.json"] = as_json(config)
        if "generation_config.json" in files:
            sampling = json.loads(files["generation_config.json"])
            files["generation_config.json"] = as_json(sampling | ids)
        if self.spec.get("padding") and "tokenizer.json" in files:
            padding = self.spec["padding"] | {"pad_id": self.pad,
                                              "pad_token": names.get(self.pad, "\u00ff")}
            files["tokenizer.json"] = as_json(self.spec | {"padding": padding})
        for name, content in files.items():
            (Path(directory) / name).write_bytes(content)

    def same_ids(self, other: "Tokenizer") -> bool:
        """Whether both make the same ids of every text and every conversation."""
        deciding = lambda t: (t.nfc, t.pattern, t.ranks, t.bos, t.end, t.chat, t.trims,
                              t.header("user"), t.header("assistant"))
        return deciding(self) == deciding(other)

    def named(self, key: str) -> str | None:
        """The token that tokenizer_config.json calls, say, "eos_token"."""
        value = self.config.get(key)
        return value.get("content") if isinstance(value, dict) else value

    def template(self) -> str:
        """The directory's own chat template, or an empty text;
        a file of its own counts more than the config's key."""
        found = (self.files.get("chat_template.jinja", b"").decode()
                 or self.config.get("chat_template") or "")
        if isinstance(found, list):                         # several, each with a name
            found = {item["name"]: item["template"] for item in found}.get("default") or \
                "(several, none of them called default)"        # choose_chat refuses it by this
        return re.sub(r"\{#.*?#\}", "", str(found), flags=re.S)     # without comments

    def choose_chat(self, chat: str | None) -> None:
        """Settle format, bos and end; raises UserError for an unknown template and for a format's
        missing tokens."""
        template, noted = self.template(), self.config.get("minicai_chat")
        self.shown = noted or next((name for name, (marker, _) in CHATS.items()
                                    if marker in template), None)
        self.chat = chat or self.shown or (None if template else "plain")
        other = [mark for mark in NEARLY if mark in template.replace("\\n", "\n")]
        if other and "enable_thinking" not in template and not chat and self.shown == "chatml":
            raise UserError(f"{self.path}: its chat template writes {other[0]!r}, which is not "
                            "ChatML: --chat chatml goes on without it")
        if self.chat not in ("plain", *CHATS):
            raise UserError(f"{self.path}: unknown chat format {self.chat or template[:60]!r}; "
                            "give --chat plain, chatml or llama3")
        # The token that ends a text: the directory's own, unless that ends a turn.
        turns_end, named = {end for _, end in CHATS.values()}, self.named("eos_token")
        ends = (named,) * (named not in turns_end) + ("<|endoftext|>", "<|end_of_text|>", named)
        text_end = next((token for token in ends if token in self.special), None)
        needed = CHATS.get(self.chat, (text_end,))
        needed += ("<|end_header_id|>",) * (self.chat == "llama3")
        if not set(needed) <= set(self.special):
            missing = next(token for token in needed if token not in self.special) or "an eos_token"
            raise UserError(f"{self.path}: the {self.chat} format needs {missing}, "
                            "which is not there")
        self.trims = self.chat != self.shown or bool(TRIMS.search(template))
        end = CHATS.get(self.chat, (None, text_end))[1]
        # A model whose turns end otherwise would never say the end that we wait for.
        if template and not (chat or noted or end in template or
                             named == end and "eos_token" in template):
            raise UserError(f"{self.path}: its chat template does not end turns by {end}, which is "
                            f"not {self.chat}; --chat {self.chat} goes on all the same")
        self.end = self.special[end]
        self.stop = {self.end}
        # Qwen3 of 2025-04 thinks first, unless shown that it already has;
        # its later models have no such switch.
        thoughts = {"<think>", "</think>"} <= set(self.special) and "enable_thinking" in template
        self.thinks = thoughts and self.chat == "chatml"
        # A text starts as in training: as the directory's template says,
        # else as the post-processor does, else after the token that ended the text before it.
        post, begin = self.spec.get("post_processor") or {}, "<|begin_of_text|>"
        first = [piece["SpecialToken"]["id"] for step in post.get("processors", [post])
                 for piece in itertools.takewhile(lambda piece: "SpecialToken" in piece,
                                                  step.get("single", []))]
        named = self.named("bos_token")
        if self.chat == self.shown and not noted:
            # A bos_token that nobody has named is rendered as nothing.
            first = [named or begin] * (named is not None and "bos_token" in template or
                                        (named or begin) != CHATS[self.chat][0]
                                        and (named or begin) in template)
        elif self.chat == "llama3" or self.chat == "plain" and not first:
            first = [begin if begin in self.special else text_end]
        self.bos = [self.special[token] for token in first]

    def encode(self, text: str) -> list[int]:
        """Ids of ordinary text: whatever it says, none of them is a special token."""
        text = unicodedata.normalize("NFC", text) if self.nfc else text
        try:
            if self.lost and any(byte in text.encode("utf-8", "replace") for byte in self.lost):
                return self.encode_without_lost(text)
            return self.bpe.encode(text, disallowed_special=())
        except ValueError as error:  # a million spaces in a row, for one
            raise UserError(f"a text of {len(text)} characters cannot be split into words "
                            f"({error})") from None

    def encode_without_lost(self, text: str) -> list[int]:
        """Ids of a text with bytes that have no token:
        they still divide words, then drop out (as in `tokenizers`)."""
        # As tiktoken does.
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        words = [word.encode().translate(None, self.lost)
                 for word in regex.findall(self.pattern, text)]
        return [i for word in words if word for i in self.bpe._encode_single_piece(word)]

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
        """[vocab_rows] bool: ids never to be sampled:
        rows without a token, padding, all special tokens but `end`."""
        mask = torch.ones(vocab_rows, dtype=torch.bool)
        mask[list(self.ranks.values())] = False
        mask[self.end], mask[self.pad] = False, True
        return mask

    def header(self, role: str, last: bool = True) -> list[int]:
        """The ids in front of a message of this role; `last`: nothing comes after it."""
        special = self.special
        if self.chat == "plain":
            marker = {"user": "\n\nHuman:", "assistant": "\n\nAssistant:", "system": ""}[role]
            return [special[marker]] if marker in special else self.encode(marker)
        if self.chat == "llama3":
            opening, closing = special["<|start_header_id|>"], special["<|end_header_id|>"]
            return [opening, *self.encode(role), closing, *self.encode("\n\n")]
        ids = [special["<|im_start|>"], *self.encode(role + "\n")]
        # What was thought in earlier turns is not kept.
        if role == "assistant" and self.thinks and last:
            ids += [special["<think>"], *self.encode("\n\n"), special["</think>"],
                    *self.encode("\n\n")]
        return ids

    def encode_chat(self, messages: list[dict],
                    generation: bool = False) -> tuple[list[int], list[int]]:
        """(ids, mask) of a conversation: mask is 1 on what the assistant says,
        its end token included.

        generation: close with the assistant's header, for the model to go on.
        Raises UserError for what is no message.
        """
        parts = [(self.bos, 0)]
        newline = self.encode("\n") if self.chat == "chatml" else []
        closes = self.special.get("<|end_header_id|>")
        for n, m in enumerate(messages, 1):
            role, text = m.get("role"), m.get("content")
            if role not in ("system", "user", "assistant") or not isinstance(text, str):
                raise UserError("a message needs a role (system, user, assistant) and a text, "
                                f"not {str(m)[:80]}")
            says, plain, last = int(role == "assistant"), self.chat == "plain", n == len(messages)
            text = text.strip() if self.trims else text
            if says and self.thinks:  # it has thought already, see header
                text = text.split("</think>")[-1].lstrip("\n" * (last or "</think>" in text))
            opening, space = self.header(role, last), " " if plain and role != "system" else ""
            if self.chat == "chatml" and not says:  # white space may join the line break before it
                opening, text = opening[:1], f"{role}\n{text}"
            elif self.chat == "llama3" and not says:
                opening, text = opening[:opening.index(closes) + 1], f"\n\n{text}"
            closing = [self.end] if says or not plain else []
            parts += [(opening, 0), (self.encode(space + text) + closing, says), (newline, 0)]
        if generation:
            parts.append((self.header("assistant"), 0))
        return [i for ids, _ in parts for i in ids], [on for ids, on in parts for _ in ids]


def as_json(value: dict) -> bytes:
    """The bytes of a readable JSON file."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode(
        "utf-8", "backslashreplace")                # half a character, as JSON would name it


def gpt2_spec(files: dict[str, bytes]) -> dict:
    """What a tokenizer.json would say for GPT-2's original two files."""
    vocab = json.loads(files["vocab.json"])
    merges = [line for line in files["merges.txt"].decode().replace("\r\n", "\n").split("\n")
              if line and not line.startswith("#version")]
    return {"model": {"type": "BPE", "vocab": vocab, "merges": merges},
            "pre_tokenizer": {"type": "ByteLevel"},
            "added_tokens": [{"content": "<|endoftext|>", "id": vocab["<|endoftext|>"]}]}
