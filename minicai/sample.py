"""Batched sampling with a KV cache."""

import torch
import torch.nn.functional as F
from tqdm import tqdm

from minicai.gpt import GPT, KVCache


@torch.no_grad()
def generate(model: GPT, prompts: list[list[int]], *, max_new_tokens: int, stop: set[int], forbidden=None,
             temperature: float = 1.0, generator=None, batch_tokens: int = 32768, progress: str | None = None):
    """Sample a continuation of each prompt; returns the new ids, the stop token included if it was reached."""
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    out: list[list[int]] = [[] for _ in prompts]
    bar = tqdm(total=len(prompts), desc=progress, disable=progress is None)
    while order:
        rows = max(1, batch_tokens // (len(prompts[order[0]]) + max_new_tokens))
        batch, order = order[:rows], order[rows:]
        for i, new in zip(batch, sample_batch(model, [prompts[i] for i in batch], max_new_tokens, stop, forbidden,
                                              temperature, generator)):
            out[i] = new
        bar.update(len(batch))
    return out


def sample_batch(model, prompts, max_new_tokens, stop, forbidden, temperature, generator):
    device = model.head.device
    B, P = len(prompts), max(map(len, prompts))
    S = P + max_new_tokens
    ids = torch.tensor([[0] * (P - len(p)) + list(p) for p in prompts], device=device)
    mask = torch.ones(B, S, dtype=torch.bool, device=device)
    start = torch.tensor([P - len(p) for p in prompts], device=device)
    mask[:, :P] = torch.arange(P, device=device) >= start[:, None]
    padded = bool(start.any())
    positions = (torch.arange(P, device=device) - start[:, None]).clamp(min=0)
    bias = None
    if forbidden is not None:
        bias = torch.zeros(len(model.head), device=device, dtype=model.head.dtype).masked_fill(forbidden.to(device), -torch.inf)
    cache = KVCache(model.config, B, S, device, model.head.dtype)
    stops = torch.tensor(sorted(stop), device=device)
    new = torch.zeros(B, max_new_tokens, dtype=torch.long, device=device)
    live = torch.arange(B, device=device)
    done = torch.zeros(B, dtype=torch.bool, device=device)
    for t in range(max_new_tokens):
        hidden = model(ids, positions, mask[:, :P + t] if padded else None, cache)[:, -1]
        ids = pick(F.linear(hidden, model.head, bias), temperature, generator)
        new[live, t] = ids
        done |= torch.isin(ids, stops)
        positions = positions[:, -1:] + 1
        n_done = int(done.sum())
        if n_done == len(done):
            break
        if n_done * 4 >= len(done):
            rows = (~done).nonzero().squeeze(-1)
            cache.keep(rows)
            ids, positions, mask, live, done = ids[rows], positions[rows], mask[rows], live[rows], done[rows]
        ids = ids[:, None]
    rows = []
    for row in new.tolist():
        n = next((i + 1 for i, x in enumerate(row) if x in stop), len(row))
        rows.append(row[:n])
    return rows


def pick(logits, temperature, generator):
    """Draw one id a row from logits [B, V]; temperature 0 takes the likeliest."""
    if temperature == 0:
        return logits.argmax(-1)
    return torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator).squeeze(-1)


def stream(model: GPT, prompt: list[int], *, max_new_tokens: int, stop: set[int], forbidden=None,
           temperature: float = 1.0, generator=None):
    """Yield the new ids of one prompt as they are sampled."""
    cache = KVCache(model.config, 1, len(prompt) + max_new_tokens, model.head.device, model.head.dtype)
    ids = list(prompt)
    for _ in range(max_new_tokens):
        with torch.no_grad():
            logits = F.linear(model(torch.tensor([ids], device=model.head.device), cache=cache)[:, -1], model.head)
            if forbidden is not None:
                logits = logits.masked_fill(forbidden.to(logits.device), -torch.inf)
            ids = [int(pick(logits, temperature, generator))]
        yield ids[0]
        if ids[0] in stop:
            return
