"""Plots the rollout benchmark: docs/rollouts.svg, from bench/results/rollouts.json."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

RESULT = Path(__file__).parent / "results" / "rollouts.json"
PLOT = Path(__file__).parent.parent / "docs" / "rollouts.svg"
MODES = {"naive": "naive", "naive_cached": "naive,\ncached", "ours": "ours", "raw": "ours' requests,\nall at once"}
PANELS = {"generated_tokens": "tokens generated", "prefill_tokens": "prompt tokens computed", "seconds": "seconds"}


def main() -> None:
    result = json.loads(RESULT.read_text())
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    for axes, (name, title) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
        values = [result[mode][name] for mode in MODES]
        bars = axes.bar(list(MODES.values()), values, color=["#bbbbbb", "#bbbbbb", "#1f6fb4", "#9ec5e6"])
        axes.bar_label(bars, labels=[f"{value:,.0f}" for value in values], fontsize=8)
        if name in result["floor"]:
            axes.axhline(result["floor"][name], color="black", linewidth=0.8, linestyle="--")
        axes.set_yscale("log")
        axes.set_title(f"{title}{' (dashed: the floor)' if name in result['floor'] else ''}", fontsize=9)
        axes.tick_params(labelsize=8)
    with mpl.rc_context({"svg.hashsalt": "brevity"}):  # the same figures give the same file
        figure.savefig(PLOT, metadata={"Date": None})


if __name__ == "__main__":
    main()
