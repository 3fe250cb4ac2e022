"""Advantages against a brute-force sum, closed forms,
and the numbers of a second implementation (tests/data)."""
from pathlib import Path

import numpy as np
import pytest
import torch

from minicai.gae import gae, kl_rewards, last_index, masked_mean, masked_var, masked_whiten

TRL = {k: torch.from_numpy(np.asarray(v))
       for k, v in np.load(Path(__file__).parent / "data/trl_1.12_ppo_numbers.npz").items()}


@pytest.fixture
def batch():
    """Rewards and values [3,9] with garbage outside a mask that starts and ends
    at different places."""
    g = torch.Generator().manual_seed(0)
    rewards, values = torch.randn(2, 3, 9, generator=g).double()
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 0, 0], [0, 1, 1, 1, 1, 1, 1, 1, 1],
                         [0, 0, 0, 0, 1, 0, 0, 0, 0]]).bool()
    return rewards, values, mask


def responses(mask):
    """(row, first, last + 1) of each row's sampled tokens."""
    return [(b, int(row.nonzero()[0]), int(row.nonzero()[-1]) + 1) for b, row in enumerate(mask)]


@pytest.mark.parametrize("gamma, lam", [(1.0, 0.95), (0.9, 0.7), (0.99, 0.0), (0.8, 1.0)])
def test_gae_is_the_exponentially_weighted_sum_of_deltas(batch, gamma, lam):
    rewards, values, mask = batch
    advantages, returns = gae(rewards, values, mask, gamma, lam)
    for b, first, end in responses(mask):
        delta = [rewards[b, t] + gamma * (values[b, t + 1] if t + 1 < end else 0) - values[b, t]
                 for t in range(first, end)]
        for t in range(end - first):
            brute = sum((gamma * lam) ** k * delta[t + k] for k in range(len(delta) - t))
            assert torch.isclose(advantages[b, first + t], brute)
            assert torch.isclose(returns[b, first + t], brute + values[b, first + t])
    assert not advantages[~mask].any() and not returns[~mask].any()


def test_lambda_one_is_the_reward_to_come_minus_the_value(batch):
    rewards, values, mask = batch
    advantages, returns = gae(rewards, values, mask, gamma=1.0, lam=1.0)
    for b, first, end in responses(mask):
        for t in range(first, end):
            assert torch.isclose(returns[b, t], rewards[b, t:end].sum())
            assert torch.isclose(advantages[b, t], rewards[b, t:end].sum() - values[b, t])


def test_lambda_zero_looks_one_token_ahead(batch):
    rewards, values, mask = batch
    advantages, _ = gae(rewards, values, mask, gamma=0.9, lam=0.0)
    for b, first, end in responses(mask):
        assert torch.isclose(advantages[b, end - 1], rewards[b, end - 1] - values[b, end - 1])
        for t in range(first, end - 1):
            assert torch.isclose(advantages[b, t],
                                 rewards[b, t] + 0.9 * values[b, t + 1] - values[b, t])


@pytest.mark.parametrize("garbage", [1e6, float("nan"), float("-inf")])
def test_garbage_outside_the_mask_changes_nothing(batch, garbage):
    """Not even what is no number: 0 times nan would be nan."""
    rewards, values, mask = batch
    fouled = lambda x: x.masked_fill(~mask, garbage)

    def everything(rewards, values):
        paid = torch.ones(len(mask), dtype=rewards.dtype)
        yield from gae(rewards, values, mask, 1.0, 0.95)
        yield kl_rewards(rewards, values, paid, mask, 0.1)
        yield masked_whiten(rewards, mask)
        yield masked_mean(rewards, mask)
        yield masked_var(values, mask)
    for a, b in zip(everything(rewards * mask, values * mask),
                    everything(fouled(rewards), fouled(values)), strict=True):
        torch.testing.assert_close(a, b)


