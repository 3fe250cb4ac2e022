"""Three functions with one mistake each. Shapes: B batch, T time, C width, V vocabulary; mask [B,T]
bool."""

import torch


def answer_loss(hidden, head, ids, mask):
    """Stage 1: minus the mean log p of the answers' tokens. hidden [B,T,C] of ids [B,T]; head
    [V,C]; mask on answers."""
    logp = (hidden @ head.T).log_softmax(-1)  # [B,T,V]
    picked = logp.gather(-1, ids[:, :, None]).squeeze(-1)  # [B,T]
    return -picked[mask].mean()


def kl_rewards(logp, ref_logp, scores, mask, kl_coef):
    """Stage 3: the KL penalty of each token, and the score on each row's last sampled one."""
    rewards = -kl_coef * (ref_logp - logp) * mask
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
    picked = advantages[mask]
    advantages = (advantages - picked.mean()) / (picked.std() + 1e-8) * mask
    returns = (advantages + values) * mask
    return advantages, returns
