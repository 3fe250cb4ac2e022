"""What every script needs around the method:
friendly errors, flags, files, seeds, a learning-rate schedule, a log.

Left out on purpose: experiment trackers, config files, distributed runs. A run is a directory with
`config.json` (every argument and the machine's relevant facts), `metrics.jsonl` (one JSON object a
step) and, until it ends, the files from which it goes on if it is killed (state.py).
"""
import argparse
import contextlib
import errno
import functools
import gzip
import json
import math
import os
import random
import re
import shutil
import signal
import sys
import threading
import time
import unicodedata
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError


class UserError(ValueError):
    """Bad input: its one-line message says where, what is wrong and what to do.
    Scripts print it and exit with 2. A file's own words in it may hold anything."""

    def __str__(self) -> str:
        return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in super().__str__())


class Stopped(BaseException):
    """The process is asked to end; args[0] is the signal's number."""


# What friendly_main lets go in the end, and how it says to go on:
# the folders that this process writes (state.py).
HELD = []                               # of (file descriptor that holds the lock, folder)


def friendly_main(main):
    """Decorator of a script's `main`: a UserError becomes one line on stderr and exit code 2,
    without a traceback; Ctrl-C and a request to end become one line that says how to go on, and
    exit code 128 + the signal's number."""
    @functools.wraps(main)
    def wrapped(*args, **kwargs):
        # A stream may be closed, and a terminal need not know every character that a model writes.
        sys.stdout, sys.stderr = (stream or open(os.devnull, "w") for stream in
                                  (sys.stdout, sys.stderr))
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="replace")
        try:
            with ending_on((signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM))):
                return main(*args, **kwargs)
        except (MemoryError, torch.OutOfMemoryError) as error:
            code, said = 2, (f"error: out of memory ({str(error).partition('.')[0]}): "
                             "lower --micro or --sample-tokens, or give --checkpointing; "
                             "python -m minicai.lab.plan says what takes how much")
        except BrokenPipeError:  # `... | head` has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            raise SystemExit(141) from None
        except (UserError, OSError) as error:   # or a folder that cannot be written, a full disk
            code, said = 2, f"error: {error}"
        except (KeyboardInterrupt, Stopped) as stop:
            code = 128 + (stop.args[0] if isinstance(stop, Stopped) else signal.SIGINT)
            said = f"\nstopped: {going_on()}"
        finally:
            while HELD:
                os.close(HELD.pop()[0])
        with contextlib.suppress(OSError):              # nobody reads it, or nowhere to put it
            print(said, file=sys.stderr, flush=True)
        raise SystemExit(code)
    return wrapped


@contextlib.contextmanager
def ending_on(signals):
    """Turn these signals into Stopped; only the main thread may ask for that."""
    def stop(number, _):
        raise Stopped(number)
    inside = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, stop) for number in set(signals)
              if signal.getsignal(number) is not signal.SIG_IGN} if inside else {}      # nohup
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def going_on() -> str:
    """How a run that has been stopped goes on, in a few words."""
    return f"the same command, without --fresh, goes on from what {HELD[-1][1]} holds" if HELD \
        else "the same command starts it again"


@contextlib.contextmanager
def writing(path, size: int = 0):
    """Say in one line why `path` could not be written (`size` bytes, if known),
    how much room there is, what to do."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        cause = error  # torch says something else of what the disk said
        while cause.__context__ and not isinstance(cause, OSError | Stopped | KeyboardInterrupt):
            cause = cause.__context__
        if not isinstance(cause, Exception):
            raise cause from None               # a request to end, inside torch's writer
        there = next(folder for folder in Path(path).absolute().parents if folder.exists())
        reason = getattr(cause, "strerror", None) or str(error).splitlines()[0][:200]
        full = getattr(cause, "errno", None) in (None, errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        free = megabytes(shutil.disk_usage(there).free)
        room = f"{f'it takes {megabytes(size)}, ' * bool(size)}{free} are free there"
        raise UserError(f"{path}: cannot be written ({reason}); "
                        f"{f'{room}: make room' if full else 'check path and rights'} or give "
                        "another --out; what was saved before is still there") from None


def megabytes(size: float) -> str:
    """A number of bytes for people."""
    return f"{size / 1e6:,.1f} MB"


class Parser(argparse.ArgumentParser):
    """Argparse whose complaints are UserErrors, one line each,
    and which takes no shortened flags."""
    def __init__(self, doc: str, prog: str | None = None):
        super().__init__(prog, description=doc,
                         formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)

    def error(self, message: str):
        """Called by argparse."""
        raise UserError(f"{message.removeprefix('argument ')}; --help explains every flag")


def real(low: float, high: float = 1e9, above: bool = False, or_zero: bool = False):
    """A flag's type: a finite number from `low` (or above it) to `high`; with or_zero, 0 too."""
    def fits(x):
        return low <= x <= high and not (above and x == low) or or_zero and x == 0
    return checked(float, fits, f"a number {'above' if above else 'of at least'} {low:g} "
                   f"and at most {high:g}{', or 0' * or_zero}")


