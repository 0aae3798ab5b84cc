"""Draws the plots of `docs/scale.md` from `results/scale.json`.

    make simulate             # simulates, then runs `.venv/bench/bin/python -m bench.plots`

It has its own virtual environment, `.venv/bench`, because nothing else needs matplotlib.
"""

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt

HERE = Path(__file__).parent
IMAGES = HERE.parent / "docs" / "images"
STEP_MINUTES = 1
WIDTH, HEIGHT = 7.5, 4.2


def broadcasts(results: dict[str, Any]) -> None:
    """Plot the seconds to the last recipient over the number of recipients."""
    figure, axes = plt.subplots(figsize=(WIDTH, HEIGHT))
    lines: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for entry in results["broadcasts"]:
        if "seconds" in entry:
            lines.setdefault((entry["quota"], entry["megabytes"]), []).append(entry)
    for (quota, megabytes), entries in lines.items():
        axes.plot(
            [entry["recipients"] for entry in entries],
            [entry["seconds"] for entry in entries],
            marker="o",
            linestyle="-" if megabytes > 1000 else "--",
            color="tab:blue" if quota > 10_000 else "tab:orange",
            label=f"quota {quota:,}/s, workers of {megabytes:,} MB",
        )
    counts = [10**power for power in range(3, 8)]
    loop = results["measured"]["chaliceLoop"]
    axes.plot(
        counts,
        [count / loop for count in counts],
        color="grey",
        linestyle=":",
        label="Chalice's own loop, as measured",
    )
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="recipients",
        ylabel="seconds to the last recipient",
        title="One broadcast, alone in the account",
    )
    axes.grid(visible=True, which="major", alpha=0.4)
    axes.legend(fontsize="small")
    save(figure, "scale-broadcast.svg")


def storms(results: dict[str, Any]) -> None:
    """Plot the share of clients online and the refused handshakes, after all were cut off."""
    figure, (online, refused) = plt.subplots(2, 1, figsize=(WIDTH, 6.5), sharex=True)
    for name, crowd in results["crowds"].items():
        if not name.endswith(" 500/s"):
            continue
        minutes = [STEP_MINUTES * (step + 1) for step in range(len(crowd["online"]))]
        label = name.rpartition(",")[0]
        online.plot(minutes, [share * 100 for share in crowd["online"]], label=label)
        refused.plot(minutes, [max(1, count) for count in crowd["refused"]], label=label)
    online.set(
        ylabel="% online", title="A million clients are cut off at once; 500 a second can connect"
    )
    refused.set(ylabel="refused handshakes per second", xlabel="minutes", yscale="log")
    for axes in (online, refused):
        axes.grid(visible=True, alpha=0.4)
        axes.legend(fontsize="small", title="how clients reconnect")
    save(figure, "scale-storm.svg")


def months(results: dict[str, Any]) -> None:
    """Plot dollars a month, by component."""
    figure, axes = plt.subplots(figsize=(WIDTH, HEIGHT + 1))
    names = list(results["months"])
    left = [0.0] * len(names)
    for component in next(iter(results["months"].values())):
        dollars = [results["months"][name][component] for name in names]
        if max(dollars) < 100:
            continue  # too thin to see; the table has it
        axes.bar(
            [name.replace(", ", ",\n") for name in names],
            dollars,
            bottom=left,
            label=component,
            width=0.5,
        )
        left = [below + more for below, more in zip(left, dollars, strict=True)]
    axes.set(ylabel="dollars a month", title="A million connections at all times")
    axes.set_xlim(-0.5, 2.6)
    axes.legend(fontsize="small", loc="center right", reverse=True)
    save(figure, "scale-cost.svg")


def save(figure: Any, name: str) -> None:
    """Write a figure as an SVG that is the same for the same data."""
    figure.tight_layout()
    figure.savefig(IMAGES / name, metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "herald"  # the same data makes the same file
    IMAGES.mkdir(exist_ok=True)
    results = json.loads((HERE / "results" / "scale.json").read_text())
    broadcasts(results)
    storms(results)
    months(results)


if __name__ == "__main__":
    main()
