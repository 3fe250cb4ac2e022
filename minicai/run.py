"""What every script needs around the method: friendly errors, files, seeds, a learning-rate schedule, a log.

Left out on purpose: experiment trackers, config files, distributed runs. A run is a directory with `config.json`
(every argument and the machine's relevant facts), `metrics.jsonl` (one JSON object a step) and, until it ends,
`state.pt`, from which it goes on if it is killed.
"""
import functools
import gzip
import json
import math
import os
import pickle
import random
import re
import sys
import time
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import torch


class UserError(ValueError):
    """Bad input: its one-line message says where, what is wrong and what to do. Scripts print it and exit with 2."""


def friendly_main(main):
    """Decorator of a script's `main`: a UserError becomes one line on stderr and exit code 2, without a traceback."""
    @functools.wraps(main)
    def wrapped(*args, **kwargs):
        try:
            return main(*args, **kwargs)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
        except torch.OutOfMemoryError as error:
            print(f"error: out of memory ({str(error).partition('.')[0]}): lower --micro or --sample-tokens, or give "
                  "--checkpointing; python -m minicai.lab.plan says what takes how much", file=sys.stderr)
        except OSError as error:                        # a folder that cannot be written, a full disk
            print(f"error: {error}", file=sys.stderr)
        except KeyboardInterrupt:
            print("\nstopped", file=sys.stderr)
        raise SystemExit(2)
    return wrapped


def pick_device(name: str | None = None) -> torch.device:
    """The named device, or the best one here; raises UserError for a device that does not exist."""
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"--device {name}: not usable here ({str(error).splitlines()[0]})") from None
    return torch.device(name)


def machine_flags(a) -> None:
    """Add the flags that all three scripts share; `a` is the add_argument of a script's parser."""
    a("--seed", type=int, default=0, help="decides every draw and shuffle")
    a("--device", default=None, help="cpu, cuda or mps; default: the best one here")
    a("--dtype", choices=["fp32", "bf16"], help="of products, the rest is fp32; default: bf16 on cuda, else fp32")
    a("--checkpointing", action="store_true", help="keep a layer's input only and compute the rest again: less memory")
    a("--save-minutes", type=float, default=5, help="how often state.pt is written, from which a killed run goes on")
    a("--sample-tokens", type=int, help="rows x columns sampled together, for memory; default: 16k on cpu, else 128k")


def set_up(args) -> tuple[torch.device, torch.Generator]:
    """The device that machine_flags ask for and a seeded generator; settles args.device and args.dtype where they were
    left open. Raises UserError for a device that does not exist and for too small a number."""
    least = dict.fromkeys("batch minibatch micro epochs steps max_new print_every".split(), 1)
    least |= dict.fromkeys("temperature rounds red_team_limit helpful_limit comparisons human_limit".split(), 0)
    for name, low in least.items():
        if getattr(args, name, low) < low:
            raise UserError(f"--{name.replace('_', '-')} {getattr(args, name)}: must be at least {low}")
    for name in ("joined", "held_out", "red_team_share"):
        if not 0 <= getattr(args, name, 0) <= 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(args, name)}: a share must be between 0 and 1")
    device = pick_device(args.device)
    bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    args.device, args.dtype = str(device), args.dtype or ("bf16" if bf16 else "fp32")
    return device, seed_everything(args.seed)


def seed_everything(seed: int) -> torch.Generator:
    """Seed every global generator and return one of torch's own (on the CPU) for sampling and shuffling."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    return torch.Generator().manual_seed(seed)


def read_jsonl(path) -> list:
    """All rows of a .jsonl or .jsonl.gz file as (line number, object); raises UserError `path:line: reason`.

    A file that opens with "[" is read as one JSON array of such objects: some published .jsonl files are.
    """
    lines, rows = [], []
    try:
        with (gzip.open if str(path).endswith(".gz") else open)(path, "rb") as file:
            # Iterating over bytes splits at \n only (never at U+2028) and tells the line that is not UTF-8.
            for number, line in enumerate(file, 1):
                lines.append(line.decode("utf-8-sig"))
        array = "".join(lines[:1]).lstrip().startswith("[")
        for number, text in [(1, "".join(lines))] if array else enumerate(lines, 1):
            if text := text.rstrip():
                rows += array_items(text) if array else [(number, json.loads(text))]
    except (OSError, EOFError, zlib.error) as error:                # the last two: a .gz that is cut off or damaged
        raise UserError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    except (ValueError, RecursionError) as error:
        number += getattr(error, "lineno", 1) - 1                   # inside an array the error knows the line
        raise UserError(f"{path}:{number}: not a valid JSON line ({error})") from None
    for number, row in rows:
        if not isinstance(row, dict):
            raise UserError(f"{path}:{number}: expected a JSON object, found {type(row).__name__}")
    if not rows:
        raise UserError(f"{path}: no rows; expected one JSON object a line")
    return rows


def array_items(text: str) -> list:
    """(line number, value) of each item of a JSON array; raises ValueError if it is not valid."""
    json.loads(text)                                                # the loop below would forgive a missing comma
    items, number, last, at = [], 1, 0, text.index("[") + 1
    while text[at := re.compile(r"[\s,]*").match(text, at).end()] != "]":
        number, last = number + text.count("\n", last, at), at
        value, at = json.JSONDecoder().raw_decode(text, at)
        items.append((number, value))
    return items


def tally(what: str, reasons: list, advice: str):
    """Print how many outputs can be used and why others cannot (`reasons`: None or why, one each); UserError if nearly
    all cannot: training on the rest would teach noise."""
    counts = Counter(sorted(filter(None, reasons)))
    print(f"{what}: {len(reasons) - counts.total()} of {len(reasons)} used; left out: {dict(counts) or 'none'}")
    if counts.total() > 0.9 * len(reasons):
        raise UserError(f"{counts.total()} of {len(reasons)} {what} could not be used ({dict(counts)}): {advice}")


def write_text(path, text: str):
    """Write a file whole or not at all: to a temporary name beside it, then renamed."""
    temporary = Path(f"{path}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def write_jsonl(path, rows):
    """Write objects one a line, atomically."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


