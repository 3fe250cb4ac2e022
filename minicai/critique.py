"""The supervised stage's data: respond, then (critique -> revise) x n (Bai et al. 2022, section 3.1).

A *context* is token ids, not text: role markers and end tokens are spliced in as ids, and everything a human or a
model wrote is encoded as ordinary text, so no words inside a message can open a turn.
"""


def critique_prompt(tok, constitution, messages: list, principle, shots=()) -> list:
    """Ids that ask for a critique of the last assistant turn of `messages`: preamble, worked examples, dialogue, request."""
    ids = tok.bos + tok.encode(constitution.preamble)
    for shot in shots:
        # Published examples carry the next one's "Human:" at their end; here each marker belongs to its own dialogue.
        ids = ids + tok.encode("\n\n" + shot.strip().removesuffix("Human:").rstrip())
    dialogue, _ = tok.encode_chat(messages)
    ids = ids + dialogue[len(tok.bos):]
    return ids + tok.encode(f"\n\nCritiqueRequest: {principle.critique_request}\n\nCritique:")


def revision_prompt(tok, constitution, messages: list, principle, critique: str, shots=()) -> list:
    """Ids that ask for a revision after `critique`: the critique's context goes on, so the model reads its own reasons."""
    ids = critique_prompt(tok, constitution, messages, principle, shots) + tok.encode(" " + critique.strip())
    return ids + tok.encode(f"\n\nRevisionRequest: {principle.revision_request}\n\nRevision:")
