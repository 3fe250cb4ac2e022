"""The preference model: a GPT trunk and one number read at the last token (Bai et al. 2022, section
4.1).

Shapes: B batch, T time, C width. A dialogue's last token is the end token of the judged response:
the model has read everything there. The same class, with its head zeroed, is PPO's value model: one
number at *every* token.

Why a preference model at all? People and models compare two answers more reliably than they grade
one, and a comparison exists only for answers that somebody compared. PPO needs a number for every
new answer. Bradley and Terry (1952) tell how to get it: give each answer a strength s, and let P(a
beats b) = sigmoid(s_a - s_b), as Elo does for chess players. Fitted to comparisons, s is a reward
that can be asked about any answer.
"""
import torch
import torch.nn.functional as F
from torch import nn

from minicai.checkpoint import load_scalar
from minicai.data import batches_by_tokens, pad_right
from minicai.gae import last_index


class PreferenceModel(nn.Module):
    """trunk (GPT), head (Linear C -> 1 without bias), and a constant `shift` added to every
    score."""

    def __init__(self, trunk, head, shift: float = 0.0):
        super().__init__()
        self.trunk, self.head, self.shift = trunk, head, shift

    def values(self, hidden):
        """The number that the head reads off each hidden state of the trunk: [..., C] -> [...]."""
        return self.head(hidden.to(self.head.weight.dtype)).squeeze(-1) + self.shift

    def score(self, ids, mask):
        """The score [B] of each row of ids [B,T], read at the last token where mask [B,T] is 1."""
        rows = torch.arange(len(ids), device=ids.device)
        hidden = self.trunk(ids)[rows, last_index(mask)]  # [B,C]: the head sees one token a row
        return self.values(hidden)

    @torch.no_grad()
    def score_rows(self, rows: list, budget: int = 8192):
        """Scores [len(rows)] on the CPU of lists of ids, `budget` padded tokens at a time."""
        scores = torch.empty(len(rows))
        for batch in batches_by_tokens([len(row) for row in rows], budget):
            ids, mask = pad_right([rows[i] for i in batch], self.head.weight.device)
            scores[batch] = self.score(ids, mask).float().cpu()
        return scores

    @torch.no_grad()
    def normalise(self, scores):
        """Fold a scale and a shift into the model so that the samples that gave `scores` [N] get
        mean 0 and std 1.

        Bradley-Terry fixes differences only: the zero is arbitrary, the scale depends on how long
        training went on. PPO's KL coefficient is a price in units of score, and means nothing until
        the unit is fixed. Scores that are all alike have no unit: theirs stays.
        """
        mean, std = scores.mean().item(), scores.std(correction=int(len(scores) > 1)).item()
        std = std if std > 1e-6 else 1.0
        self.head.weight /= std
        self.shift = (self.shift - mean) / std


def load_preference_model(directory, device="cpu", dtype="fp32"):
    """(PreferenceModel, tokenizer) of a directory that train_pm.py wrote; raises UserError if it is
    none."""
    *model, tok = load_scalar(directory, device, dtype)
    return PreferenceModel(*model).eval(), tok


def bt_loss(score_a, score_b, p_a):
    """Bradley-Terry loss on soft labels: scores [B] of both responses, p_a [B] the probability that
    a is better.

    P(a better) = sigmoid(score_a - score_b) and the loss is its cross-entropy against p_a; p_a = 1
    is the usual loss. Only the gap counts: a label of 0.5 pulls it to 0, a label of 0.9 to log(0.9
    / 0.1) = 2.2, one of 1 without end.
    """
    return F.binary_cross_entropy_with_logits(score_a - score_b, p_a.to(score_a))


def agreement(gap, p_a, decided: float = 0.25):
    """(share of decided pairs where the sign of gap [N] = score_a - score_b fits the label p_a [N],
    their number).

    A pair is decided if its label lies at least `decided` away from 1/2: on a toss-up there is
    nothing to agree with. Equal scores agree by half; a gap of nan makes the share nan.
    """
    clear = ((p_a - 0.5).abs() >= decided - 1e-6) & (p_a != 0.5)      # 0.6 - 0.5 is less than 0.1
    fits = (1 + torch.where(gap.isnan(), gap, gap.sign()) * (p_a - 0.5).sign()) / 2
    return fits[clear].float().mean().item() if clear.any() else float("nan"), int(clear.sum())


def calibration(gap, p_a, bins: int = 5):
    """(expected calibration error, rows of (low, high, count, mean prediction, mean label)) of
    sigmoid(gap) [N].

    Calibrated means: of the pairs where it said 0.8, 80 % turn out that way. The error is how far
    said and true lie apart, averaged over bins of predictions, weighted by how many pairs each bin
    holds. A model can rank well (see agreement) and still be wrong here: sure where it should
    doubt. Each pair counts in both orders, so that the table does not depend on which response was
    called a.
    """
    said = torch.sigmoid(torch.cat([gap, -gap]))
    true = torch.cat([p_a, 1 - p_a]).to(said)
    place = (said * bins).long().clamp(0, bins - 1)  # nan, too, has a place, and makes its mean nan
    table = []
    for i in range(bins):
        here = place == i
        if here.any():
            table.append((i / bins, (i + 1) / bins, int(here.sum()), said[here].mean().item(),
                          true[here].mean().item()))
    return sum(n * abs(s - t) for _, _, n, s, t in table) / max(1, len(said)), table
