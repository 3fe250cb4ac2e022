"""Properties of the two functions, and a toy that must learn with them."""

import sys
from pathlib import Path
from unittest import mock

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import toy  # noqa: E402

from minicai import ppo  # noqa: E402


def check_shape_orders(mine):
    """a better score is never worth less, and 0 is worth 0"""
    paid = mine.shape(torch.linspace(-4, 4, 81))
    assert (paid[1:] >= paid[:-1] - 1e-6).all() and abs(mine.shape(torch.zeros(1)).item()) < 1e-6


def check_shape_punishes_more(mine):
    """a bad score costs at least 1.5 times what the good one of the same size earns"""
    for size in (0.1, 0.5, 1.0, 2.0):
        good, bad = mine.shape(torch.tensor([size, -size])).tolist()
        assert good > 0 and -bad >= 1.5 * good - 1e-6, f"score +-{size}: {good:.2f} and {bad:.2f}"


def check_shape_has_a_ceiling(mine):
    """beyond some height nothing more is paid"""
    a, b = mine.shape(torch.tensor([50.0, 100.0])).tolist()
    assert a == b, f"50 is worth {a}, 100 is worth {b}"


def rollout(mine, rewards):
    """What the function makes of rewards [B,T], rows of length T and T - 1 in turn."""
    mask = torch.ones_like(rewards).bool()
    mask[::2, -1] = False
    zeros = torch.zeros_like(rewards)
    given = ppo.Rollout(
        zeros.long(),
        mask,
        zeros,
        zeros,
        zeros,
        zeros[:, 0],
        mask[:, 0],
        zeros[:, 0],
        rewards * mask,
    )
    return mine.advantages(given, ppo.PPOConfig(valued=False)), (rewards * mask).sum(1), mask


def check_groups(mine):
    """every token of a response has the response's place in its group"""
    rewards = torch.randn(3 * mine.GROUP, 5, generator=torch.Generator().manual_seed(0))
    found, total, mask = rollout(mine, rewards)
    groups = total.view(-1, mine.GROUP)
    wanted = ((groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-6)).view(
        -1, 1
    ) * mask
    assert torch.allclose(found.advantages, wanted, atol=1e-4), (
        "differs from (total - mean) / (std + 1e-6) of its group"
    )
    assert found.returns.shape == rewards.shape and torch.equal(found.mask, mask), (
        "returns [B,T] are wanted too, and the mask as it was"
    )


def check_nothing_to_learn(mine):
    """a group that is paid alike has advantage 0, not NaN"""
    found, _, _ = rollout(mine, torch.zeros(mine.GROUP, 4))
    assert not found.advantages.any(), f"found {found.advantages.tolist()}"


def check_other_groups_do_not_matter(mine):
    """what another prompt's answers earn changes nothing"""
    rewards = torch.randn(2 * mine.GROUP, 5, generator=torch.Generator().manual_seed(1))
    richer = rewards.clone()
    richer[mine.GROUP :] += 7
    a, b = (rollout(mine, r)[0].advantages[: mine.GROUP] for r in (rewards, richer))
    assert torch.allclose(a, b, atol=1e-5), (
        "the first group's advantages change with the second group's rewards"
    )


def check_the_toy_learns(mine):
    """20 steps on the toy: the score rises by more than 0.8"""
    assert mine.GROUP == 4, "the toy's prompts stand four times in a row"
    with mock.patch.object(ppo, "advantages", mine.advantages):
        rows = toy.train(steps=20, kl_coef=0.02, valued=False)
    start, end = rows[0]["score"], sum(row["score"] for row in rows[-3:]) / 3
    print(f"       the toy's score: {start:.2f} -> {end:.2f}")
    assert end > start + 0.8, f"it rises by {end - start:.2f} only"
