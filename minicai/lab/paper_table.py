"""Which experiments each figure of docs/paper.md needs, and the command of each: a plain table.

A command names a script or a module, and its flags. {base}, {base_small}, {base_large} are base
models; any other {name} is the folder of another experiment, which has to be run first. --seed and
--out are added by minicai.lab.paper, which runs what is not there yet. Whatever is not said is the
default of the script: these are the flags in which an experiment differs from the demo.
"""

BASES = {"base": "data/base", "base_small": "out/bases/small", "base_large": "out/bases/large"}
MAKE = {"base": "make base", "base_small": "make base-small", "base_large": "make base-large"}
MEASURE = "minicai.lab.paper_measure"
# Rounds of revision as in the paper (the demo has half of them, and twice as many prompts).
FINE_TUNE = "train_sft.py --model {base} --rounds 4 --red-team-limit 400"
HELPFUL = "data/helpful_comparisons.jsonl"
HARMLESS = "data/baselines/harmless_comparisons.jsonl"      # only the baselines read it
BY_HAND = "train_pm.py --model {base} --feedback-model {base} --init {base} --comparisons 0"
BY_AI = "train_pm.py --model {sft}/sl_cai --feedback-model {base} --init {base}"
PPO = "train_rl.py --lr 5e-4"             # more of what RL does, good and bad, than the demo shows
FROM_SL = PPO + " --model {sft}/sl_cai"
ALONG = f"{MEASURE} answers --limit 60"
REVISE = f"{MEASURE} revisions --limit 60"


def sized(size: str) -> dict:
    """The demo of another base, and what is measured of base, SL-CAI and RL-CAI."""
    end = "" if size == "base" else size.removeprefix("base")
    sft, pm, rl = f"sft{end}", f"pm{end}", f"rl{end}"
    of = lambda command: command.replace("{base}", f"{{{size}}}").replace("{sft}", f"{{{sft}}}")
    save = "" if end else " --save-every 10"
    return {
        sft: of(FINE_TUNE),
        pm: of(BY_AI),
        rl: of(FROM_SL) + f" --pm {{{pm}}}/pm{save}",
        f"models{end}": of(f"{MEASURE} answers --models base={{base}} sl_cai={{sft}}/sl_cai "
                           f"rl_cai={{{rl}}}/rl_cai"),
        f"revisions{end}": of(f"{REVISE} --model {{base}}"),
        f"direct{end}": of(f"{REVISE} --model {{base}} --direct"),
        f"choices{end}": of(f"{MEASURE} choices --limit 60 --model {{base}}"),
        f"categories{end}": of(f"{MEASURE} categories --model {{base}}"),
    }


def under(law: str) -> dict:
    """The demo under another constitution."""
    by, file = f"_{law}", f" --constitution constitutions/{law}.json"
    return {
        f"sft{by}": FINE_TUNE + file,
        f"pm{by}": BY_AI.replace("{sft}", f"{{sft{by}}}") + file,
        f"rl{by}": f"{PPO} --model {{sft{by}}}/sl_cai --pm {{pm{by}}}/pm",
        f"models{by}": f"{MEASURE} answers --models sl_cai={{sft{by}}}/sl_cai "
                       f"rl_cai={{rl{by}}}/rl_cai",
    }


def labelled(how: str, flags: str) -> dict:
    """Stages 2 and 3 with other labels, what the labels are worth, and what RL makes of them."""
    by = f"_{how}"
    return {
        f"pm{by}": f"{BY_AI} {flags}",
        f"labels{by}": f"{MEASURE} labels --run {{pm{by}}}",
        f"rl{by}": f"{FROM_SL} --pm {{pm{by}}}/pm --save-every 10",
        f"along{by}": f"{ALONG} --temperatures 1 0 --run {{rl{by}}} --start {{sft}}/sl_cai",
    }


def rewarded(name: str, flags: str, start="{sft}/sl_cai", pm="pm", measure="") -> dict:
    """Stage 3 with other flags, measured along its steps."""
    return {
        f"rl_{name}": f"{PPO} --model {start} --pm {{{pm}}}/pm {flags}",
        f"along_{name}": f"{ALONG}{measure} --run {{rl_{name}}} --start {start}",
    }


