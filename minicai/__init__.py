"""minicai: Constitutional AI (Bai et al. 2022, arXiv 2212.08073) from scratch, in plain PyTorch."""

import os
import sys

# Torch's idle threads spin; on a shared machine that can slow a step thirty times. A short spin
# before they sleep still pays: a training step of the demo's model took an eighth less with two
# threads. To be set before torch loads.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def _without_traceback(kind, error, trace, usual=sys.excepthook):
    """Ctrl-C in the seconds in which torch is imported: one line.
    (Later, run.friendly_main says more.)"""
    if issubclass(kind, KeyboardInterrupt):
        print("stopped: nothing was begun", file=sys.stderr)
    else:
        usual(kind, error, trace)


sys.excepthook = _without_traceback
