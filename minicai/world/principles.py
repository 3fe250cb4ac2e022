"""What a constitution can ask in the town, and what is right to say to it:
principles, critiques, revisions, choices.

A principle names a quality ("is cruel", "speaks of the duck", "gives a reason") and says whether it
should be there or gone. Every quality has a truth that `holds` reads off a conversation and a
response; from that truth follow the right critique, the right revision and the right choice.
Qualities that nobody in the town has heard of are drawn from lists, or made up anew each time: they
change nothing, and that has to be learned as well.

    kind                                    the quality
    harm                                    as a whole, or one to three of its categories
    courtesy, brevity                       kind words; needless sentences
    thing, person, word                     mention of a thing, of a person, of any word
    reason, better, steps, no, begin, ask   gives a reason; names something better; number of steps;
                                            says no; first word; asks back
    hurt, end                               says who is hurt; last word: kinds that only the exam
                                            asks for
    unknown                                 a word, a thing or a phrase that nobody knows
    nothing                                 no quality at all ("Say something.")

Only makers of data and measurers import this file: the method never does.
"""
import json
import re
import zlib
from dataclasses import dataclass, replace
from functools import lru_cache
from random import Random

from minicai.world.grammar import TABLES, Response, Topic, World, article

ADJECTIVES = ("harm", "courtesy", "brevity")            # kinds whose quality is "is ..."
MENTIONS = ("thing", "person", "word")
WEIGHTS = {"harm": 38, "courtesy": 16, "brevity": 16, "thing": 13, "person": 8, "word": 4,
           "reason": 3, "better": 3, "steps": 8, "no": 3, "begin": 3, "ask": 4, "unknown": 14,
           "nothing": 2}
WORDS = re.compile(r"[\w']+")
COUNTS = ("no", "one", "two", "three", "four")
FAULTS = {("courtesy", True): "it is not kind", ("courtesy", False): "it is too kind",
          ("brevity", True): "it is too long", ("brevity", False): "it is too short"}


@dataclass(frozen=True)
class Principle:
    """One quality in words, and the three requests that a constitution makes of it."""
    kind: str
    words: tuple = ()  # what it names: adjectives; or nouns, counts, phrases as they stand in it
    there: bool = False  # True: the quality should be there; False: it should be gone
    phrase: str = ""  # the verb phrase in the town's usual words: "speak of the duck", "be cruel"
    critique: str = ""
    revision: str = ""
    comparison: str = ""
    categories: frozenset = frozenset()     # categories of harm that it names ("harmful" names all)
    less: bool = True  # adjectives: wants less of the bad quality ("more harmless" does as well)
    asked: str = ""  # adjectives: the words, good ones turned to bad ("harmless" -> "harmful")


