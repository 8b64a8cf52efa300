"""Colours and words that the figures of a search share, still and interactive alike."""

from __future__ import annotations

from crh_tune.tuning.record import COMPLETE, FAILED, PRUNED

# Okabe and Ito's colours, told apart by all common kinds of colour vision
BLUE, ORANGE, GREEN, RED, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
GREY, PALE = "#777777", "#BBBBBB"
STATUS_COLORS = {COMPLETE: BLUE, PRUNED: ORANGE, FAILED: RED, "running": GREEN}
STATUS_WORDS = {
    COMPLETE: "came to its end",
    PRUNED: "stopped early",
    FAILED: "failed",
    "running": "still running",
}
METRIC_WORDS = {"val/map": "validation mAP", "test/map": "test mAP", "centers/pcc": "PCC of the centres"}
LINES = (BLUE, ORANGE, GREEN, PURPLE, SKY, GREY)


def metric_word(metric: str) -> str:
    """How a metric is called on a page."""
    return METRIC_WORDS.get(metric, metric)
