"""Sampling: many prompts at once, each token computed once, from the model's whole distribution.

Keys and values of past tokens stay in a cache that is allocated once a batch. Prompts are sorted by
length and padded on the left, so that every row's newest token sits in the same column; what they
all begin with (a preamble, worked examples) is computed for one row and copied. When a quarter of
the rows has ended, these leave the batch. Left out on purpose: top-k and top-p. PPO's log-probs are
those of the distribution that was sampled from, and that has to be all of it.

Shapes: B batch, P prompt, V vocabulary, S columns of the cache.
"""

import os
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from tqdm import tqdm

from minicai.decode import decoder_of, decodes
from minicai.gpt import GPT, KVCache
from minicai.logprob import forbidding_bias
from minicai.run import UserError


def generate(model: GPT, prompts: list[list[int]], *, max_new_tokens: int, stop: set[int],
             forbidden: torch.Tensor | None = None, temperature: float = 1.0,
             generator: torch.Generator | None = None, batch_tokens: int | None = None,
             progress: str | None = None, done: dict | None = None) -> list[list[int]]:
    """New ids of each prompt, in the order given;
    a row's last id is in `stop` if it ended by itself.

    forbidden [V] bool: ids never to be sampled. temperature 0: always the likeliest id.
    batch_tokens bounds rows x columns of a batch (default: 16k on a CPU, whose caches are small;
    128k elsewhere). `generator` (on the CPU) gives every prompt its own random numbers, so how
    prompts are batched does not matter. done: new ids by prompt's index as far as they are known
    already (see state.py); each batch's are put in with update(). Raises UserError for a prompt
    that is empty or leaves no room.
    """
    # Longest first: too long fails at once.
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    if order and not prompts[order[-1]]:
        raise UserError(f"prompt {order[-1]} is empty: there is nothing to go on from")
    if order and len(prompts[order[0]]) + max_new_tokens > model.config.max_positions:
        raise UserError(f"a prompt of {len(prompts[order[0]])} tokens and {max_new_tokens} new "
                        f"ones: this model reads at most {model.config.max_positions}: lower "
                        "--max-prompt or --max-new")
    device = model.head.device
    batch_tokens = batch_tokens or (2**14 if device.type == "cpu" else 2**17)
    chance = random_numbers(len(prompts), max_new_tokens, device, generator)
    decoder = decoder_of(model) if decodes(device) else None
    model = decoder.model if decoder else model
    done = {} if done is None else done
    order = [i for i in order if i not in done]
    # Inference mode is the quicker one, but in it autocast would cast the weights anew for every
    # token.
    no_graph = torch.no_grad if model.bf16 or decoder else torch.inference_mode
    with no_graph(), tqdm(total=len(prompts), initial=len(done), desc=progress,
                          disable=progress is None) as bar:
        while order:
            rows = max(1, batch_tokens // (len(prompts[order[0]]) + max_new_tokens))
            batch, order = order[:rows], order[rows:]
            with model.autocast():  # entered here, it casts the weights once, not for every token
                sampled = sample_batch(model, [prompts[i] for i in batch], chance[batch], stop,
                                       forbidden, temperature, decoder)
            done.update(zip(batch, sampled))
            bar.update(len(batch))
    return [done[i] for i in range(len(prompts))]


def sample_batch(model, prompts, chance, stop, forbidden, temperature,
                 decoder=None) -> list[list[int]]:
    """generate() for prompts that share one cache;
    chance [B, max_new_tokens] decides what is drawn.

    A decoder (decode.py), where there is one,
    goes on from the first new token by steps that were recorded.
    """
    device, (B, max_new_tokens), P = model.head.device, chance.shape, max(map(len, prompts))
    cache = (decoder.cache(B, P + max_new_tokens) if decoder
             else new_cache(model, B, P + max_new_tokens))
    head = model.head.to(cache.k.dtype)
    stops = torch.tensor(sorted(stop), device=device)
    bias = forbidding_bias(None if forbidden is None else forbidden.to(device), head.dtype)

    # 1. The common beginning, if it is worth a forward, for one row;
    #    every row keeps an id of its own to go on from.
    shared = min(len(os.path.commonprefix(prompts)), min(map(len, prompts)) - 1)
    shared = shared if B > 1 and shared >= 16 else 0
    if shared:
        model(torch.tensor([prompts[0][:shared]], device=device), cache=cache.first(1))
        cache.spread(shared)

    # 2. The rest, padded on the left: columns are [shared | padding | rest | new].
    pad = torch.tensor([P - len(p) for p in prompts], device=device)            # [B]
    ids = torch.tensor([[0] * (P - len(p)) + p[shared:] for p in prompts], device=device)
    column = torch.arange(shared, P, device=device)
    positions = (column - pad[:, None]).clamp(min=0)  # counted from the first real id
    mask = None
    if pad.any():
        mask = torch.ones(B, P + max_new_tokens, dtype=torch.bool, device=device)
        mask[:, shared:P] = column >= shared + pad[:, None]

    # 3. Token by token; `live` says which prompt each remaining row belongs to.
    new = torch.full((B, max_new_tokens), -1, device=device)
    live, ended = torch.arange(B, device=device), torch.zeros(B, dtype=torch.bool, device=device)
    for t in range(max_new_tokens):
        seen = None if mask is None else mask[:, :P + t]
        hidden = model(ids, positions, seen, cache)[:, -1]                      # [B, C]
        ids = pick(F.linear(hidden, head, bias), temperature, chance[live, t])    # [B]
        new[live, t] = ids
        if decoder:
            new = decoder.go_on(new, positions[:, -1:] + 1, seen, chance, cache, stops, bias,
                                temperature, pick)
            break
        ended |= torch.isin(ids, stops)
        # Reading `ended` makes a GPU wait, so it is done now and then;
        # moving the cache costs, so not for a few rows.
        if device.type == "cpu" or t % 8 == 7:
            count = int(ended.sum())
            if count == len(live):
                break
            if count * 4 >= len(live):
                rows = (~ended).nonzero().squeeze(-1)
                cache.keep_rows(rows)
                ids, positions, live, ended = ids[rows], positions[rows], live[rows], ended[rows]
                mask = None if mask is None else mask[rows]
        ids, positions = ids[:, None], positions[:, -1:] + 1
    return [cut(row, stop) for row in new.tolist()]


def random_numbers(rows: int, columns: int, device,
                   generator: torch.Generator | None) -> torch.Tensor:
    """Uniform numbers [rows, columns], drawn on the CPU so that a seed means the same everywhere,
    then sent over."""
    numbers = torch.rand(rows, columns, dtype=torch.float64, generator=generator)
    if device.type == "mps":  # it has no double; 1 itself must not come out of rounding
        return numbers.float().clamp(max=1 - 2**-24).to(device)
    return numbers.to(device)


def new_cache(model: GPT, rows: int, columns: int) -> KVCache:
    """An empty cache in the type that the model computes in."""
    dtype = torch.bfloat16 if model.bf16 else model.head.dtype
    return KVCache(model.config, rows, columns, model.head.device, dtype)


def pick(logits: torch.Tensor, temperature: float, chance: torch.Tensor) -> torch.Tensor:
    """One id a row, [B], from logits [B, V] and uniform numbers chance [B];
    temperature 0 takes the likeliest."""
    if temperature == 0:
        return logits.argmax(-1)
    # Where chance falls among the cumulated probabilities: one random number a row, where
    # torch.multinomial draws V. Summed in double precision: in single, ids rarer than 1e-7 could
    # not be hit.
    cumulated = (logits.float() / temperature).softmax(-1).cumsum(-1, dtype=chance.dtype)  # [B, V]
    found = torch.searchsorted(cumulated, chance[:, None] * cumulated[:, -1:], right=True)
    return found.squeeze(-1).clamp(max=logits.shape[-1] - 1)


def cut(row: list[int], stop: set[int]) -> list[int]:
    """A sampled row up to its first stop id, that included."""
    return row[:next((i + 1 for i, id in enumerate(row) if id in stop), len(row))]


@torch.no_grad()
def stream(model: GPT, prompt: list[int], *, max_new_tokens: int, stop: set[int],
           forbidden: torch.Tensor | None = None, temperature: float = 1.0,
           generator: torch.Generator | None = None) -> Iterator[int]:
    """Yield the new ids of one prompt as they are sampled, a stop id included."""
    if not prompt:
        raise UserError("the prompt is empty: there is nothing to go on from")
    cache, ids = new_cache(model, 1, len(prompt) + max_new_tokens), prompt
    for chance in random_numbers(1, max_new_tokens, model.head.device, generator).T:
        hidden = model(torch.tensor([ids], device=model.head.device), cache=cache)[:, -1]
        logits = F.linear(hidden, model.head.to(hidden.dtype))
        if forbidden is not None:
            logits = logits.masked_fill(forbidden.to(logits.device), -torch.inf)
        ids = pick(logits, temperature, chance).tolist()
        yield ids[0]
        if ids[0] in stop:
            return
