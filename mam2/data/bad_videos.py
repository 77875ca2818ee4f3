"""Unusable videos: each is reported once, some are forgiven, more end the run."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from mam2 import distributed
from mam2.config import UserError

log = logging.getLogger("mam2")


@dataclass(kw_only=True)
class BadVideos:
    """Damaged or too short videos that this process met so far.

    Attributes:
        num_videos: number of all videos, each counted once.
        max_share: share of the videos that may be unusable; one is always forgiven unless this is 0.
        reasons: reasons by path.
    """

    num_videos: int
    max_share: float
    reasons: dict[str, str] = field(default_factory=dict)

    @property
    def num_forgiven(self) -> int:
        """Number of videos that may be unusable."""
        return max(1, int(self.max_share * self.num_videos)) if self.max_share > 0 else 0

    def add(self, found: dict[str, str]) -> None:
        """Reports new ones. Raises UserError for too many."""
        for path, reason in found.items():
            if path not in self.reasons:
                self.reasons[path] = reason
                log.warning("Left out: %s", reason)
        self.check()

    def of_all_processes(self) -> dict[str, str]:
        """Gathers the reasons of all processes; every process must call it. Raises UserError for too many."""
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
