"""Time and memory of variants of one piece of work, and the table that shows them; for bench.py.

Variants take turns (A B C A B C ...), so that a busy minute of the machine hits all of them; shown
are the median and the spread. "times as fast" divides medians: 2.00 means half the time of the
variant that it names.

Memory is the peak of what was allocated during the call, gradients included, inputs not. On a CPU
it is summed from torch's own allocation events (torch.profiler), exact to the byte; what BLAS
allocates for itself is not in it. On CUDA it is torch.cuda.max_memory_allocated.
"""
import os
import statistics
import time

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler reports its own doings on stderr
import torch
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm


def settle(device: torch.device):
    """Wait until the device has done what it was asked to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def has_bf16(device) -> bool:
    """Whether products in bfloat16 are done in hardware here."""
    able = getattr(torch.cpu, "get_capabilities", dict)()
    return device.type == "cuda" or able.get("avx512_bf16", False) or able.get("amx_bf16", False)


def interleave(variants: dict, repeats: int, device, label: str) -> dict:
    """{variant: {phase: [seconds]}} of calling the variants in turn,
    after a first round that does not count.

    A variant is a function; it may return its own {phase: seconds}, else the whole call is the
    phase "".
    """
    times = {name: {} for name in variants}
    with tqdm(total=(repeats + 1) * len(variants), desc=label, leave=False) as bar:
        for turn in range(repeats + 1):
            for name, work in variants.items():
                bar.set_postfix_str(name)
                settle(device)
                start = time.perf_counter()
                phases = work()
                settle(device)
                whole = time.perf_counter() - start
                for phase, seconds in (phases if isinstance(phases, dict) else {"": whole}).items():
                    if turn:
                        times[name].setdefault(phase, []).append(seconds)
                bar.update()
    return times


def whole_calls(variants: dict, repeats: int, device, label: str) -> dict:
    """{variant: [seconds]} of interleave() for variants without phases of their own."""
    return {name: phases[""]
            for name, phases in interleave(variants, repeats, device, label).items()}


def peak_bytes(work, device) -> int:
    """The most bytes that `work()` holds at one moment beyond what was allocated before it."""
    if device.type == "cuda":
        settle(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
        work()
    events = [event for event in prof.profiler.kineto_results.events()
              if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()                       # negative when memory is given back
        most = max(most, now)
    return most


def row(section: str, case: str, variant: str, values: list, unit: str, **more) -> dict:
    """One line of the table: the median of `values` and their spread; more:
    speed, peak_mb, peak, note."""
    return {"section": section, "case": case, "variant": variant, "unit": unit,
            "median": statistics.median(values),
            "low": min(values), "high": max(values), "values": values, "speed": {}, "peak_mb": None,
            "peak": {}, "note": "", **more}


def rows_of(section: str, case: str, times: dict, against=(), amount=None, peaks=(),
            notes=()) -> list:
    """Rows of times {variant: [seconds]}: milliseconds, or `amount` tokens a second.

    against: variants beside which the median, as it is shown, says how many times as fast this one
    is, and by whose peak this one's is divided. peaks {variant: bytes}, notes {variant: text}.
    """
    values = {name: [amount / s if amount else 1000 * s for s in seconds]
              for name, seconds in times.items()}
    middle, rows = {name: statistics.median(found) for name, found in values.items()}, []
    faster = lambda a, b: middle[a] / middle[b] if amount else middle[b] / middle[a]
    for name in times:
        others = [base for base in against if base in middle and base != name]
        peak = {base: peaks[name] / peaks[base]
                for base in others if name in peaks and base in peaks}
        rows.append(row(section, case, name, values[name],
                        "tokens/s" if amount else "ms", note=dict(notes).get(name, ""), peak=peak,
                        speed={base: faster(name, base) for base in others},
                        peak_mb=peaks[name] / 1e6 if name in peaks else None))
    return rows


def shown(value: float) -> str:
    """A number in three or more digits, without those that mean nothing."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def table(rows: list) -> str:
    """All rows as text, a heading for each section."""
    lines, last = [], None
    for r in rows:
        if r["section"] != last:
            last = r["section"]
            lines += ["", f"{last:<36} {'variant':<29} {'median':>8} {'':<8} {'least to most':>16} "
                      f"{'peak MB':>8}  times as fast as"]
        spread = f"{shown(r['low'])} to {shown(r['high'])}" if len(r["values"]) > 1 else ""
        peak = "" if r["peak_mb"] is None else shown(r["peak_mb"])
        facts = [f"{base} {ratio:.2f}" for base, ratio in r["speed"].items()]
        facts += [f"{ratio:.2f} of the peak of {base}" for base, ratio in r["peak"].items()]
        facts += [r["note"]] if r["note"] else []
        lines.append(f"{r['case']:<36} {r['variant']:<29} {shown(r['median']):>8} {r['unit']:<8} "
                     f"{spread:>16} {peak:>8}  {'; '.join(facts)}".rstrip())
    return "\n".join(lines[1:])
