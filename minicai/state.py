"""What a run leaves so that nothing is lost and nothing foreign gets in: checksums, a lock, the way
to go on.

Three things lie beside what the scripts make. `manifest.json` in a model directory: the sha256 of
each of its files and what made it; where minicai wrote one, it is checked at every load.
`sampled.jsonl` in a run's folder: what has been sampled, batch by batch. `state.pt`: weights,
optimizer, generator, logs, after so many steps. The last two go when the run ends. Left out on
purpose: locks between machines, more than one saved state.
"""
import argparse
import contextlib
import functools
import hashlib
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

import torch

from minicai.run import HELD, Metrics, UserError, megabytes, path, replacing, write_text, writing
from minicai.tokenizer import FILES

try:
    import fcntl
except ImportError:                     # Windows: there, two runs in one folder are not noticed
    fcntl = None

MANIFEST = "manifest.json"
# What counts of a directory without a manifest: notes do not.
MODEL_FILES = (".json", ".safetensors", ".jinja", ".model", ".txt")
NOTES = ("readme.txt", "notes.txt", "license.txt")
PARTS = (".json", ".safetensors", ".jinja", ".bin")     # what a new model may replace
OWN = ("config.json", "metrics.jsonl", "state.pt", "sampled.jsonl")    # of every run
# What a model is loaded from.
LOADED = ("config.json", "model.safetensors", "model.safetensors.index.json", *FILES)


# ---- checksums -----------------------------------------------------------------------------------
def sha256(path) -> str:
    """The checksum of a file's bytes; not computed again while the file stays as it is."""
    path = Path(path)
    stat = path.stat()
    return _sha256(os.path.realpath(path), stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(None)
def _sha256(path: str, *_) -> str:
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            found.update(block)
    return found.hexdigest()


def read_manifest(directory) -> dict | None:
    """{"files": {name: sha256}, "made": {...}} of a directory, None if it has none, or some other
    program's; raises UserError if that is damaged."""
    path = Path(directory) / MANIFEST
    try:
        # True for a pipe, which would be waited for: no dict, so damaged (below)
        found = path.is_fifo() or json.loads(path.read_text("utf-8"))
        if found and not {"files", "made"} & found.keys():
            return None
        texts = [text for item in found["files"].items() for text in item]
        if not all(isinstance(text, str) for text in texts) or not isinstance(found["made"], dict):
            raise TypeError("not what minicai writes")
        return found
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: damaged ({type(error).__name__}); make the model again, or "
                        "delete this file if you trust the others") from None


def contents(path) -> dict:
    """{file name: sha256} of what counts of a file or folder; raises UserError if there is none, or
    if it is not what its manifest says."""
    path = Path(path)
    if path.is_file():
        return {"": sha256(path)}
    if not path.is_dir():
        raise UserError(f"{path}: no such model directory, constitution or file")
    manifest = read_manifest(path)
    if manifest is None:
        return {file.name: sha256(file) for file in sorted(path.iterdir()) if file.is_file()
                and file.suffix in MODEL_FILES and file.name.lower() not in NOTES}
    for name, wanted in manifest["files"].items():
        if not (path / name).is_file():
            raise UserError(f"{path / name}: is missing, {MANIFEST} names it; make the model again")
        if sha256(path / name) != wanted:
            raise UserError(f"{path / name}: is not as it was written (its sha256 is not what "
                            f"{MANIFEST} says): damaged or changed; make it again, or delete "
                            f"{path / MANIFEST} if you changed it yourself")
    for name in LOADED:
        if name not in manifest["files"] and (path / name).exists():
            raise UserError(f"{path / name}: is not among the files that {MANIFEST} names, and "
                            f"would be read all the same: take it out, or delete "
                            f"{path / MANIFEST} if you put it there yourself")
    return dict(sorted(manifest["files"].items()))


def digest(path) -> str:
    """One checksum of contents()."""
    return hashlib.sha256(json.dumps(contents(path)).encode()).hexdigest()


def write_manifest(directory, made: dict | None) -> None:
    """Put the checksums of all files that lie in a new model directory beside them, and what made
    it."""
    files = {file.name: sha256(file) for file in sorted(Path(directory).iterdir())}
    text = json.dumps({"files": files, "made": made or {}}, indent=1)
    write_text(Path(directory) / MANIFEST, text + "\n")


