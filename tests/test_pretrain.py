"""Pretraining of the micro-world's base: rounds, their mean, and going on behind a finished one."""
from pathlib import Path
from types import SimpleNamespace

import torch

from minicai.checkpoint import save_model
from minicai.gpt import GPT, GPTConfig
from minicai.tokenizer import Tokenizer
from minicai.world import pretrain
from minicai.world.texts import turns

BASE = Path(__file__).parent.parent / "data" / "base"
ROUNDS = ((0.0, 0.5, 1.0), (0.5, 1.0, 0.4))


def trained(ended: int, rounds: dict):
    """(weights after 8 steps in two rounds, weights at the rounds' ends); the first `ended` rounds
    are taken from `rounds`."""
    torch.manual_seed(0)
    args = SimpleNamespace(start=None, seed=3, batch_tokens=300, processes=1)
    config = GPTConfig(vocab_size=2048, n_layer=1, n_head=1, width=32, mlp_width=32,
                       max_positions=1024)
    model = GPT(config).init_weights(torch.Generator().manual_seed(0))
    mean, found = torch.optim.swa_utils.AveragedModel(model), dict(rounds)
    copied = lambda: {name: p.detach().clone() for name, p in model.named_parameters()}
    for number in range(1, ended + 1):
        model.load_state_dict(rounds[f"round-{number}"], strict=False)
        mean.update_parameters(model)
    texts = pretrain.RoundBatches(args, Tokenizer.load(BASE), 0)
    log = SimpleNamespace(log=lambda **row: None)
    pretrain.train(model, mean, texts, 8, (1e-2, 5e-3), ROUNDS, log,
                   lambda _, name: found.__setitem__(name, copied()), ended)
    return copied(), found


def test_a_stopped_training_goes_on_behind_its_last_round():
    """Every round has moments and texts of its own: the same bits, whether it was stopped or not.
    What comes out is the mean of the rounds' ends."""
    whole, rounds = trained(0, {})
    assert set(rounds) == {"round-1", "round-2"}
    again, _ = trained(1, {"round-1": rounds["round-1"]})
    for name, p in whole.items():
        assert torch.equal(p, again[name])
        ends = (rounds["round-1"][name] + rounds["round-2"][name]) / 2
        torch.testing.assert_close(p, ends, rtol=1e-6, atol=1e-7)
    assert any(not torch.equal(p, rounds["round-2"][name]) for name, p in whole.items())


def test_rounds_are_counted_up_to_the_first_that_is_missing(tmp_path):
    """Weights of round 3 without those of round 2 are no training to go on with."""
    model, tok = GPT(GPTConfig(vocab_size=2048, n_layer=1, n_head=1, width=32)), \
        Tokenizer.load(BASE)
    for number, count in ((1, 1), (3, 1), (2, 3)):
        save_model(tmp_path / f"round-{number}", model, tok)
        assert pretrain.rounds_ended(tmp_path) == count


def test_the_rate_holds_then_falls_to_zero_in_every_round():
    """Two fifths of a round at its highest rate, then down to nothing."""
    for begin, end, peak in pretrain.ROUNDS:
        at = lambda share: pretrain.rate(begin + share * (end - begin), pretrain.ROUNDS)
        assert at(0) == at(0.399) == peak and 0 < at(0.999) < 0.01 * peak
        assert abs(at(0.7) - peak / 2) < 1e-9


def test_a_revision_turns_where_it_leaves_the_response():
    """Something left out, added, put in another place, all of it new; the end of what is the same
    is its last turn."""
    cases = {((1, 2, 3, 4, 5), (1, 2, 4, 5)): {2, 4},        # 3 is left out, then the end
             ((1, 2, 3), (1, 2, 3, 9)): {3},                 # 9 is added
             ((1, 2, 3), (9, 1, 2, 3)): {0, 4},              # in front
             ((1, 2, 3), (1, 7, 3)): {1, 3},                 # 7 for 2
             ((1, 2, 3), (7, 8, 9)): {0},                    # nothing is said again
             ((1, 2, 3), (1, 2, 3)): {3}}                    # all of it: only the end
    for (before, after), places in cases.items():
        assert turns(list(before), list(after)) == places


def test_muon_in_float32_takes_the_librarys_steps():
    """Wide, tall and square matrices; the library's products are bf16, so to bf16's digits: an
    orthogonal step has entries of about 1 / sqrt(width), and the rate scales it."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda shape: torch.randn(shape, generator=generator)
    theirs = [torch.nn.Parameter(draw(shape)) for shape in ((32, 96), (96, 32), (32, 32))]
    ours = [torch.nn.Parameter(p.detach().clone()) for p in theirs]
    flags = dict(lr=1.0, weight_decay=0.0, momentum=0.95)
    optimizers = torch.optim.Muon(theirs, **flags), pretrain.Float32Muon(ours, **flags)
    for _ in range(3):
        for p, q in zip(theirs, ours):
            p.grad, q.grad, before = draw(p.shape), None, q.detach().clone()
            q.grad = p.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
        torch.testing.assert_close(theirs, ours, rtol=0, atol=0.05)
    assert (ours[-1] - before).norm() > 3       # they went somewhere: a rotation's norm is sqrt(32)
