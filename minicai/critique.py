"""The supervised stage's data: respond,
then (critique -> revise) x n (Bai et al. 2022, section 3.1).

A context is token ids, not text: role markers and end tokens are spliced in as ids, and everything
a human or a model wrote is encoded as ordinary text, so no words inside a message can open a turn.
Everything goes through `ask`, a function from contexts to sampled ids (see `sampler`): a thousand
dialogues take each step together, in one batch.
"""
import functools
import re

from minicai.data import read_transcript
from minicai.run import visible
from minicai.sample import generate


def critique_prompt(tok, constitution, messages: list, principle, shots=(), turns=None) -> list:
    """Ids that ask for a critique of the last assistant turn:
    preamble, worked `shots`, dialogue, request.

    turns: ask in turns of the chat, as models want it that know no other form
    (default: unless the format is plain).
    """
    turns = tok.chat != "plain" if turns is None else turns
    if turns:
        return chat_prompt(tok, constitution, messages, [principle.critique_request], shots)
    return opening(tok, constitution, messages, shots) + tok.encode(
        f"\n\nCritiqueRequest: {principle.critique_request}\n\nCritique:")


def revision_prompt(tok, constitution, messages: list, principle, critique: str | None, shots=(),
                    turns=None) -> list:
    """Ids that ask for a revision: the critique's context goes on, so the model reads its own
    reasons.

    critique None: nothing was criticised, the request comes straight after the answer, in the
    worked `shots` too (section 3.5 of the paper).
    """
    turns = tok.chat != "plain" if turns is None else turns
    if critique is None:
        shots = [re.sub(r"\n\nCritiqueRequest:.*?(?=\n\nRevisionRequest:)", "", shot, flags=re.S)
                 for shot in shots]
    asked = [] if critique is None else [principle.critique_request, critique.strip()]
    if turns:
        return chat_prompt(tok, constitution, messages, asked + [principle.revision_request], shots,
                           revision_at=len(asked))
    ids = (opening(tok, constitution, messages, shots) if critique is None else
           critique_prompt(tok, constitution, messages, principle, shots, turns)
           + tok.encode(" " + critique.strip()))
    return ids + tok.encode(f"\n\nRevisionRequest: {principle.revision_request}\n\nRevision:")


def opening(tok, constitution, messages: list, shots) -> list:
    """Ids of what a request is made about in the plain format: preamble, worked `shots`,
    dialogue."""
    ids = tok.bos + tok.encode(constitution.preamble)
    for shot in shots:
        # Written as the real thing is, end token included.
        # Published ones carry the next one's "Human:" at their end.
        parts = re.split(r"(\n\n(?:Critique|Revision)Request:)", shot, maxsplit=1)
        dialogue, tag, review = [*parts, "", ""][:3]
        spoken, _ = tok.encode_chat(read_transcript(dialogue))
        review = review.rstrip().removesuffix("Human:").rstrip()
        ids = ids + spoken[len(tok.bos):] + tok.encode(tag + review) + [tok.end]
    dialogue, _ = tok.encode_chat(messages)
    return ids + dialogue[len(tok.bos):]


def chat_prompt(tok, constitution, messages: list, said: list, shots=(), revision_at=2) -> list:
    """Ids of a chat in which the human asks for critique and revision: the preamble as the system's
    message (with that of the dialogue behind it: a chat has one), worked dialogues, `messages`, and
    `said`, by the human and the assistant in turn; said[revision_at] is the request for a revision,
    if there is one.

    The request for a revision says again what had been asked: a small model has lost it by then,
    and declines anything (on 135M parameters 17 of 23 refusals are then about the request,
    otherwise 4 of 24; docs/real_models.md).
    """
    told = [constitution.preamble, *(m["content"] for m in messages if m["role"] == "system")]
    turns = [{"role": "system", "content": "\n\n".join(filter(None, told))}] if any(told) else []
    messages = [m for m in messages if m["role"] != "system"]
    for shot in shots:
        dialogue, *parts = re.split(r"\n\n(?:CritiqueRequest|Critique|RevisionRequest|Revision):",
                                    shot)
        parts = [text.strip().removesuffix("Human:").strip() for text in parts]
        turns += append_turns(read_transcript(dialogue), parts, revision_at)
    return tok.encode_chat(turns + append_turns(messages, said, revision_at), generation=True)[0]


def append_turns(dialogue: list, said: list, revision_at: int) -> list:
    """A dialogue that goes on with a request, a critique, another request, a revision,
    as far as they are `said`; said[revision_at] is that other request."""
    question = next((turn["content"] for turn in reversed(dialogue) if turn["role"] == "user"), "")
    said = [f'{text} The human asked: "{question}"' if i == revision_at else text
            for i, text in enumerate(said)]
    return dialogue + [{"role": ("user", "assistant")[i % 2], "content": text}
                       for i, text in enumerate(said)]


