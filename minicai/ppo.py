"""PPO on language: sample, score, pay the KL penalty, estimate advantages, update (Schulman et al.
2017, 1707.06347).

Shapes: B batch, T time, N trained tokens of a batch. Index t of a [B,T] array is about token t.
`mask` is True where the policy sampled that token, so `array[mask]` is the N trained tokens in one
flat row, without padding.

What decides whether it works:
- Old, new and reference log-probs come from one function (`evaluate_tokens`) at one temperature;
  the sampler's own numbers are not used. So the KL of step 0 is exactly 0, and the ratio of the
  first minibatch 1 up to rounding.
- The score is paid on the last real token.
- Padding is never inferred from ids: the mask says what is real.

To try another idea, change one function: what a score is worth (`SHAPES`), what a token is paid
(`token_rewards`), how much better it was than expected (`advantages`), what is minimised
(`policy_loss`). Left out: early stopping, an entropy bonus.
"""
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch

from minicai.answers import pad_answers, states_before, token_indices
from minicai.gae import gae, kl_rewards, last_index, masked_mean, masked_var, masked_whiten
from minicai.logprob import token_logprobs
from minicai.run import UserError


@dataclass
class PPOConfig:
    """The numbers of PPO; the defaults are the demo's."""
    temperature: float = 1.0
    kl_coef: float = 0.25               # price of one nat of KL, in units of score (std 1)
    reward_shape: str = "identity"      # what a score is worth: one of SHAPES
    end_penalty: float = 1.0            # what a response loses that has no end token
    gamma: float = 1.0                  # 1: a response is short and its score is paid at the end
    lam: float = 0.95
    valued: bool = True                 # False: no value model; see advantages()
    whiten: bool = True                 # advantages to mean 0 and standard deviation 1
    clip: float = 0.2                   # of the ratio
    value_clip: float = 0.2             # of the value's change; scores have std 1
    value_coef: float = 0.5
    max_grad_norm: float = 1.0
    epochs: int = 2                     # passes over a rollout
    minibatch: int = 32                 # rows an optimizer step
    micro: int = 32                     # rows a forward; gradients add up to the same


class Models(NamedTuple):
    """The four networks of RLHF; only the first and the last are trained."""
    policy: torch.nn.Module             # GPT
    reference: torch.nn.Module          # GPT: what the policy was at the start
    reward_model: torch.nn.Module       # PreferenceModel, of stage 2
    value_model: torch.nn.Module | None  # PreferenceModel; its trunk may be the policy

    def value_parameters(self) -> list:
        """What the value model trains beside the policy: all of it, only its head on a shared
        trunk, or nothing."""
        if self.value_model is None:
            return []
        shared = self.value_model.trunk is self.policy
        return list((self.value_model.head if shared else self.value_model).parameters())


class Rollout(NamedTuple):
    """What one batch of responses is worth, token by token; rows in the order of the prompts."""
    ids: torch.Tensor                   # [B,T] prompt and response, right-padded
    mask: torch.Tensor                  # [B,T] bool, True on sampled tokens, the end token included
    logp: torch.Tensor                  # [B,T] log-prob of token t under the policy that sampled it
    ref_logp: torch.Tensor              # [B,T] the same under the reference
    values: torch.Tensor                # [B,T] value of the state before token t (or 0: no model)
    scores: torch.Tensor                # [B] the preference model's
    ended: torch.Tensor                 # [B] bool, the response closed with its end token
    paid: torch.Tensor = None           # [B] what the score was worth: shaped, less the penalty
    rewards: torch.Tensor = None        # [B,T] KL penalties, and `paid` on the last token
    advantages: torch.Tensor = None     # [B,T] whitened over the batch
    returns: torch.Tensor = None        # [B,T] what the value model should have said

    def pick(self, rows, T: int | None = None):
        """The same of some rows (numbers or a mask), [B,T] arrays cut to their first T columns."""
        return Rollout(*(x[rows, :T] if x.dim() == 2 else x[rows] for x in self))


