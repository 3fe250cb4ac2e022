"""Row by row, as one would do it with a pencil."""

import torch


def kl_rewards(logp, ref_logp, paid, mask, kl_coef: float):
    """The reward of each token, 0 outside the mask."""
    rewards = torch.zeros_like(logp)
    for b in range(len(logp)):
        sampled = mask[b].nonzero()[:, 0]
        rewards[b, sampled] = -kl_coef * (logp[b, sampled] - ref_logp[b, sampled])
        rewards[b, sampled[-1]] += paid[b]
    return rewards


def gae(rewards, values, mask, gamma: float, lam: float):
    """(advantages, returns), both 0 outside the mask, whatever rewards and values hold there."""
    advantages, returns = torch.zeros_like(rewards), torch.zeros_like(rewards)
    for b in range(len(rewards)):
        next_value = next_advantage = 0.0  # the response is over: nothing comes after it
        for t in reversed(mask[b].nonzero()[:, 0].tolist()):
            delta = rewards[b, t] + gamma * next_value - values[b, t]
            next_advantage = delta + gamma * lam * next_advantage
            next_value = values[b, t]
            advantages[b, t] = next_advantage
            returns[b, t] = next_advantage + values[b, t]
    return advantages, returns