def sampler(model, tok, max_new_tokens: int, temperature: float, generator, batch_tokens=None):
    """`ask(contexts, progress=None)` -> sampled ids of each context,
    end token included if it was reached."""
    return functools.partial(generate, model, max_new_tokens=max_new_tokens, stop=tok.stop,
                             forbidden=tok.forbidden(model.config.vocab_size),
                             temperature=temperature, generator=generator,
                             batch_tokens=batch_tokens)


def read_answer(tok, ids: list):
    """(text, ids to train on, why not) of sampled ids; `why not` is None or "empty".

    A model that was not trained to end its turn goes on to the next one, as worked examples do;
    there it is cut, and ended. What ran into the limit on tokens is used as it is, without an end
    token: adding one would teach the model to stop in mid-sentence, dropping such answers would
    teach it to write short ones.
    """
    text = tok.decode(ids[:-1] if ended(tok, ids) else ids)
    went_on = re.search(r"\n\n(Human|Assistant|CritiqueRequest|RevisionRequest):", text)
    if went_on and not ended(tok, ids):  # an answer that ended by itself says what it means to say
        text = text[:went_on.start()].rstrip()
        ids = tok.encode(text) + [tok.end]
    # The limit may cut a character in two.
    text = text if ended(tok, ids) else text.rstrip("\ufffd")
    return text.strip(), ids, None if visible(text) else "empty"


def ended(tok, ids: list) -> bool:
    """Whether sampled ids end by themselves, not at the limit on tokens."""
    return bool(ids) and ids[-1] in tok.stop


def respond(ask, tok, conversations: list, progress=None) -> list:
    """One sampled answer to each dialogue, as rows {"messages", "response", "ids",
    "cut" at the limit, "skipped"}."""
    answers = ask([tok.encode_chat(m, generation=True)[0] for m in conversations],
                  progress=progress)
    rows = []
    for messages, ids in zip(conversations, answers):
        text, ids, reason = read_answer(tok, ids)
        rows.append({"messages": messages, "response": text, "ids": ids, "cut": not ended(tok, ids),
                     "skipped": reason})
    return rows


def critique_revise(ask, tok, constitution, rows: list, rounds: int, rng, shots=(),
                    turns=None, direct: bool = False) -> None:
    """Put `rounds` critiques and revisions into each usable row of `respond`,
    as a list under "rounds".

    direct: ask for the revision at once, without a critique (section 3.5 of the paper), which is ""
    then.

    The principle of every round is drawn anew, i.i.d. with replacement, with rng (random.Random). A
    revision replaces the response before the next round; one that cannot be read keeps its reason
    under "skipped", and the next round starts from the response that stood before it.
    """
    rows = [row for row in rows if not row["skipped"]]
    for row in rows:
        row["rounds"] = []
    for n in range(1, rounds + 1):
        # All dialogues take each step together. One of them: (its row, the number of the principle
        # drawn for it, the principle, the messages up to the response that is judged).
        dialogues = []
        for row in rows:
            number = rng.randrange(len(constitution.critiques))
            judged = [*row["messages"], {"role": "assistant", "content": standing(row)}]
            dialogues.append((row, number, constitution.critiques[number], judged))

        critiques = [None] * len(rows)
        if not direct:
            critiques = ask([critique_prompt(tok, constitution, judged, principle, shots, turns)
                             for _, _, principle, judged in dialogues],
                            progress=f"round {n}: critiques")
            critiques = [read_critique(tok, ids) for ids in critiques]

        revisions = ask([revision_prompt(tok, constitution, judged, principle, critique, shots,
                                         turns)
                         for (_, _, principle, judged), critique in zip(dialogues, critiques)],
                        progress=f"round {n}: revisions")
        for (row, number, principle, _), critique, said in zip(dialogues, critiques, revisions):
            revision, ids, reason = read_answer(tok, said)
            if reason:
                reason = f"revision: {reason}"
            if critique == "":
                reason = "critique: empty"
            row["rounds"].append({
                "principle": number, "critique_request": principle.critique_request,
                "critique": critique or "", "revision_request": principle.revision_request,
                "revision": revision, "ids": ids, "cut": not ended(tok, ids), "skipped": reason})


def standing(row: dict) -> str:
    """The response of a row as it stands: its last revision that could be read, or the first."""
    revisions = [r["revision"] for r in row["rounds"] if not r["skipped"]]
    return revisions[-1] if revisions else row["response"]


def read_critique(tok, ids: list) -> str:
    """The text of a sampled critique. As in the worked examples, a model may go on to the request
    for a revision: a critique ends there."""
    # a critique may be empty: then read_answer has taken off the line breaks before the request
    return f"\n\n{read_answer(tok, ids)[0]}".partition("\n\nRevisionRequest:")[0].strip()