def seal(value, sha=None) -> str:
    """The sha256 of nested dicts, lists, tensors and plain values: state.pt holds that of all the
    rest."""
    sha = sha or hashlib.sha256()
    if isinstance(value, torch.Tensor):
        sha.update(f"{value.dtype} {tuple(value.shape)}".encode())
        sha.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    elif isinstance(value, (dict, list, tuple)):
        sha.update(f"{isinstance(value, dict)} {len(value)}".encode())
        for item in value.items() if isinstance(value, dict) else value:
            seal(item, sha)
    else:
        sha.update(f"{value!r} ".encode())
    return sha.hexdigest()


def commit() -> str:
    """The commit of minicai that is checked out here, or "unknown"."""
    try:
        top, head = subprocess.run(["git", "rev-parse", "--show-toplevel", "HEAD"], text=True,
                                   cwd=Path(__file__).parent, capture_output=True,
                                   check=True).stdout.splitlines()
        # installed inside another project, git would speak of that one
        return head if Path(top).samefile(Path(__file__).parents[1]) else "unknown"
    except (OSError, ValueError, subprocess.CalledProcessError):
        return "unknown"


# ---- folders -------------------------------------------------------------------------------------
@contextlib.contextmanager
def beside(directory, size: int = 0, made: dict | None = None):
    """A new folder that becomes `directory` when all is in it: whoever reads finds the old one or
    the new one, whole.

    Raises UserError if what is there is more than a model, or if the disk is full: then the old
    one stays. Where a link leads is written, the link stays.
    """
    refuse_foreign(directory)
    directory = Path(os.path.realpath(directory) if Path(directory).is_symlink() else directory)
    with writing(directory, size):
        directory.parent.mkdir(parents=True, exist_ok=True)
        prefix = f".{directory.name}.minicai-part-"
        new = Path(tempfile.mkdtemp(dir=directory.parent, prefix=prefix))
        try:
            yield new
            write_manifest(new, made)
            new.chmod(0o755)
            for file in new.iterdir():
                file.chmod(0o644)                       # safetensors lets nobody else read
                with open(file, "r+b") as f:
                    os.fsync(f.fileno())                # the bytes first, then the name
            swap(new, directory)
        finally:
            shutil.rmtree(new, ignore_errors=True)


def refuse_foreign(directory) -> None:
    """Raise UserError if a model directory cannot be written here without the loss of something
    else: the whole folder will be replaced."""
    directory = Path(directory)
    if not directory.exists():
        return
    if not directory.is_dir():
        raise UserError(f"{directory}: is a file; a model directory is to be written there")
    there = {file.name: file for file in sorted(directory.iterdir())}
    if there and not there.keys() & {"tokenizer.json", "model.safetensors"}:
        raise UserError(f"{directory}: exists and is no model directory; it will not be "
                        "overwritten")
    for name, file in there.items():
        if file.is_dir() or name != "merges.txt" and file.suffix not in PARTS:
            raise UserError(f"{file}: exists and is no part of a model; move it away, for "
                            f"{directory} will be replaced as a whole")


def swap(new: Path, directory: Path) -> None:
    """Exchange two folders at once, or move one to where nothing is."""
    if not directory.exists():
        os.replace(new, directory)
    elif not exchange(new, directory):
        old = new.with_name(new.name + ".old")          # killed between these two, tidy() finishes
        os.replace(directory, old)
        os.replace(new, directory)
        shutil.rmtree(old, ignore_errors=True)


def exchange(one: Path, other: Path) -> bool:
    """renameat2 with RENAME_EXCHANGE, where system (Linux) and disk know it: is it done?"""
    import ctypes
    try:
        names = os.fsencode(one.absolute()), os.fsencode(other.absolute())
        return ctypes.CDLL(None).renameat2(-100, names[0], -100, names[1], 2) == 0
    except (AttributeError, OSError, TypeError):
        return False


def leftovers(folder) -> list:
    """What killed saves have left half-written in a folder."""
    return [found for found in sorted(Path(folder).glob(".*"))
            if re.fullmatch(r"\..+\.minicai-part(-\w+)?(\.old)?", found.name)]


def tidy(folder, only: str | None = None) -> None:
    """Remove leftovers (only: of this name); a model that is nowhere else, because a swap was cut
    off, is put back."""
    for found in leftovers(folder):
        name = re.fullmatch(r"\.(.+)\.minicai-part.*", found.name)[1]
        if only not in (None, name):
            continue
        if found.is_dir() and not (Path(folder) / name).exists() and (found / MANIFEST).exists():
            os.replace(found, Path(folder) / name)
        elif found.is_dir():
            shutil.rmtree(found, ignore_errors=True)
        else:
            found.unlink(missing_ok=True)


