"""A contestant's process: prepares once, then runs whenever it is told to.

Started as a file, by whatever Python the contestant needs: standard library only, and nothing of embedtune.

    python worker.py SCRIPT JOB.json

SCRIPT defines ``prepare(job) -> run``, and ``run()`` does the job once and returns a dict of facts; a NumPy
array in it goes to a file. What it prints goes to standard error.
"""

import json
import os
import resource
import runpy
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def serve(run: Callable[[], dict[str, Any]], folder: Path, *, pipe: Any) -> None:
    """Answer each line of standard input with one line of JSON about one run, written to `pipe`."""
    for n_runs, line in enumerate(sys.stdin):
        if line.strip() == "stop":
            return
        cpu, started = time.process_time(), time.perf_counter()
        facts = run()
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
        arrays = {}
        for name in [name for name, value in facts.items() if hasattr(value, "__array_interface__")]:
            import numpy  # the contestant's own

            arrays[name] = str(folder / f"{os.getpid()}-{n_runs}-{name}.npy")
            numpy.save(arrays[name], facts.pop(name))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        answer = {
            "seconds": seconds,
            "cpu_seconds": cpu,
            "peak_bytes": peak,
            "arrays": arrays,
            "facts": facts,
        }
        pipe.write(json.dumps(answer) + "\n")
        pipe.flush()


def main() -> None:
    """Prepare the script's job, say so, and serve."""
    script, job = Path(sys.argv[1]), Path(sys.argv[2])
    pipe = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    sys.path.insert(0, str(script.parent))
    run = runpy.run_path(str(script))["prepare"](json.loads(job.read_text(encoding="utf-8")))
    pipe.write("{}\n")
    pipe.flush()
    serve(run, job.parent, pipe=pipe)


if __name__ == "__main__":
    # This file's folder would shadow the standard library's modules of the same names.
    sys.path = [
        entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).parent.resolve()
    ]
    main()
