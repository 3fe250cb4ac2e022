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
    found = mine.answer_loss(hidden, head, ids, MASK)
    assert torch.allclose(found, wanted, atol=1e-4), (
        f"it trains something else: a loss of {found.item():.4f} where {wanted.item():.4f} is right"
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
    right = masked_whiten(raw, MASK)[MASK], wanted[MASK]        # nobody reads what is outside
    for found, wanted, model in zip((advantages, returns), right, ("policy", "value model")):
        assert torch.allclose(found[MASK], wanted, atol=1e-4), (
            f"the {model} would learn something else"
        )
