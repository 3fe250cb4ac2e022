"""The two losses, spelt out."""

import torch
import torch.nn.functional as F


def bt_loss(score_a, score_b, p_a):
    """The mean Bradley-Terry loss of scores against labels p_a: a tensor without dimensions."""
    gap = score_a - score_b
    # log sigmoid(-x) = log(1 - sigmoid(x)); logsigmoid does not overflow, log(sigmoid) would.
    return -(p_a * F.logsigmoid(gap) + (1 - p_a) * F.logsigmoid(-gap)).mean()


def policy_loss(logp, old_logp, advantages, clip: float):
    """PPO's clipped loss of each token, [N]."""
    ratio = (logp - old_logp).exp()
    return -torch.minimum(advantages * ratio, advantages * ratio.clamp(1 - clip, 1 + clip))
