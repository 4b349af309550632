"""The page's figures: a function for each section makes one figure a task (of ranks, one a run)."""

from rankwise.report.figures.cost import memory, speed
from rankwise.report.figures.data import data, facts
from rankwise.report.figures.plot import KINDS, Figure, Style, style_of
from rankwise.report.figures.quality import calibration, confusions
from rankwise.report.figures.ranks import rank_memory, ranks
from rankwise.report.figures.scores import differences, parameters, scores
from rankwise.report.figures.sizes import sizes
from rankwise.report.figures.training import losses, validation

__all__ = [
    "KINDS",
    "Figure",
    "Style",
    "calibration",
    "confusions",
    "data",
    "differences",
    "facts",
    "losses",
    "memory",
    "parameters",
    "rank_memory",
    "ranks",
    "scores",
    "sizes",
    "speed",
    "style_of",
    "validation",
]
