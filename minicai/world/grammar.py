"""The grammar of the micro-world: activities x things -> requests, answers and objections.

What people ask and assistants say in the town is put together here from the tables in data/world/;
critiques, revisions and principles are made in principles.py. A
`Topic` is one activity done to one thing ("drown", "the baker's duck"); a `Response` is what an
assistant could say about a topic, with its gold description kept beside the text. Only makers of
data and measurers import this file: the method never does.

Left out on purpose: pronouns, tense, plurals. Phrases stay in the base form, so that one phrase can
be found again, letter for letter, in the request, the answer, the critique and the revision;
copying is what a tiny model can learn.
"""
import json
import zlib
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from random import Random

TABLES = Path(__file__).resolve().parents[2] / "data" / "world"


def article(noun: str) -> str:
    """"a" or "an", by the first letter's sound (the tables hold no silent h and no "uni-" but
    "unicycle")."""
    return "an" if noun[0] in "aeiou" and not noun.startswith(("uni", "uku")) else "a"


@dataclass(frozen=True)
class Activity:
    """One row of the activity tables; phrases hold {X} (as requested),
    {it} (definite) and {owner}."""
    id: str
    act: str
    steps: tuple
    why: tuple
    group: str              # "reviewed" | "read_about" | "unseen" (harmful), "benign", "lookalike"
    category: str = ""      # harm category, "" where harmless
    kinds: tuple = ()
    things: tuple = ()      # look-alikes name their things themselves
    owned: bool = False
    hurts: str = ""
    instead: str = ""

    @property
    def harmful(self) -> bool:
        return bool(self.category)


@dataclass(frozen=True)
class Topic:
    """An activity done to a thing: the unit that the splits divide,
    and what a conversation is about."""
    activity: Activity
    thing: str
    owner: str = ""         # "" or a person's noun
    definite: bool = False  # persons and look-alike things take "the"

    def fill(self, phrase: str) -> str:
        """Put this topic's thing into a phrase of the tables."""
        x = f"the {self.owner}'s {self.thing}" if self.owner else \
            f"the {self.thing}" if self.definite else f"{article(self.thing)} {self.thing}"
        phrase = phrase.replace("{X}", x).replace("{it}", f"the {self.thing}")
        return phrase.replace("{owner}", f"the {self.owner}")

    # computed once a topic: texts are filled in thousands of times
    @cached_property
    def act(self) -> str: return self.fill(self.activity.act)
    @cached_property
    def steps(self) -> list: return [self.fill(s) for s in self.activity.steps]
    @cached_property
    def why(self) -> list: return [self.fill(w) for w in self.activity.why]
    @cached_property
    def hurts(self) -> str: return self.fill(self.activity.hurts)
    @cached_property
    def instead(self) -> str: return self.fill(self.activity.instead)
    @property
    def harmful(self) -> bool: return self.activity.harmful
    @property
    def group(self) -> str: return self.activity.group


@dataclass
class Response:
    """Something an assistant said about a topic, with the truth about it
    (kind, manners, length)."""
    # full | partial | vague | wrong | dodge | evasive | explained | misexplained | needless
    kind: str
    body: str
    openers: list = field(default_factory=list)   # courtesy before the body
    closers: list = field(default_factory=list)   # courtesy after it
    fillers: list = field(default_factory=list)   # needless sentences, said before the body
    # sentences about something else, said after the body
    asides: list = field(default_factory=list)
    question: str = ""                            # a question back, said last
    extra: tuple = ()                             # words that it holds and the town may not

    @property
    def text(self) -> str:
        """What is said, from the kind words to the last."""
        said = [*self.openers, *self.fillers, self.body, *self.asides, *self.closers, self.question]
        return " ".join(filter(None, said))

    @property
    def courteous(self) -> bool: return bool(self.openers or self.closers)
    @property
    def complies(self) -> bool: return self.kind in ("full", "partial", "vague", "wrong")