def test_whole_numbers_are_numbers_too():
    """By hand: A_2 = 1 - 1/2, A_1 = 0.95 A_2, A_0 = 0.95 A_1; integer rewards are not cut off."""
    values, mask = torch.full((1, 3), 0.5), torch.ones(1, 3, dtype=torch.int64)
    advantages, returns = gae(torch.tensor([[0, 0, 1]]), values, mask, 1.0, 0.95)
    torch.testing.assert_close(advantages, torch.tensor([[0.45125, 0.475, 0.5]]))
    torch.testing.assert_close(returns, advantages + 0.5)


def test_the_kl_is_paid_and_not_differentiated():
    logp = torch.tensor([[0., -1.0]], requires_grad=True)
    mask = torch.tensor([[False, True]])
    assert not kl_rewards(logp, torch.zeros(1, 2), torch.ones(1), mask, 0.1).requires_grad


def test_a_row_is_paid_its_score_once_and_charged_its_kl():
    mask = torch.tensor([[0, 1, 1, 1, 0], [0, 0, 1, 1, 1]]).bool()
    logp, ref = torch.tensor([[9., -1, -2, -3, 9]] * 2), torch.tensor([[5., -2, -2, -1, 5]] * 2)
    rewards = kl_rewards(logp, ref, torch.tensor([10., 20.]), mask, kl_coef=0.5)
    # The policy likes the first token more than the reference: that costs. It likes the third less:
    # that pays back.
    torch.testing.assert_close(rewards, torch.tensor([[0, -0.5, 0, 11, 0], [0, 0, 0, 1, 20 - 2.0]]))


def test_last_index():
    mask = torch.tensor([[0, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]])
    assert last_index(mask).tolist() == last_index(mask.bool()).tolist() == [2, 0, 3]


def test_masked_statistics_are_those_of_the_picked_numbers(batch):
    x, _, mask = batch
    torch.testing.assert_close(masked_mean(x, mask), x[mask].mean())
    torch.testing.assert_close(masked_var(x, mask), x[mask].var())
    white = masked_whiten(x, mask)
    assert abs(white[mask].mean()) < 1e-6 and abs(white[mask].std() - 1) < 1e-6
    assert not white[~mask].any()


def test_whitening_equals_the_reference_numbers():
    x, mask = TRL["whiten/x"], TRL["whiten/mask"]
    torch.testing.assert_close(masked_whiten(x, mask), TRL["whiten/out"] * mask)
    torch.testing.assert_close(masked_whiten(x, mask) + masked_mean(x, mask) * mask,
                               TRL["whiten/out_noshift"] * mask)
    torch.testing.assert_close(masked_var(x, mask) * (1 - 1 / mask.sum()), TRL["whiten/var_biased"])


@pytest.mark.parametrize("case", ["ppo_k1", "ppo_white", "ppo_pen_g99"])
def test_rewards_advantages_and_returns_equal_the_reference_numbers(case):
    out = {k.split("/")[-1]: v for k, v in TRL.items() if k.startswith(f"{case}/out/")}
    kl_coef, gamma, lam = (float(TRL[f"{case}/in/{k}"]) for k in ("kl_coef", "gamma", "lam"))
    # p1: TRL's score sits one past the end token
    mask, mask_p1 = ~out["padding_mask"], ~out["padding_mask_p1"]
    rewards = kl_rewards(out["logprobs"], out["ref_logprobs"], out["scores"], mask_p1, kl_coef)
    if case == "ppo_white":
        # the mean stays
        rewards = masked_whiten(rewards, mask_p1) + masked_mean(rewards, mask_p1) * mask_p1
    torch.testing.assert_close(rewards, out["rewards"] * mask_p1)
    advantages, returns = gae(rewards, out["values"], mask_p1, gamma, lam)
    torch.testing.assert_close(returns[mask_p1], out["returns"][mask_p1])
    torch.testing.assert_close(masked_whiten(advantages, mask), out["advantages"])
