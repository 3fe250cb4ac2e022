"""minicai: Constitutional AI (Bai et al. 2022) from scratch, small enough to read in an afternoon."""
import os

# Torch's idle threads spin; on a shared machine that can slow a step thirty times. Must be set before torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
