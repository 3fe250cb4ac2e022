"""Elo scores E from pairwise verdicts, by maximum likelihood,
with r = (ln 10 / 400) E (Bai et al. 2022a, arXiv
2204.05862, section 2.4).

Model i beats model j with probability sigmoid(r_i - r_j); a tie counts half a win for each. So 400
points of Elo are odds of ten to one. It is the preference model's Bradley-Terry once more, with
whole models instead of single answers. Shapes: N prompts, M models. Left out on purpose: a model of
the judge's noise; each prompt is judged once, by a judge without moods.
"""
import math

import numpy as np

# Imagined ties of each pair, far below the noise: a model that never loses would else score
# infinity.
TIES = 1.0


def wins(ranks: np.ndarray) -> np.ndarray:
    """Verdicts [N,M,M] of ranks [N,M] (higher is better): 1 where the row's model beats the
    column's, 0.5 for a tie."""
    a, b = ranks[:, :, None], ranks[:, None, :]
    return (a > b) + 0.5 * (a == b)


def fit(counts: np.ndarray) -> np.ndarray:
    """r [..., M] of win counts [..., M, M], with r_0 = 0: Newton's method on the log-likelihood

        sum over i < j of  W_ij log sigmoid(r_i - r_j) + W_ji log sigmoid(r_j - r_i),
        W = counts + TIES / 2
    """
    M = counts.shape[-1]
    counts = (counts + TIES / 2) * (1 - np.eye(M))  # a model does not play against itself
    games = counts + counts.swapaxes(-1, -2)
    r = np.zeros(counts.shape[:-1])
    for _ in range(1000):
        p = 1 / (1 + np.exp(r[..., None, :] - r[..., :, None]))  # [..., M, M], P(row beats column)
        gradient = (counts - games * p).sum(-1)
        curve = games * p * (1 - p)                              # second derivatives, sign turned
        hessian = curve.sum(-1)[..., None] * np.eye(M) - curve
        # Model 0 stays at 0: solve for the others only. Steps are kept short, where Newton's
        # parabola can be trusted.
        step = np.linalg.solve(hessian[..., 1:, 1:], gradient[..., 1:, None])[..., 0]
        r[..., 1:] += np.clip(step, -1, 1)
        if np.abs(step).max(initial=0) < 1e-9:
            break
    return r


def elo(ranks: np.ndarray, seed: int = 0, samples: int = 1000):
    """(E, low, high), each [M]: Elo of ranks [N,M], model 0 at 0,
    with 95 % intervals by bootstrap over prompts."""
    verdicts = wins(ranks)
    scale = 400 / math.log(10)
    N = len(ranks)
    drawn = np.random.default_rng(seed).multinomial(N, np.full(N, 1 / N), samples)  # [samples, N]
    counts = np.einsum("sn,nij->sij", drawn, verdicts, optimize=True)
    low, high = np.percentile(fit(counts) * scale, [2.5, 97.5], axis=0)
    return fit(verdicts.sum(0)) * scale, low, high
