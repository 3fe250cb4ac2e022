"""Files of dialogues in, padded batches out.

Shapes: B batch, T time. Rows are lists of token ids of different lengths;
a batch is right-padded, and its mask, not the padding's id, says what is real.
"""
import math
import re
from pathlib import Path

import torch

from minicai.checkpoint import load_trunk, refuse_scorer
from minicai.run import UserError, read_jsonl, visible

ROLES = {"Human": "user", "Assistant": "assistant"}  # the tags of transcripts, as in hh-rlhf


class Unusable(UserError):
    """A row as real data sets hold them, but nobody can learn from:
    dropped and counted, with this reason."""


def read_prompts(path, tok=None, limit: int = 0) -> list:
    """The dialogues (lists of messages, ending in a user turn) of a file;
    docs/data_formats.md says which rows it may hold.

    With a tokenizer, only those that take at most `limit` tokens with the assistant's header.
    """
    dialogues = _usable(path, read_prompt)
    ids_of = lambda messages: tok.encode_chat(messages, generation=True)[0] if tok else []
    lengths = [length(ids_of, m) for m in dialogues]
    return drop_too_long(dialogues, lengths, limit, path)


def read_comparisons(path) -> list:
    """(messages, chosen text, rejected text) of each row of a file;
    docs/data_formats.md says which rows it may hold."""
    return _usable(path, read_comparison)


def _usable(path, read) -> list:
    """read(row, where) of every row but the Unusable ones, which are counted aloud;
    UserError if none is left."""
    rows, used, dropped = read_jsonl(path), [], {}
    for number, row in rows:
        try:
            used.append(read(row, f"{path}:{number}"))
        except Unusable as reason:
            dropped.setdefault(str(reason), []).append(number)
    why = ", ".join(f"{len(lines)} x {reason} (first in line {lines[0]})"
                    for reason, lines in dropped.items())
    print(f"{path}: {len(used)} of {len(rows)} rows used; dropped: {why or 'none'}")
    if not used:
        raise UserError(f"{path}: no row can be used: {why}")
    return used


def read_prompt(row: dict, where: str) -> list:
    """The dialogue of a row up to its last user turn."""
    keys = [key for key in ("messages", "prompt", "transcript", "chosen") if key in row]
    key = next((key for key in keys if row[key] is not None), (*keys, "messages")[0])
    turns = _turns(as_transcript(row) if key == "prompt" else row, key, where)
    while turns and turns[-1]["role"] != "user":
        turns.pop()
    return _filled(turns)


def read_comparison(row: dict, where: str) -> tuple:
    """(messages, chosen text, rejected text) of a row:
    two answers to its prompt, or two dialogues that share one."""
    prompt = next((name for name in ("messages", "prompt") if row.get(name) is not None), None)
    dialogues, row = [], as_transcript(row) if prompt == "prompt" else row
    for key in ("chosen", "rejected"):
        if prompt and isinstance(row.get(key), str) and not is_transcript(row[key]):
            # Next to a prompt, a text is an answer; some files put a space in front.
            row = row | {key: [{"role": "assistant", "content": row[key].strip()}]}
        turns = _turns(row, key, where)
        if prompt and turns:
            turns = _answered(_turns(row, prompt, where), turns, row[key])
        dialogues.append(_filled(turns))
    if any([turn["role"] for turn in dialogue[-2:]] != ["user", "assistant"]
           for dialogue in dialogues):
        raise Unusable("not ending in a user turn and an assistant turn")
    (*messages, a), (*others, b) = dialogues
    if messages != others:
        raise Unusable("chosen and rejected share no prompt")
    if a["content"].strip() == b["content"].strip():
        raise Unusable("chosen and rejected are equal")
    return messages, a["content"], b["content"]


def read_human(files: list, ids_of, limit: int) -> list:
    """(messages, chosen text, rejected text, name of the file) of files of comparisons: its own
    name, behind its folder's where two have the same. Without those of which an answer takes more
    than `limit` ids behind its dialogue, by ids_of(messages, text)."""
    names = [Path(file.name.removesuffix(".gz")).stem for file in files]
    names = [name if names.count(name) == 1 else f"{file.parent.name}_{name}"
             for name, file in zip(names, files)]
    names = names if len(set(names)) == len(names) else list(map(str, files))
    rows = [(*row, name) for name, file in zip(names, files) for row in read_comparisons(file)]
    lengths = [max(length(ids_of, m, text) for text in pair) for m, *pair, _ in rows]
    return drop_too_long(rows, lengths, limit, " and ".join(map(str, files)))


