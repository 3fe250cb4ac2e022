"""AI feedback: which of two responses follows a principle better? (Bai et al. 2022, section 4.1)

A language model reads the dialogue, both responses and one principle as a multiple choice; the
label is how likely it finds " (A)" against " (B)" as the next words: soft, not a verdict. Asked at
once, nothing is sampled, and a label costs one forward. It can think first, in some ten short
sentences (`think`): what the principle asks about has to be looked for in both responses, and a
choice asked at once has no room for that. Then the label depends on a sampled thought and tends to
0 or 1, so it is clamped. The paper does not say which response is shown as (A). Here that is random
(train_pm.py), so a model that favours (A) adds noise, not a systematic error; `both_orders` asks
both ways and takes the mean.
"""
import torch

from minicai.critique import read_answer
from minicai.data import batches_by_tokens, pad_right
from minicai.gae import last_index
from minicai.logprob import token_logprobs

# Bounds of a label after a thought. The paper's are 0.4 and 0.6; wider ones keep what was decided
# apart from what was not.
CLAMP = (0.05, 0.95)
OPENING = "Consider the following conversation between a human and an assistant:"
THINK = "\n\nLet's think step by step:"
ANSWER = "\n\nThe answer is:"


def comparison_prompt(tok, messages: list, a: str, b: str, principle: str, prefix=(),
                      ending: str = ANSWER) -> list:
    """Ids of the multiple choice between responses `a` and `b` to `messages`,
    which end in a user turn.

    The next words are " (A)" or " (B)". `prefix` is the ids of worked examples
    (see few_shot_prefix).
    """
    dialogue, _ = tok.encode_chat(messages)
    # The published principles end in "Options:".
    question = principle.strip().removesuffix("Options:").rstrip()
    choice = f"\n\n\n{question} Options:\n (A) {one_option(a)}\n (B) {one_option(b)}{ending}"
    return (tok.bos + list(prefix) + tok.encode(OPENING) + dialogue[len(tok.bos):]
            + tok.encode(choice))


def too_long(tok, row: dict, principles: list, prefix, room: int) -> str | None:
    """Why a pair cannot be asked about in `room` tokens, None if it can: lines of a list are set
    in, which makes the multiple choice longer than its parts."""
    need = max(len(comparison_prompt(tok, row["messages"], row["a"], row["b"], principle, prefix,
                                     THINK + ANSWER)) for principle in principles)
    return "longer than the judge reads" if need > room else None


def one_option(text: str) -> str:
    """A response as one option of a multiple choice:
    every line after its first is set in by five spaces.

    An option opens with a line break, one space and a letter. No line of a response can look so any
    more, nor like the question's end: a response that holds "(A) ..." or "The answer is: (A)" stays
    what it is, one response.
    """
    return "\n     ".join(line.strip() for line in text.strip().splitlines() if line.strip())


def few_shot_prefix(tok, shots: list, rng, think: bool = False) -> list:
    """Ids of worked comparisons, each with its own principle and its better response at
    (A) or (B) at random (rng).

    think: for questions that ask for a chain of thought;
    a shot's "thought" stands before its answer, its {better} and {worse} become letters.
    """
    prefix = []
    for shot in shots:
        first = rng.random() < 0.5
        a, b = (shot["better"], shot["worse"]) if first else (shot["worse"], shot["better"])
        better, worse = ("(A)", "(B)") if first else ("(B)", "(A)")
        thought = shot.get("thought", "").replace("{better}", better).replace("{worse}", worse)
        ending = f"{THINK} {thought}{ANSWER}" if think and thought else ANSWER
        asked = comparison_prompt(tok, shot["conversation"], a, b, shot["principle"], (), ending)
        asked = asked[len(tok.bos):]
        prefix += asked + tok.encode(f" {better}\n\n")
    return prefix


@torch.no_grad()
def choose(model, tok, prompts: list, begin=lambda prompts: {}, budget: int = 16384):
    """P(A) [N] and the mass [N] on either answer,
    after prompts that stop where " (A)" or " (B)" must follow.

    begin: gives back what a stopped run had found, {prompt's index: (P(A), mass)}; ignore it on
    first reading. P(A) is normalised over the two answers. The mass, P(A) + P(B) at the token that
    tells them apart and given those before it, shows whether the model understood the question.
    """
    a, b = tok.encode(" (A)"), tok.encode(" (B)")
    same = next(i for i in range(len(a)) if a[i] != b[i])  # both begin " ("
    done = begin(prompts)
    for batch in batches_by_tokens([len(p) for p in prompts], budget):
        if batch[0] in done:
            continue
        ids, mask = pad_right([prompts[i] + a[:same] for i in batch], model.head.device)
        # [B,C]; bfloat16 would round the logits to 1/16 and more; one row costs nothing
        hidden = model(ids)[torch.arange(len(batch), device=ids.device), last_index(mask)].float()
        logp_a, _ = token_logprobs(hidden, model.head, torch.full_like(ids[:, 0], a[same]))  # [B]
        logp_b, _ = token_logprobs(hidden, model.head, torch.full_like(ids[:, 0], b[same]))
        p_a = torch.sigmoid(logp_a - logp_b).float().tolist()           # e^a / (e^a + e^b)
        done.update(zip(batch, zip(p_a, (logp_a.exp() + logp_b.exp()).float().tolist())))
    return torch.tensor([done[i] for i in range(len(prompts))]).reshape(-1, 2).unbind(1)