def hold(folder) -> None:
    """Make a folder and lock it until the process ends; raises UserError if another run holds
    it."""
    with writing(folder):
        Path(folder).mkdir(parents=True, exist_ok=True)
    if not fcntl:
        return
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise UserError(f"{folder}: another run is writing there; wait until it ends, or give "
                        "another --out") from None
    except OSError:
        pass                                            # some network disks know no locks
    HELD.append((lock, folder))


def new_file(text: str) -> Path:
    """A flag's type: the name of a file that will be written, and of no part of a model."""
    if Path(text).name in (*LOADED, MANIFEST):
        raise argparse.ArgumentTypeError(f"{text}: is how a part of a model is called; "
                                         "give another name")
    inside = any(up.exists() and not up.is_dir() for up in path(text).parents)
    file = Path(text)
    if inside or file.exists() and not file.is_file() or file.suffix == ".gz":
        what = "lies in a file" if inside else "is a folder or device, or named as if packed"
        raise argparse.ArgumentTypeError(f"{text}: {what}; give the name of a file")
    return file


def refuse_overlap(folder: Path, inputs: dict, writes) -> None:
    """Raise UserError if a run would write over one of its own inputs."""
    for name, place in inputs.items():
        for written in [folder / made for made in (*writes, *OWN)]:
            a, b = Path(os.path.realpath(place)), Path(os.path.realpath(written))
            if a in (b, b.parent) or b in a.parents or written.exists() and place.samefile(written):
                raise UserError(f"{name} {place}: this run would write over it ({written}); give "
                                "another --out")


def refuse_obstacles(folder: Path, writes) -> None:
    """Raise UserError, before the work and not behind it, where a folder is in the way of a file
    that a run will write, or what is no model in the way of a model."""
    for name in (*writes, *OWN):
        if Path(name).suffix and (folder / name).is_dir():
            raise UserError(f"{folder / name}: is a folder; a file is to be written there")
        if name == "steps" and (folder / name).is_file():       # a folder of models
            raise UserError(f"{folder / name}: is a file; a folder is to be made there")
        if not Path(name).suffix and name != "steps":
            refuse_foreign(folder / name)


def check_space(folder: Path, trained) -> None:
    """Raise UserError if the disk has less room than a run needs that trains these models, at the
    worst moment: two states (weights and Adam's two moments, float32), one to replace the other,
    and a model."""
    need = sum(28 * numbers(directory) for directory in trained)
    free = shutil.disk_usage(folder).free
    if free < need:
        raise UserError(f"{folder}: the run needs up to {megabytes(need)} there, {megabytes(free)} "
                        "are free: make room or give another --out")


def numbers(directory) -> int:
    """How many numbers the weights of a model directory hold, by the headers of its files."""
    total = 0
    for weights in Path(directory).glob("*.safetensors"):
        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError), \
                open(weights, "rb") as file:
            header = json.loads(file.read(min(int.from_bytes(file.read(8), "little"), 10**8)))
            header.pop("__metadata__", None)
            total += sum(math.prod(tensor["shape"]) for tensor in header.values())
    return total


# ---- going on ------------------------------------------------------------------------------------
class Kept(dict):
    """{index of a prompt: what was sampled for it} of one call; update() writes down what it is
    given."""
    def __init__(self, known: dict, write):
        super().__init__(known)
        self.write = write

    def update(self, rows):
        """Take in the pairs (index, result) of a batch."""
        rows = [[index, result] for index, result in rows]
        self.write(rows)
        super().update(rows)


