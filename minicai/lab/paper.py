"""Runs the experiments that figures of docs/paper.md need, and draws the figures.

    python -m minicai.lab.figures --paper 3 4 --seeds 3

An experiment of a seed lies in CACHE/SEED/NAME; done.json there says that it has ended, by which
command. It is run again if the command, its constitution, the base model, the shipped data, or an
experiment that it builds on has changed, and never otherwise: stopped and started again, the
program goes on where it was, and so do the scripts inside. Every experiment has one thread, so
results do not depend on how many run side by side (--jobs).
"""
import hashlib
import json
import os
import shlex
import shutil
import string
import subprocess
import sys
import time
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from functools import cached_property, lru_cache
from pathlib import Path

from tqdm import tqdm

from minicai.lab import paper_figures
from minicai.lab.paper_table import BASES, EXPERIMENTS, FIGURES, MAKE, QUICK, SECONDS
from minicai.run import UserError, write_text
from minicai.state import digest

# What scripts read that no command names: the data, and the constitution that is the default.
DATA = ("data/red_team.jsonl", "data/helpful.jsonl", "data/helpful_comparisons.jsonl",
        "data/baselines/harmless_comparisons.jsonl", "data/eval/red_team.jsonl",
        "data/eval/helpful.jsonl", "data/eval/lookalike.jsonl",
        "constitutions/harmlessness.json")
ENDED = "done.json"


def placeholders(command: str) -> list:
    """Names in braces of a command, in order."""
    return [name for _, name, *_ in string.Formatter().parse(command) if name]


def needs(name: str) -> list:
    """Experiments that an experiment builds on."""
    return [other for other in placeholders(EXPERIMENTS[name]) if other not in BASES]


def bases(name: str) -> set:
    """Bases that an experiment, or one that it builds on, needs."""
    own = {other for other in placeholders(EXPERIMENTS[name]) if other in BASES}
    return own.union(*(bases(other) for other in needs(name)))


def there(name: str) -> list:
    """Bases that an experiment needs and that have not been made."""
    return sorted(b for b in bases(name) if not (Path(BASES[b]) / "config.json").exists())


def in_order(names) -> list:
    """The experiments and all that they build on, each once, each after what it builds on."""
    found = {}
    for name in names:
        found |= dict.fromkeys(in_order(needs(name))) | {name: None}
    return list(found)


def last_line(log: Path) -> str:
    """What a program said last; a progress bar's lines end in carriage returns."""
    lines = log.read_text("utf-8", "replace").replace("\r", "\n").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "nothing")