BOTH = " --temperatures 1 0"            # figure 7 looks at the likeliest answer too
KEEP = "--save-every 10"
CONTROLS = ("cheese", "opposite")
SHAPES = ("clipped", "averse")
COUNTS = (1, 2, 4, 8, 16)
SCORED = ("--pm helpfulness={pm_helpful}/pm harmlessness={pm_harmless}/pm both={pm_hh}/pm")

EXPERIMENTS = {
    **sized("base"), **sized("base_small"), **sized("base_large"),
    "along": f"{ALONG}{BOTH} --run {{rl}} --start {{sft}}/sl_cai",
    # Baselines: people's labels only. HH-RLHF: of both qualities. They begin at the base.
    "pm_helpful": f"{BY_HAND} --human {HELPFUL}",
    "pm_hh": f"{BY_HAND} --human {HELPFUL} {HARMLESS} --human-limit 6000",
    "pm_harmless": f"{BY_HAND} --human {HARMLESS}",
    **rewarded("helpful", f"{KEEP} --red-team-share 0", "{base}", "pm_helpful", BOTH),
    **rewarded("hh", KEEP, "{base}", "pm_hh", BOTH),
    # Labels: those after a thought are the demo's.
    "labels": f"{MEASURE} labels --run {{pm}}",
    **labelled("hard", "--labels hard"),
    **labelled("clamped", "--clamp 0.4 0.6"),
    **labelled("at_once", "--no-chain-of-thought"),
    # Revisions
    "revisions_scored": f"{REVISE} --model {{base}} {SCORED}",
    **{f"revisions_{n}": f"{MEASURE} revisions --limit 20 --samples 4 --model {{base}} "
                         f"--principles {n}" for n in COUNTS},
    # Stage 3: without stage 1, over-trained on purpose, other shapes of the reward
    **rewarded("alone", KEEP, "{base}"),
    **rewarded("over", "--kl-coef 0 --lr 1e-3 --steps 120 --save-every 20",
               measure=" --pm pm={pm}/pm"),
    **{name: command for shape in SHAPES
       for name, command in rewarded(shape, f"{KEEP} --reward-shape {shape}").items()},
    **{name: command for law in CONTROLS for name, command in under(law).items()},
}

SIZES = ("_small", "", "_large")
ALONG_RL = ("along_helpful", "along_hh", "along_at_once", "along")
# {number: (the paper's figure, experiments)}
FIGURES = {
    1: ("Figures 2 and 8", ALONG_RL),
    2: ("Figure 3", tuple(f"models{size}" for size in SIZES)),
    3: ("Figures 4 and 9", tuple(f"choices{size}" for size in SIZES)),
    4: ("Figure 5", (*(f"revisions{size}" for size in SIZES), "revisions_scored")),
    5: ("Figure 6", tuple(f"revisions_{n}" for n in COUNTS)),
    6: ("Figure 7", tuple(f"{how}{size}" for how in ("revisions", "direct") for size in SIZES)),
    7: ("Figure 10", ALONG_RL),
    8: ("Figure 12", tuple(f"categories{size}" for size in SIZES)),
    9: ("none of the paper's", (
        "along", "along_alone", "models", "labels", "labels_hard", "labels_clamped",
        "labels_at_once", "along_hard", "along_clamped", "along_at_once")),
    10: ("none of the paper's", (
        "along_over", *(f"along_{shape}" for shape in SHAPES), "along", "models",
        *(f"models_{law}" for law in CONTROLS))),
}

# Said of every command with --quick: does all of it run? The numbers mean nothing. What a command
# sets to 0 stays 0.
QUICK = {
    "train_sft.py": "--red-team-limit 24 --helpful-limit 24 --helpful-samples 1 --epochs 1",
    "train_pm.py": "--comparisons 24 --human-limit 48 --measure 8",
    "train_rl.py": "--steps 4 --batch 8 --minibatch 8 --micro 8 --save-every 2 --max-new 48",
    MEASURE: "--limit 4 --max-new 64",
}
# Seconds on one thread, where nothing of the kind has been run yet.
SECONDS = {"train_sft.py": 330, "train_pm.py": 250, "train_rl.py": 350, MEASURE: 90}