class Metrics:
    """Appends one JSON object a step to a file that keeps the rows of the first `steps` steps: 0 unless it goes on."""
    def __init__(self, path, steps: int = 0):
        self.path, kept = Path(path), []
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if steps and self.path.exists():
            with self.path.open(encoding="utf-8") as file:
                kept = [line for line in file if line.endswith("\n") and json.loads(line)["step"] < steps]
        write_text(self.path, "".join(kept))

    def log(self, **values):
        """Append one row."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(without_nan(values), ensure_ascii=False) + "\n")


def without_nan(values: dict) -> dict:
    """The same values, non-finite numbers as None: JSON knows no NaN."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}


class Resume:
    """A run's state.pt: with it, a run that is killed and started again ends with the same weights, bit for bit (on a
    CPU; a GPU adds in an order of its own).

    `data` is what sampling gave, to be learned from (None: not sampled yet), `steps` how many are done. A run with
    other arguments, inputs, torch or threads starts over; FREE ones may change, to go on in less memory for one: they
    decide about the last digits at most. Raises UserError for a damaged file.
    """
    FREE = {"micro", "checkpointing", "sample_tokens", "save_minutes", "print_every"}

    def __init__(self, args):
        self.path, self.every, self.last, self.saved = Path(args.out) / "state.pt", args.save_minutes, time.time(), {}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        inputs = {name: fingerprint(Path(value)) for name, value in vars(args).items()
                  if isinstance(value, str) and name != "out" and Path(value).exists()}
        asked = sorted(item for item in vars(args).items() if item[0] not in self.FREE)
        self.run = repr((asked, inputs, torch.__version__, torch.get_num_threads()))
        if self.path.is_file():
            try:
                found = torch.load(self.path, map_location="cpu", weights_only=True)
                self.saved = found if found["run"] == self.run else {}
            except (OSError, RuntimeError, EOFError, LookupError, TypeError, ValueError,
                    pickle.UnpicklingError) as error:
                raise UserError(f"{self.path}: damaged ({type(error).__name__}): delete it to start over") from None
            print(f"{self.path}: " + (f"going on after {found['step']} steps" if self.saved else
                                      "left by a run with other arguments or inputs: starting over"))
        self.data, self.steps = self.saved.get("data"), self.saved.get("step", 0)

    def once(self, make, *args):
        """What make(*args) returns, made once a run: one that goes on finds it in its state.pt."""
        if self.data is None:
            self.data = make(*args)
        return self.data

    def restore(self, generator, **parts) -> None:
        """Put everything that was saved back into its place, if there is anything."""
        if self.saved:
            generator.set_state(self.saved["generator"])
            for name, part in parts.items():
                part.load_state_dict(self.saved[name])
        self.saved = {}                                                     # make room

    def save(self, step: int, generator_state, **parts) -> None:
        """If it is time for it, write all there is after `step` steps to a file beside the old one, then swap."""
        if step and time.time() - self.last < 60 * self.every:
            return
        states = {name: part.state_dict() for name, part in parts.items()}
        with open(f"{self.path}.tmp", "wb") as file:
            torch.save({"run": self.run, "step": step, "data": self.data, "generator": generator_state, **states}, file)
            file.flush()
            os.fsync(file.fileno())                                         # the bytes first, then the name
        os.replace(file.name, self.path)
        self.last = time.time()


def fingerprint(path: Path) -> int:
    """A checksum of a file's bytes, or of those of all files in a directory."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return zlib.crc32(repr([(file.name, zlib.crc32(file.read_bytes())) for file in files if file.is_file()]).encode())


def write_config(out, args, started: float, **facts):
    """`config.json`: every argument, what else decides a result (torch, threads), and the seconds since `started`."""
    config = {"args": vars(args), "torch": torch.__version__, "threads": torch.get_num_threads(),
              "seconds": round(time.time() - started, 1), **without_nan(facts)}
    write_text(Path(out) / "config.json", json.dumps(config, indent=1, default=str) + "\n")


def lr_schedule(step: int, total: int, warmup: int) -> float:
    """Learning-rate factor of `step` (from 0): linear warm-up over `warmup` steps, then linear decay towards 0."""
    return min((step + 1) / max(1, warmup), (total - step) / max(1, total - warmup), 1.0)


def clip_gradients(parameters, max_norm: float, step: int, loss: float) -> float:
    """Shorten the gradient to `max_norm` if it is longer; returns its norm as it was.

    Raises UserError if loss or norm is not finite: *before* the optimizer's step, so the weights stay usable.
    """
    norm = torch.nn.utils.clip_grad_norm_(parameters, max_norm).item()
    if not math.isfinite(loss + norm):
        raise UserError(f"step {step}: loss {loss} or gradient norm {norm} not finite; stopped before it")
    return norm