def whole(low: int, high: int = 10**9):
    """A flag's type: a whole number from `low` to `high`."""
    return checked(int, lambda x: low <= x <= high, f"a whole number from {low} to {high}")


def checked(kind, fits, what: str):
    """A flag's type that reads a `kind` and refuses what does not fit, nan among it."""
    def parse(text: str):
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not fits(value):
            raise argparse.ArgumentTypeError(f"{text!r:.40} is not {what}")
        return value
    return parse


def path(text: str) -> Path:
    """A flag's type: the name of a file or folder."""
    if not text.strip() or not text.isprintable():
        raise argparse.ArgumentTypeError(f"{text!r:.80} cannot be the name of a file or folder")
    return Path(text)


def name_path(text: str) -> str:
    """A flag's type: NAME=DIR, or of a file, both of them readable."""
    name, _, place = text.partition("=")
    if not all(visible(part) and part.isprintable() for part in (name, place)):
        raise argparse.ArgumentTypeError(f"{text!r:.80}: expected NAME=DIR; give each as name=path")
    return text


def pick_device(name: str | None = None) -> torch.device:
    """The named device, or the best one here; raises UserError for a device that does not exist."""
    if name is None:
        name = ("cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available()
                else "cpu")
    if str(name).partition(":")[0] not in ("cpu", "cuda", "mps"):
        raise UserError(f"--device {name}: give cpu, cuda or mps")
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"--device {name}: not usable here "
                        f"({str(error).splitlines()[0]})") from None
    # cuDNN's attention, torch's first choice on new GPUs,
    # makes a plan for every new size of a batch, which takes half a second. The others need none.
    torch.backends.cuda.enable_cudnn_sdp(False)
    return torch.device(name)


def machine_flags(a) -> None:
    """Add the flags that all three scripts share; `a` is the add_argument of a script's parser."""
    a("--seed", type=whole(0, 2**63 - 1), default=0, help="decides every draw and shuffle")
    a("--chat", choices=["plain", "chatml", "llama3"],
      help="chat format of the models, if not their directory's own")
    a("--device", default=None, help="cpu, cuda or mps; default: the best one here")
    a("--dtype", choices=["fp32", "bf16"],
      help="of products, the rest is fp32; default: bf16 on cuda, else fp32")
    a("--checkpointing", action="store_true",
      help="keep a layer's input only and compute the rest again: less memory")
    a("--save-minutes", type=real(0), default=5,
      help="how often state.pt is written, from which a killed run goes on")
    a("--sample-tokens", type=whole(1),
      help="rows x columns sampled together, for memory; default: 16k on cpu, else 128k")
    a("--fresh", action="store_true",
      help="drop what an unfinished run has left in --out, as soon as this one has more")


def set_up(args) -> tuple[torch.device, torch.Generator]:
    """The device that machine_flags ask for and a seeded generator; settles args.device and
    args.dtype where they were left open. Raises UserError for a device that does not exist."""
    device = pick_device(args.device)
    bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    args.device, args.dtype = str(device), args.dtype or ("bf16" if bf16 else "fp32")
    return device, seed_everything(args.seed)