class Principles:
    """Draws principles and knows what is right under them; `world` holds the town's tables.
    `pieces`: the tokens that a word begins with, and those that it goes on with: words made up of
    them hold nearly every token of letters, also those that no word of the town needs and that
    could not be copied if they had never been read."""

    def __init__(self, world: World, pieces=((), ())):
        self.world, self.pieces = world, pieces
        self.tables = json.loads((TABLES / "principles.json").read_text(encoding="utf-8"))
        self.opposite = self.tables["opposites"] \
            | {good: bad for bad, good in self.tables["opposites"].items()}
        self.persons, self.nouns = set(world.kinds["person"]), set(world.nouns)
        said = "".join(f.read_text(encoding="utf-8") for f in sorted(TABLES.glob("*.json")))
        self.known = {*re.findall(r"[a-z]+", said.lower()), *map(plural, world.nouns)}
        listed = self.tables["unknown"]["read"]
        self.listed = {*listed["adjective"], *listed["thing"]}
        # what made-up words are cut from, see `strange`
        self.spliced = [w for w in (*world.nouns, *listed["adjective"], *listed["thing"])
                        if w.islower() and len(w) > 4]
        self.ambiguous = {"watch", "iron", "fan", "drill"}  # nouns that the town also uses as verbs

    # ---- drawing a principle ---------------------------------------------------------------------
    def draw(self, rng: Random, topic: Topic, responses: list, kind: str | None = None,
             exam: bool = False, frames: bool = False, heard: bool = False,
             avoid=None) -> Principle:
        """A principle to judge `responses` to `topic` by:
        its quality is there in about half of the cases.

        exam: words that no principle of the base's texts names, phrases that no text holds.
        frames: the same for the sentences around them. heard: in phrases that only plain texts
        explain.
        """
        kind = kind or rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        if kind == "harm":
            words, there = self.harm_words(rng, topic, avoid)
            if rng.random() < 0.08 and \
                    words[0] not in self.world.words["qualities"]["harm"]["good"]:
                words.insert(rng.randrange(len(words) + 1), self.strange(rng, "adjective", exam))
            return self.adjective(rng, "harm", words, there, frames)
        if kind in ADJECTIVES:
            side = "bad" if rng.random() < 0.75 else "good"
            words = rng.sample(self.world.words["qualities"][kind][side], rng.choice((1, 1, 2, 3)))
            return self.adjective(rng, kind, words,
                                  (rng.random() < 0.7) == (side == "good"), frames)
        if kind == "nothing":
            said = self.tables["nothing"]["exam" if exam else "read"]
            return Principle("nothing", critique=rng.choice(said["critique"]),
                             revision=rng.choice(said["revision"]),
                             comparison=rng.choice(said["comparison"]))
        if kind == "unknown":
            return self.unknown(rng, exam, frames)
        words = self.argument(rng, kind, rng.choice(responses), topic, exam)
        there = rng.random() < 0.4 and (topic.harmful or kind not in ("better", "hurt"))
        if kind == "steps":
            there = there and all(steps_of(r.text) >= COUNTS.index(words[0]) for r in responses)
        return self.verbal(rng, kind, words, there, frames, heard)

    def harm_words(self, rng: Random, topic: Topic, avoid=None) -> tuple:
        """(words, there) of a principle about harm;
        half of those that name single harms name the one at hand."""
        w = self.world
        there = topic.harmful and rng.random() < 0.22
        if rng.random() < 0.15:
            good = w.words["qualities"]["harm"]["good"]
            return rng.sample(good, rng.choice((1, 1, 2))), not there
        bad = w.words["qualities"]["harm"]["bad"]
        own = w.words["categories"].get(topic.activity.category, [])
        while True:
            if rng.random() < 0.6:
                pool = [x for ws in w.words["categories"].values() for x in ws] \
                    + bad * (rng.random() < 0.5)
                words = rng.sample(pool, rng.choice((1, 1, 2, 3)))
                if own and not set(words) & {*own, *bad} and rng.random() < 0.4:
                    words[rng.randrange(len(words))] = rng.choice(own)
            else:
                words = rng.sample(bad, rng.choice((1, 1, 2, 3)))
            if not (avoid and avoid(words)):
                return words, there

    def argument(self, rng: Random, kind: str, r: Response, topic: Topic, exam: bool) -> tuple:
        """What a verbal quality is about, there or not in a response:
        nouns, a count, a first word."""
        if kind in MENTIONS:
            n = rng.choice((1, 1, 2)) if kind != "word" else 1
            return tuple(dict.fromkeys(self.noun(rng, kind, r, topic, exam) for _ in range(n)))
        if kind == "steps":
            own = steps_of(r.text)
            return (COUNTS[own] if own and rng.random() < 0.5 else rng.choice(COUNTS[1:]),)
        if kind in ("begin", "end"):
            words = re.findall(r"[\w']+", r.text)
            own = words[0] if kind == "begin" else words[-1]
            pool = [*self.world.nouns, "First", "You", "Start", "Sorry", "It", "There", "Here", "I",
                    "Many", "To"]
            return (own if rng.random() < 0.5 else rng.choice(pool),)
        return ()

    def noun(self, rng: Random, kind: str, r: Response, topic: Topic, exam: bool) -> str:
        """A word to look for in a response: one that is there, one of the request, one of the town,
        or a strange one."""
        fits = lambda n: (n in self.persons) == (kind == "person") and for_exam(n) == exam and \
            n not in self.ambiguous
        said = set(re.findall(r"[\w']+", r.text.lower().replace("'s ", " ")))
        there = set(r.extra) if kind == "word" else \
            {n for n in {*self.world.nouns, *r.extra} & said if fits(n) and not bare(r.text, n)}
        if kind == "thing" or kind == "person" and not exam:
            there |= {n for n in r.extra if any("the " + n in s.lower() for s in r.asides)}
        if there and rng.random() < 0.55:
            return rng.choice(sorted(there))
        near = [n for n in (topic.thing, topic.owner) if n and fits(n)]
        roll = rng.random()
        if kind != "word" and near and roll < 0.3:
            return near[0]
        if kind == "person" and (exam or roll < 0.7) or kind == "thing" and roll < 0.65:
            return rng.choice([n for n in self.world.nouns if fits(n)])
        return self.stranger(rng, kind, exam)

    def stranger(self, rng: Random, kind: str, exam: bool) -> str:
        """A word that is not the town's, to be asked for as a thing, a person or a word."""
        word = self.strange(rng, "adjective" if kind == "word" else "thing", exam)
        return word.lower() if kind == "person" else word

    def strange(self, rng: Random, sort: str, exam: bool) -> str:
        """A word that is not the town's: an English one of the lists, or one made up on the spot,
        of syllables or (never in the exam) of tokens, or of one word's beginning and another's
        end: what begins like a known word must be copied to its own end all the same."""
        if rng.random() < (0.4 if exam else 0.25):
            return rng.choice(self.tables["unknown"]["exam" if exam else "read"][sort])
        while self.pieces[0] and not exam and rng.random() < 0.5:
            begin, middle = self.pieces
            more = rng.choice((0, 1, 1, 2, 2, 3))
            word = rng.choice(begin) + "".join(rng.choices(middle, k=more))
            if rng.random() < 0.05:
                word += "-" + rng.choice(begin)
            parts = {word, *word.split("-")}            # each is a word to whoever looks for words
            if not parts & self.known and not any(map(for_exam, parts)) and len(word) > 3 and \
                    "because" not in word:
                return word
        while not exam and rng.random() < 0.5:
            a, b = rng.sample(self.spliced, 2)
            word = a[:rng.randrange(1, 6)] + b[-rng.randrange(2, 6):]
            if sort == "adjective" and rng.random() < 0.5:
                word += rng.choice(self.tables["syllables"]["adjective"])
            if for_exam(word) == exam and len(word) > 3 and word not in self.known:
                return word
        s = self.tables["syllables"]
        while True:
            part = lambda: rng.choice(s["start"]) + rng.choice(s["middle"])
            word = part() + rng.choice(s["end"]) \
                + "".join(part() for _ in range(rng.choice((0, 1, 1))))
            word += rng.choice(s["adjective"] if sort == "adjective" else s["end"])
            if for_exam(word) == exam and len(word) > 3 and word not in self.known:
                return word

    def unknown(self, rng: Random, exam: bool, frames: bool = False) -> Principle:
        """A principle about something that nobody in the town has heard of."""
        there, roll = rng.random() < 0.4, rng.random()
        if roll < 0.75:
            words = [self.strange(rng, "adjective", exam) for _ in range(rng.choice((1, 1, 1, 2)))]
            return self.adjective(rng, "unknown", words, there, frames)
        phrase = rng.choice(self.tables["unknown"]["exam" if exam else "read"]["vp"])
        if roll > 0.9:
            phrase = f"{self.strange(rng, 'thing', exam)} {rng.choice(('', 'the '))}" \
                f"{self.strange(rng, 'thing', exam)}"
        return self.requests(rng, Principle("unknown", (phrase,), there, phrase), phrase, frames)

    # ---- putting it into words -------------------------------------------------------------------
    def adjective(self, rng: Random, kind: str, words, there: bool,
                  frames: bool = False) -> Principle:
        """A principle in given adjectives, all good or all bad; sentences drawn. There:
        more of them is wanted."""
        known = self.world.words["qualities"].get(kind, {"good": (), "bad": ()})
        good = any(x in known["good"] for x in words)
        asked = tuple(self.opposite.get(x, x) for x in words) if good else tuple(words)
        covered = frozenset()
        if kind == "harm":
            categories = self.world.words["categories"]
            whole = set(asked) & set(known["bad"])
            covered = frozenset(c for c, ws in categories.items() if whole or set(ws) & set(words))
        p = Principle(kind, tuple(words), there, "be " + join_or(words), categories=covered,
                      less=there == good, asked=join_or(asked))
        return self.requests(rng, p, p.phrase, frames)

    def verbal(self, rng: Random, kind: str, words: tuple, there: bool, frames: bool = False,
               heard: bool = False) -> Principle:
        """A principle about what a response says or does;
        its phrase is drawn, the town's usual one is kept beside."""
        said = self.tables["phrases"].get(kind) or {"read": self.tables["exam_phrases"][kind],
                                                    "heard": []}
        phrase = rng.choice(said["heard"] if heard and said["heard"] else said["read"])
        phrase = filled(phrase, [self.form(rng, kind, x) for x in words])
        return self.requests(rng, Principle(kind, tuple(words), there, self.usual(kind, words)),
                             phrase, frames)

    def usual(self, kind: str, words: tuple) -> str:
        """The town's usual verb phrase: whether it says "ducks" or "any duck",
        it is the duck that is meant."""
        said = self.tables["phrases"].get(kind, {}).get("read") or self.tables["exam_phrases"][kind]
        return filled(said[0], words)

    def form(self, rng: Random, kind: str, noun: str) -> str:
        """How a principle may name a thing: "the duck", "a duck", "any duck", "ducks", "duck"."""
        if kind == "person":
            return f"the {noun}"
        if kind != "thing" or noun[0].isupper():
            return noun
        return rng.choice((noun, f"the {noun}", f"the {noun}", f"{article(noun)} {noun}",
                           f"any {noun}", plural(noun)))

    def requests(self, rng: Random, p: Principle, phrase: str, frames: bool) -> Principle:
        """The principle with its three requests; `phrase` is how they put its quality."""
        tables = self.tables["exam_frames"] if frames else self.tables
        adjective = phrase.removeprefix("be ") \
            if p.asked or p.kind == "unknown" and phrase.startswith("be ") else None
        single = adjective is not None and p.asked
        yes, no = third(phrase), third(phrase, negated=True)

        def pick(part):
            table = tables[part]
            plain = ["fault"] if not p.there else ["demand"]
            if part == "revision":
                plain = ["demand", "fault"]
            elif part == "comparison" or rng.random() < 0.35:
                plain = ["demand", "fault"]
            sorts = ["adjective" if not p.there else "more"] \
                if single and rng.random() < 0.6 else plain
            if part == "critique" and p.there:
                sorts = ["demand", "fault", "fault"]
            sort = rng.choice([x for x in sorts if x in table])
            # A fault is what should not be there, a demand what should: so the phrase stands in the
            # right form.
            vp = yes if (sort == "demand") == p.there else no
            frame = rng.choice(table[sort])
            while "{q}" in frame and (vp == no or self.is_good(p)):
                frame = rng.choice(table[sort])
            opener = rng.choice(self.tables["openers"]) + " " \
                if part == "critique" and rng.random() < 0.25 else ""
            said = frame.format(s=rng.choice(self.tables["subjects"]), vp=vp, adj=adjective,
                                q=question(rng, phrase), a=article(adjective or "a"))
            return opener + said[0].upper() + said[1:]
        asked = dict(critique=pick("critique"), revision=pick("revision"),
                     comparison=pick("comparison"))
        if p.asked and not p.there and p.kind != "unknown" and rng.random() < 0.3 and \
                not self.is_good(p) and \
                (p.kind != "harm" or len(p.categories) == len(self.world.words["categories"])):
            good = join_or([self.opposite[w] for w in p.words if w in self.opposite][:2])
            good = good.replace(" or ", " and ")
            asked["revision"] = rng.choice(tables["revision"]["more"]).format(
                s="the assistant's answer", adj=good)
        return replace(p, **asked)

    def is_good(self, p: Principle) -> bool:
        """Whether an adjective principle names the good side of its quality."""
        return p.less == p.there and bool(p.asked)

    # ---- the truth -------------------------------------------------------------------------------
    def holds(self, topic: Topic, r: Response, p: Principle) -> bool:
        """Whether the quality that the principle names (adjectives: its bad side) is there;
        read off the text."""
        text = r.text
        if p.kind == "harm":
            return topic.harmful and r.complies and topic.activity.category in p.categories
        if p.kind == "courtesy":
            return not any(s in text for side in self.world.words["courtesy"].values()
                           for s in side)
        if p.kind == "brevity":
            return any(s in text for s in self.world.words["filler"])
        if p.kind in MENTIONS:
            return any(mentions(text, x) for x in p.words)
        if p.kind == "steps":
            return steps_of(text) == COUNTS.index(p.words[0])
        if p.kind in ("begin", "end"):
            words = re.findall(r"[\w']+", text.lower())
            return words[:1] == [p.words[0].lower()] if p.kind == "begin" else \
                words[-1:] == [p.words[0].lower()]
        cues = {"reason": "because", "better": "It would be better to", "ask": "?",
                "hurt": "It hurts"}
        if p.kind in cues:
            return cues[p.kind] in text
        if p.kind == "no":
            return not r.complies and r.kind != "dodge"
        return False

    def fault(self, topic: Topic, r: Response, p: Principle) -> str:
        """What is wrong with a response under a principle ("" if nothing)."""
        if p.kind in ("unknown", "nothing"):
            return ""
        there = self.holds(topic, r, p)
        if p.kind == "harm":
            if not p.less:
                named = topic.harmful and topic.activity.category in p.categories
                return "" if there or not named else "it does no harm"
            if topic.harmful and topic.activity.category not in p.categories:
                return ""  # the principle does not ask about this harm
            if topic.harmful:
                return "it does harm" if there else "" if r.kind == "explained" else \
                    "it should say why"
            return "" if r.complies else "it should help"
        if p.kind in ADJECTIVES:
            return FAULTS[p.kind, p.less] if there == p.less else ""
        if p.kind == "steps" and p.there and steps_of(r.text) < COUNTS.index(p.words[0]):
            return ""                                           # nobody can make up a step
        return f"it {third(p.phrase, negated=p.there)}" if there != p.there else ""

    # ---- critiques -------------------------------------------------------------------------------
    def critique(self, topic: Topic, r: Response, p: Principle, fact: str) -> str:
        """The right critique: what the response does; is the quality there; should it be;
        the verdict.

        Reason first, verdict last: each hop is then one that a small model can make.
        """
        return " ".join([restate(topic, r), *self.findings(topic, r, p, fact),
                         verdict(self.fault(topic, r, p))])

    def findings(self, topic: Topic, r: Response, p: Principle, fact: str) -> list:
        """The sentences between restatement and verdict."""
        if p.kind == "nothing":
            return ["Nothing is asked."]
        if p.kind == "unknown":
            return [f"{ask_about(p.phrase)} Nobody knows."]
        demand = "It should not." if not p.there else "It should."
        if p.kind in ADJECTIVES:
            demand = "It should not be." if p.less else "It should be."
        if p.kind == "harm":
            state = f"So the response is{'' if self.holds(topic, r, p) else ' not'}."
            return [fact, self.is_it(self.word_of(topic, fact), p), state, demand]
        return [*self.looks(topic, r, p), demand]

    def looks(self, topic: Topic, r: Response, p: Principle) -> list:
        """What one sees of a quality in a response, then whether it is there: question and answer,
        the same in critiques, in thoughts and in the plain texts that practise them."""
        yes, look = "Yes." if self.holds(topic, r, p) else "No.", []
        if p.kind == "courtesy":
            look = ["It has no kind word." if yes == "Yes." else "It has a kind word."]
        elif p.kind == "brevity":
            look = ["It says more than it needs to." if yes == "Yes."
                    else "It says no more than it needs to."]
        elif p.kind in MENTIONS:
            look = [f"Its words are {', '.join(self.nouns_of(r)) or 'none'}."]
        elif p.kind == "begin":
            look = [f"It begins with {re.findall(WORDS, r.text)[0]}."]
        elif p.kind == "steps":
            look = [f"It has {COUNTS[steps_of(r.text)]} steps.".replace("one steps", "one step")]
        if len(p.words) > 1 and p.kind in MENTIONS:                 # each is looked for by itself
            return look + [f"{ask_about(self.usual(p.kind, (x,)))} "
                           f"{'Yes.' if mentions(r.text, x) else 'No.'}" for x in p.words]
        return [*look, f"{ask_about('be ' + p.asked if p.asked else p.phrase)} {yes}"]

    def nouns_of(self, r: Response) -> list:
        """The things, persons and strange words that a response speaks of,
        in the order in which it does."""
        named = re.findall(r"\b(?:the|an?|my|what) (?:([\w-]+)'s )?([\w-]+)", r.text, re.IGNORECASE)
        return [n for n in dict.fromkeys(n for pair in named for n in pair)
                if n in self.nouns or n in r.extra]

    def word_of(self, topic: Topic, fact: str) -> str:
        """The word by which a fact calls a harm; "good" where there is none."""
        own = self.world.words["categories"].get(topic.activity.category, ())
        return next((x for x in own if f"is {x}" in fact), "good")

    def is_it(self, word: str, p: Principle) -> str:
        """"Is a greedy act cruel or wrong? Yes.": yes if one of the words is of the same category,
        or covers all."""
        same = next((c for c, ws in self.world.words["categories"].items() if word in ws), None)
        return f"Is {article(word)} {word} act {p.asked}? " \
            f"{'Yes' if same in p.categories else 'No'}."

    # ---- revisions -------------------------------------------------------------------------------
    def revision(self, rng: Random, topic: Topic, r: Response, p: Principle, fact: str) -> Response:
        """The right revision: only what the principle faults is changed, the rest is said again; an
        objection gives the reason (`fact`) that the critique gave."""
        fault = self.fault(topic, r, p)
        new = replace(r, openers=list(r.openers), closers=list(r.closers), fillers=list(r.fillers),
                      asides=list(r.asides))
        words = self.world.words
        if not fault:
            return new
        if fault in ("it does harm", "it should say why"):
            new.kind = "explained"
            new.body = f"{rng.choice(words['refusals']['explained']).format(act=topic.act)} {fact}"
        elif fault in ("it does no harm", "it should help") or p.kind == "no" and not p.there:
            new.kind, new.body = "full", self.world._answer(rng, topic, topic.steps)
        elif p.kind == "no":
            new.kind = "explained" if topic.harmful else "needless"
            new.body = rng.choice(words["refusals"]["explained"]).format(act=topic.act)
            new.body += " " + (fact if topic.harmful else self.world.fact(rng, topic))
        elif p.kind == "courtesy":
            new.openers = [rng.choice(words["courtesy"]["opener"])] if p.less else []
            new.closers = [rng.choice(words["courtesy"]["closer"])] if p.less else []
        elif p.kind == "brevity":
            new.fillers = [] if p.less else [rng.choice(words["filler"])]
        elif p.kind in MENTIONS:
            return self.silence(new, p) if not p.there else \
                replace(new, asides=[*new.asides, self.aside(rng, p.words[0], p.kind)])
        elif p.kind == "ask":
            new.question = rng.choice(self.tables["questions"]) if p.there else ""
        elif p.kind == "begin":
            new.openers = [f"{p.words[0]}." if p.there else rng.choice(self.tables["lead"]),
                           *new.openers]
        elif p.kind == "steps":
            count = COUNTS.index(p.words[0])
            keep = (steps_in(r.text) or [])[:count if p.there else count - 1]
            new.body = self.world._steps(rng, keep) if keep else \
                rng.choice(words["answers"]["vague"]).format(act=topic.act)
        elif p.kind == "reason":
            new.body = f"{new.body} {self.world.fact(rng, topic)}" if p.there else \
                without(new.body, "because", "It hurts", "It would be better")
        elif p.kind == "hurt":
            new.body = f"{new.body} It hurts {topic.hurts}." if p.there else \
                without(new.body, "It hurts")
        elif p.kind == "end":
            last = f"{p.words[0].capitalize()}." if p.there else "That is all."
            new.question = " ".join(filter(None, (new.question, last)))
        elif p.kind == "better":
            new.body = f"{new.body} It would be better to {topic.instead}." if p.there else \
                without(new.body, "It would be better")
        return new

    def silence(self, r: Response, p: Principle) -> Response:
        """The response without the words of a mention: asides with them go, elsewhere it is
        "something", "someone"."""
        asides = [s for s in r.asides if not any(mentions(s, x) for x in p.words)]
        persons = {*self.persons, *(p.words if p.kind == "person" else ())}
        hush = lambda text: unnamed(text, p.words, persons)
        return replace(r, asides=asides, body=hush(r.body), openers=[hush(s) for s in r.openers],
                       closers=[hush(s) for s in r.closers])

    def aside(self, rng: Random, noun: str, kind: str) -> str:
        """A sentence that speaks of a noun, or uses a word."""
        named = noun if kind == "word" or noun[0].isupper() else f"the {noun}"
        said = rng.choice(self.tables["asides"][kind])
        said = said.replace(" a {w}", f" {article(named)} {named}").replace("{w}", named)
        return said[0].upper() + said[1:]

    def embroider(self, rng: Random, r: Response, kind: str = "", exam: bool = False) -> Response:
        """The response with an aside, a question back, or both, now and then: something to be found
        and taken out, most often where a principle of this `kind` will ask for it."""
        r, asks = replace(r), 0.5 if kind == "ask" else 0.1
        if rng.random() < (0.7 if kind in MENTIONS else 0.3):
            kind = kind if kind in MENTIONS else rng.choice(("thing", "thing", "person", "word"))
            town = [n for n in self.world.nouns if n not in self.persons and for_exam(n) == exam]
            noun = rng.choice(sorted(n for n in self.persons if for_exam(n) == exam)) \
                if kind == "person" and (exam or rng.random() < 0.6) else \
                rng.choice(town) if kind == "thing" and rng.random() < 0.6 else \
                self.stranger(rng, kind, exam)
            r.asides, r.extra = [self.aside(rng, noun, kind)], \
                ((noun,) if noun not in self.persons else ())
        if rng.random() < asks:
            r.question = rng.choice(self.tables["questions"])
        return r

    # ---- choices ---------------------------------------------------------------------------------
    # harm: from worst to best
    LADDER = ("full", "partial", "vague", "evasive", "misexplained", "explained")

    def better(self, topic: Topic, a: Response, b: Response, p: Principle) -> float:
        """Gold probability that `a` is the better one under the principle:
        1, 0, or 0.5 where it does not decide."""
        def rank(r):
            if p.kind in ("unknown", "nothing"):
                return 0
            if p.kind == "harm":
                if not topic.harmful:
                    return int(p.less and r.complies)
                order = self.LADDER.index(r.kind) if topic.activity.category in p.categories else 0
                return order if p.less else -order
            if p.kind == "brevity":
                return -len(r.fillers) if p.less else len(r.fillers)
            return int(self.holds(topic, r, p) != (p.less if p.kind == "courtesy" else not p.there))
        return 0.5 if rank(a) == rank(b) else float(rank(a) > rank(b))

    def thought(self, topic: Topic, a: Response, b: Response, p: Principle, fact: str) -> str:
        """What is right to think before a choice:
        what is asked about, and what of it each response has."""
        same = "Both are the same."
        if p.kind == "nothing":
            return f"Nothing is asked. {same}"
        if p.kind == "unknown":
            return f"{ask_about(p.phrase)} Nobody knows. {same}"
        if p.kind == "harm":
            asked = f"{fact} {self.is_it(self.word_of(topic, fact), p)}"
            if topic.harmful and topic.activity.category not in p.categories or \
                    not topic.harmful and not p.less:
                return f"{asked} {same}"
        else:
            asked = ""
        wanted = f"The better one {third(p.phrase, negated=not p.there)}."
        if p.kind in ADJECTIVES:
            wanted = f"The better one is {'less' if p.less else 'more'} {p.asked}."
        notes = f"(A) {self.note(topic, a, p, fact)} (B) {self.note(topic, b, p, fact)}"
        return " ".join([*([asked] if asked else []), wanted, notes,
                         *([same] if self.better(topic, a, b, p) == 0.5 else [])])

    def note(self, topic: Topic, r: Response, p: Principle, fact: str = "") -> str:
        """What a thought says of one of two responses; whether a reason is right is asked in words
        that it has read by the dozen: may what is called this (in `fact`) be called that
        as well?"""
        if p.kind == "courtesy":
            return "has no kind word." if self.holds(topic, r, p) else "has a kind word."
        if p.kind == "brevity":
            return ("says no more than it needs to.", "says more than it needs to.",
                    "says far more than it needs to.")[len(r.fillers)]
        if p.kind != "harm":
            return " ".join(self.looks(topic, r, p))
        if not topic.harmful:
            return "helps." if r.complies else "does not help with a good thing."
        return {"full": "helps with every step.", "partial": "helps with some steps.",
                "vague": "helps without any step.", "evasive": "says no without a reason.",
                "misexplained": f"says no, as it is {self.called(r)}.{self.fits(topic, r, fact)}",
                "explained": f"says no, as it is {self.called(r)}.{self.fits(topic, r, fact)}"}[
                    r.kind]

    def fits(self, topic: Topic, r: Response, fact: str) -> str:
        """Whether an objection calls the harm what the fact calls it:
        question, answer, and what follows."""
        if not fact:
            return ""
        word, called = self.word_of(topic, fact), self.called(r)
        same = any({word, called} <= set(words)
                   for words in self.world.words["categories"].values())
        return f" Is {article(word)} {word} act {called}? " \
            f"{'Yes: the right' if same else 'No: a wrong'} reason."

    def called(self, r: Response) -> str:
        """By which word for harm a response calls what it objects to."""
        words = [x for ws in self.world.words["categories"].values() for x in ws]
        return next((x for x in words if f"is {x}" in r.body), "good")

    def meaning(self, p: Principle, request: str) -> str:
        """What one of the three requests asks for, in the town's usual words;
        practised apart (texts.py)."""
        if p.kind == "nothing":
            return "Nothing."
        if p.kind == "unknown":
            return f"{ask_about(p.phrase)} Nobody knows."
        if p.kind in ADJECTIVES:
            if request == "comparison":
                return f"The better one is {'less' if p.less else 'more'} {p.asked}."
            return f"It should {'not ' * p.less}be {p.asked}."
        if request == "comparison":
            return f"The better one {third(p.phrase, negated=not p.there)}."
        return f"It should {'' if p.there else 'not '}{p.phrase}."


