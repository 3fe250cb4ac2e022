"""One forward, and the states one column to the left."""

import torch


def answer_logprobs(model, prompt: list, answer: list):
    """log p [len(answer)] of each answer token. model(ids [1,T]) -> hidden [1,T,C]; model.head
    [V,C]."""
    hidden = model(torch.tensor([prompt + answer]))[0]  # [T,C]
    before = hidden[len(prompt) - 1 : -1]  # the last state predicts nothing that we have
    logp = (before @ model.head.T).log_softmax(-1)  # [len(answer),V]
    return logp.gather(-1, torch.tensor(answer)[:, None]).squeeze(-1)


def loss(model, examples: list):
    """Stage 1's loss: minus the mean of log p over *all* answer tokens of [(prompt, answer),
    ...]."""
    # Not a mean of means: then a token of a short answer would weigh more than one of a long
    # answer.
    return -torch.cat([answer_logprobs(model, *example) for example in examples]).mean()
