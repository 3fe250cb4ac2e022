"""Rewards, advantages and whitening of PPO as pure functions of arrays.

Shapes: B batch, T time. Index t of every [B,T] array is about token t: `mask` is 1 where the policy sampled that
token (the end token included), 0 on the prompt and on padding; values[:, t] is the value of the state *before* token t.
"""
import torch


def masked_mean(x, mask):
    """Mean of x [B,T] over the positions where mask [B,T] is 1."""
    return (x * mask).sum() / mask.sum()


def masked_var(x, mask):
    """Variance of x [B,T] over mask, divided by n - 1 (Bessel), as the usual PPO implementations do."""
    n = mask.sum()
    return masked_mean((x - masked_mean(x, mask)) ** 2, mask) * n / (n - 1).clamp(min=1)


def masked_whiten(x, mask):
    """x [B,T] moved to mean 0 and scaled to standard deviation 1 over mask; 0 outside it."""
    return (x - masked_mean(x, mask)) * torch.rsqrt(masked_var(x, mask) + 1e-8) * mask


def last_index(mask):
    """Index [B] of the last 1 in each row of mask [B,T]: where a score is read (preference.py) and paid (below)."""
    T = mask.shape[1]
    return T - 1 - mask.int().flip(1).argmax(1)                 # argmax finds the first maximum


def kl_rewards(logp, ref_logp, scores, mask, kl_coef: float):
    """Reward of each token [B,T]: -kl_coef * (logp - ref_logp), plus scores [B] on the row's last sampled token.

    log p - log p_ref of a *sampled* token is the k1 estimate of KL(policy, reference): unbiased, so its sum over a
    sequence is what RLHF subtracts from the score (Bai et al. 2022b, arXiv 2204.05862, section 4.1). It belongs to
    the reward, not to the loss: no gradient flows through it, PPO's advantages carry it.
    """
    rewards = -kl_coef * (logp - ref_logp) * mask               # [B,T]
    rows = torch.arange(len(scores), device=scores.device)
    rewards[rows, last_index(mask)] += scores
    return rewards


def gae(rewards, values, mask, gamma: float, lam: float):
    """Generalised advantage estimates and returns, both [B,T] and 0 outside mask (Schulman et al. 2016, equation 16).

    delta_t = r_t + gamma V_{t+1} - V_t;  A_t = delta_t + gamma lam A_{t+1};  return_t = A_t + V_t.
    """
    rewards, values = rewards * mask, values * mask             # nothing computed on padding may leak into the sum
    advantages = torch.zeros_like(rewards)
    running = next_value = torch.zeros_like(rewards[:, 0])      # [B]; the episode ends after its last token
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantages[:, t] = running = delta + gamma * lam * running
        next_value = values[:, t]
    advantages = advantages * mask                              # the loop ran through the prompt too
    return advantages, advantages + values