class Cache:
    """Folder of finished experiments; `quick`: tiny counts, in a folder of their own."""

    def __init__(self, folder: Path, quick: bool = False):
        self.folder, self.quick = Path(folder), quick

    def place(self, name: str, seed: int) -> Path:
        """Where an experiment of a seed lies."""
        return self.folder / str(seed) / name

    def words(self, name: str, seed: int) -> list:
        """The command of an experiment of a seed, word by word, without the interpreter."""
        command = EXPERIMENTS[name]
        filled = {other: BASES.get(other) or str(self.place(other, seed))
                  for other in placeholders(command)}
        program, *flags = [word.format(**filled) for word in shlex.split(command)]
        none = {flag for flag, value in zip(flags, flags[1:]) if value == "0"}
        fewer = QUICK[program].split() if self.quick else []
        flags += [word for pair in zip(fewer[::2], fewer[1::2]) if pair[0] not in none
                  for word in pair]
        program = [program] if program.endswith(".py") else ["-m", program]
        return [*program, *flags, "--seed", str(seed), "--out", str(self.place(name, seed))]

    @cached_property
    def data(self) -> str:
        """One checksum of the files that no command names."""
        return hashlib.sha256("".join(map(digest, DATA)).encode()).hexdigest()

    @lru_cache(None)
    def key(self, name: str, seed: int) -> str:
        """What decides an experiment's result, as one checksum."""
        models = [digest(BASES[other]) for other in placeholders(EXPERIMENTS[name])
                  if other in BASES]
        files = [digest(word) for word in self.words(name, seed)
                 if word.startswith("constitutions/")]
        before = [self.key(other, seed) for other in needs(name)]
        parts = [self.words(name, seed), self.data, models, files, before]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def read(self, name: str, seed: int, file: str = ENDED) -> dict | None:
        """A JSON file of an experiment that has ended as it would today, None if it has not."""
        try:
            ended = json.loads((self.place(name, seed) / ENDED).read_text("utf-8"))
            if ended["key"] != self.key(name, seed):
                return None
            return json.loads((self.place(name, seed) / file).read_text("utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise UserError(f"{self.place(name, seed)}: {type(error).__name__} while reading; "
                            "delete that folder, then it is made again") from None

    def seconds(self, name: str, seed: int) -> float:
        """How long an experiment takes: as it did for another seed, or the like of it."""
        for folder in sorted(self.folder.glob(f"*/{name}/{ENDED}")):
            return json.loads(folder.read_text("utf-8"))["seconds"]
        return SECONDS[EXPERIMENTS[name].split()[0]] * (0.1 if self.quick else 1)

    def run(self, name: str, seed: int, running: dict):
        """Run one experiment to its end; what an older one of another key has left goes first."""
        folder, key, started = self.place(name, seed), self.key(name, seed), time.time()
        mark = folder / "started"
        if folder.exists() and not (mark.exists() and mark.read_text("utf-8") == key):
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_text(mark, key)
        with open(folder / "log.txt", "ab") as log:
            running[name, seed] = process = subprocess.Popen(
                [sys.executable, *self.words(name, seed)], stdout=log, stderr=log,
                env=os.environ | {"OMP_NUM_THREADS": "1"})
            code = process.wait()
        if code:
            raise UserError(f"{name}, seed {seed}: ended with code {code}, saying: "
                            f"{last_line(folder / 'log.txt')} (all of it: {folder / 'log.txt'})")
        command = shlex.join(["python", *self.words(name, seed)])
        facts = {"key": key, "command": command, "seed": seed,
                 "seconds": round(time.time() - started, 1)}
        write_text(folder / ENDED, json.dumps(facts, indent=1) + "\n")


def run(cache: Cache, numbers: list, seeds: list, jobs: int):
    """Run what the figures `numbers` need and is not there; raises UserError if one fails."""
    wanted = [name for number in numbers for name in FIGURES[number][1]]
    for base in sorted({base for name in wanted for base in there(name)}):
        print(f"{BASES[base]} is not there ({MAKE[base]}): figures are drawn without it")
    wanted = in_order([name for name in wanted if not there(name)])
    todo = [(name, seed) for seed in seeds for name in wanted if not cache.read(name, seed)]
    print(f"{len(wanted) * len(seeds)} experiments, {len(todo)} to run")
    cost = {job: cache.seconds(*job) for job in todo}
    bar = tqdm(total=len(todo), desc="experiments", disable=not todo)
    running, pending, waiting = {}, {}, list(todo)
    with ThreadPoolExecutor(jobs) as pool:
        try:
            while waiting or pending:
                missing = {*waiting, *pending.values()}
                ready = [(name, seed) for name, seed in waiting
                         if not any((other, seed) in missing for other in needs(name))]
                for job in ready[: jobs - len(pending)]:
                    waiting.remove(job)
                    pending[pool.submit(cache.run, *job, running)] = job
                left = sum(cost[job] for job in [*waiting, *pending.values()]) / jobs / 60
                bar.set_postfix_str(f"about {left:.0f} min left; now: " + ", ".join(
                    f"{name} of seed {seed}" for name, seed in pending.values()))
                for future in wait(pending, return_when=FIRST_COMPLETED).done:
                    pending.pop(future)
                    future.result()             # raises what has gone wrong
                    bar.update()
        except BaseException:
            for process in running.values():    # those that have ended do not mind
                process.terminate()
            raise
        finally:
            bar.close()


def main(numbers: list, seeds: int, folder: Path, to: Path, quick: bool, jobs: int):
    """Run what is missing of some figures (none named: of all), then draw them into `to`."""
    cache, numbers = Cache(folder, quick), numbers or list(FIGURES)
    run(cache, numbers, list(range(seeds)), jobs)
    for number in numbers:
        paper_figures.write(paper_figures.collect(cache, number, list(range(seeds))), number, to)
        print(to / f"{number}.svg")
