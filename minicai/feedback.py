"""AI feedback: which of two responses follows a principle better? (Bai et al. 2022, section 4.1)"""

OPENING = "Consider the following conversation between a human and an assistant:"


def comparison_prompt(tok, messages: list, a: str, b: str, principle: str, prefix=()) -> list:
    """Ids of the multiple choice between responses `a` and `b` to `messages`, which end in a user turn.

    The next token says the answer, " (A)" or " (B)". `prefix` is ids of worked examples (`few_shot_prefix`).
    """
    dialogue, _ = tok.encode_chat(messages)
    question = principle.strip().removesuffix("Options:").rstrip()      # the published principles end in "Options:"
    choice = f"\n\n\n{question} Options:\n (A) {a.strip()}\n (B) {b.strip()}\n\nThe answer is:"
    return tok.bos + list(prefix) + tok.encode(OPENING) + dialogue[len(tok.bos):] + tok.encode(choice)
