"""Files of dialogues in, padded batches out.

Shapes: B batch, T time. Rows are lists of token ids of different lengths; a batch is right-padded, and its mask, not
the padding's id, says what is real.
"""
import torch

from minicai.run import UserError, read_jsonl


def check_messages(messages, where: str):
    """Raise UserError unless `messages` is a dialogue: known roles, texts not empty, the last turn the user's."""
    if not isinstance(messages, list) or not messages:
        raise UserError(f"{where}: 'messages' must be a list of turns")
    for turn in messages:
        if not isinstance(turn, dict) or set(turn) != {"role", "content"} or not isinstance(turn["content"], str):
            raise UserError(f"{where}: a turn must be {{'role': ..., 'content': text}}, found {turn!r:.80}")
        if turn["role"] not in ("system", "user", "assistant") or not turn["content"].strip():
            raise UserError(f"{where}: unknown role or empty content in {turn!r:.80}")
    if messages[-1]["role"] != "user":
        raise UserError(f"{where}: the last turn must be the user's, found {messages[-1]['role']!r}")


def _read(path, keys) -> list:
    rows = read_jsonl(path)
    for number, row in rows:
        for key in keys:
            if key not in row:
                raise UserError(f"{path}:{number}: key {key!r} is missing, found {', '.join(row) or 'nothing'}")
        check_messages(row["messages"], f"{path}:{number}")
    return rows


def read_prompts(path) -> list:
    """The dialogues (lists of messages, ending in a user turn) of a file of {"messages"} rows."""
    return [row["messages"] for _, row in _read(path, ["messages"])]


def read_comparisons(path) -> list:
    """(messages, chosen text, rejected text) of each {"messages", "chosen", "rejected"} row."""
    rows = _read(path, ["messages", "chosen", "rejected"])
    for number, row in rows:
        for key in ("chosen", "rejected"):
            if not isinstance(row[key], str) or not row[key].strip():
                raise UserError(f"{path}:{number}: {key!r} must be a text that is not empty")
    return [(row["messages"], row["chosen"], row["rejected"]) for _, row in rows]


def fitting(items: list, lengths: list, limit: int, what: str) -> list:
    """The items whose length in tokens is at most `limit`; drops the rest aloud: cutting would lose the last turn."""
    kept = [item for item, length in zip(items, lengths) if length <= limit]
    if len(kept) < len(items):
        print(f"{what}: dropped {len(items) - len(kept)} of {len(items)} that are longer than {limit} tokens")
    if not kept:
        raise UserError(f"{what}: every one is longer than {limit} tokens; nothing is left to train on")
    return kept


def pad_right(rows: list, device=None):
    """ids [B,T] and mask [B,T] (True on real tokens) of rows of ids; padding is id 0, which the mask hides."""
    T = max(len(row) for row in rows)
    ids = torch.tensor([row + [0] * (T - len(row)) for row in rows], device=device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    return ids, torch.arange(T, device=device) < lengths[:, None]


def batches_by_length(lengths: list, batch_size: int, generator: torch.Generator) -> list:
    """Lists of indices for training: neighbours in length share a batch (little padding), batches in random order."""
    noise = torch.rand(len(lengths), generator=generator).tolist()       # shuffles rows of one length
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], noise[i]))
    batches = [order[i:i + batch_size] for i in range(0, len(order), batch_size)]
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


def batches_by_tokens(lengths: list, budget: int) -> list:
    """Lists of indices, longest rows first, each at most `budget` tokens after padding (or one row): for scoring."""
    batches, width = [], 0
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if not batches or (len(batches[-1]) + 1) * width > budget:
            batches.append([])
            width = lengths[i]                                           # the first row of a batch is its longest
        batches[-1].append(i)
    return batches
