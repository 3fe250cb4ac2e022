"""Each function against the package's own."""

import torch

from minicai.answers import states_before, token_indices
from minicai.gae import gae, kl_rewards, masked_whiten
from minicai.logprob import logprob_reference

MASK = torch.tensor([[0, 0, 1, 1, 1, 0], [0, 1, 1, 1, 1, 1]]).bool()


def arrays(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def check_answer_loss(mine):
    """answer_loss"""
    hidden, head, ids = arrays(2, 6, 8), arrays(11, 8, seed=1), torch.arange(12).view(2, 6) % 11
    where = token_indices(MASK)
    wanted = -logprob_reference(states_before(hidden, where), head, ids[where])[0].mean()
    assert torch.allclose(mine.answer_loss(hidden, head, ids, MASK), wanted, atol=1e-4), (
        "it trains something else"
    )


def check_kl_rewards(mine):
    """kl_rewards"""
    logp, ref = arrays(2, 2, 6)
    scores = torch.tensor([1.0, -1.0])
    wanted = kl_rewards(logp, ref, scores, MASK, 0.3)
    assert torch.allclose(mine.kl_rewards(logp, ref, scores, MASK, 0.3), wanted, atol=1e-5), (
        "it pays for the wrong thing"
    )


def check_targets(mine):
    """targets"""
    rewards, values = arrays(2, 2, 6, seed=2)
    advantages, returns = mine.targets(rewards, values, MASK, 0.9, 0.8)
    raw, wanted = gae(rewards, values, MASK, 0.9, 0.8)
    assert torch.allclose(advantages, masked_whiten(raw, MASK), atol=1e-4), (
        "the advantages are wrong"
    )
    assert torch.allclose(returns, wanted, atol=1e-4), "the value model would learn something else"