def seed_everything(seed: int) -> torch.Generator:
    """Seed every global generator and return one of torch's own
    (on the CPU) for sampling and shuffling."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    return torch.Generator().manual_seed(seed)


def refuse_stand_in(path) -> None:
    """Raise UserError for what stands where a file should: a pointer that git-lfs has not followed,
    a pipe (it would be waited for, and can be read once only). What is missing is not our matter.
    """
    path = Path(path)
    if path.exists() and not path.is_file() and not path.is_dir():
        raise UserError(f"{path}: a pipe or device; write what it says into a file, for it is read "
                        "more than once")
    if path.is_file():
        with open(path, "rb") as file:
            if file.read(23) == b"version https://git-lfs":
                raise UserError(f"{path}: a git-lfs pointer, not the file itself: run git lfs pull")


def read_jsonl(path) -> list:
    """All rows of a .jsonl or .jsonl.gz file as (line number, object);
    raises UserError `path:line: reason`.

    A file that opens with "[" (white space aside) is read as one JSON array of such objects: some
    published .jsonl files are.
    """
    lines, rows, number = [], [], 0
    refuse_stand_in(path)
    try:
        with (gzip.open if str(path).endswith(".gz") else open)(path, "rb") as file:
            # Iterating over bytes splits at \n only (never at U+2028) and tells the line that is
            # not UTF-8.
            for number, line in enumerate(file, 1):
                lines.append(line.decode("utf-8-sig"))
        array = next((line for line in lines if line.strip()), "").lstrip().startswith("[")
        for number, text in [(1, "".join(lines))] if array else enumerate(lines, 1):
            if text := text.rstrip():
                rows += array_items(text) if array else [(number, json.loads(text))]
    except (OSError, EOFError, zlib.error) as error:  # the last two: a .gz cut off or damaged
        raise UserError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    except (ValueError, RecursionError) as error:
        number += getattr(error, "lineno", 1) - 1  # inside an array the error knows the line
        raise UserError(f"{path}:{number}: not a valid JSON line ({error})") from None
    for number, row in rows:
        if not isinstance(row, dict):
            raise UserError(f"{path}:{number}: expected a JSON object, found {type(row).__name__}")
    if not rows:
        raise UserError(f"{path}: no rows; expected one JSON object a line")
    return rows


def array_items(text: str) -> list:
    """(line number, value) of each item of a JSON array; raises ValueError if it is not valid."""
    json.loads(text)  # the loop below would forgive a missing comma
    items, number, last, at = [], 1, 0, text.index("[") + 1
    while text[at := re.compile(r"[\s,]*").match(text, at).end()] != "]":
        number, last = number + text.count("\n", last, at), at
        value, at = json.JSONDecoder().raw_decode(text, at)
        items.append((number, value))
    return items


def visible(text: str) -> bool:
    """Whether a text has anything to read:
    not spaces, marks of no width, or letters that are drawn as nothing."""
    return any(unicodedata.category(c)[0] in "LNPS" and c not in "\u115f\u1160\u3164\uffa0\u2800"
               for c in text)


def count_skipped(what: str, reasons: list, advice: str):
    """Print how many outputs can be used and why others cannot (`reasons`: None or why, one each);
    UserError if nearly all cannot: training on the rest would teach noise."""
    counts = Counter(sorted(filter(None, reasons)))
    print(f"{what}: {len(reasons) - counts.total()} of {len(reasons)} used; left out: "
          f"{dict(counts) or 'none'}")
    if counts.total() > 0.9 * len(reasons):
        raise UserError(f"{counts.total()} of {len(reasons)} {what} could not be used "
                        f"({dict(counts)}): {advice}")


@contextlib.contextmanager
def replacing(path, size: int = 0):
    """A file, open for bytes, that becomes `path` when all is in it:
    whole or not at all, its bytes before its name."""
    path = Path(os.path.realpath(path))         # a link stays one: it is written where it leads
    refuse_stand_in(path)
    temporary = path.with_name(f".{path.name}.minicai-part")
    with writing(path, size):
        if not path.parent.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:  # (whoever is killed leaves it: state.py tidies up)
            temporary.unlink(missing_ok=True)
            raise


def write_text(path, text: str):
    """Write a file whole or not at all; half a character pair is written as JSON would name it."""
    data = text.encode("utf-8", "backslashreplace")
    with replacing(path, len(data)) as file:
        file.write(data)


def write_jsonl(path, rows):
    """Write objects one a line, whole or not at all."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


class Metrics:
    """Appends one JSON object a step to a file that begins with the text `kept`.
    What an earlier run has left there stays until there is a row."""
    def __init__(self, path, kept: str = ""):
        self.path, self.kept, self.begun = Path(path), kept, False

    def log(self, **values):
        """Append one row."""
        self.begin()
        with writing(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(without_nan(values), ensure_ascii=False) + "\n")

    def begin(self):
        """Replace what an earlier run has left by what this one goes on from."""
        if not self.begun:
            write_text(self.path, self.kept)
        self.begun = True

    def text(self) -> str:
        """All rows so far."""
        return self.path.read_text("utf-8") if self.begun else self.kept


def without_nan(value):
    """The same value, non-finite numbers in it as None: JSON knows no NaN."""
    if isinstance(value, dict):
        return {key: without_nan(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_config(out, args, started: float, **facts):
    """`config.json`: every argument, what else decides a result (torch, threads),
    and the seconds since `started`."""
    config = {"args": vars(args), "torch": torch.__version__, "threads": torch.get_num_threads(),
              "seconds": round(time.time() - started, 1), **without_nan(facts)}
    write_text(Path(out) / "config.json", json.dumps(config, indent=1, default=str) + "\n")


def lr_schedule(step: int, total: int, warmup: int) -> float:
    """Learning-rate factor of `step` (from 0):
    linear warm-up over `warmup` steps, then linear decay towards 0."""
    return min((step + 1) / max(1, warmup), (total - step) / max(1, total - warmup), 1.0)


def clip_gradients(parameters, max_norm: float, step: int, loss: float) -> float:
    """Shorten the gradient to `max_norm` if it is longer; returns its norm as it was.

    Raises UserError if loss or norm is not finite:
    *before* the optimizer's step, so the weights stay usable.
    """
    norm = torch.nn.utils.clip_grad_norm_(parameters, max_norm).item()
    if not math.isfinite(loss + norm):
        raise UserError(f"step {step}: loss {loss} or gradient norm {norm} not finite; "
                        "stopped before it: lower --lr, or give --dtype fp32")
    return norm
