"""Numbers worked out by hand, and the gradients that matter."""

import math

import torch


def check_bt_by_hand(mine):
    """bt_loss of a gap of 1.3 and a label of 0.7"""
    q = 1 / (1 + math.exp(-1.3))
    found = mine.bt_loss(torch.tensor([1.5]), torch.tensor([0.2]), torch.tensor([0.7])).item()
    wanted = -0.7 * math.log(q) - 0.3 * math.log(1 - q)
    assert abs(found - wanted) < 1e-4, f"found {found:.4f}, wanted {wanted:.4f}"


def check_bt_is_a_mean(mine):
    """bt_loss is a mean over pairs, and the same with a and b exchanged"""
    a, b, p = torch.tensor([[1.0, 0.3, -2], [0.5, 0.1, 1], [0.9, 0.2, 0.6]])
    each = torch.stack([mine.bt_loss(a[i : i + 1], b[i : i + 1], p[i : i + 1]) for i in range(3)])
    assert torch.allclose(mine.bt_loss(a, b, p), each.mean(), atol=1e-5), (
        "not the mean of single pairs"
    )
    assert torch.allclose(mine.bt_loss(a, b, p), mine.bt_loss(b, a, 1 - p), atol=1e-5), (
        "exchanging a and b changes it"
    )


def check_bt_stays_finite(mine):
    """bt_loss of a gap of -200 is 200, not infinite"""
    found = mine.bt_loss(torch.tensor([-100.0]), torch.tensor([100.0]), torch.tensor([1.0])).item()
    assert abs(found - 200) < 1e-3, f"found {found}"


def check_bt_rests_at_the_log_odds(mine):
    """a gap of log(p / (1 - p)) has no gradient"""
    gap = torch.tensor([math.log(0.8 / 0.2)], requires_grad=True)
    mine.bt_loss(gap, torch.zeros(1), torch.tensor([0.8])).backward()
    assert abs(gap.grad.item()) < 1e-6, f"gradient {gap.grad.item():.4f}"


RATIOS = torch.tensor([1.5, 0.5, 1.5, 0.5])


def cases():
    """RATIOS under advantages 1, 1, -1, -1; the old log-probs differ from token to token."""
    old = torch.tensor([-1.0, -2.0, -0.5, -3.0])
    return (old + RATIOS.log()).requires_grad_(), old, torch.tensor([1.0, 1.0, -1.0, -1.0])


def check_policy_loss_by_hand(mine):
    """policy_loss of ratios 1.5, 0.5 and advantages 1, -1, at clip 0.2 and at clip 0.3"""
    for clip, wanted in ((0.2, [-1.2, -0.5, 1.5, 0.8]), (0.3, [-1.3, -0.5, 1.5, 0.7])):
        found = mine.policy_loss(*cases(), clip)
        assert found.shape == (4,), f"one loss a token is wanted, [4]; found {list(found.shape)}"
        for n in range(4):
            assert abs(found[n].item() - wanted[n]) < 1e-4, (
                f"ratio {RATIOS[n]:.1f}, advantage {1 if n < 2 else -1}, clip {clip}: "
                f"found {found[n].item():.4f}, wanted {wanted[n]}"
            )


def check_policy_gradient(mine):
    """the gradient is cut off only where the token has already moved in the wanted direction"""
    logp, old, advantages = cases()
    mine.policy_loss(logp, old, advantages, 0.2).sum().backward()
    assert [bool(g) for g in logp.grad] == [False, True, True, False], (
        f"gradients {[round(g, 3) for g in logp.grad.tolist()]} for ratios 1.5, 0.5, 1.5, 0.5 and "
        "advantages 1, 1, -1, -1: the first and the last should be 0"
    )