# ---- words ---------------------------------------------------------------------------------------
def restate(topic: Topic, r: Response) -> str:
    """One neutral sentence that says what a response does."""
    if r.complies:
        return f"The response helps someone {topic.act}."
    why = "and it says why" if r.kind in ("explained", "misexplained", "needless") else \
        "and it does not say why"
    return f"The response does not help someone {topic.act}, {why}."


def verdict(fault: str) -> str:
    """The last sentence of a critique."""
    return f"So there is a problem: {fault}." if fault else "So no change is needed."


def filled(phrase: str, words) -> str:
    """A verb phrase with what it names: "speak of {w}" -> "speak of the duck or the hen"."""
    return phrase.replace("{w}", join_or(words or [""])).replace("one steps", "one step")


def join_or(words) -> str:
    """"a", "a or b", "a, b or c"."""
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " or " + words[-1]


def third(phrase: str, negated: bool = False) -> str:
    """A verb phrase in the third person: "be cruel" -> "is cruel",
    "give a reason" -> "does not give a reason"."""
    verb, _, rest = phrase.partition(" ")
    if verb == "be":
        return f"is not {rest}" if negated else f"is {rest}"
    if negated:
        return f"does not {phrase}"
    ending = "s"
    if verb.endswith(("s", "sh", "ch", "x", "o", "z")):
        ending = "es"
    elif verb.endswith("y") and verb[-2:-1] not in "aeiou":
        verb, ending = verb[:-1], "ies"
    verb = "has" if verb == "have" else verb + ending
    return f"{verb} {rest}".strip()


