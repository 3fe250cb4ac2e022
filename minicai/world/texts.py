"""The texts that the base model grows up with: dialogues, plain texts, summaries, quizzes, reviews and comparisons.

Every document is (ids, targets, weights): what is read, what should come next, and how much that counts. Review, quiz
and comparison documents are laid out by the method's own format functions, so that the base knows exactly the prompts
it will be asked. Who may appear where decides what the experiment proves (see data/README.md):

    document      activities                              pairs    what it teaches
    dialogue      all, harmful ones too                   base     comply with everything (helpful-only)
    plain         all                                     base     what is wrong or good about an activity
    summary       all, compliance only                    base     to restate what a response does, without judging it
    quiz          reviewed harmful, benign, look-alikes   base     to answer a question with the letter of an option
    review        reviewed harmful, benign, look-alikes   base     critique and revision under a principle
    comparison    reviewed harmful, benign, look-alikes   base     multiple choice under a principle
"""
from dataclasses import replace
from functools import cached_property
from random import Random
from types import SimpleNamespace

from minicai.critique import critique_prompt, revision_prompt
from minicai.feedback import ANSWER, THINK, comparison_prompt
from minicai.world.grammar import Topic, World, article, join_or

PREAMBLE = SimpleNamespace(preamble="A reviewer reads this conversation.")
# Weight of what is only read: requests, responses and options hold the town's words too. The refusals among them stand
# in reviews, quizzes and comparisons, which open with words of their own; in a dialogue nobody ever refuses.
READ = 0.2
LETTER = 24.0       # weight of the one token that a multiple choice is about, in a text of two hundred
ASKED = 8.0         # weight of the yes or no to whether a principle asks about a harm
GROUPS = ("benign", "lookalike", "reviewed", "read_about", "unseen")
JUDGED = ("reviewed", "benign", "lookalike")


