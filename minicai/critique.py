"""The supervised stage's data: respond, then (critique -> revise) x n (Bai et al. 2022, section 3.1).

A context is token ids, not text: role markers and end tokens are spliced in as ids, and everything a human or a model
wrote is encoded as ordinary text, so no words inside a message can open a turn. Everything goes through `ask`, a
function from contexts to sampled ids (see `sampler`): a thousand dialogues take each step together, in one batch.
"""
import functools
import re

from minicai.data import read_transcript
from minicai.run import visible
from minicai.sample import generate


def critique_prompt(tok, constitution, messages: list, principle, shots=()) -> list:
    """Ids that ask for a critique of the last assistant turn: preamble, worked `shots`, dialogue, request."""
    ids = tok.bos + tok.encode(constitution.preamble)
    for shot in shots:
        # Written as the real thing is, end token included. Published ones carry the next one's "Human:" at their end.
        dialogue, tag, review = shot.partition("\n\nCritiqueRequest:")
        turns, _ = tok.encode_chat(read_transcript(dialogue))
        ids = ids + turns[len(tok.bos):] + tok.encode(tag + review.rstrip().removesuffix("Human:").rstrip()) + [tok.end]
    dialogue, _ = tok.encode_chat(messages)
    ids = ids + dialogue[len(tok.bos):]
    return ids + tok.encode(f"\n\nCritiqueRequest: {principle.critique_request}\n\nCritique:")


def revision_prompt(tok, constitution, messages: list, principle, critique: str, shots=()) -> list:
    """Ids that ask for a revision: the critique's context goes on, so the model reads its own reasons."""
    ids = critique_prompt(tok, constitution, messages, principle, shots) + tok.encode(" " + critique.strip())
    return ids + tok.encode(f"\n\nRevisionRequest: {principle.revision_request}\n\nRevision:")


def sampler(model, tok, max_new_tokens: int, temperature: float, generator, batch_tokens=None):
    """`ask(contexts, progress=None)` -> sampled ids of each context, end token included if it was reached."""
    return functools.partial(generate, model, max_new_tokens=max_new_tokens, stop=tok.stop, temperature=temperature,
                             forbidden=tok.forbidden(model.config.vocab_size), generator=generator,
                             batch_tokens=batch_tokens)


def read_answer(tok, ids: list):
    """(text, ids to train on, why not) of sampled ids; `why not` is None, "empty" or "no end token".

    A model that was not trained to end its turn goes on to the next one, as worked examples do; there it is cut.
    """
    ended = bool(ids) and ids[-1] in tok.stop
    text = tok.decode(ids[:-1] if ended else ids)
    if went_on := re.search(r"\n\n(Human|Assistant|CritiqueRequest|RevisionRequest):", text):
        text, ended = text[:went_on.start()].rstrip(), True
        ids = tok.encode(text) + [tok.end]
    return text.strip(), ids, None if ended and visible(text) else "empty" if ended else "no end token"


def respond(ask, tok, conversations: list, progress=None) -> list:
    """One sampled answer to each dialogue, as rows {"messages", "response", "ids", "skipped": reason or None}."""
    answers = ask([tok.encode_chat(m, generation=True)[0] for m in conversations], progress=progress)
    rows = []
    for messages, ids in zip(conversations, answers):
        text, ids, reason = read_answer(tok, ids)
        rows.append({"messages": messages, "response": text, "ids": ids, "skipped": reason})
    return rows


def critique_revise(ask, tok, constitution, rows: list, rounds: int, rng, shots=()) -> None:
    """Put `rounds` critiques and revisions into each usable row of `respond`, as a list under "rounds".

    The principle of every round is drawn anew, i.i.d. with replacement, with rng (random.Random). A revision replaces
    the response before the next round; one that cannot be read keeps its reason under "skipped", and the next round
    starts from the response that stood before it.
    """
    rows = [row for row in rows if not row["skipped"]]
    current = [row["response"] for row in rows]
    for row in rows:
        row["rounds"] = []
    for n in range(1, rounds + 1):
        numbers = [rng.randrange(len(constitution.critiques)) for _ in rows]
        drawn = [constitution.critiques[i] for i in numbers]
        judged = [row["messages"] + [{"role": "assistant", "content": text}] for row, text in zip(rows, current)]
        critiques = ask([critique_prompt(tok, constitution, m, p, shots) for m, p in zip(judged, drawn)],
                        progress=f"round {n}: critiques")
        critiques = [read_answer(tok, ids) for ids in critiques]
        revisions = ask([revision_prompt(tok, constitution, m, p, text, shots)
                         for m, p, (text, _, _) in zip(judged, drawn, critiques)], progress=f"round {n}: revisions")
        for i, ids in enumerate(revisions):
            (critique, _, bad_critique), (revision, ids, bad_revision) = critiques[i], read_answer(tok, ids)
            if tok.chat != "plain":         # there an answer starts without the space that follows "Revision:"
                ids = tok.encode(revision) + [tok.end]
            reason = f"critique: {bad_critique}" if bad_critique else bad_revision and f"revision: {bad_revision}"
            rows[i]["rounds"].append({
                "principle": numbers[i], "critique_request": drawn[i].critique_request, "critique": critique,
                "revision_request": drawn[i].revision_request, "revision": revision, "ids": ids, "skipped": reason})
            if not reason:
                current[i] = revision
