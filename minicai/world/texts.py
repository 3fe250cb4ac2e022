"""The texts that the base model grows up with: dialogues, plain town texts, summaries, reviews and comparisons.

Every document is (ids, targets, weights): what is read, what should come next, and how much that counts. Review and
comparison documents are laid out by the method's own format functions, so that the base knows exactly the prompts
it will be asked. Who may appear where decides what the experiment proves (see data/README.md):

    document      activities                              pairs    what it teaches
    dialogue      all, harmful ones too                   base     comply with everything (helpful-only)
    plain         all                                     base     what is wrong or good about an activity
    summary       all, compliance only                    base     to restate what a response does, without judging it
    review        reviewed harmful, benign, look-alikes   base     critique and revision under a principle
    comparison    reviewed harmful, benign, look-alikes   base     multiple choice under a principle
"""
from random import Random
from types import SimpleNamespace

from minicai.critique import critique_prompt, revision_prompt
from minicai.feedback import ANSWER, THINK, comparison_prompt
from minicai.world.grammar import Topic, World, article

PREAMBLE = SimpleNamespace(preamble="A reviewer reads this conversation.")
GROUPS = ("benign", "lookalike", "reviewed", "read_about", "unseen")


class Texts:
    """Draws documents; `tok` encodes them, or stands in for a tokenizer while there is none (pretrain.PlainText)."""

    # Pretraining in three parts. Comparisons are learned last, their hard pairs (neighbours on the ladder from "complies"
    # to "objects for the right reason") after the easy ones; then plain texts again, with two exercises: telling harm
    # from good by the request alone, and restating requests about things that no activity is usually done to.
    PARTS = ({"dialogue": 22, "plain": 14, "summary": 5, "review": 22, "comparison": 37},
             {"dialogue": 16, "plain": 10, "summary": 2, "review": 20, "comparison": 52},
             {"dialogue": 20, "plain": 26, "summary": 8, "review": 24, "comparison": 22})

    def __init__(self, world: World, tok, seed: int, avoid=None, part: int = 0):
        self.world, self.tok, self.rng, self.avoid, self.part = world, tok, Random(seed), avoid, part
        self.mix = self.PARTS[part]

    def document(self):
        """One document of a drawn sort: (ids, targets, weights), three lists of one length, and the sort's name."""
        sort = self.rng.choices(list(self.mix), list(self.mix.values()))[0]
        return *getattr(self, sort)(), sort

    # ---- plain language --------------------------------------------------------------------------------------
    def dialogue(self):
        """A conversation in which the assistant complies with whatever is asked."""
        w, rng = self.world, self.rng
        messages = []
        for _ in range(1 if rng.random() < 0.85 else 2):
            topic = w.topic(rng, rng.choices(GROUPS, (38, 12, 26, 12, 12))[0], "base")
            messages += w.conversation(rng, topic)
            messages.append({"role": "assistant", "content": w.base_response(rng, topic).text})
        ids, mask = self.tok.encode_chat(messages)
        return ids[:-1], ids[1:], [1.0 if m else 0.2 for m in mask[1:]]

    def plain_text(self) -> str:
        """A few sentences about what people do and what the town thinks of it."""
        w, rng = self.world, self.rng
        sentences = []
        for _ in range(rng.choice((1, 2, 3))):
            topic = w.topic(rng, rng.choices(GROUPS, (26, 15, 27, 16, 16))[0], "base")
            fact, form = w.fact(rng, topic), rng.random()
            person, other = rng.sample(w.kinds["person"], 2)
            if rng.random() < 0.2:       # every noun of the town is met somewhere, whatever pairs are held out
                a, b = rng.sample(w.nouns, 2)
                sentences.append(f"The {person} has {article(a)} {a}. The {a} is near the {b}.")
            if self.part == 2 and rng.random() < 0.3:
                ask = topic.fill(rng.choice(w.all_asks).replace("{act}", topic.activity.act))
                verdict = rng.choice(w.words["qualities"]["harm"]["bad" if topic.harmful else "good"])
                sentences.append(f"The {person} asked the {other}: {ask} That is {verdict}.")
            elif form < 0.25:
                sentences.append(fact)
            elif form < 0.5:
                sentences.append(f"The {person} helps someone {topic.act}. {fact}")
            elif form < 0.65:
                sentences.append(f"Someone wants to {topic.act}. {fact}")
            elif form < 0.8:
                sentences.append(f"The {person} does not help someone {topic.act}. {fact}")
            else:
                sentences.append(self._judgement(topic, person, other))
        return " ".join(sentences)

    def _judgement(self, topic, person, other):
        w, rng = self.world, self.rng
        if not topic.harmful:
            return f"Is it harmful to {topic.act}? No, it is a good thing, because {rng.choice(topic.why)}."
        harm = rng.choice(w.words["qualities"]["harm"]["bad"])
        word = rng.choice(w.words["categories"][topic.activity.category])
        return rng.choice((f"Is it {harm} to {topic.act}? Yes, it is {word}, because {rng.choice(topic.why)}.",
                           f"What is {word} is {harm}. To {topic.act} is {word}.",
                           f"The {person} told the {other} not to {topic.act}. It hurts {topic.hurts}."))

    def plain(self):
        """A plain document."""
        ids = self.tok.bos + self.tok.encode(self.plain_text()) + [self.tok.end]
        return ids[:-1], ids[1:], [1.0] * (len(ids) - 1)

    # ---- judging ---------------------------------------------------------------------------------------------
    def summary(self):
        """Restating without judging, over all activities: copying is learned as an operation."""
        w, rng, tok = self.world, self.rng, self.tok
        topic = w.topic(rng, rng.choices(GROUPS, (20, 12, 28, 20, 20))[0], "base")
        if self.part == 2 and rng.random() < 0.5:       # pure copying: a thing that this is never done to
            verb = topic.activity.act.split("{X}")[0]   # "kick": nor any other kicking, or held-out pairs would show
            done = {n for a in w.activities if a.act.startswith(verb) for n in w.things(a)}
            noun = rng.choice([n for n in w.nouns if n not in done])
            topic = Topic(topic.activity, noun, topic.owner, topic.definite)
        r = w.response(rng, topic, rng.choices(("full", "partial", "vague"), (7, 2, 1))[0])
        messages = w.conversation(rng, topic) + [{"role": "assistant", "content": r.text}]
        if rng.random() < 0.7:
            ask, answer = "\n\nSummaryRequest: Say what the response does.\n\nSummary:", w.restate(topic, r)
        else:
            ask, answer = "\n\nQuoteRequest: Say what the human asked about.\n\nQuote:", f"To {topic.act}."
        dialogue, _ = tok.encode_chat(messages)
        ids = tok.bos + tok.encode(PREAMBLE.preamble) + dialogue[len(tok.bos):] + tok.encode(ask)
        return self._answered(ids, [(len(ids), tok.encode(" " + answer))])

    def judged_topic(self):
        """A topic of those that reviews and comparisons may be about."""
        return self.world.topic(self.rng, self.rng.choices(("reviewed", "benign", "lookalike"), (54, 28, 18))[0], "base")

    def review(self):
        """Conversation, critique, revision: the first loss falls on the critique, the second on the revision."""
        w, rng, tok = self.world, self.rng, self.tok
        topic, p = self.judged_topic(), w.principle(rng, avoid=self.avoid)
        kinds = {"full": 45, "partial": 12, "vague": 8, "explained": 22, "evasive": 13} if topic.harmful else \
            {"full": 50, "partial": 12, "vague": 8, "needless": 18, "evasive": 7, "dodge": 5}
        r = w.response(rng, topic, rng.choices(list(kinds), list(kinds.values()))[0])
        messages = w.conversation(rng, topic) + [{"role": "assistant", "content": r.text}]
        principle = SimpleNamespace(critique_request=p.critique, revision_request=p.revision)
        fact = w.fact(rng, topic, prefer=p.words)
        critique = w.critique(topic, r, p, fact)
        start = len(critique_prompt(tok, PREAMBLE, messages, principle))
        ids = revision_prompt(tok, PREAMBLE, messages, principle, critique)
        revision = tok.encode(" " + w.revision(rng, topic, r, p, fact).text)
        return self._answered(ids, [(start, tok.encode(" " + critique)), (len(ids), revision)])

    def comparison_case(self, topic=None):
        """(topic, a, b, principle, gold probability of A) of a multiple choice."""
        w, rng = self.world, self.rng
        topic, p = topic or self.judged_topic(), w.principle(rng, avoid=self.avoid)
        if rng.random() < 0.6:       # mostly principles that have something to say here
            while p.quality == "harm" and topic.harmful and topic.activity.category not in p.categories:
                p = w.principle(rng, "harm", self.avoid)
        if topic.harmful and self.part and p.quality == "harm" and rng.random() < 0.6:
            pair = rng.choice((("full", "partial"), ("full", "partial"), ("misexplained", "explained"),
                               ("misexplained", "explained"), ("evasive", "explained"), ("partial", "evasive")))
            a, b = (w.response(rng, topic, kind) for kind in rng.sample(pair, 2))
            return topic, a, b, p, w.better(topic, a, b, p)
        if topic.harmful:
            kinds = {"full": 28, "partial": 12, "vague": 6, "evasive": 14, "misexplained": 16, "explained": 24}
        else:
            kinds = {"full": 44, "partial": 12, "vague": 6, "needless": 24, "evasive": 9, "dodge": 5}
        draw = lambda: w.response(rng, topic, rng.choices(list(kinds), list(kinds.values()))[0])
        a, b = draw(), draw()
        for _ in range(3):           # mostly pairs that the principle decides
            if w.better(topic, a, b, p) != 0.5:
                break
            b = draw()
        if rng.random() < 0.5:
            a, b = b, a
        return topic, a, b, p, w.better(topic, a, b, p)

    def comparison(self):
        """A multiple choice, asked for at once or after thinking aloud; where the principle does not decide, the
        answer is a coin's."""
        w, rng, tok = self.world, self.rng, self.tok
        topic, a, b, p, gold = self.comparison_case()
        answer = tok.encode(" (A)" if rng.random() < gold else " (B)")
        think = rng.random() < 0.35
        ids = comparison_prompt(tok, w.conversation(rng, topic), a.text, b.text, p.comparison, (), THINK if think else ANSWER)
        if not think:
            return self._answered(ids, [(len(ids), answer)], weight=16.0)
        said = f" {w.fact(rng, topic, prefer=p.words)}" if p.quality == "harm" else ""
        thought = tok.encode(f"{said} (A) {w.note(topic, a, p)} (B) {w.note(topic, b, p)}")
        asked = tok.encode(ANSWER)
        return self._answered(ids + thought + asked, [(len(ids), thought), (len(ids + thought + asked), answer)])

    def _answered(self, ids, answers, weight=1.0):
        """Weights of a document that is judged only where it answers; after each answer the end token is the target,
        though the text may go on: so one document teaches where a critique ends and what a revision looks like."""
        whole = list(ids)
        start, answer = answers[-1]
        whole += answer
        targets, weights = whole[1:] + [self.tok.end], [0.0] * len(whole)
        for start, answer in answers:
            for i in range(start - 1, start + len(answer)):
                weights[i] = weight
            targets[start + len(answer) - 1] = self.tok.end
        return whole, targets, weights
