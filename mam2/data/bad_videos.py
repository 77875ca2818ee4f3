"""Unusable videos: each is reported once, some are forgiven, more end the run."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from mam2 import distributed
from mam2.config import UserError

log = logging.getLogger("mam2")


@dataclass(kw_only=True)
class BadVideos:
    """The damaged or too short videos that this process met so far.

    Attributes:
        num_videos: all videos, each counted once.
        max_share: how many can be unusable, as a share of all; one is always forgiven unless this is 0.
        reasons: why each is unusable, by path.
    """

    num_videos: int
    max_share: float
    reasons: dict[str, str] = field(default_factory=dict)

    @property
    def num_forgiven(self) -> int:
        """Number of videos that are forgiven."""
        return max(1, int(self.max_share * self.num_videos)) if self.max_share > 0 else 0

    def add(self, found: dict[str, str]) -> None:
        """Reports those that are new. Raises UserError if there are too many."""
        for path, reason in found.items():
            if path not in self.reasons:
                self.reasons[path] = reason
                log.warning("Left out: %s", reason)
        self.check()

    def of_all_processes(self) -> dict[str, str]:
        """The reasons that all processes found; every process must call it. Raises UserError if there are too many."""
        reasons = {path: why for found in distributed.gather(self.reasons) for path, why in found.items()}
        BadVideos(num_videos=self.num_videos, max_share=self.max_share, reasons=reasons).check()
        return reasons

    def check(self) -> None:
        """Raises UserError if more videos are unusable than are forgiven, or all of them."""
        num_bad = len(self.reasons)
        if num_bad > self.num_forgiven or num_bad == self.num_videos:
            first = list(self.reasons.values())[:5]
            raise UserError(
                f"{num_bad} of {self.num_videos} videos can't be used; data.max_bad_share = {self.max_share:g} "
                f"forgives {self.num_forgiven}. Fix or remove them, or raise --data.max-bad-share. "
                f"The first {len(first)}:" + "".join(f"\n  {reason}" for reason in first)
            )
