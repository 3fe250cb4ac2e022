"""Write the two constitutions of mine.json to constitutions/mine.json and
constitutions/mine_control.json.

    python exercises/constitution/install.py
"""

import json
from pathlib import Path

HERE = Path(__file__).parent

if __name__ == "__main__":
    for name, entry in json.loads((HERE / "mine.json").read_text(encoding="utf-8")).items():
        path = (
            HERE.parents[1]
            / "constitutions"
            / ("mine.json" if name == "constitution" else "mine_control.json")
        )
        path.write_text(json.dumps(entry, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(path)