def evaluate_tokens(policy, value_model, ids, where, config, forbidden, entropy: bool = False):
    """The forward that old, new and reference have in common: (log-probs, entropies, state values),
    [N] each, of the tokens `where` (rows [N], columns [N]). Entropies are None unless asked for,
    values without a value model."""
    hidden = states_before(policy(ids), where)
    logp, entropies = token_logprobs(hidden, policy.head, ids[where], config.temperature, forbidden,
                                     entropy)
    if value_model is None:
        return logp, entropies, None
    # A value head on the policy's own trunk costs no second forward.
    seen = hidden if value_model.trunk is policy else states_before(value_model.trunk(ids), where)
    return logp, entropies, value_model.values(seen)


def by_length(mask, size: int):
    """(row numbers, columns that they need) of all rows, `size` rows a time: rows of like length
    share a forward, so that little of it is padding."""
    lengths, order = (last_index(mask) + 1).sort(stable=True)
    for rows, part in zip(order.split(size), lengths.split(size)):
        yield rows, int(part[-1])


# ---- 1. collect: what was said, and what each token of it was worth ------------------------------
@torch.no_grad()
def collect(models: Models, ask, prompts: list, config: PPOConfig, stop, forbidden) -> Rollout:
    """Sample a response to each of `prompts` (lists of ids) with `ask`; work out what every token
    of it was worth.

    stop: set of end tokens; forbidden [V]: ids that are never sampled, or None.
    """
    responses, device = ask(prompts), models.policy.head.device
    ids, mask = pad_answers(list(zip(prompts, responses)), device)
    ended = torch.tensor([response[-1] in stop for response in responses], device=device)

    # All models read the same ids, some rows a forward; what they say of a token is put back to its
    # place.
    logp, ref_logp, values = (torch.zeros(ids.shape, device=device) for _ in range(3))
    scores = torch.zeros(len(ids), device=device)
    for rows, T in by_length(mask, config.micro):
        part_ids, part_mask = ids[rows, :T], mask[rows, :T]
        where = token_indices(part_mask)
        place = rows[where[0]], where[1]
        logp[place], _, value = evaluate_tokens(models.policy, models.value_model, part_ids, where,
                                                config, forbidden)
        ref_logp[place], _, _ = evaluate_tokens(models.reference, None, part_ids, where,
                                                config, forbidden)
        if value is not None:
            values[place] = value.float()
        scores[rows] = models.reward_model.score(part_ids, part_mask).float()
    rollout = Rollout(ids, mask, logp, ref_logp, values, scores, ended)
    return advantages(token_rewards(rollout, config), config)


# What a score is worth. Scores have mean 0 and standard deviation 1 on SL-CAI's own responses
# (preference.normalise).
SHAPES = {
    # As in the paper.
    "identity": lambda score: score,
    # No prize for the last bit of a high score: that is where a preference model can be fooled.
    "clipped": lambda score: score.clamp(-1, 1),
    # What is bad costs twice what the same amount of good earns.
    "averse": lambda score: torch.where(score < 0, 2 * score, score),
}


def token_rewards(rollout: Rollout, config: PPOConfig) -> Rollout:
    """The rollout with `paid` [B] and `rewards` [B,T]: the shaped score at the end, a KL penalty at
    every token."""
    paid = SHAPES[config.reward_shape](rollout.scores) - config.end_penalty * ~rollout.ended
    rewards = kl_rewards(rollout.logp, rollout.ref_logp, paid, rollout.mask, config.kl_coef)
    return rollout._replace(paid=paid, rewards=rewards)