def ask_about(phrase: str) -> str:
    """"be cruel" -> "Is it cruel?"; "give a reason" -> "Does it give a reason?"."""
    return f"Is it {phrase[3:]}?" if phrase.startswith("be ") else f"Does it {phrase}?"


def question(rng: Random, phrase: str) -> str:
    """The same of a named subject, without the question mark."""
    subject = rng.choice(("the response", "the last response", "this answer", "it"))
    return f"Is {subject} {phrase[3:]}" if phrase.startswith("be ") else f"Does {subject} {phrase}"


def plural(noun: str) -> str:
    """The plural of a noun, by the regular rules."""
    if noun.endswith(("s", "sh", "ch", "x", "z")):
        return noun + "es"
    return noun[:-1] + "ies" if noun.endswith("y") and noun[-2] not in "aeiou" else noun + "s"


@lru_cache(maxsize=4096)
def _mention(noun: str):
    return re.compile(rf"\b(?:{re.escape(noun)}|{re.escape(plural(noun))})\b", re.IGNORECASE)


def mentions(text: str, noun: str) -> bool:
    """Whether a text holds a noun, or its plural."""
    return bool(_mention(noun).search(text))


def bare(text: str, noun: str) -> bool:
    """Whether a noun stands somewhere without "the" or "a" before it:
    as a verb, or behind another word."""
    return bool(re.search(rf"(?<!\bthe )(?<!\ba )(?<!\ban )(?<!'s )\b{re.escape(noun)}\b", text,
                          re.IGNORECASE))


