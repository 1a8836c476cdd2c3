"""Measure klcli's speed and memory here: `python -m bench.run`, at the repository's root.

Prints a table of ratios, each against a baseline of the same run, and writes it as JSON beside. No
test: a figure that misses its goal is shown so, and fails nothing. What cannot be measured here is
shown with the reason.
"""

import argparse
import dataclasses
import importlib
import json
import os
from pathlib import Path

PARTS = ("causal", "masked", "files", "memory", "growth", "processes", "programs", "gpu")


def main() -> None:
    """Measure what is asked for, and show each figure as it comes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the work to do")
    parser.add_argument("--threads", type=int, help="threads of torch")
    parser.add_argument("--json", default="bench.json", help="where to")
    options = parser.parse_args()
    os.environ.setdefault("TQDM_DISABLE", "1")
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    if options.threads:
        torch.set_num_threads(options.threads)
    found, skipped = [], []
    print("| measure | found | rounds | goal | met |\n|---|---|---|---|---|")
    for part in options.parts or PARTS:
        for figure in importlib.import_module(f"bench.{part}").figures(options.scale):
            if isinstance(figure, str):
                print(f"| {figure} | skipped | | | |", flush=True)
                skipped.append(figure)
                continue
            low, high = figure.spread
            met = {True: "yes", False: "**no**", None: ""}[figure.met]
            print(
                f"| {figure.measure} | {figure.value:.3g} {figure.unit} | {low:.3g} to {high:.3g} "
                f"| {figure.wanted} | {met} |",
                flush=True,
            )
            found.append(dataclasses.asdict(figure) | {"met": figure.met})
    result = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "scale": options.scale,
        "figures": found,
        "skipped": skipped,
    }
    Path(options.json).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
