"""Numbers of the paper's four benchmarks (Table 6). It reads no files."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A benchmark's column of Table 6.

    Attributes:
        title: name in print.
        num_train, num_val: videos, rounded as in the paper. UCF101's lists hold more for testing than its 3.5k.
        num_classes: number of classes.
        mean_seconds: average length of a video.
        num_splits: number of official ways to part the videos into training and validation.
    """

    title: str
    num_train: int
    num_val: int
    num_classes: int
    mean_seconds: float
    num_splits: int


BENCHMARKS = {  # Table 6
    "k400": Benchmark(
        title="Kinetics-400", num_train=240_000, num_val=20_000, num_classes=400, mean_seconds=10, num_splits=1
    ),
    "ssv2": Benchmark(
        title="Something-Something V2", num_train=169_000, num_val=20_000, num_classes=174, mean_seconds=4, num_splits=1
    ),
    "ucf101": Benchmark(title="UCF101", num_train=9_500, num_val=3_500, num_classes=101, mean_seconds=7, num_splits=3),
    "hmdb51": Benchmark(title="HMDB51", num_train=3_500, num_val=1_500, num_classes=51, mean_seconds=4, num_splits=3),
}
