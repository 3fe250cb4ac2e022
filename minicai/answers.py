"""A dialogue and an answer to it, as all three stages train on them: ids, which ids are the
answer's, log-probs.

Shapes: B batch, T time, N answer tokens of a whole batch, C width. An example is (prompt ids,
answer ids).
"""
import torch

from minicai.data import pad_right
from minicai.logprob import token_logprobs


def answered_ids(tok, messages: list, text: str, cut: bool = False) -> list:
    """The ids of a dialogue and an answer to it, up to its end token, which a cut one lacks: what
    the preference model reads, here and in stage 3."""
    ids, spoken = tok.encode_chat(messages + [{"role": "assistant", "content": text}])
    # up to the last id that an assistant says, its end token (a format may put a line break behind
    # it), and one less if it is cut
    return ids[:len(spoken) - spoken[::-1].index(1) - cut]


def encode_answer(tok, messages: list, text: str, cut: bool = False) -> tuple[list, list]:
    """The same as an example: (prompt ids, answer ids)."""
    prompt, _ = tok.encode_chat(messages, generation=True)
    return prompt, answered_ids(tok, messages, text, cut)[len(prompt):]


def pad_answers(examples: list, device=None):
    """ids [B,T] of examples, right-padded, and mask [B,T]: True on the answer's tokens, its end
    token included. No prompt may be empty: nothing would predict the answer's first token."""
    ids, real = pad_right([prompt + answer for prompt, answer in examples], device)
    starts = torch.tensor([len(prompt) for prompt, _ in examples], device=ids.device)
    return ids, real & (torch.arange(ids.shape[1], device=ids.device) >= starts[:, None])


def token_indices(mask):
    """(rows [N], columns [N]) of a mask's True: looked up once and kept, since a GPU has to wait at
    each look."""
    return mask.nonzero(as_tuple=True)


def states_before(hidden, where):
    """The hidden states [N,C] that predict the tokens `where`, out of hidden [B,T,C]: those one
    column to the left.

        column          0       1       2       3
        token           <s>     the     cat     sat
        hidden state    h0      h1      h2      h3         h1 has read "<s> the", and no more
        predicts        the     cat     sat     ?          h(t-1) predicts the token in column t

    This is the one place where the shift by one is made. The value of the state *before* a token is
    read there too.
    """
    rows, columns = where
    return hidden[rows, columns - 1]


def answer_logprobs(model, examples: list):
    """log p of every answer token given all before it: (logp [N], the row of each token [N])."""
    ids, mask = pad_answers(examples, model.head.device)
    where = token_indices(mask)
    logp, _ = token_logprobs(states_before(model(ids), where), model.head, ids[where])
    return logp, where[0]


def sequence_logprobs(model, examples: list):
    """log p [B] of each whole answer, in nats: the sum over its tokens. (What DPO compares; see
    exercises/.)"""
    logp, rows = answer_logprobs(model, examples)
    return logp.new_zeros(len(examples)).index_add(0, rows, logp)
