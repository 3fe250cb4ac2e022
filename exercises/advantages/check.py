"""A row by hand, sums written out, and what must not leak in from outside the mask."""

import math

import torch

MASK = torch.tensor([[0, 0, 1, 1, 1, 0], [0, 1, 1, 1, 1, 1], [0, 0, 0, 0, 1, 0]]).bool()


def batch():
    return torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(0))


def check_rewards_by_hand(mine):
    """the KL penalty of each token, and the score on the last sampled one"""
    logp, ref = torch.tensor([[9.0, -1, -2, -3, 9]]), torch.tensor([[5.0, -2, -2, -1, 5]])
    found = mine.kl_rewards(
        logp, ref, torch.tensor([10.0]), torch.tensor([[0, 1, 1, 1, 0]]).bool(), 0.5
    )
    assert torch.allclose(found, torch.tensor([[0, -0.5, 0, 11, 0]])), (
        f"log p -1, -2, -3, log p_ref -2, -2, -1, kl_coef 0.5, paid 10: wanted -0.5, 0, 11 and 0 "
        f"outside, found {found.tolist()}"
    )


def check_gae_by_hand(mine):
    """rewards 0, 0, 2, values 1, 1, 1, gamma 1, lambda 0.5: advantages 0.25, 0.5, 1"""
    ones = torch.ones(1, 3)
    advantages, returns = mine.gae(torch.tensor([[0.0, 0, 2]]), ones, ones.bool(), 1.0, 0.5)
    assert torch.allclose(advantages, torch.tensor([[0.25, 0.5, 1]])), (
        f"found {advantages.tolist()}"
    )
    assert torch.allclose(returns, advantages + 1), "return = advantage + value"


def check_gae_is_a_sum_of_deltas(mine):
    """A_t is the sum of (gamma lambda)^k delta_(t+k)"""
    rewards, values = batch()
    advantages, _ = mine.gae(rewards, values, MASK, 0.9, 0.7)
    for b, row in enumerate(MASK):
        at = row.nonzero()[:, 0].tolist()
        delta = [
            rewards[b, t] + 0.9 * (values[b, t + 1] if t != at[-1] else 0) - values[b, t]
            for t in at
        ]
        for n, t in enumerate(at):
            wanted = sum((0.9 * 0.7) ** k * d for k, d in enumerate(delta[n:]))
            assert torch.isclose(advantages[b, t], wanted, atol=1e-5), (
                f"row {b}, token {t}: found {advantages[b, t]:.4f}, the sum is {wanted:.4f}"
            )


def check_lambda_one(mine):
    """lambda 1: the rewards to come, minus the value"""
    rewards, values = batch()
    advantages, returns = mine.gae(rewards, values, MASK, 1.0, 1.0)
    for b, row in enumerate(MASK):
        for t in row.nonzero()[:, 0].tolist():
            wanted = (rewards[b] * row)[t:].sum()
            assert torch.isclose(returns[b, t], wanted, atol=1e-5), (
                f"row {b}, token {t}: a return of {returns[b, t]:.4f}, the rewards to come are "
                f"{wanted:.4f}"
            )


def check_nothing_leaks_in(mine):
    """garbage outside the mask changes nothing, and results are 0 there"""
    rewards, values = batch()
    clean = mine.gae(rewards, values, MASK, 1.0, 0.95)
    dirty = mine.gae(
        rewards.masked_fill(~MASK, 1e6), values.masked_fill(~MASK, math.nan), MASK, 1.0, 0.95
    )
    for name, a, b in zip(("advantages", "returns"), clean, dirty):
        assert not a[~MASK].any(), f"{name} are not 0 outside the mask"
        assert torch.allclose(a, b), (
            f"{name} change with what stands outside the mask (1e6, nan): 0 times nan is nan"
        )
