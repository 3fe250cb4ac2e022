"""The closed form, its gradient, and a toy that must learn."""

import copy
import math

import torch

from minicai.answers import sequence_logprobs
from minicai.gpt import GPT, GPTConfig


def check_by_hand(mine):
    """margins of 3 and 1 nats beyond the reference, beta 0.5, label 0.8"""
    q = 1 / (1 + math.exp(-0.5 * (3 - 1)))
    found = mine.dpo_loss(*(torch.tensor([x]) for x in (-7.0, -9.0, -10.0, -10.0, 0.8)), 0.5).item()
    assert abs(found + 0.8 * math.log(q) + 0.2 * math.log(1 - q)) < 1e-4, f"found {found:.4f}"


def check_it_starts_at_log_2(mine):
    """while the policy is the reference, the loss is log 2, whatever the labels are"""
    a, b, p = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    assert abs(mine.dpo_loss(a, b, a, b, p.sigmoid(), 0.1).item() - math.log(2)) < 1e-5


def check_gradient(mine):
    """the better answer becomes likelier, the other less likely, by the same amount; at a label of
    1/2 nothing moves"""
    for label, sign in ((1.0, -1), (0.0, 1), (0.5, 0)):
        a, b = (torch.tensor([-5.0], requires_grad=True) for _ in range(2))
        mine.dpo_loss(
            a, b, torch.tensor([-5.0]), torch.tensor([-5.0]), torch.tensor([label]), 0.1
        ).backward()
        assert abs(a.grad + b.grad) < 1e-7 and torch.sign(a.grad).item() == sign, (
            f"label {label}: {a.grad.item():.4f}"
        )


def check_the_toy_learns(mine):
    """30 steps on a toy: answers that were preferred gain at least 2 nats on the others"""
    shape = GPTConfig(vocab_size=20, n_layer=1, n_head=2, width=32, mlp_width=64, max_positions=16)
    policy = GPT(shape).init_weights(torch.Generator().manual_seed(0), std=0.1)
    reference = copy.deepcopy(policy).requires_grad_(False)
    good = [([1, n], [2 * n, 2 * n, 0]) for n in range(1, 9)]  # even ids are preferred to odd ones
    bad = [([1, n], [2 * n + 1, 2 * n + 1, 0]) for n in range(1, 9)]
    refs = [sequence_logprobs(reference, examples) for examples in (good, bad)]
    optimizer = torch.optim.Adam(policy.parameters(), lr=3e-3)
    for _ in range(30):
        a, b = (sequence_logprobs(policy, examples) for examples in (good, bad))
        mine.dpo_loss(a, b, *refs, torch.ones(8), 0.5).backward()
        optimizer.step()
        optimizer.zero_grad()
    margin = ((a - refs[0]) - (b - refs[1])).mean().item()
    print(f"       the toy's margin: 0 -> {margin:.1f} nats")
    assert margin > 2
