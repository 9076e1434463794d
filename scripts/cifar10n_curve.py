"""The real run behind docs/cifar10n.md: CIFAR-10N, prefixes of 1/27, 1/9, 1/3 and all, two seeds.

    python scripts/cifar10n_curve.py --data demo --out runs/cifar10n

A cell is: pretrain on the first n images (40 classes, human labels closed upward), then judge the trunk on the 10,000
test photographs twice: a linear probe, and fine-tuned; both learn from the same 5,000 images whatever n is. Cells run
side by side, one a core. Killed and started again, it computes only what is missing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

TARGET = 5000
FRACTIONS = (27, 9, 3, 1)


def tenfold(*arguments: object) -> Any:
    """One verb in a process of its own; its JSON."""
    command = [str(Path(sys.executable).parent / "tenfold"), *map(str, arguments), "--json"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    return json.loads(done.stdout)


def cell(n: int, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """One point of the curve: accuracies with their intervals, and what they cost."""
    data, out = args.data, args.out / f"n{n}-seed{seed}"
    corpus, test = f"{data}/corpus@closed", f"{data}/test@ingested"
    begin = time.monotonic()
    common = ("--ranks", 1, "--threads", 1, "--seed", seed)
    tenfold("pretrain", "cifar10n", "--corpus", corpus, "--n", n, "--epochs", args.epochs, *common, "--out", out)
    trained = time.monotonic()
    probe = tenfold(
        "probe", out, "--corpus", f"{data}/corpus@ingested", "--test", test, "--train-n", TARGET, "--gate", "test"
    )
    tuned_run = args.out / f"n{n}-seed{seed}-tuned"
    tuned = (
        "pretrain",
        "cifar10n_finetune",
        "--corpus",
        args.out / "target",
        "--init",
        out,
        "--epochs",
        args.tune_epochs,
    )
    tenfold(*tuned, *common, "--out", tuned_run)
    own = tenfold(
        "probe", tuned_run, "--corpus", args.out / "target", "--test", test, "--head", "own"
    )  # fmt: skip
    row = {
        "n": n,
        "seed": seed,
        "probe": [probe["accuracy"], *probe["interval"]],
        "probe_clean": [probe["without_near_duplicates"]["accuracy"], *probe["without_near_duplicates"]["interval"]],
        "tuned": [own["accuracy"], *own["interval"]],
        "pretrain_seconds": round(trained - begin),
        "seconds": round(time.monotonic() - begin),
    }
    print(json.dumps(row), flush=True)
    return row


def baseline(args: argparse.Namespace) -> dict[str, Any]:
    """The untrained trunk: probe, and trained from scratch on the target images alone."""
    data, out = args.data, args.out / "scratch"
    test = f"{data}/test@ingested"
    probe = tenfold(
        "probe", "random:cifar10n", "--corpus", f"{data}/corpus@ingested", "--test", test, "--train-n", TARGET
    )
    tuned = ("pretrain", "cifar10n_finetune", "--corpus", args.out / "target", "--epochs", args.tune_epochs)
    tenfold(*tuned, "--ranks", 1, "--threads", 1, "--out", out)
    own = tenfold("probe", out, "--corpus", args.out / "target", "--test", test, "--head", "own")
    return {"probe": [probe["accuracy"], *probe["interval"]], "tuned": [own["accuracy"], *own["interval"]]}


def main() -> None:
    """Run all cells and write `result.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("demo"), help="folder of `make demo`: corpus, test and gate")
    parser.add_argument("--out", type=Path, default=Path("runs/cifar10n"))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--epochs", type=float, default=8)
    parser.add_argument("--tune-epochs", type=float, default=20)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    corpus = tenfold("corpus", "info", f"{args.data}/corpus@ingested")
    if not (args.out / "target" / "manifest.json").exists():
        nodes = json.loads((args.data / "data/cifar10n/classes.json").read_text())
        inner = {parent for node in nodes for parent in node["parents"]}
        (args.out / "leaves.txt").write_text("".join(f"{n['name']}\n" for n in nodes if n["name"] not in inner))
        tenfold(
            "corpus", "subset", f"{args.data}/corpus@ingested", "--n", TARGET,
            "--classes-file", args.out / "leaves.txt", "--to", args.out / "target",
        )  # fmt: skip
    rows = int(corpus["rows"] if "rows" in corpus else corpus["images"])
    sizes = [-(-rows // part) for part in FRACTIONS]
    begin = time.monotonic()
    # The largest first: they take as long as all others together.
    cells = [(n, seed) for n in reversed(sizes) for seed in range(args.seeds)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        first = pool.submit(baseline, args)
        found = list(pool.map(lambda c: cell(*c, args), cells))
    result = {
        "machine": f"{os.cpu_count()} cores, Python {platform.python_version()}",
        "epochs": args.epochs,
        "tune_epochs": args.tune_epochs,
        "target": TARGET,
        "seconds": round(time.monotonic() - begin),
        "scratch": first.result(),
        "cells": sorted(found, key=lambda row: (row["n"], row["seed"])),
    }
    (args.out / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    print(f"{result['seconds']} s; {args.out / 'result.json'}")


if __name__ == "__main__":
    main()