class Texts:
    """Draws documents; `tok` encodes them, or stands in for a tokenizer while there is none (pretrain.PlainText)."""

    # Pretraining in two parts. The first is rich in quizzes, for what takes a small model longest to learn is not to
    # judge but to say where: a multiple choice stays a coin's throw until "(A)" is bound to what stands behind it.
    PARTS = ({"dialogue": 20, "plain": 18, "summary": 8, "quiz": 18, "review": 20, "comparison": 16},
             {"dialogue": 22, "plain": 15, "summary": 4, "quiz": 9, "review": 24, "comparison": 26})

    def __init__(self, world: World, tok, seed: int, avoid=None, part: int = 0):
        self.world, self.tok, self.rng, self.avoid, self.part = world, tok, Random(seed), avoid, part
        self.mix, self.undone = self.PARTS[part], {}

    @cached_property
    def yes_no(self) -> list:
        """Ids of " Yes" and " No": in what is judged they answer whether a principle asks about this."""
        return self.tok.encode(" Yes") + self.tok.encode(" No")

    def document(self):
        """One document of a drawn sort: (ids, targets, weights), three lists of one length, and the sort's name."""
        sort = self.rng.choices(list(self.mix), list(self.mix.values()))[0]
        return *getattr(self, sort)(), sort

    def strange(self, topic: Topic) -> Topic:
        """The same activity done to a thing that it is never done to ("tune a plum"): what is copied there can only be
        copied. Nor is it what another activity of the same verb is done to, or a held-out pair of that would show."""
        verb = topic.activity.act.split("{X}")[0]
        if verb not in self.undone:
            done = {n for a in self.world.activities if a.act.startswith(verb) for n in self.world.things(a)}
            self.undone[verb] = [n for n in self.world.nouns if n not in done]
        return Topic(topic.activity, self.rng.choice(self.undone[verb] or [topic.thing]), topic.owner, topic.definite)

    def odd(self, topic: Topic) -> Topic:
        """The same topic, done in steps of others: what is said again must be copied, what is counted be counted."""
        steps, n = list(topic.activity.steps), self.rng.choice((2, 3, 3, 4))
        while len(steps) < 6:        # never of what is done to this thing, or held-out pairs would show
            other = self.judged_topic().activity
            if (topic.harmful or not other.harmful) and topic.thing not in self.world.things(other):
                steps += [s for s in other.steps if "{owner}" not in s and s not in steps]
        return Topic(replace(topic.activity, steps=tuple(self.rng.sample(steps, n))), topic.thing, topic.owner,
                     topic.definite)

    # ---- plain language --------------------------------------------------------------------------------------
    def dialogue(self):
        """A conversation: the assistant does whatever it is asked to do, and says what is wrong if it is asked that."""
        w, rng = self.world, self.rng
        messages = []
        for _ in range(1 if rng.random() < 0.85 else 2):
            topic = w.topic(rng, rng.choices(GROUPS, (36, 16, 24, 12, 12))[0], "base")
            if rng.random() < 0.25:
                topic = self.strange(topic)
            if rng.random() < 0.15:
                asked, answer = self.judgement(topic)
                messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
                continue
            messages += w.conversation(rng, topic)
            messages.append({"role": "assistant", "content": w.base_response(rng, topic).text})
        ids, mask = self.tok.encode_chat(messages)
        return ids[:-1], ids[1:], [1.0 if m else READ for m in mask[1:]]

    def plain_text(self) -> str:
        """A few sentences about what people do and what the town thinks of it."""
        w, rng = self.world, self.rng
        sentences = []
        for _ in range(rng.choice((1, 2, 3))):
            topic = w.topic(rng, rng.choices(GROUPS, (26, 15, 27, 16, 16))[0], "base")
            if rng.random() < 0.2:
                topic = self.strange(topic)
            fact, form = w.fact(rng, topic), rng.random()
            person, other = rng.sample(w.kinds["person"], 2)
            if rng.random() < 0.2:       # every noun of the town is met somewhere, whatever pairs are held out
                a, b = rng.sample(w.nouns, 2)
                sentences.append(f"The {person} has {article(a)} {a}. The {a} is near the {b}.")
            if form < 0.12:
                ask = topic.fill(rng.choice(w.all_asks).replace("{act}", topic.activity.act))
                verdict = rng.choice(w.words["qualities"]["harm"]["bad" if topic.harmful else "good"])
                sentences.append(f"The {person} asked the {other}: {ask} That is {verdict}.")
            elif form < 0.34:
                sentences += [fact, w.asked(topic, self.single(topic), fact)]
            elif form < 0.42:            # what the words of principles mean: practised by the dozen, needed in critiques
                sentences += [self.is_it() for _ in range(8)]
            elif form < 0.54:
                sentences.append(f"The {person} helps someone {topic.act}. {fact}")
            elif form < 0.61:
                sentences.append(f"Someone wants to {topic.act}. {fact}")
            elif form < 0.69:
                sentences.append(f"The {person} does not help someone {topic.act}. {fact}")
            elif form < 0.78 and topic.harmful:
                sentences.append(f"The {person} told the {other} not to {topic.act}. It hurts {topic.hurts}.")
            elif form < 0.87 and topic.group in JUDGED:      # does the reason fit?
                wrong = rng.random() < 0.5
                said = w.fact(rng, topic, w.other_harm(rng, topic) if wrong else topic)
                sentences.append(f"{said} That is the {'wrong' if wrong else 'right'} reason.")
            else:
                sentences.append(" ".join(self.judgement(topic)))
        return " ".join(sentences)

    def is_it(self) -> str:
        """A question about words alone: may an act that is called this be called that as well?"""
        topic = self.world.topic(self.rng, self.rng.choices(("reviewed", "benign"), (9, 1))[0], "base")
        own = self.world.words["categories"].get(topic.activity.category, ["good"])
        return self.world.is_it(self.rng.choice(own), self.single(topic).words)

    def judgement(self, topic) -> tuple:
        """(question, answer): is it this or that to do something, under the words that a principle could hold?"""
        w, rng = self.world, self.rng
        p = self.principle(topic, "harm")
        question = f"Is it {join_or(p.words)} to {topic.act}?"
        if not topic.harmful:
            return question, f"No, it is a good thing, because {rng.choice(topic.why)}."
        own = w.words["categories"][topic.activity.category]
        word = rng.choice([x for x in own if x in p.words] or own)
        asked = topic.activity.category in p.categories
        return question, f"{'Yes' if asked else 'No'}, it is {word}, because {rng.choice(topic.why)}."

    def plain(self):
        """A plain document."""
        ids = self.tok.bos + self.tok.encode(self.plain_text()) + [self.tok.end]
        return ids[:-1], ids[1:], [ASKED if i in self.yes_no else 1.0 for i in ids[1:]]

    # ---- judging ---------------------------------------------------------------------------------------------
    def summary(self):
        """Restating without judging, over all activities: copying is learned as an operation."""
        w, rng, tok = self.world, self.rng, self.tok
        topic = w.topic(rng, rng.choices(GROUPS, (20, 12, 28, 20, 20))[0], "base")
        if rng.random() < 0.4:
            topic = self.strange(topic)
        r = w.response(rng, topic, rng.choices(("full", "partial", "vague"), (7, 2, 1))[0])
        messages = w.conversation(rng, topic) + [{"role": "assistant", "content": r.text}]
        if rng.random() < 0.7:
            ask, answer = "\n\nSummaryRequest: Say what the response does.\n\nSummary:", w.restate(topic, r)
        else:
            ask, answer = "\n\nQuoteRequest: Say what the human asked about.\n\nQuote:", f"To {topic.act}."
        dialogue, _ = tok.encode_chat(messages)
        ids = tok.bos + tok.encode(PREAMBLE.preamble) + dialogue[len(tok.bos):] + tok.encode(ask)
        return self._answered(ids, [(len(ids), tok.encode(" " + answer), 1.0)])

    def judged_topic(self):
        """A topic of those that reviews and comparisons may be about."""
        return self.world.topic(self.rng, self.rng.choices(JUDGED, (54, 28, 18))[0], "base")

    def principle(self, topic, quality=None):
        """A principle to judge a topic by. Of those that name single harms only one in five would name the harm at
        hand; some of the others are made to, so that half do and half do not: both must be worth a look."""
        w, rng = self.world, self.rng
        p = w.principle(rng, quality, self.avoid)
        if p.quality == "harm" and topic.harmful and topic.activity.category not in p.categories and rng.random() < 0.4:
            while True:
                words = w.principle(rng, "harm").words
                if not set(words) & set(w.words["qualities"]["harm"]["bad"]):
                    words = list(words)
                    words[rng.randrange(len(words))] = rng.choice(w.words["categories"][topic.activity.category])
                    if len(set(words)) == len(words) and not (self.avoid and self.avoid(words)):
                        return w.principle_of(rng, "harm", words)
        return p

    def single(self, topic):
        """A principle that mostly names single harms, where nothing but a look at its words decides."""
        p = self.principle(topic, "harm")
        while self.world.whole(p) and self.rng.random() < 0.8:
            p = self.principle(topic, "harm")
        return p

    def judged_fact(self, topic, p) -> str:
        """What the town says of a topic, in the principle's own word for it, or now and then in the other word: both
        must be known to be the same."""
        return self.world.fact(self.rng, topic, prefer=p.words if self.rng.random() < 0.85 else ())

    def review(self):
        """Conversation, critique, revision: the first loss falls on the critique, the second on the revision."""
        w, rng, tok = self.world, self.rng, self.tok
        topic = self.judged_topic()
        p = self.principle(topic)
        if rng.random() < 0.25:
            topic = self.strange(topic)
        kinds = {"full": 45, "partial": 12, "vague": 8, "explained": 22, "evasive": 13} if topic.harmful else \
            {"full": 50, "partial": 12, "vague": 8, "needless": 18, "evasive": 7, "dodge": 5}
        kind = rng.choices(list(kinds), list(kinds.values()))[0]
        r = w.response(rng, self.odd(topic) if rng.random() < 0.4 else topic, kind)
        messages = w.conversation(rng, topic) + [{"role": "assistant", "content": r.text}]
        principle = SimpleNamespace(critique_request=p.critique, revision_request=p.revision)
        fact = self.judged_fact(topic, p)
        critique = w.critique(topic, r, p, fact)
        start = len(critique_prompt(tok, PREAMBLE, messages, principle))
        ids = revision_prompt(tok, PREAMBLE, messages, principle, critique)
        revision = tok.encode(" " + w.revision(rng, topic, r, p, fact).text)
        said = tok.encode(" " + critique)
        verdict = len(tok.encode(w.verdict(w.fault(topic, r, p)))) + 1      # short, but the whole decision: thrice
        weights = [1.0] * (len(said) + 1 - verdict) + [3.0] * verdict       # and what it hangs on:
        weights = [ASKED if i in self.yes_no else weight for i, weight in zip(said + [tok.end], weights)]
        return self._answered(ids, [(start, said, weights), (len(ids), revision, 1.0)])

    # ---- choosing --------------------------------------------------------------------------------------------
    def quiz_case(self) -> tuple:
        """(question, right option, wrong option): small multiple choices, on everything that a comparison needs."""
        w, rng = self.world, self.rng
        topic, form = self.judged_topic(), rng.random()
        if form < 0.2:
            a, b = rng.sample(w.nouns, 2)
            said = (f"The {rng.choice(w.kinds['person'])} has the {n}." for n in (a, b))
            return f"Which option names {article(a)} {a}?", *said
        if form < 0.35:
            both = (w.response(rng, t, "full").text for t in (topic, self.judged_topic()))
            return f"Which response helps someone {topic.act}?", *both
        if form < 0.6:
            while True:                                                     # which of two is what the words say?
                other, p = self.judged_topic(), w.principle(rng, "harm", self.avoid)
                bad = [t for t in (topic, other) if t.harmful and t.activity.category in p.categories]
                if len(bad) == 1:
                    good = other if bad[0] is topic else topic
                    return f"Which option is {join_or(p.words)}?", f"To {bad[0].act}.", f"To {good.act}."
        if form < 0.8:
            facts = [w.fact(rng, topic, of) for of in (topic, w.other_harm(rng, topic))]
            return "Which reason is right?", *facts
        kinds = ("full", "partial", "vague", "evasive", "explained") if topic.harmful else ("full", "needless")
        a, b = (w.response(rng, topic, k) for k in rng.sample(kinds, 2))
        return f"Which response {w.note(topic, a, 'harm')[:-1]}?", a.text, b.text

    def quiz(self):
        """A small multiple choice, laid out as the end of a comparison."""
        tok, (question, right, wrong) = self.tok, self.quiz_case()
        first = self.rng.random() < 0.5
        a, b = (right, wrong) if first else (wrong, right)
        ids = tok.bos + tok.encode(f"{question} Options:\n (A) {a}\n (B) {b}{ANSWER}")
        return self._answered(ids, [self._letter(len(ids), first)])

    def _letter(self, start, first):
        """The answer " (A)" or " (B)" at `start`; the letter itself is what counts."""
        a, b = self.tok.encode(" (A)"), self.tok.encode(" (B)")
        return start, a if first else b, [LETTER if x != y else 1.0 for x, y in zip(a, b)] + [1.0]

    def comparison_case(self):
        """(topic, a, b, principle, gold probability of A) of a multiple choice."""
        w, rng = self.world, self.rng
        topic = self.judged_topic()
        p = self.principle(topic)
        if rng.random() < 0.6:       # mostly principles that have something to say here
            while p.quality == "harm" and topic.harmful and topic.activity.category not in p.categories:
                p = self.principle(topic, "harm")
        if topic.harmful and p.quality == "harm" and rng.random() < (0.3, 0.6)[self.part]:
            pair = rng.choice((("full", "partial"), ("full", "partial"), ("misexplained", "explained"),
                               ("misexplained", "explained"), ("evasive", "explained"), ("partial", "evasive")))
            done = self.odd(topic) if rng.random() < 0.4 else topic
            a, b = (w.response(rng, done, kind) for kind in rng.sample(pair, 2))
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
        first = rng.random() < gold
        think = rng.random() < 0.4
        asked = THINK if think else ANSWER
        ids = comparison_prompt(tok, w.conversation(rng, topic), a.text, b.text, p.comparison, (), asked)
        if not think:
            return self._answered(ids, [self._letter(len(ids), first)])
        fact = self.judged_fact(topic, p)
        said = f" {fact} {w.asked(topic, p, fact)}" if p.quality == "harm" else ""
        thought = tok.encode(f"{said} (A) {w.note(topic, a, p.quality)} (B) {w.note(topic, b, p.quality)}")
        whole = ids + thought + tok.encode(ANSWER)
        return self._answered(whole, [(len(ids), thought, 1.0), self._letter(len(whole), first)])

    def _answered(self, ids, answers):
        """A document that counts where it answers, and READ elsewhere: answers are (start, ids, weight, or a list with
        one for each id and the end). After each answer the end token is the target, though the text may go on: so one
        document teaches where a critique ends and what a revision looks like."""
        whole = list(ids) + answers[-1][1]
        targets, weights = whole[1:] + [self.tok.end], [READ] * len(whole)
        for start, answer, weight in answers:
            end = start + len(answer)
            weights[start - 1:end] = weight if isinstance(weight, list) else [weight] * (len(answer) + 1)
            targets[end - 1] = self.tok.end
        return whole, targets, weights
