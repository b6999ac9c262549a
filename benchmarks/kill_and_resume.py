"""Kill a run with -9 at random moments, repeat it, and compare its results.json with an undisturbed run's.

python benchmarks/kill_and_resume.py OUT -- --data Sentences_AllAgree.txt

OUT gets the two run folders and their stores; exit code 1 if any figure but costs, times and environment differs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def start(words: list[str], out: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "embedtune", "run", *words, "--out", str(out), "-q"]
    environment = {**os.environ, "EMBEDTUNE_STORE": f"{out}-store"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)


def read_figures(out: Path) -> dict[str, Any]:
    results: dict[str, Any] = json.loads((out / "results.json").read_text(encoding="utf-8"))
    del results["environment"]
    results["verdict"] = results["verdict"].split(", for")[0]
    for arm in results["arms"].values():
        del arm["cost"]
    return results


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("words", nargs="+", help="what follows `embedtune run`, behind --")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument(
        "--seconds", type=float, nargs=2, default=(10, 50), help="shortest and longest life of a process"
    )
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    whole, killed = options.out / "whole", options.out / "killed"
    if start(options.words, whole).wait():
        return 2
    moments = random.Random(options.seed)
    for number in range(options.kills):
        process = start(options.words, killed)
        seconds = moments.uniform(*options.seconds)
        time.sleep(seconds)
        if process.poll() is not None:
            sys.stdout.write(f"finished before kill {number + 1}\n")
            break
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        last = (killed / "log.txt").read_text(encoding="utf-8").splitlines()[-1:]
        sys.stdout.write(f"kill {number + 1} after {seconds:.0f} s: {last}\n")
        sys.stdout.flush()
    if start(options.words, killed).wait():
        return 2
    equal = read_figures(whole) == read_figures(killed)
    sys.stdout.write("equal\n" if equal else "different\n")
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
