"""Rewards, advantages and whitening of PPO as pure functions of arrays.

Shapes: B batch, T time. Index t of every [B,T] array is about token t: `mask` is 1 where the policy
sampled that token (the end token included), 0 on the prompt and on padding, and a row's ones have
no gap; values[:, t] is the value of the state *before* token t.

The words, once:
- value V_t: what the policy can expect to be paid from here to the end of the response, before it
  says token t. The value model guesses it.
- advantage A_t: how much better token t turned out than was expected. PPO makes tokens with A > 0
  likelier.
- return: A_t + V_t, what the value model is trained to say. With lambda = 1 it is the (discounted)
  sum of what was paid from token t on; with a smaller one it trusts later guesses of V in part.
- TD error delta_t = r_t + gamma V_{t+1} - V_t: the surprise of one step. If the value jumps up when
  a token is said, that token was better than expected.
- nat: log-probabilities here are natural logarithms, so KL and entropy come in nats (1 nat = 1.44
  bits).
"""
import torch


def inside(x, mask):
    """x [B,T] where mask [B,T] is 1, 0 elsewhere, whatever stands there (0 times nan is nan)."""
    return torch.where(mask.bool(), x, 0.0)


def masked_mean(x, mask):
    """Mean of x [B,T] over the positions where mask [B,T] is 1."""
    return inside(x, mask).sum() / mask.sum()


def masked_var(x, mask):
    """Variance of x [B,T] over mask, divided by n - 1 (Bessel), as the usual PPO implementations
    do."""
    n = mask.sum()
    return masked_mean((x - masked_mean(x, mask)) ** 2, mask) * n / (n - 1).clamp(min=1)


def masked_whiten(x, mask):
    """x [B,T] moved to mean 0 and scaled to standard deviation 1 over mask; 0 outside it.

    Why: the size of advantages changes as training goes, and with it the size of every step.
    Whitened, some tokens of each batch gain and some lose, and the learning rate means the same in
    step 1 and step 50.
    """
    return inside((x - masked_mean(x, mask)) * torch.rsqrt(masked_var(x, mask) + 1e-8), mask)


def last_index(mask):
    """Index [B] of the last 1 in each row of mask [B,T]: where a score is read (preference.py) and
    paid (below)."""
    # argmax finds the first maximum
    return mask.shape[1] - 1 - mask.int().flip(1).argmax(1)


def kl_rewards(logp, ref_logp, paid, mask, kl_coef: float):
    """Reward of each token [B,T]: -kl_coef * (logp - ref_logp), plus paid [B] on the row's last
    sampled token.

    log p - log p_ref of a *sampled* token is the k1 estimate of KL(policy, reference), in nats:
    noisy, negative half of the time near the start, but right on average, so its sum over a
    sequence is what RLHF subtracts from the score (Bai et al. 2022a, arXiv 2204.05862, section
    4.1). Without it the policy would look for whatever text the preference model scores highest,
    sense or nonsense.

    It belongs to the reward, not to the loss: no gradient flows through it, the advantages carry
    it. As a loss term log p - log p_ref of a token that was sampled would add noise and nothing
    else: its gradient is that of log p alone, and sum_a p(a) grad log p(a) = grad sum_a p(a) = 0.
    Paid as a reward it is multiplied by grad log p, which gives the gradient of the KL; and every
    token answers for the departures that follow it, too. (Another estimate, k3 in docs/metrics.md,
    has a gradient of its own: GRPO puts it into the loss.)
    """
    rewards = -kl_coef * inside(logp - ref_logp, mask).detach()         # [B,T]
    rewards[torch.arange(len(paid), device=paid.device), last_index(mask)] += paid
    return rewards


def gae(rewards, values, mask, gamma: float, lam: float):
    """Generalised advantage estimates and returns, both [B,T] and 0 outside mask (Schulman et al.
    2016, equation 16).

    delta_t = r_t + gamma V_{t+1} - V_t;  A_t = delta_t + gamma lam A_{t+1};  return_t = A_t + V_t.

    What lambda trades: at 1 the deltas add up to "return minus value", right on average but as
    noisy as the score of a single response; at 0 only the next step counts, calm but as wrong as
    the value model is. Between them, the score on the end token reaches a token k steps before it
    with weight (gamma lam)^k.
    """
    # nothing computed on padding may leak into the sum
    rewards, values = inside(rewards, mask), inside(values, mask)
    advantages = torch.zeros_like(rewards)
    # [B]; the episode ends after its last token
    running = next_value = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        running = delta + gamma * lam * running
        advantages[:, t] = running
        next_value = values[:, t]
    advantages = inside(advantages, mask)  # the loop ran through the prompt too
    return advantages, advantages + values
