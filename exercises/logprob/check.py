"""The definition, token by token, with a forward for each."""

import torch

from minicai.gpt import GPT, GPTConfig

EXAMPLES = [([5, 6, 7], [8, 9]), ([4], [3, 2, 1, 9, 8]), ([1, 2, 3, 4, 5, 6], [7])]


def model():
    shape = GPTConfig(vocab_size=20, n_layer=1, n_head=2, width=16, mlp_width=32, max_positions=32)
    return GPT(shape).init_weights(torch.Generator().manual_seed(0), std=0.3)


@torch.no_grad()
def slowly(gpt, prompt, answer):
    """log p of each token from a forward that has seen nothing but what stands before it."""
    found = []
    for n, token in enumerate(answer):
        hidden = gpt(torch.tensor([prompt + answer[:n]]))[0, -1]
        found.append((hidden @ gpt.head.T).log_softmax(-1)[token])
    return torch.stack(found)


def check_each_token(mine):
    """log p of each answer token is that of a forward which has read only what stands before it"""
    gpt = model()
    for example in EXAMPLES:
        found, wanted = mine.answer_logprobs(gpt, *example), slowly(gpt, *example)
        assert found.shape == wanted.shape, (
            f"shape {tuple(found.shape)}, wanted {tuple(wanted.shape)}"
        )
        assert torch.allclose(found, wanted, atol=1e-4), (
            f"off by {(found - wanted).abs().max():.3f} nats"
        )


def check_no_token_sees_itself(mine):
    """changing the last token of an answer changes the log p of no other"""
    gpt = model()
    a, b = (mine.answer_logprobs(gpt, [4, 5], [3, 2, last]) for last in (1, 9))
    assert torch.allclose(a[:2], b[:2]) and not torch.allclose(a[2], b[2])


def check_loss(mine):
    """the loss is one mean over all tokens, not a mean of means"""
    gpt = model()
    wanted = -torch.cat([slowly(gpt, *example) for example in EXAMPLES]).mean()
    assert torch.allclose(mine.loss(gpt, EXAMPLES), wanted, atol=1e-4)


def check_loss_has_a_gradient(mine):
    """the loss has a gradient"""
    gpt = model()
    mine.loss(gpt, EXAMPLES).backward()
    assert gpt.head.grad.abs().sum() > 0