def _answered(asked: list, turns: list, text) -> list:
    """The dialogue of a prompt `asked` and of `turns` beside it: the answer alone, or the whole
    dialogue, which then has to begin as the prompt does. `text`: how the file says it."""
    if asked[-1:] == [{"role": "assistant", "content": ""}]:    # a transcript up to "Assistant:"
        asked = asked[:-1]
    if turns[0]["role"] == "assistant":
        return asked + turns
    system = asked[:1] if asked and asked[0]["role"] == "system" else []
    if turns[0]["role"] != "system":
        turns = system + turns
    said, begun = ([(turn["role"], turn["content"].strip()) for turn in some
                    if system or turn["role"] != "system"] for some in (asked, turns))
    while said and said[-1][0] == "assistant":                      # the answer may be another one
        said.pop()
    if begun[:len(said)] == said:
        return turns
    if isinstance(text, str):                                       # an answer that looks like one
        return asked + [{"role": "assistant", "content": text}]
    raise Unusable("a dialogue that does not begin as the prompt beside it does")


def read_transcript(text: str) -> list:
    """Messages of a text that opens with "Human:" or "Assistant:" and has "\\n\\n" before every
    such tag in it."""
    # Blank lines occur inside turns: only the tags divide. Some files were written on Windows.
    start, *parts = re.split(r"\n\n(Human|Assistant):", "\n\n" + text.replace("\r\n", "\n").strip())
    if start.strip():
        raise Unusable("text before the first turn")
    return [{"role": ROLES[tag], "content": said.strip()}
            for tag, said in zip(parts[::2], parts[1::2])]


def is_transcript(text: str) -> bool:
    """Whether a text stands in the form of hh-rlhf:
    a tag after a blank line opens it, or opens it and comes again."""
    text = text.replace("\r\n", "\n")
    return bool(re.match(r"\s*\n(Human|Assistant):|\s*Human:.*\n\nAssistant:|"
                         r"\s*Assistant:.*\n\nHuman:", text, re.S))


def as_transcript(row: dict) -> dict:
    """The row; its "prompt" is a transcript if it says "Human: ..." and one beside it begins so."""
    asked, *told = (row.get(key) for key in ("prompt", "chosen", "rejected"))
    opens = isinstance(asked, str) and asked.strip().startswith("Human:") and any(
        isinstance(text, str) and is_transcript(text) and text.strip().startswith(asked.strip())
        for text in told)
    return row | {"prompt": "\n\n" + asked.strip()} if opens else row


def _turns(row, key, where) -> list:
    """The messages under a key: a list of them, the one request of a "prompt" text,
    or the turns of a transcript.

    A "system" column opens the dialogue, unless it is empty or stands there already;
    so does no empty system message.
    """
    if key not in row:
        raise UserError(f"{where}: key {key!r} is missing, found {', '.join(row) or 'nothing'}; "
                        "see docs/data_formats.md")
    turns = row[key]
    if isinstance(turns, str) and key != "messages":
        alone = key == "prompt" and not is_transcript(turns)
        turns = [{"role": "user", "content": turns}] if alone else read_transcript(turns)
    for turn in turns if isinstance(turns, list) else [turns]:
        known = (isinstance(turns, list) and isinstance(turn, dict)
                 and turn.get("role") in ("system", "user", "assistant"))
        if not known or not isinstance(turn.get("content"), str):
            raise UserError(f"{where}: {key!r} must be a list of "
                            "{'role': system, user or assistant, 'content': text}"
                            f", found {turn!r:.80}")
    turns = [{"role": turn["role"], "content": turn["content"]} for turn in turns
             if turn["role"] != "system" or turn["content"].strip()]
    system = row.get("system")
    if not isinstance(system, str | None):
        raise UserError(f"{where}: 'system' must be a text or null, found {system!r:.80}")
    # The rest of a dialogue, whose prompt stands beside it.
    rest = key in ("chosen", "rejected") and (row.get("messages") or row.get("prompt"))
    if not (system or "").strip() or rest and turns and turns[0]["role"] == "assistant":
        return turns
    if not turns or turns[0]["role"] != "system":
        return [{"role": "system", "content": system}, *turns]
    if turns[0]["content"].strip() != system.strip():
        raise UserError(f"{where}: 'system' and the first message are two system messages: "
                        "which is meant?")
    return turns


