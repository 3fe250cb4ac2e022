"""PPO on language: sample, score, pay the KL penalty, estimate advantages, update (Schulman et al. 2017, 1707.06347).

Shapes: B batch, T time, N trained tokens of a batch. Index t of a [B,T] array is about token t; `mask` is True where
the policy sampled that token, so picking `array[mask]` gives the N trained tokens in one flat row, without padding.
What decides whether it works: old, new and reference log-probs come from the same forward under the same temperature
(the sampler's own numbers are not used), so step 0 has KL 0 exactly and the first minibatch ratio 1, up to rounding;
the score sits on the last real token; padding is never inferred from ids. Left out: early stopping, an entropy bonus.
"""
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch

from minicai.data import pad_right
from minicai.gae import gae, kl_rewards, last_index, masked_mean, masked_var, masked_whiten
from minicai.logprob import token_logprobs
from minicai.run import UserError


@dataclass
class PPOConfig:
    """The numbers of PPO; the defaults are the demo's."""
    temperature: float = 1.0
    kl_coef: float = 0.25               # price of one nat of KL, in standard deviations of the score
    end_penalty: float = 1.0            # taken off the score of a response that was cut off before its end token
    gamma: float = 1.0                  # 1: a response is short and its score is paid at the end
    lam: float = 0.95
    clip: float = 0.2                   # of the ratio
    value_clip: float = 0.2             # of the value's change; scores have std 1
    value_coef: float = 0.5
    max_grad_norm: float = 1.0
    epochs: int = 2                     # passes over a rollout
    minibatch: int = 32                 # rows an optimizer step
    micro: int = 32                     # rows a forward; gradients add up, results do not depend on it


class Rollout(NamedTuple):
    """What one batch of responses is worth, token by token; rows are sorted by length."""
    ids: torch.Tensor                   # [B,T] prompt and response, right-padded
    mask: torch.Tensor                  # [B,T] bool, True on sampled tokens, the end token included
    logp: torch.Tensor                  # [B,T] log-prob of token t under the policy that sampled it
    ref_logp: torch.Tensor              # [B,T] the same under the reference
    values: torch.Tensor                # [B,T] value of the state before token t
    advantages: torch.Tensor            # [B,T] whitened over the batch
    returns: torch.Tensor               # [B,T]
    scores: torch.Tensor                # [B] the preference model's, without penalty
    ended: torch.Tensor                 # [B] bool, the response closed with its end token


def evaluate_tokens(policy, value_model, ids, at, config, forbidden, entropy: bool = False):
    """Log-probs, entropies (None unless asked for) and state values (None without a value model) of the tokens `at`
    (rows [N], columns [N]), [N] each: the one forward of old, new and reference."""
    hidden = states_before(policy, ids, at)
    logp, entropies = token_logprobs(hidden, policy.head, ids[at], config.temperature, forbidden, entropy)
    if value_model is None:
        return logp, entropies, None
    # A value head on the policy's own trunk costs no second forward.
    seen = hidden if value_model.trunk is policy else states_before(value_model.trunk, ids, at)
    return logp, entropies, value_model.values(seen)


def states_before(trunk, ids, at):
    """Hidden states [N,C] from which the tokens `at` are predicted, and which are valued: those one column before."""
    rows, columns = at
    return trunk(ids)[rows, columns - 1]


def token_indices(mask):
    """(rows [N], columns [N]) of a mask's True: looked up once and kept, since a GPU has to wait at each look."""
    return mask.nonzero(as_tuple=True)


def chunks(rollout_or_arrays, size: int):
    """Cut arrays whose second is the mask into runs of `size` rows, each trimmed to its own longest row."""
    lengths = (last_index(rollout_or_arrays[1]) + 1).tolist()
    for i in range(0, len(lengths), size):
        T = max(lengths[i:i + size])
        yield [x[i:i + size, :T] if x.dim() == 2 else x[i:i + size] for x in rollout_or_arrays]


@torch.no_grad()
def collect(ask, policy, reference, reward_model, value_model, prompts, stop, forbidden, config) -> Rollout:
    """Sample a response to each of `prompts` (lists of ids) with `ask`; work out what every token of it was worth."""
    rows = sorted(zip(prompts, ask(prompts)), key=lambda row: len(row[0]) + len(row[1]))
    device = policy.head.device
    ids, real = pad_right([prompt + response for prompt, response in rows], device)
    starts = torch.tensor([len(prompt) for prompt, _ in rows], device=device)
    mask = real & (torch.arange(ids.shape[1], device=device) >= starts[:, None])
    ended = torch.tensor([response[-1] in stop for _, response in rows], device=device)

    # 1. All models read the same ids. What they say of the picked tokens comes as one flat array in the order of the
    #    rows, so writing it to `mask` of a [B,T] array puts every number back at its token.
    logp, ref_logp, values = (torch.zeros(ids.shape, device=device) for _ in range(3))
    parts = [(part_ids, m, token_indices(m)) for part_ids, m in chunks((ids, mask), config.micro)]
    now = [evaluate_tokens(policy, value_model, part_ids, at, config, forbidden) for part_ids, _, at in parts]
    logp[mask], values[mask] = torch.cat([n[0] for n in now]), torch.cat([n[2].float() for n in now])
    ref_logp[mask] = torch.cat([evaluate_tokens(reference, None, part_ids, at, config, forbidden)[0]
                                for part_ids, _, at in parts])
    scores = torch.cat([reward_model.score(part_ids, m).float() for part_ids, m, _ in parts])

    # 2. Score and KL become rewards, rewards become advantages, whitened once for the whole batch.
    paid = scores - config.end_penalty * ~ended
    rewards = kl_rewards(logp, ref_logp, paid, mask, config.kl_coef)
    advantages, returns = gae(rewards, values, mask, config.gamma, config.lam)
    return Rollout(ids, mask, logp, ref_logp, values, masked_whiten(advantages, mask), returns, scores, ended)


