"""Command line of the benchmarks."""

from __future__ import annotations

import importlib
import json
import os
import platform
import sys
import tomllib
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks import harness

HERE = Path(__file__).parent
app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


def names() -> list[str]:
    """All benchmarks there are."""
    skip = {"__init__", "__main__", "harness"}
    return sorted(p.stem for p in HERE.glob("*.py") if p.stem not in skip and not p.stem.startswith("_"))


def machine() -> str:
    """Processor, cores and the Python that ran."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), "unknown")
    return f"{model}, {os.cpu_count()} cores, Python {platform.python_version()}"


def measure(name: str, rounds: int, scale: float) -> dict[str, Any]:
    """Run one benchmark and return its result."""
    if name not in names():
        raise typer.BadParameter(f"no benchmark {name!r}; there are: {', '.join(names())}")
    bench = importlib.import_module(f"benchmarks.{name}").benchmark(scale)
    result = harness.run(bench, rounds, lambda line: print(f"  {line}", file=sys.stderr))
    return {"name": name, "machine": machine(), "scale": scale, **result}


def show(result: dict[str, Any]) -> None:
    """Print a result for people."""
    print(f"\n{result['name']}: {result['what']}\n  {result['machine']}; {result['rounds']} rounds, interleaved")
    for side, metrics in result["sides"].items():
        for metric, s in metrics.items():
            print(f"  {side:<24} {metric:<16} {s['median']:>14,.4g}   ({s['min']:,.4g} to {s['max']:,.4g})")
    for name, r in result["ratios"].items():
        verdict = "met" if r["met"] else "MISSED"
        print(
            f"  ratio {name}: {r['median']:.2f} x against {r['against']} ({r['min']:.2f} to {r['max']:.2f}), "
            f"aim {r['aim']:g}: {verdict}"
        )
    for name, text in result["limits"].items():
        print(f"  limit, {name}: {text}")


@app.command("run")
def run_(
    name: str,
    rounds: Annotated[int, typer.Option(min=5, help="Counted rounds.")] = 5,
    scale: Annotated[float, typer.Option(help="Size of the work; 1 is what the documentation quotes.")] = 1.0,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Measure one benchmark side by side with its peers."""
    result = measure(name, rounds, scale)
    if as_json:
        print(json.dumps(result, indent=1))
    else:
        show(result)


@app.command()
def check(rounds: Annotated[int, typer.Option(min=5)] = 5) -> None:
    """Measure everything that has a floor in floors.toml; exit 1 where a ratio lies below it."""
    floors = tomllib.loads((HERE / "floors.toml").read_text())
    below = []
    for name, ratios in floors.items():
        result = measure(name, rounds, 1.0)
        show(result)
        for ratio, floor in ratios.items():
            if result["ratios"][ratio]["median"] < floor:
                below.append(f"{name} {ratio}: {result['ratios'][ratio]['median']:.2f} x, floor {floor:g}")
    print("\n" + ("below the floor:\n  " + "\n  ".join(below) if below else "every ratio is above its floor"))
    raise typer.Exit(1 if below else 0)


@app.command("list")
def list_() -> None:
    """Names of all benchmarks."""
    print("\n".join(names()))


if __name__ == "__main__":
    app()