def _filled(turns) -> list:
    if any(re.search("[\ud800-\udfff]", turn["content"]) for turn in turns):
        raise Unusable("half a character (a lone surrogate)")           # no file could hold it
    if not turns or not all(visible(turn["content"]) for turn in turns):
        raise Unusable("empty turn" if turns else "no user turn")
    if any(turn["role"] == "system" for turn in turns[1:]):     # it opens a dialogue
        raise Unusable("a system message inside")
    return turns


def length(ids_of, *said) -> float:
    """The number of ids that ids_of(*said) has; without end, if a text cannot be split into words
    (a million spaces in a row)."""
    try:
        return len(ids_of(*said))
    except UserError:
        return math.inf


def drop_too_long(items: list, lengths: list, limit: int, what: str) -> list:
    """The items whose length in tokens is at most `limit`;
    drops the rest aloud: cutting would lose the last turn."""
    kept = [item for item, length in zip(items, lengths) if length <= limit]
    if len(kept) < len(items):
        print(f"{what}: dropped {len(items) - len(kept)} of {len(items)} that are longer "
              f"than {limit} tokens")
    if not kept:
        raise UserError(f"{what}: every one is longer than {limit} tokens, nothing is left to "
                        "train on: raise --max-prompt (or --max-new, for answers)")
    return kept


def number_held_out(count: int, share: float, what: str) -> int:
    """How many of `count` dialogues are held out, one at least;
    raises UserError where nothing is left to train on."""
    held = max(1, round(share * count))
    if held >= count:
        raise UserError(f"{what}: --held-out {share} of the dialogues ({count} different) leaves "
                        "none to train on: give more, or hold out less")
    return held


def split(comparisons: list, share: float, rng) -> tuple[list, list]:
    """(train, held out): all comparisons of one dialogue fall on the same side,
    so that none is half known. Raises UserError where nothing is left to train on."""
    dialogues = sorted({repr(row[0]) for row in comparisons})
    what = f"{len(comparisons)} comparisons"
    held = set(rng.sample(dialogues, number_held_out(len(dialogues), share, what)))
    return ([r for r in comparisons if repr(r[0]) not in held],
            [r for r in comparisons if repr(r[0]) in held])


def check_room(directory, need: int, shots, scorer: bool = False, advice: str = ""):
    """Raise UserError unless the directory's model is whole, of its sort, and reads `need` tokens
    at once, worked examples (`shots`) included. Its weights are looked at one by one and
    not kept."""
    if not scorer:
        refuse_scorer(directory)
    have = load_trunk(directory, "meta")[0].config.max_positions
    if need > have:
        raise UserError(f"a context may take {need} tokens, {directory} has {have}: "
                        "lower --max-prompt or --max-new"
                        + advice + ", or give --no-few-shot" * bool(shots))


def pad_right(rows: list, device=None):
    """ids [B,T] and mask [B,T] (True on real tokens) of rows of ids;
    padding is id 0, which the mask hides."""
    T = max(len(row) for row in rows)
    ids = torch.tensor([row + [0] * (T - len(row)) for row in rows], device=device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    return ids, torch.arange(T, device=device) < lengths[:, None]


def batches_by_length(lengths: list, batch_size: int, generator: torch.Generator) -> list:
    """Lists of indices for training: neighbours in length share a batch (little padding),
    batches in random order."""
    noise = torch.rand(len(lengths), generator=generator).tolist()  # shuffles rows of one length
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], noise[i]))
    batches = [order[i:i + batch_size] for i in range(0, len(order), batch_size)]
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


def batches_by_tokens(lengths: list, budget: int) -> list:
    """Lists of indices, longest rows first,
    each at most `budget` tokens after padding (or one row): for scoring."""
    batches, width = [], 0
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if not batches or (len(batches[-1]) + 1) * width > budget:
            batches.append([])
            width = lengths[i]  # the first row of a batch is its longest
        batches[-1].append(i)
    return batches
