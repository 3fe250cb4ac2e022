"""The three functions, mended. Shapes: B batch, T time, C width, V vocabulary; mask [B,T] bool."""

import torch


def answer_loss(hidden, head, ids, mask):
    """Stage 1: minus the mean log p of the answers' tokens. hidden [B,T,C] of ids [B,T]; head
    [V,C]; mask on answers."""
    # The state in column t - 1 predicts the token in column t; column t's own state has read it
    # already.
    logp = (hidden[:, :-1] @ head.T).log_softmax(-1)  # [B,T-1,V]
    picked = logp.gather(-1, ids[:, 1:, None]).squeeze(-1)  # [B,T-1]
    return -picked[mask[:, 1:]].mean()


def kl_rewards(logp, ref_logp, scores, mask, kl_coef):
    """Stage 3: the KL penalty of each token, and the score on each row's last sampled one."""
    rewards = -kl_coef * (logp - ref_logp) * mask  # to move away costs
    last = mask.shape[1] - 1 - mask.int().flip(1).argmax(1)
    rewards[torch.arange(len(scores)), last] += scores
    return rewards


def targets(rewards, values, mask, gamma, lam):
    """Stage 3: (whitened advantages, returns for the value model)."""
    rewards, values = rewards * mask, values * mask
    advantages, running, following = torch.zeros_like(rewards), 0.0, 0.0
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * following - values[:, t]
        running = delta + gamma * lam * running
        advantages[:, t], following = running, values[:, t]
    returns = (advantages + values) * mask  # before whitening: the value model learns the real unit
    picked = advantages[mask]
    advantages = (advantages - picked.mean()) / (picked.std() + 1e-8) * mask
    return advantages, returns