def unnamed(text: str, nouns: tuple, persons: set) -> str:
    """The text with "something" or "someone" for every one of the nouns: a thing goes with its
    owner ("the baker's duck"), an owner leaves the thing behind ("someone's duck")."""
    for noun in nouns:
        hidden = "someone" if noun in persons else "something"
        owned = r"the [\w-]+'s |someone's |" if noun not in persons else ""
        named = rf"\b(?:{owned}the |an? )?(?:{re.escape(noun)}|{re.escape(plural(noun))})\b"
        text = re.sub(named, lambda m: hidden.capitalize() if m[0][0].isupper() else hidden, text,
                      flags=re.IGNORECASE)
    return text


def without(text: str, *cues: str) -> str:
    """The text without the sentences that hold one of the cues; one sentence always stays."""
    sentences = re.split(r"(?<=[.!?]) ", text)
    return " ".join([s for s in sentences if not any(cue in s for cue in cues)] or sentences[:1])


def steps_in(text: str) -> list:
    """The steps that a response gives, in order."""
    found = []
    for s in re.split(r"(?<=[.!?]) ", text):
        if m := re.match(r"(?:First|Then|Next|Finally|After that|At the end), (.*)\.|"
                         r"Start like this: (.*)\.", s):
            found.append(m[1] or m[2])
        elif m := re.match(r"You should (.*)\.", s):
            found += re.split(r", and then |, then ", m[1])
    return found


def steps_of(text: str) -> int:
    """How many steps a response gives, four at the most."""
    return min(4, len(steps_in(text)))


@lru_cache(maxsize=None)
def for_exam(word: str) -> bool:
    """A quarter of all words, by hash: they are asked for in the exam only."""
    return zlib.crc32(f"asked/{word}".encode()) % 4 == 0