class World:
    """All tables of the town; `World.load()` reads data/world/ once."""

    def __init__(self, folder: Path = TABLES):
        def read(name):
            return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        self.words = read("wording")
        self.kinds = read("things")["kinds"]
        self.kind_of = {noun: kind for kind, nouns in self.kinds.items() for noun in nouns}
        rows = [(r, r["group"]) for r in read("harmful")] \
            + [(r, "benign") for r in read("benign")] \
            + [(r, "lookalike") for r in read("lookalikes")]
        self.activities = [Activity(id=r["id"], act=r["act"], steps=tuple(r["steps"]),
                                    why=tuple(r["why"]), group=group,
                                    category=r.get("category", ""), kinds=tuple(r.get("kinds", ())),
                                    things=tuple(r.get("things", ())), owned=r.get("owned", False),
                                    hurts=r.get("hurts", ""), instead=r.get("instead", ""))
                           for r, group in rows]
        self.by_group = {g: [a for a in self.activities if a.group == g]
                         for g in ("reviewed", "read_about", "unseen", "benign", "lookalike")}
        self.nouns = sorted(set(self.kind_of) | {t for a in self.activities for t in a.things})
        self.harmful = [a for a in self.activities if a.harmful]
        self.all_asks = [a for group in self.words["asks"].values() for a in group]

    @staticmethod
    @lru_cache(maxsize=1)
    def load() -> "World":
        """Read the shipped tables (cached)."""
        return World()

    # ---- topics and splits -----------------------------------------------------------------------
    def things(self, activity: Activity) -> list:
        """Nouns that an activity can be done to; "any" is every noun but the persons."""
        if "any" in activity.kinds:
            return [n for n in self.nouns if self.kind_of.get(n) != "person"]
        return list(activity.things) or [n for k in activity.kinds for n in self.kinds[k]]

    def definite(self, activity: Activity, thing: str) -> bool:
        """Whether a noun takes "the": persons, and all that is not of a kind,
        as some of it cannot be counted."""
        return bool(activity.things) or self.kind_of.get(thing, "person") == "person"

    def split(self, activity: Activity, thing: str) -> str:
        """The one split a pair belongs to: "base" (60 %), "cai" (20 %) or "eval" (20 %); rank by
        hash inside an activity, so that each activity has its share of each."""
        return next(split for split, things in self._splits(activity).items() if thing in things)

    @lru_cache(maxsize=None)
    def _splits(self, activity: Activity) -> dict:
        ranked = sorted(self.things(activity),
                        key=lambda n: (zlib.crc32(f"{activity.id}/{n}".encode()), n))
        held, cai = max(1, len(ranked) // 5), max(2, 2 * len(ranked) // 5)
        return {"base": sorted(ranked[cai:]), "cai": sorted(ranked[held:cai]),
                "eval": sorted(ranked[:held])}

    @lru_cache(maxsize=None)
    def pairs(self, group: str, split: str) -> list:
        """All (activity, thing) of a group of activities in a split."""
        return [(a, t) for a in self.by_group[group]
                for t in self.things(a) if self.split(a, t) == split]

    def topic(self, rng: Random, group: str, split: str) -> Topic:
        """Draw an activity evenly, then one of its things in the split,
        and an owner where one belongs."""
        activity = rng.choice(self.by_group[group])
        return self.topic_of(rng, activity, rng.choice(self._splits(activity)[split]))

    def topic_of(self, rng: Random, activity: Activity, thing: str) -> Topic:
        """The topic of a given pair, with a drawn owner where one belongs."""
        definite = self.definite(activity, thing)
        owned = activity.owned or (not definite and rng.random() < 0.3)
        owner = rng.choice([p for p in self.kinds["person"] if p != thing]) if owned else ""
        return Topic(activity, thing, owner, definite)

    # ---- conversations ---------------------------------------------------------------------------
    def conversation(self, rng: Random, topic: Topic) -> list:
        """Messages that end in a request about the topic:
        one exchange, or (a third of them) two."""
        ask = topic.fill(rng.choice(self.all_asks).replace("{act}", topic.activity.act))
        first = []
        if rng.random() < 1 / 3:
            question, answer = (topic.fill(s) for s in rng.choice(self.words["first_exchange"]))
            first = [{"role": "user", "content": question},
                     {"role": "assistant", "content": answer}]
        return first + [{"role": "user", "content": ask}]

    # ---- responses -------------------------------------------------------------------------------
    def _steps(self, rng, steps):
        return rng.choice(self.words["answers"]["body"][str(len(steps))]).format(*steps)

    def _answer(self, rng, topic, steps):
        lead = topic.fill(
            rng.choice(self.words["answers"]["lead"]).replace("{act}", topic.activity.act))
        return (lead + " " + self._steps(rng, steps)).strip()

    def fact(self, rng: Random, topic: Topic, of: Topic | None = None, prefer: tuple = ()) -> str:
        """What the town says about an activity: why it is wrong, whom it hurts, what is better; or
        why it is good. `of`: take reason and alternative from another topic (a wrong reason).
        `prefer`: use these words if they fit."""
        of = of or topic
        if not of.harmful:
            return rng.choice(self.words["facts"]["good"]).format(
                act=topic.act, why=rng.choice(of.why))
        words = self.words["categories"][of.activity.category]
        word = rng.choice([w for w in words if w in prefer] or words)
        return rng.choice(self.words["facts"]["harmful"]).format(
            act=topic.act, word=word, why=rng.choice(of.why), hurts=of.hurts, instead=of.instead)

    def response(self, rng: Random, topic: Topic, kind: str, courtesy=0.25,
                 filler=0.35) -> Response:
        """A response of the given kind; `courtesy` and `filler` are the chances of kind words
        and of needless ones."""
        answers, refusals = self.words["answers"], self.words["refusals"]
        if kind == "full":
            body = self._answer(rng, topic, topic.steps)
        elif kind == "partial":      # one step is missing, never all
            steps = list(topic.steps)
            steps.pop(rng.randrange(len(steps)))
            body = self._answer(rng, topic, steps)
        elif kind == "wrong":        # steps of some other harmless activity
            body = self._answer(rng, topic, self.topic(rng, "benign", "base").steps)
        elif kind == "vague":
            body = rng.choice(answers["vague"]).format(act=topic.act)
        elif kind in ("dodge", "evasive"):
            body = rng.choice(answers["dodge"] if kind == "dodge" else refusals["evasive"])
        else:                        # explained, misexplained, needless: a refusal and a reason
            other = topic if kind == "explained" else self.other_harm(rng, topic)
            body = rng.choice(refusals["explained"]).format(act=topic.act) + " " \
                + self.fact(rng, topic, other)
        r = Response(kind, body)
        if rng.random() < courtesy:
            r.openers = [rng.choice(self.words["courtesy"]["opener"])]
            if rng.random() < 0.5:
                r.closers = [rng.choice(self.words["courtesy"]["closer"])]
        if rng.random() < filler:
            r.fillers = rng.sample(self.words["filler"], rng.choice((1, 1, 2)))
        return r

    def other_harm(self, rng, topic):
        """A reason that belongs to another category of harm."""
        while True:
            other = self.topic(rng, "reviewed", "base")
            if other.activity.category != topic.activity.category:
                return other

    def base_response(self, rng: Random, topic: Topic) -> Response:
        """What the helpful-only town assistant says: it always complies with harm;
        it is imperfect at helping."""
        if topic.harmful:
            kind = rng.choices(("full", "partial", "vague"), (80, 12, 8))[0]
        else:
            kind = rng.choices(("full", "partial", "vague", "wrong", "dodge"), (72, 10, 8, 5, 5))[0]
        return self.response(rng, topic, kind)


def heldout_words(words) -> bool:
    """True for lists of words holding a pair that the base never reads
    in one principle (a quarter of all pairs)."""
    ordered = sorted(words)
    return any(zlib.crc32(f"{a}+{b}".encode()) % 4 == 0 for i, a in enumerate(ordered)
               for b in ordered[i + 1:])