class Resume:
    """What makes a run that is killed and started again end with the same weights, bit for bit (on
    a CPU; a GPU adds in an order of its own).

    args: the script's, with `out`, `fresh`, `save_minutes`; inputs {flag: path}: what is read
    (default: every argument that is a path); trained: directories of the models that will be
    trained, for the room that they need; writes: names of what the run makes. `steps` says how many
    are done, `made` goes into the manifest.

    Arguments in FREE may change, to go on in less memory for one: they decide about the last digits
    at most; so do torch's version and its threads, which is said. Raises UserError for anything
    else that differs, and for a damaged file; --fresh starts over, and even so the old files stay
    until there are new ones.
    """
    FREE = {"micro", "checkpointing", "sample_tokens", "save_minutes", "print_every", "out",
            "fresh", "examples", "samples", "models", "prompts", "table", "compare"}

    def __init__(self, args, inputs: dict | None = None, trained=(), writes=()):
        self.folder, self.last = Path(args.out), time.time()
        self.path, self.sampled = self.folder / "state.pt", self.folder / "sampled.jsonl"
        self.every = getattr(args, "save_minutes", 0)
        if inputs is None:
            several = {name: value if isinstance(value, list) else [value]
                       for name, value in vars(args).items() if name != "out"}
            inputs = {flag(name) + f" {n}" * (n > 1): value for name, values in several.items()
                      for n, value in enumerate(values, 1) if isinstance(value, Path)}
        refuse_overlap(self.folder, inputs, writes)
        refuse_obstacles(self.folder, writes)
        asked = {flag(name): json.loads(json.dumps(value)) for name, value in vars(args).items()
                 if name not in self.FREE and flag(name) not in inputs
                 and not isinstance(value, Path)}
        command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
        self.run = {"command": command, "flags": asked,
                    "inputs": {name: digest(place) for name, place in inputs.items()},
                    "torch": str(torch.__version__), "threads": torch.get_num_threads()}
        parents = {name: {"path": str(place), "sha256": self.run["inputs"][name]}
                   for name, place in inputs.items()}
        self.made = self.run | {"inputs": parents, "commit": commit()}
        hold(self.folder)
        tidy(self.folder)
        check_space(self.folder, trained)
        self.calls, self.call, self.logs, self.saved, self.own = {}, 0, [], {}, False
        if not getattr(args, "fresh", False):
            self._find()
        if not self.own and (self.folder / "config.json").exists():
            print(f"{self.folder}: holds an earlier run; what that made stays until this one "
                  "replaces it")
        self.steps = self.saved.get("step", 0)

    def _find(self) -> None:
        """Take up what a killed run with the same arguments and inputs has left here."""
        run, calls, size = read_sampled(self.sampled)
        state = read_state(self.path)
        if run is None and state is None:
            return
        run = run or state["run"]
        if differing := differences(run, self.run):
            raise UserError(f"{self.folder}: an unfinished run lies there that differs in "
                            f"{', '.join(differing)}: go on with what that had, or give --fresh to "
                            "drop it, or another --out")
        self.own, self.calls = True, calls
        if size:
            os.truncate(self.sampled, size)             # without the last words of a killed process
        if state and not differences(state["run"], self.run):
            self.saved = state
        note = [f"; {name} {run[name]} then, {self.run[name]} now: the last digits may differ"
                for name in ("torch", "threads") if run[name] != self.run[name]]
        texts = sum(len(rows) for _, rows in calls.values())
        print(f"{self.folder}: going on after {self.saved.get('step', 0)} steps and {texts} "
              "sampled texts" + "".join(note))

    # What is sampled.
    def kept(self, ask):
        """The same `ask` (critique.sampler), of which nothing is sampled twice: what a killed run
        has is read."""
        return lambda contexts, progress=None: ask(contexts, progress=progress,
                                                   done=self.begin(contexts))

    def begin(self, prompts: list) -> Kept:
        """Results by index of one call for all `prompts`, as far as they are known; the calls of a
        run come in the same order each time."""
        number, of = self.call, zlib.crc32(repr(prompts).encode())
        self.call += 1
        before, rows = self.calls.get(number, (of, {}))
        return Kept(rows if before == of else {}, lambda new: self._append(number, of, new))

    def _append(self, number: int, of: int, rows: list) -> None:
        """Write down a batch: [call, checksum of its prompts, rows]."""
        line = checked_line([number, of, rows])
        if self.own and self.sampled.exists():
            with writing(self.sampled, len(line)), self.sampled.open("a", encoding="utf-8") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
            return
        write_text(self.sampled, checked_line(self.run) + line)
        if not self.own:                                # now there is something to show instead
            self.path.unlink(missing_ok=True)
        self.own = True

    # What is learned.
    def log(self, name: str) -> Metrics:
        """The log of that name in the run's folder, as it was when the state was saved."""
        kept = self.saved.get("logs", {}).get(name, "")
        self.logs.append(Metrics(self.folder / name, kept))
        if self.steps:
            self.logs[-1].begin()
        return self.logs[-1]

    def restore(self, **parts) -> None:
        """Put everything that was saved back into its place, if there is anything; raises UserError
        if it does not fit."""
        try:
            for name, part in parts.items() if self.saved else ():
                generator = isinstance(part, torch.Generator)
                (part.set_state if generator else part.load_state_dict)(self.saved[name])
        except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise UserError(f"{self.path}: does not fit ({type(error).__name__}); delete it to "
                            "train again from the start") from None
        self.saved = {}                                 # make room

    def save(self, step: int, **parts) -> None:
        """If it is time for it, write all there is after `step` steps beside the old file, then
        swap."""
        if time.time() - self.last < 60 * self.every:
            return
        state = {name: part.get_state() if isinstance(part, torch.Generator) else part.state_dict()
                 for name, part in parts.items()}
        state |= {"run": self.run, "step": step,
                  "logs": {log.path.name: log.text() for log in self.logs}}
        with replacing(self.path, nbytes(state)) as file:
            torch.save(state | {"seal": seal(state)}, file)
        if not self.own:
            self.sampled.unlink(missing_ok=True)        # an earlier run's
        self.last, self.own = time.time(), True

    def finish(self) -> None:
        """The run is over and its results are written: nothing to go on from."""
        self.path.unlink(missing_ok=True)
        self.sampled.unlink(missing_ok=True)