def policy_loss(logp, old_logp, advantages, clip: float):
    """The clipped surrogate [N] (1707.06347, equation 7): gains are cut off once the ratio has moved by `clip`."""
    ratio = (logp - old_logp).exp()
    return torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip))


def value_loss(values, old_values, returns, clip: float):
    """Half the squared error [N], the worse of the value as it is and as clipped to within `clip` of the old one."""
    near = old_values + (values - old_values).clamp(-clip, clip)
    return 0.5 * torch.maximum((values - returns) ** 2, (near - returns) ** 2)


def ppo_loss(logp, values, old_logp, old_values, advantages, returns, config, tokens: int):
    """(loss, info) of N tokens, all arrays [N]; sums are divided by `tokens`, the count of the whole minibatch."""
    policy = policy_loss(logp, old_logp, advantages, config.clip).sum() / tokens
    value = value_loss(values, old_values, returns, config.value_clip).sum() / tokens
    with torch.no_grad():
        log_ratio = logp - old_logp
        ratio = log_ratio.exp()
        info = {"policy_loss": policy, "value_loss": value, "ratio": ratio.sum() / tokens,
                "approx_kl": (ratio - 1 - log_ratio).sum() / tokens,      # k3: never negative, low variance
                "clip_fraction": ((ratio - 1).abs() > config.clip).sum() / tokens}
    return policy + config.value_coef * value, info


def update(policy, value_model, optimizer, rollout: Rollout, forbidden, config, generator, step: int) -> dict:
    """`epochs` passes over a rollout, one optimizer step a minibatch; returns the means of ppo_loss's infos.

    Raises UserError before the optimizer step if loss or gradient is not finite, or log-probs moved before any update.
    """
    infos, own = [], value_model.head if value_model.trunk is policy else value_model
    for _ in range(config.epochs):
        order = torch.randperm(len(rollout.ids), generator=generator).to(rollout.ids.device)
        for rows in order.split(config.minibatch):
            rows = rows.sort().values                                     # the rollout's order is by length: keep it
            batch = Rollout(*(x[rows] for x in rollout))
            tokens, total = int(batch.mask.sum()), {}
            for part in map(Rollout._make, chunks(batch, config.micro)):
                at = token_indices(part.mask)
                logp, entropy, values = evaluate_tokens(policy, value_model, part.ids, at, config, forbidden, True)
                loss, info = ppo_loss(logp, values, part.logp[at], part.values[at], part.advantages[at],
                                      part.returns[at], config, tokens)
                loss.backward()
                info["entropy"] = entropy.sum() / tokens
                if not infos:                   # nothing has been updated yet: old and new are the same numbers
                    off = (logp - part.logp[at]).abs().mean().item()
                    if off > (0.05 if policy.bf16 else 1e-4):   # bf16 products round differently in other batches
                        raise UserError(f"step {step}: log-probs changed by {off:.2g} nats a token before any update: "
                                        "bfloat16 is too coarse here (try --dtype fp32), or old and new differ in kind")
                total = {key: total.get(key, 0) + value.detach() for key, value in info.items()}
            total = {key: value.item() for key, value in total.items()}     # once a minibatch: a GPU waits for it
            # Policy and value model are clipped apart: a large gradient of the one must not shrink the other's.
            for name, model in (("policy_grad", policy), ("value_grad", own)):
                total[name] = torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm).item()
            if not all(map(math.isfinite, total.values())):
                raise UserError(f"step {step}: loss or gradient not finite, stopped before applying it ({total})")
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            infos.append(total)
    return {key: sum(info[key] for info in infos) / len(infos) for key in infos[0]}


def summary(rollout: Rollout) -> dict:
    """What a person watches of a rollout: scores, KL summed over a sequence (nats), lengths, the value model's fit."""
    mask, length = rollout.mask, rollout.mask.sum(1).float()
    unexplained = masked_var(rollout.returns - rollout.values, mask) / (masked_var(rollout.returns, mask) + 1e-8)
    return {"score": rollout.scores.mean().item(), "score_std": rollout.scores.std().item(),
            "kl": ((rollout.logp - rollout.ref_logp) * mask).sum(1).mean().item(),
            "explained_variance": 1 - unexplained.item(), "value": masked_mean(rollout.values, mask).item(),
            "response_length": length.mean().item(), "ended": rollout.ended.float().mean().item()}