def turned(clamp) -> tuple:
    """The bounds of a label of the other response: of 1 - P(A)."""
    return 1 - clamp[1], 1 - clamp[0]


def label(model, tok, questions: list, both_orders: bool = False, prefix=(), think=None,
          clamp=CLAMP, begin=lambda prompts: {}, thoughts: list | None = None):
    """P(first response is better) [N] and mass [N] of questions
    (messages, first, second, principle).

    think: an `ask` (see critique.sampler) to let the model reason first; its answers are then near
    0 or 1, which makes a policy trained on them extreme, so they are clamped (section 4.1 of the
    paper). thoughts: an empty list that gets the thoughts, one a question (of the order in which
    they stand).
    """
    if both_orders:
        how = dict(prefix=prefix, think=think, clamp=clamp, begin=begin)
        p, mass = label(model, tok, questions, thoughts=thoughts, **how)
        swapped = [(m, b, a, c) for m, a, b, c in questions]
        q, mass_q = label(model, tok, swapped, **how | {"clamp": turned(clamp)})
        return (p + 1 - q) / 2, torch.minimum(mass, mass_q)
    if think is None:
        prompts = [comparison_prompt(tok, m, a, b, c, prefix) for m, a, b, c in questions]
        return choose(model, tok, prompts, begin)
    prompts = [comparison_prompt(tok, m, a, b, c, prefix, THINK) for m, a, b, c in questions]
    # a thought may be empty: the answer at once, whose line breaks read_answer has taken off
    said = [f"\n\n{read_answer(tok, ids)[0]}".partition(ANSWER)[0].strip()
            for ids in think(prompts, progress="thinking")]
    if thoughts is not None:
        thoughts += said
    prompts = [p + tok.encode(" " + t + ANSWER) for p, t in zip(prompts, said)]
    p, mass = choose(model, tok, prompts, begin)
    return p.clamp(*clamp), mass


# What a preference model learns from a label: P(A) as it is, or the verdict; a toss-up stays one.
# Section 4.3 of the paper: soft labels make the better one.
LABELS = {"soft": lambda p: p, "hard": lambda p: 0.5 if p == 0.5 else float(p > 0.5)}


def draw_principles(principles: list, count: int, rng) -> list:
    """`count` principles for one pair; none comes again before all have come."""
    drawn = []
    while len(drawn) < count:
        drawn += rng.sample(principles, min(count - len(drawn), len(principles)))
    return drawn


def mean_label(model, tok, pairs: list, drawn: list, **how):
    """P(a is better) [N], the least mass [N] and what was asked of pairs (messages, a, b): the mean
    label over the principles that were `drawn` for each pair, as many for all.

    how: what else label() takes, but thoughts. Each principle gets a thought of its own.
    Of each pair, a list of {"principle", "thought", "p_a"} comes back.
    """
    labels, masses, asked = [], [], [[] for _ in pairs]
    for principles in zip(*drawn):
        thoughts = []
        p, mass = label(model, tok, [(*pair, c) for pair, c in zip(pairs, principles)],
                        thoughts=thoughts, **how)
        labels.append(p)
        masses.append(mass)
        for said, c, thought, x in zip(asked, principles, thoughts or [""] * len(pairs), p):
            said.append({"principle": c, "thought": thought, "p_a": round(x.item(), 5)})
    if not labels:
        return torch.zeros(0), torch.zeros(0), asked
    return torch.stack(labels).mean(0), torch.stack(masses).amin(0), asked


def position_bias(model, tok, questions: list, sample: int = 64, **how) -> tuple[float, float]:
    """How far letters decide: (mean P(A), share of verdicts that stay when the responses change
    places) on a sample.

    Both orders are asked, so what the responses are worth cancels out of the mean:
    a judge that reads them gives 0.5. how: what else label() takes, but both_orders and thoughts.
    """
    asked = questions[:sample]
    p, _ = label(model, tok, asked, **how)
    swapped = [(m, b, a, c) for m, a, b, c in asked]
    q, _ = label(model, tok, swapped, **how | {"clamp": turned(how.get("clamp", CLAMP))})
    return ((p + q) / 2).mean().item(), same_verdict(p, q)


def same_verdict(p, q) -> float:
    """The share of verdicts that stay when the responses change places: P(A) [N] in one order, and
    in the other; a tie counts by half."""
    return ((1 - (p - 0.5).sign() * (q - 0.5).sign()) / 2).mean().item()
