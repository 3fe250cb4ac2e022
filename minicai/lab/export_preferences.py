"""Comparisons of stage 2 for other trainers:
`python -m minicai.lab.export_preferences comparisons.jsonl OUT.jsonl`.

TRL and its like read rows of {"prompt": messages, "chosen": messages, "rejected": messages} and
know no soft labels. A row says which response the judge found better, and under "p" how sure it
was; pairs about which it was not sure enough (--decided) are left out, and so are pairs with an
answer that was cut, unless --cut is given.
"""

from minicai.run import (
    Parser,
    UserError,
    friendly_main,
    path,
    read_jsonl,
    real,
    write_jsonl,
)
from minicai.state import new_file, refuse_overlap


def export(rows: list, decided: float = 0.6, cut: bool = False) -> list:
    """TRL's rows out of [(line number, row of comparisons.jsonl)]; `decided`:
    least probability of the better one."""
    out = []
    for _, row in rows:
        if row.get("skipped") or row.get("p_a") is None or any(row.get("cut") or ()) and not cut:
            continue
        p, texts = row["p_a"], (row["a"], row["b"])
        better, worse = texts if p > 0.5 else texts[::-1]
        sure = max(p, round(1 - p, 5))  # as the file has it: 1 - 0.07 is a little less than 0.93
        if sure >= decided and p != 0.5:
            out.append({"prompt": row["messages"],
                        "chosen": [{"role": "assistant", "content": better}],
                        "rejected": [{"role": "assistant", "content": worse}], "p": sure})
    return out


def is_comparison(row: dict) -> bool:
    """Whether a row is one that train_pm.py writes."""
    p, cut, messages = row.get("p_a", "none"), row.get("cut", []), row.get("messages")
    return ((p is None or type(p) in (int, float) and 0 <= p <= 1)
            and all(isinstance(row.get(key), str) for key in "ab")
            and isinstance(cut, list) and isinstance(messages, list) and messages != []
            and all(isinstance(turn, dict) and isinstance(turn.get("content"), str)
                    and turn.get("role") in ("system", "user", "assistant") for turn in messages))


@friendly_main
def main(argv: list[str] | None = None) -> None:
    """Read, choose, write, count."""
    parser = Parser(__doc__, "python -m minicai.lab.export_preferences")
    parser.add_argument("comparisons", type=path, help="comparisons.jsonl of train_pm.py")
    parser.add_argument("out", type=new_file, help="file to write")
    parser.add_argument("--decided", type=real(0.5, 1), default=0.6,
                        help="least probability of the better response")
    parser.add_argument("--cut", action="store_true",
                        help="keep pairs with a response that was cut at --max-new")
    args = parser.parse_args(argv)
    refuse_overlap(args.out.parent, {"COMPARISONS": args.comparisons}, [args.out.name])
    rows = read_jsonl(args.comparisons)
    missing = next((number for number, row in rows if not is_comparison(row)), None)
    if missing:
        raise UserError(f"{args.comparisons}:{missing}: "
                        "not a row of train_pm.py's comparisons.jsonl")
    out = export(rows, args.decided, args.cut)
    if not out:
        raise UserError(f"{args.comparisons}: none of {len(rows)} pairs is decided; "
                        "lower --decided or give --cut")
    write_jsonl(args.out, out)
    print(f"{args.out}: {len(out)} of {len(rows)} pairs")


if __name__ == "__main__":
    main()
