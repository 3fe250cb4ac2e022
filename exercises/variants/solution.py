"""A bounded, loss-averse reward; GRPO's advantages."""

import torch

GROUP = 4  # responses a prompt, in neighbouring rows


def shape(score):
    """What scores [B] are worth, [B]: twice the loss below 0, no more than 1 above."""
    return torch.where(score < 0, 2 * score, score.clamp(max=1))


def advantages(rollout, config):
    """The rollout with `advantages` and `returns` [B,T]: each token has its response's place in its
    group."""
    total = (rollout.rewards * rollout.mask).sum(1).view(-1, GROUP)  # [B/GROUP,GROUP]
    better = (total - total.mean(1, keepdim=True)) / (total.std(1, keepdim=True) + 1e-6)
    return rollout._replace(advantages=better.view(-1, 1) * rollout.mask, returns=rollout.rewards)
