"""Fill in."""


def answer_logprobs(model, prompt: list, answer: list):
    """log p [len(answer)] of each answer token. model(ids [1,T]) -> hidden [1,T,C]; model.head
    [V,C]."""
    raise NotImplementedError


def loss(model, examples: list):
    """Stage 1's loss: minus the mean of log p over *all* answer tokens of [(prompt, answer),
    ...]."""
    raise NotImplementedError
