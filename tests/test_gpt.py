"""The trunk: what a token may see, what padding may not do,
and the cache that must change nothing."""
import pytest
import torch

from minicai.gpt import GPT, GPTConfig, KVCache, rope_frequencies, rope_table
from minicai.run import UserError

SHAPES = {"llama": dict(), "grouped": dict(n_kv_head=1),
          "gpt2": dict(norm="layernorm", positions="learned", mlp="gelu",
                       qkv_bias=True, out_bias=True, mlp_bias=True),
          "qwen3": dict(qk_norm=True, head_dim=12, n_kv_head=2)}


@pytest.fixture(params=SHAPES)
def model(request):
    config = GPTConfig(vocab_size=97, n_layer=3, n_head=4, width=32, mlp_width=48, max_positions=64,
                       **SHAPES[request.param])
    return GPT(config).init_weights(torch.Generator().manual_seed(0), std=0.3)


def random_ids(*shape, seed=1):
    return torch.randint(0, 97, shape, generator=torch.Generator().manual_seed(seed))


def close(a, b):
    return torch.allclose(a, b, atol=2e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("steps", [[20], [1] * 20, [7, 1, 1, 11], [19, 1]])
def test_the_cache_changes_nothing(model, steps):
    ids, cache = random_ids(3, 20), KVCache(model.config, 3, 20)
    pieces = [model(part, cache=cache) for part in ids.split(steps, 1)]
    assert close(torch.cat(pieces, 1), model(ids)) and cache.length == 20


@torch.no_grad()
def test_a_token_sees_nothing_behind_it(model):
    ids = random_ids(1, 16)
    other = ids.clone()
    other[0, 9] = (ids[0, 9] + 1) % 97
    a, b = model(ids), model(other)
    assert close(a[:, :9], b[:, :9]) and not any(close(a[:, t], b[:, t]) for t in range(9, 16))


def left_padded(garbage):
    """Rows of 12, 7 and 1 real tokens, padded on the left with garbage:
    ids, positions, mask, lengths."""
    ids, lengths = random_ids(3, 12), [12, 7, 1]
    pad = torch.tensor([[12 - n] for n in lengths])
    mask = torch.arange(12) >= pad
    ids = torch.where(mask, ids, random_ids(3, 12, seed=garbage))
    return ids, (torch.arange(12) - pad).clamp(min=0), mask, lengths


@torch.no_grad()
def test_a_row_alone_equals_the_row_in_a_padded_batch(model):
    ids, positions, mask, lengths = left_padded(garbage=5)
    hidden = model(ids, positions, mask)
    for row, n in enumerate(lengths):
        assert close(hidden[row, -n:], model(ids[row:row + 1, -n:])[0])


@torch.no_grad()
def test_garbage_in_padding_changes_nothing(model):
    (a, positions, mask, _), (b, *_) = left_padded(garbage=5), left_padded(garbage=6)
    assert (a != b).any() and torch.equal(a[mask], b[mask])
    # bit for bit
    assert torch.equal(model(a, positions, mask)[mask], model(b, positions, mask)[mask])
    # right padding needs no mask
    assert torch.equal(model(a.flip(1))[mask.flip(1)], model(b.flip(1))[mask.flip(1)])
    assert model(a, positions, mask).isfinite().all()


@torch.no_grad()
def test_padding_is_harmless_through_the_cache_too(model):
    ids, positions, mask, lengths = left_padded(garbage=5)
    cache = KVCache(model.config, 3, 16)
    whole = torch.cat([mask, torch.ones(3, 4, dtype=torch.bool)], 1)
    model(ids, positions, mask, cache)
    more = random_ids(3, 4, seed=8)
    for t in range(4):
        last = model(more[:, t:t + 1], positions[:, -1:] + 1 + t, whole[:, :13 + t], cache)
    for row, n in enumerate(lengths):
        alone = model(torch.cat([ids[row, -n:], more[row]])[None])
        assert close(last[row, 0], alone[0, -1])


@torch.no_grad()
def test_rows_that_leave_the_cache_do_not_disturb_the_others(model):
    ids, cache = random_ids(4, 10), KVCache(model.config, 4, 12)
    model(ids[:, :9], cache=cache)
    cache.keep_rows(torch.tensor([1, 3]))
    assert close(model(ids[[1, 3], 9:], cache=cache), model(ids[[1, 3]])[:, 9:])


@torch.no_grad()
def test_rope_knows_distances_only():
    model = GPT(GPTConfig(vocab_size=97, n_layer=2, n_head=2, width=32)).init_weights(
        torch.Generator().manual_seed(0), std=0.3)
    ids = random_ids(1, 10)
    assert close(model(ids), model(ids, torch.arange(10) + 500))
    assert not close(model(ids), model(ids, torch.arange(10) * 2))


@pytest.mark.parametrize("theta, dim, longest", [(1e4, 64, 8192), (5e5, 128, 131072),
                                                 (1e6, 128, 40960)])
def test_rope_turns_as_in_transformers_even_far_out(theta, dim, longest):
    """A last bit of a frequency is a hundredth of a radian behind 100,000 positions."""
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    from transformers import LlamaConfig
    config = LlamaConfig(hidden_size=2 * dim, num_attention_heads=2, head_dim=dim,
                         rope_parameters={"rope_type": "default", "rope_theta": theta})
    theirs = llama.LlamaRotaryEmbedding(config)
    at = torch.linspace(0, longest - 1, 50).long()
    cos, sin = theirs(torch.zeros(1, 50, 1), at[None])
    freq = rope_frequencies(GPTConfig(vocab_size=9, n_layer=1, n_head=2, width=2 * dim,
                                      rope_theta=theta))
    ours = rope_table(freq, at, torch.float32)
    assert close(ours[0][:, 0], cos[0]) and close(ours[1][:, 0, dim // 2:], sin[0, :, dim // 2:])


@torch.no_grad()
def test_grouped_queries_equal_repeated_keys_and_values():
    few = GPT(GPTConfig(vocab_size=97, n_layer=2, n_head=4, n_kv_head=2, width=32)).init_weights(
        torch.Generator().manual_seed(0), std=0.3)
    many = GPT(GPTConfig(vocab_size=97, n_layer=2, n_head=4, n_kv_head=4, width=32))
    state = few.state_dict()
    for name in [n for n in state if "qkv" in n]:
        q, k, v = state[name].view(8, 8, 32).split([4, 2, 2])                  # [heads, D, C]
        state[name] = torch.cat([q, k.repeat_interleave(2, 0), v.repeat_interleave(2, 0)]).reshape(
            96, 32)
    many.load_state_dict(state)
    assert close(few(random_ids(2, 9)), many(random_ids(2, 9)))


def test_checkpointing_gives_the_same_gradients(model):
    ids, gradients = random_ids(2, 9), []
    for model.checkpointing in (False, True):
        model.zero_grad()
        model(ids).square().mean().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients))
    assert any(g.abs().sum() > 0 for g in gradients[0])


def test_weights_follow_the_generator():
    config = GPTConfig(vocab_size=50, n_layer=8, n_head=2, width=64)
    a, b, c = (GPT(config).init_weights(torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters()))
    assert not torch.equal(a.head, c.head)
    assert abs(a.blocks[0].mlp.down.weight.std() - 0.02 / 4) < 1e-3  # sqrt(2 x 8 layers) = 4
    assert abs(a.blocks[0].mlp.up.weight.std() - 0.02) < 1e-3 and (a.norm.weight == 1).all()


def test_too_long_a_text_is_named(model):
    with pytest.raises(UserError, match="65 tokens.*at most 64"):
        model(random_ids(1, 65))
