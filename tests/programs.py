"""The scripts as programs of their own: started, stopped, killed; used by the tests of faults."""
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
ENV = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": str(ROOT),
                    "CUDA_VISIBLE_DEVICES": ""}


def start(program: str, *args, **more) -> subprocess.Popen:
    """A running program: "train_sft.py", or "minicai.lab.evaluate" for a module."""
    words = [str(ROOT / program)] if program.endswith(".py") else ["-m", program]
    return subprocess.Popen([sys.executable, *words, *map(str, args)], env=ENV,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more)


def ended(process, seconds: float = 900) -> tuple:
    """(exit code, what it printed, what it complained of)."""
    out, err = process.communicate(timeout=seconds)
    return process.returncode, out, err


def wait_for(process, condition, seconds: float = 600) -> bool:
    """Wait until something is so, or the process has ended: is it so?"""
    until = time.time() + seconds
    while time.time() < until and process.poll() is None:
        if condition():
            return True
        time.sleep(0.005)
    return condition()


def last_line(err: str) -> str:
    """The last line on stderr; progress bars end in carriage returns."""
    return err.strip().replace("\r", "\n").splitlines()[-1] if err.strip() else ""