def advantages(rollout: Rollout, config: PPOConfig) -> Rollout:
    """The rollout with `advantages` and `returns` [B,T]: by how much each token was better than
    expected.

    Without a value model nothing is expected: lambda is 1, so that a token is credited with all
    that was paid after it, and whitening takes off the batch's mean. Another estimator (GRPO's, for
    one) replaces this function.
    """
    lam = config.lam if config.valued else 1.0
    # On the CPU: a GPU would wait for Python at every token.
    arrays = (x.cpu() for x in (rollout.rewards, rollout.values, rollout.mask))
    raw, returns = (x.to(rollout.mask.device) for x in gae(*arrays, config.gamma, lam))
    # Whitening comes last: returns are made from the raw ones, since the value model must learn the
    # real unit.
    better = masked_whiten(raw, rollout.mask) if config.whiten else raw
    return rollout._replace(advantages=better, returns=returns)


# ---- 2. losses -----------------------------------------------------------------------------------
def policy_loss(logp, old_logp, advantages, clip: float):
    """The clipped surrogate [N] (1707.06347, equation 7); ratio = p_new / p_old of the token that
    was said.

    - A > 0, the token was better than expected: the loss falls as the ratio grows, up to 1 + clip;
      beyond that nothing is gained.
    - A < 0, it was worse: the loss falls as the ratio shrinks, down to 1 - clip; beyond that
      nothing is gained.
    - In the other direction nothing is cut off: a step that went the wrong way is pulled back.

    So a rollout can be used for several updates, and the policy stays near the one that sampled it.
    """
    ratio = (logp - old_logp).exp()
    return torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip))


def value_loss(values, old_values, returns, clip: float):
    """Half the squared error [N], the worse of the value as it is and as clipped to within `clip`
    of the old one."""
    near = old_values + (values - old_values).clamp(-clip, clip)
    return 0.5 * torch.maximum((values - returns) ** 2, (near - returns) ** 2)


class Tokens(NamedTuple):
    """What a rollout says of N tokens, [N] each."""
    logp: torch.Tensor
    values: torch.Tensor
    advantages: torch.Tensor
    returns: torch.Tensor


def ppo_loss(logp, values, old: Tokens, config: PPOConfig, tokens: int):
    """(loss, info) of N tokens, from their new logp [N] and values [N] (None without a value
    model).

    Sums are divided by `tokens`, the count of the whole minibatch, so that parts of it add up.
    """
    policy = policy_loss(logp, old.logp, old.advantages, config.clip).sum() / tokens
    loss, info = policy, {"policy_loss": policy}
    if values is not None:
        value = value_loss(values, old.values, old.returns, config.value_clip).sum() / tokens
        loss, info["value_loss"] = policy + config.value_coef * value, value
    with torch.no_grad():
        log_ratio = logp - old.logp
        ratio = log_ratio.exp()
        # k3 = ratio - 1 - log ratio estimates KL(old, new) for people to watch: never negative, and
        # far less noisy than k1 = log p - log p_ref. The reward pays k1 (gae.py): only its gradient
        # under PPO is the gradient of the KL.
        # expm1 is exp - 1 without its rounding, which is larger than k3 itself at small ratios.
        info["approx_kl"] = (log_ratio.expm1() - log_ratio).sum() / tokens
        info["ratio"] = ratio.sum() / tokens
        info["clip_fraction"] = ((ratio - 1).abs() > config.clip).sum() / tokens
    return loss, info


