"""Answers as ids and log-probs: the shift by one, the mask, sums over a sequence."""

import torch

from minicai.answers import (
    answer_logprobs,
    answered_ids,
    encode_answer,
    pad_answers,
    sequence_logprobs,
    states_before,
    token_indices,
)
from minicai.logprob import logprob_reference

EXAMPLES = [([5, 6, 7], [8, 9]), ([4], [3, 2, 1, 9, 8]), ([1, 2, 3, 4, 5, 6], [7])]


def test_the_mask_is_on_the_answer_and_nothing_else():
    ids, mask = pad_answers(EXAMPLES)
    assert ids.shape == mask.shape == (3, 7)
    assert [row[m].tolist() for row, m in zip(ids, mask)] == [answer for _, answer in EXAMPLES]
    assert [row[: int(m.nonzero()[0])].tolist() for row, m in zip(ids, mask)] == [
        prompt for prompt, _ in EXAMPLES
    ]


def test_a_token_is_predicted_by_the_state_one_column_to_its_left():
    hidden = torch.arange(12.0).view(2, 6, 1)
    at = token_indices(torch.tensor([[0, 0, 1, 1, 0, 0], [0, 1, 0, 0, 0, 1]]).bool())
    assert states_before(hidden, at).flatten().tolist() == [1, 2, 6, 10]


@torch.no_grad()
def test_log_probs_of_answers_are_those_of_each_alone(tiny_model):
    by_hand = []
    for prompt, answer in EXAMPLES:
        hidden = tiny_model(torch.tensor([prompt + answer]))[0]
        by_hand.append(
            logprob_reference(hidden[len(prompt) - 1 : -1], tiny_model.head, torch.tensor(answer))[
                0
            ]
        )
    logp, rows = answer_logprobs(tiny_model, EXAMPLES)
    torch.testing.assert_close(logp, torch.cat(by_hand))
    assert rows.tolist() == [0, 0, 1, 1, 1, 1, 1, 2]
    torch.testing.assert_close(
        sequence_logprobs(tiny_model, EXAMPLES), torch.stack([x.sum() for x in by_hand])
    )


def test_the_gradient_reaches_every_answer(tiny_model):
    sequence_logprobs(tiny_model, EXAMPLES).sum().backward()
    assert tiny_model.head.grad.abs().sum() > 0


def test_an_answered_dialogue_ends_with_its_end_token(tok):
    asked = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    prompt, answer = encode_answer(tok, asked, "Use a brush.")
    assert prompt + answer == answered_ids(tok, asked, "Use a brush.") and answer[-1] == tok.end
    assert (
        prompt == tok.encode_chat(asked, generation=True)[0]
        and tok.decode(answer[:-1]) == " Use a brush."
    )
