"""Pictures of students: where samples go, what digits look like, how a loss fell."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from core.training import History

from .digits import SIDE
from .grounds import NamedGround

mpl.use("Agg", force=False)


def draw_samples(
    ground: NamedGround, states: list[Tensor], data: Tensor, teacher: Tensor, path: Path
) -> None:
    """The last of `states` [B, ...] against the data, and the way there where it can be drawn.

    Digits and clouds stand beside the `teacher`'s [B, ...] instead, of the same seed.
    """
    if ground.name == "digits":
        figure = _digit_grids({"student": states[-1], "teacher": teacher})
    elif ground.name == "clouds":
        figure = _clouds({"student": states[-1], "teacher": teacher})
    elif ground.name == "mixture":
        figure = _plane(states, data)
    else:
        figure = _line(states, data)
    figure.savefig(path, dpi=120)


def _digit_grids(sheets: dict[str, Tensor], columns: int = 10) -> Figure:
    """A sheet for each name, side by side."""
    rows = max(1, min(len(next(iter(sheets.values()))) // columns, 10))
    figure = Figure(figsize=(len(sheets) * columns * 0.45, rows * 0.45 + 0.3), layout="tight")
    for axes, (name, images) in zip(
        figure.subplots(1, len(sheets), squeeze=False)[0], sheets.items(), strict=True
    ):
        shown = images[: rows * columns].reshape(rows, -1, SIDE, SIDE)
        shown = torch.nn.functional.pad(shown, (1, 1, 1, 1), value=0.0)
        sheet = shown.permute(0, 2, 1, 3).reshape(rows * (SIDE + 2), -1)
        axes.imshow(sheet.numpy(), cmap="gray", vmin=-1, vmax=1)
        axes.set_title(name, fontsize=9)
        axes.set_axis_off()
    return figure


def _clouds(sheets: dict[str, Tensor], columns: int = 6) -> Figure:
    """A row for each name."""
    figure = Figure(figsize=(columns * 1.6, len(sheets) * 1.6), layout="tight")
    for row, (name, clouds) in enumerate(sheets.items()):
        for i, cloud in enumerate(clouds[:columns].numpy()):
            axes = figure.add_subplot(len(sheets), columns, row * columns + i + 1, projection="3d")
            # The world's up is y, matplotlib's z.
            axes.scatter(cloud[:, 2], cloud[:, 0], cloud[:, 1], s=3)
            axes.set_title(name if i == 0 else "", fontsize=9)
            axes.set_axis_off()
    return figure


def _plane(states: list[Tensor], data: Tensor) -> Figure:
    figure = Figure(figsize=(8, 4), layout="tight")
    way, cloud = figure.subplots(1, 2)
    if all(state.shape == states[-1].shape for state in states):
        path = torch.stack(states)[:, :200].numpy()
        way.plot(path[:, :, 0], path[:, :, 1], lw=0.4, color="tab:gray", alpha=0.6)
        way.scatter(path[0, :, 0], path[0, :, 1], s=3, color="tab:orange", label="start")
        way.scatter(path[-1, :, 0], path[-1, :, 1], s=3, color="tab:blue", label="sample")
        way.legend(loc="upper right", fontsize=7)
        way.set_title(f"trajectories, {len(states) - 1} steps", fontsize=9)
    cloud.scatter(data[:, 0], data[:, 1], s=1, color="lightgray", label="data")
    end = states[-1].numpy()
    cloud.scatter(end[:, 0], end[:, 1], s=1, color="tab:blue", label="student")
    cloud.legend(loc="upper right", fontsize=7)
    for axes in (way, cloud):
        axes.set_xlim(-3, 3)
        axes.set_ylim(-3, 3)
        axes.set_aspect("equal")
    return figure


def _line(states: list[Tensor], data: Tensor) -> Figure:
    figure = Figure(figsize=(8, 3.5), layout="tight")
    way, density = figure.subplots(1, 2)
    path = torch.stack([state[:200].reshape(-1) for state in states if state.shape[1] == 1])
    way.plot(np.arange(len(path)), path.numpy(), lw=0.4, color="tab:gray")
    way.set_xlabel("step")
    bins = np.linspace(-2.5, 2.5, 80)
    density.hist(data.numpy().ravel(), bins, density=True, color="lightgray", label="data")
    density.hist(states[-1].numpy().ravel(), bins, density=True, histtype="step", label="student")
    density.legend(fontsize=7)
    return figure


def draw_history(history: History, path: Path) -> None:
    """Each player's loss by step, averaged over windows, stages marked."""
    figure = Figure(figsize=(6, 3), layout="tight")
    axes = figure.subplots()
    for name, series in history.losses.items():
        values = np.asarray(series)
        width = max(1, len(values) // 100)
        kept = values[: len(values) // width * width].reshape(-1, width).mean(1)
        axes.plot(np.arange(len(kept)) * width, kept, label=name)
    for name, at in history.stages[1:]:
        axes.axvline(at, color="lightgray", lw=0.8)
        axes.annotate(name, (at, 1), xycoords=("data", "axes fraction"), fontsize=6, va="top")
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.legend(fontsize=7)
    figure.savefig(path, dpi=120)