# ---- 3. update -----------------------------------------------------------------------------------
def update(models: Models, optimizer, rollout: Rollout, config: PPOConfig, forbidden, generator,
           step: int) -> dict:
    """`epochs` passes over a rollout, one optimizer step a minibatch; returns the means of all
    infos.

    Raises UserError before the optimizer step if loss or gradient is not finite, or log-probs moved
    before any update.
    """
    infos = []
    for _ in range(config.epochs):
        order = torch.randperm(len(rollout.ids), generator=generator).to(rollout.ids.device)
        for rows in order.split(config.minibatch):
            # 1. The gradient of the whole minibatch, `micro` rows a forward.
            info = minibatch_gradient(models, rollout.pick(rows), config, forbidden, step,
                                      first=not infos)
            # 2. Policy and value model are clipped apart: a large gradient of the one must not
            #    shrink the other's.
            for name, parameters in (("policy_grad", models.policy.parameters()),
                                     ("value_grad", models.value_parameters())):
                info[name] = torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm).item()
            if not all(map(math.isfinite, info.values())):
                raise UserError(f"step {step}: loss or gradient not finite, stopped before "
                                f"applying it ({info}): lower --lr, or give --dtype fp32")
            # 3. One step.
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            infos.append(info)
    return {key: sum(info[key] for info in infos) / len(infos) for key in infos[0]}


def minibatch_gradient(models: Models, batch: Rollout, config: PPOConfig, forbidden, step: int,
                       first: bool) -> dict:
    """Add the gradient of a minibatch's loss to the parameters; returns its infos. first: nothing
    was updated yet."""
    tokens, total = int(batch.mask.sum()), {}
    for rows, T in by_length(batch.mask, config.micro):
        part = batch.pick(rows, T)
        where = token_indices(part.mask)
        old = Tokens(part.logp[where], part.values[where], part.advantages[where],
                     part.returns[where])
        logp, entropy, values = evaluate_tokens(models.policy, models.value_model, part.ids, where,
                                                config, forbidden, entropy=True)
        loss, info = ppo_loss(logp, values, old, config, tokens)
        loss.backward()
        if first:
            check_unmoved(logp, old.logp, step, models.policy.bf16)
        info["entropy"] = entropy.sum() / tokens
        total = {key: total.get(key, 0) + value.detach() for key, value in info.items()}
    # Read once a minibatch: a GPU waits for it.
    return dict(zip(total, torch.stack(list(total.values())).tolist()))


def check_unmoved(logp, old_logp, step: int, bf16: bool):
    """Raise UserError unless new log-probs [N] are the old ones: nothing has been updated yet, so
    they must be."""
    off = (logp - old_logp).abs().mean().item()
    # bfloat16 products round differently in other batches.
    if off > (0.05 if bf16 else 1e-4):
        raise UserError(f"step {step}: log-probs changed by {off:.2g} nats a token before any "
                        "update: bfloat16 is too coarse here (try --dtype fp32), or old and new "
                        "differ in kind")


# ---- 4. what a person watches (docs/metrics.md explains each number) -----------------------------
def summary(rollout: Rollout, kinds: list = ()) -> dict:
    """Scores, what they were worth, KL summed over a sequence (nats), lengths, the value model's
    fit; and for each kind of prompt (kinds: one a row) its own score, KL, length and share ended,
    as "score_helpful" and so on.

    One number for all hides the story: a gain on one kind and a loss on another leave their mean
    where it was.
    """
    rollout = Rollout(*(x.cpu() for x in rollout))  # a GPU would wait at each number
    mask, returns = rollout.mask, rollout.returns
    spread, left = (masked_var(x, mask) for x in (returns, returns - rollout.values))
    facts = {"score": rollout.scores.mean().item(),
             "score_std": rollout.scores.std(correction=int(len(mask) > 1)).item(),
             "paid": rollout.paid.mean().item(),
             "kl": ((rollout.logp - rollout.ref_logp) * mask).sum(1).mean().item(),
             # of returns that are all alike there is nothing to explain
             "explained_variance": (1 - left / spread).item() if spread > 1e-8 else math.nan,
             "value": masked_mean(rollout.values, mask).item(),
             "response_length": mask.sum(1).float().mean().item(),
             "ended": rollout.ended.float().mean().item()}
    for kind in dict.fromkeys(kinds):
        part = summary(rollout.pick(torch.tensor([k == kind for k in kinds])))
        facts |= {f"{key}_{kind}": part[key] for key in ("score", "kl", "response_length", "ended")}
    return facts
