"""Write the two constitutions of mine.json to constitutions/mine.json and
constitutions/mine_control.json.

    python exercises/constitution/install.py
"""

import json
import sys
from pathlib import Path

HERE = Path(__file__).parent

if __name__ == "__main__":
    try:
        both = json.loads((HERE / "mine.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        sys.exit(f"{HERE / 'mine.json'}: {error}; `python exercises/check.py constitution` makes "
                 "it, and says when it is right")
    if not isinstance(both, dict) or set(both) != {"constitution", "control"}:
        sys.exit(f"{HERE / 'mine.json'}: it needs the keys constitution and control, no others")
    for name, entry in both.items():
        path = (
            HERE.parents[1]
            / "constitutions"
            / ("mine.json" if name == "constitution" else "mine_control.json")
        )
        path.write_text(json.dumps(entry, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(path)
