"""The rows of this experiment's tables, out of what `arlow evaluate`, `verify-frozen` and `words.py` wrote.

python -m experiments.smollm2.result runs/smollm2 --out experiments/smollm2/result.json
"""

import argparse
from pathlib import Path

from experiments.scenes.result import read_json, read_scores, write_result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder with results/, frozen.json and words.json")
    parser.add_argument("--out", type=Path, required=True, help="JSON to write")
    args = parser.parse_args()
    proofs = {name: read_json(args.run / f"{name}.json") for name in ("frozen", "words")}
    write_result(read_scores(args.run / "results") | proofs, args.out)


if __name__ == "__main__":
    main()
