"""The preference model reads one token a row, whatever surrounds it,
and learns probabilities from soft labels."""
import math

import pytest
import torch
from torch import nn

from minicai.checkpoint import save_scalar
from minicai.data import pad_right
from minicai.preference import (
    PreferenceModel,
    agreement,
    bt_loss,
    calibration,
    load_preference_model,
)


@pytest.fixture
def pm(tiny_model):
    torch.manual_seed(0)
    return PreferenceModel(tiny_model, nn.Linear(32, 1, bias=False), shift=0.3).eval()


@pytest.fixture
def rows():
    g = torch.Generator().manual_seed(1)
    return [torch.randint(0, 300, (n,), generator=g).tolist() for n in (5, 17, 1, 9, 30)]


@torch.no_grad()
def test_a_score_does_not_depend_on_padding_or_on_the_batch(pm, rows):
    alone = torch.stack([pm.score(*pad_right([row]))[0] for row in rows])
    ids, mask = pad_right(rows)
    torch.testing.assert_close(pm.score(ids, mask), alone)
    garbage = torch.where(mask, ids, torch.randint_like(ids, 300))
    torch.testing.assert_close(pm.score(garbage, mask), alone)
    for budget in (1, 40, 10_000):
        torch.testing.assert_close(pm.score_rows(rows, budget), alone)
    assert alone.std() > 1e-3  # the scores differ: the equalities above say something


@torch.no_grad()
def test_the_score_is_the_value_of_the_last_real_token(pm, rows):
    ids, mask = pad_right(rows)
    torch.testing.assert_close(pm.score(ids, mask),
                               torch.stack([v[len(r) - 1]
                                            for v, r in zip(pm.values(pm.trunk(ids)), rows)]))


def test_normalised_scores_have_mean_0_and_std_1_and_survive_saving(pm, rows, tok, tmp_path):
    before = pm.score_rows(rows)
    pm.normalise(before)
    after = pm.score_rows(rows)
    assert abs(after.mean()) < 1e-5 and abs(after.std() - 1) < 1e-5
    assert after.argsort().tolist() == before.argsort().tolist()
    save_scalar(tmp_path / "pm", pm.trunk, pm.head, tok, shift=pm.shift)
    torch.testing.assert_close(load_preference_model(tmp_path / "pm")[0].score_rows(rows), after)


def test_bradley_terry_on_soft_labels():
    a, b, p = torch.tensor([1.5]), torch.tensor([0.2]), torch.tensor([0.7])
    q = 1 / (1 + math.exp(-1.3))
    assert bt_loss(a, b, p).item() == pytest.approx(-0.7 * math.log(q) - 0.3 * math.log(1 - q),
                                                    rel=1e-5)
    # swapping a and b mirrors p
    assert bt_loss(a, b, p).item() == pytest.approx(bt_loss(b, a, 1 - p).item())
    # a hard label
    assert bt_loss(a, b, torch.ones(1)).item() == pytest.approx(-math.log(q), rel=1e-5)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_the_best_gap_is_the_log_odds_of_the_label(p):
    gap = torch.tensor([math.log(p / (1 - p))], requires_grad=True)
    bt_loss(gap, torch.zeros(1), torch.tensor([p])).backward()
    assert abs(gap.grad.item()) < 1e-6


def test_agreement_counts_decided_pairs_only():
    gap, p = torch.tensor([1., 1., -1., -1., -5.]), torch.tensor([0.9, 0.1, 0.0, 0.55, 0.6])
    assert agreement(gap, p) == (pytest.approx(2 / 3), 3)


@pytest.mark.parametrize("decided", [0.05, 0.1, 0.2, 0.225, 0.3, 0.45])
@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_a_label_on_the_edge_is_decided_on_either_side(decided, kind):
    """0.6 - 0.5 is a little less than 0.1 in binary numbers."""
    p = torch.tensor([0.5 - decided, 0.5 + decided], dtype=kind)
    assert agreement(torch.tensor([-1.0, 1.0]), p, decided) == (1.0, 2)
    assert agreement(torch.tensor([-1.0, 1.0]), p, decided + 0.001)[1] == 0


def test_labels_may_be_whole_numbers():
    gap, whole, real = torch.tensor([2.0, -1.0]), torch.tensor([1, 0]), torch.tensor([1.0, 0.0])
    assert bt_loss(gap, torch.zeros(2), whole) == bt_loss(gap, torch.zeros(2), real)
    assert calibration(gap, whole) == calibration(gap, real)


def test_agreement_does_not_depend_on_which_response_is_called_a():
    gap, p = torch.tensor([0.0, 0.0, 1.0, 2.0]), torch.tensor([0.0, 1.0, 0.5, 1.0])
    assert agreement(gap, p, 0.0) == agreement(-gap, 1 - p, 0.0) == (pytest.approx(2 / 3), 3)


def test_calibration_error():
    gap = torch.logit(torch.tensor([0.9, 0.9, 0.9, 0.9]))
    error, table = calibration(gap, torch.tensor([1., 1., 0., 1.]))  # says 0.9, is right in 0.75
    assert error == pytest.approx(0.15, abs=1e-5)
    assert [(row[2], round(row[4], 2)) for row in table] == [(4, 0.25), (4, 0.75)]
    assert calibration(gap, torch.full((4,), 0.9))[0] == pytest.approx(0, abs=1e-5)


def test_scores_without_a_spread_keep_their_scale(pm, rows):
    """One sample, or samples that are all alike: there is nothing to divide by."""
    for count in (1, 5):
        before = pm.score_rows(rows)
        pm.normalise(before[:1].expand(count))
        torch.testing.assert_close(pm.score_rows(rows), before - before[0])


def test_what_is_not_a_number_never_looks_right():
    gap, p = torch.tensor([math.nan, 1.0]), torch.ones(2)
    assert math.isnan(agreement(gap, p)[0]) and math.isnan(calibration(gap, p)[0])
    assert agreement(torch.tensor([math.nan, 1.0]), torch.tensor([0.5, 1.0])) == (1.0, 1)