def flag(name: str) -> str:
    """An argument's name as it is given."""
    return "--" + name.replace("_", "-")


def differences(before: dict, now: dict) -> list:
    """What differs between two runs' descriptions, in words: flags with both values, inputs with
    other content."""
    if before["flags"].keys() != now["flags"].keys():
        return ["the script that wrote it"]
    if odd := before["inputs"].keys() ^ now["inputs"].keys():
        return [f"{', '.join(sorted(odd))} (one of the two runs only)"]
    if list(before["inputs"]) != list(now["inputs"]):       # which model has said what?
        return [f"the order of {', '.join(before['inputs'])}"]
    said = [f"{name} ({value}, now {now['flags'][name]})" for name, value in before["flags"].items()
            if value != now["flags"][name]]
    return said + [f"the content of {name}" for name, value in before["inputs"].items()
                   if value != now["inputs"][name]]


def checked_line(value) -> str:
    """A line of sampled.jsonl: the checksum of its JSON, then that."""
    body = json.dumps(value)
    return f"{zlib.crc32(body.encode()):08x} {body}\n"


def read_sampled(path: Path) -> tuple:
    """(description of the run, {call: (checksum of its prompts, {index: result})}, bytes that are
    whole) of a sampled.jsonl; (None, {}, 0) if there is none. What follows a damaged line is
    sampled again."""
    run, calls, size = None, {}, 0
    for number, line in enumerate(path.open("rb") if path.is_file() else (), 1):
        whole = line.endswith(b"\n") and line[:9] == b"%08x " % zlib.crc32(line[9:-1])
        value = json.loads(line[9:-1]) if whole else None
        if not isinstance(value, dict if run is None else list):
            if run is None:
                raise UserError(f"{path}: damaged: delete it to start over")
            print(f"{path}:{number}: cut off or damaged; from there on it is sampled again")
            break
        size += len(line)
        if run is None:
            run = value
        else:
            call, of, rows = value
            calls.setdefault(call, (of, {}))[1].update((index, result) for index, result in rows)
    return run, calls, size


def read_state(path: Path) -> dict | None:
    """A state.pt, None if there is none; raises UserError if it is not as it was written."""
    if not path.is_file():
        return None
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
        if found.pop("seal") != seal(found) or not {"run", "step", "logs"} <= set(found):
            raise ValueError("checksum")
        return found
    except MemoryError:
        raise
    except Exception as error:          # of broken bytes the unpickler makes nearly any of them
        raise UserError(f"{path}: damaged ({type(error).__name__}): delete it; what was sampled is "
                        "kept, training starts again") from None


def nbytes(value) -> int:
    """Bytes of all tensors in nested dicts."""
    if isinstance(value, dict):
        return sum(map(nbytes, value.values()))
    return value.nbytes if isinstance(value, torch.Tensor) else 0


def unfinished(folder) -> bool:
    """Whether a run has begun in this folder and not ended."""
    return any((Path(folder) / name).is_file() for name in ("state.pt", "sampled.jsonl"))
