"""What checking costs beside solving, over a list of VNN-LIB instances: each decided in a process of its own.

    OMP_NUM_THREADS=1 python tests/benchmarks/checking.py instances.csv [--timeout 60] [--family acasxu] [--known unsat]

instances.csv has the columns family, onnx, vnnlib (paths beside it) and expected. Of what is verified: wall seconds of
the check, of all other stages, and of the process without its check (imports and reading the files included). Of a
`certify run` with many samples, `certify report` says the same.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path


def decided(onnx: str, spec: str, timeout: float) -> dict[str, float | str]:
    """One instance in this process."""
    begin = time.monotonic()
    from certify.cli.vnnlib_command import decide_property
    from certify.verdict import CHECK_STAGE

    outcome = decide_property(onnx, spec, 0, begin + timeout)
    spent = dict(outcome.seconds)
    check = spent.pop(CHECK_STAGE, 0.0)
    rest = time.monotonic() - begin - check
    return {"verdict": outcome.verdict, "check": check, "solve": sum(spent.values()), "rest": rest}


def line(name: str, found: list[dict[str, float]]) -> str:
    check, solve, rest = (sum(one[key] for one in found) for key in ("check", "solve", "rest"))
    if not found:
        return f"{name:18} none verified"
    ratios = f"{check / solve:5.3f} of the stages, {check / rest:5.3f} of the process"
    return f"{name:18}{len(found):4} verified: checking {check:7.2f} s beside {solve:7.2f} s: {ratios}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("list", type=Path)
    parser.add_argument("--timeout", type=float, default=60.0)
    parser.add_argument("--family")
    parser.add_argument("--known", help="only instances with this in the column `expected`")
    given = parser.parse_args()
    verified: dict[str, list[dict[str, float]]] = defaultdict(list)
    asked = 0
    for row in csv.DictReader(given.list.open()):
        if given.family not in (None, row["family"]) or given.known not in (None, row["expected"]):
            continue
        asked += 1
        files = [str(given.list.parent / row[key]) for key in ("onnx", "vnnlib")]
        command = [sys.executable, __file__, "--one", *files, str(given.timeout)]
        answer = subprocess.run(command, capture_output=True, text=True)
        if answer.returncode:
            print(f"{row['onnx']} {row['vnnlib']}: {answer.stderr.strip().splitlines()[-1]}")
            continue
        found = json.loads(answer.stdout.splitlines()[-1])
        print(
            f"{row['family']:18}{found['verdict']:10} {found['check']:7.3f} {found['solve']:7.2f}  {row['vnnlib']}",
            flush=True,
        )
        if found["verdict"] == "verified":
            verified[row["family"]].append(found)
    for family, some in verified.items():
        print(line(family, some))
    print(line(f"all of {asked}", [one for some in verified.values() for one in some]))


if __name__ == "__main__":  # a hard search starts other processes, which import this file
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(decided(*sys.argv[2:4], float(sys.argv[4]))))
    else:
        main()
