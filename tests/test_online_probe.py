"""The online probe: its three numbers, when it looks, what it keeps, and that it changes nothing of the training."""

import logging
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import log_rows, tiny_mae
from torch import Tensor

from mam2.config import Steps, UserError
from mam2.model.encoder import VideoEncoder
from mam2.model.load import load_encoder
from mam2.ridge import ridge
from mam2.train.online_probe import BEST, Watch, Watcher, cross_validated_ridge, features, leave_one_out, rank_me
from mam2.train.pretrain import Pretrain, pretrain


def clusters(num_classes: int, each: int, *, spread: float) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    label_N = torch.arange(num_classes).repeat(each)
    centre_KD = torch.eye(num_classes, 12) * 3
    return centre_KD[label_N] + spread * torch.randn(len(label_N), 12, generator=generator), label_N


def test_scores_of_classes_that_lie_apart_and_of_noise() -> None:
    apart, label_N = clusters(4, 10, spread=0.1)
    assert leave_one_out(apart, label_N) == 1
    assert cross_validated_ridge(apart, label_N) == 1
    noise = torch.randn(400, 12, generator=torch.Generator().manual_seed(1))
    label_N = torch.arange(4).repeat(100)
    for score in (leave_one_out, cross_validated_ridge):
        assert score(noise, label_N) == pytest.approx(0.25, abs=0.08)  # no video judges itself


def test_no_fold_of_the_ridge_sees_its_own_videos() -> None:
    x_ND, label_N = clusters(3, 10, spread=2.0)
    fold_N = torch.arange(30) // 3 % 5  # label_N runs 0 1 2 0 1 2 ...
    right = 0
    for fold in range(5):
        kept = fold_N != fold
        layer = ridge(x_ND[kept], label_N[kept], num_classes=3, strength=1e-2)
        right += int((layer(x_ND[~kept].double()).argmax(dim=1) == label_N[~kept]).sum())
    assert cross_validated_ridge(x_ND, label_N) == pytest.approx(right / 30)


def test_rank_me_counts_the_directions_that_are_used() -> None:
    basis = torch.linalg.qr(torch.randn(40, 6, generator=torch.Generator().manual_seed(2)))[0]
    assert rank_me(basis @ torch.eye(6)) == pytest.approx(6, abs=1e-2)
    assert rank_me(basis[:, :1] @ torch.ones(1, 6)) == pytest.approx(1, abs=1e-2)


def run_of(videos: Path, *, steps: int = 6, labelled: str = "", every: int = 2) -> Pretrain:
    return replace(tiny_mae(videos, steps=steps), watch=Watch(labelled=labelled, every=Steps(every)))


def watcher_of(videos: Path, encoder: VideoEncoder, folder: Path) -> Watcher:
    config = run_of(videos, labelled=str(videos))
    return Watcher(config.watch, config.data, encoder, folder=folder, seed=0, start_step=0)


def test_a_watched_run_logs_its_looks_and_trains_as_any_other(videos: Path, tmp_path: Path) -> None:
    watched, plain = tmp_path / "watched", tmp_path / "plain"
    assert pretrain(run_of(videos, labelled=str(videos), steps=5), watched)
    assert pretrain(run_of(videos, steps=5), plain)
    looks = [row for row in log_rows(watched) if "probe_ridge" in row]
    assert [row["step"] for row in looks] == [2, 4, 5]
    assert all(0 <= row[name] <= 1 for row in looks for name in ("probe_ridge", "probe_knn"))
    assert all(1 <= row["rank_me"] <= 8 for row in looks)
    a, b = (load_encoder(run).state_dict() for run in (watched, plain))
    assert all(torch.equal(tensor, b[name]) for name, tensor in a.items())
    assert not (plain / BEST).exists()
    # The log's last look is one at the encoder that was saved last.
    encoder = load_encoder(watched)
    watcher = watcher_of(videos, encoder, tmp_path)
    found = watcher(5)
    assert found["probe_ridge"] == looks[-1]["probe_ridge"]
    assert found["rank_me"] == pytest.approx(looks[-1]["rank_me"], abs=1e-4)
    assert encoder.training is False
    assert len(watcher.clip_NTCHW) == 8
    assert watcher.clip_NTCHW.dtype == torch.uint8
    with torch.no_grad():
        expected = encoder(watcher.clip_NTCHW).mean(dim=2).flatten(1)
    torch.testing.assert_close(features(encoder, watcher.clip_NTCHW), expected)


def test_the_best_encoder_is_kept_over_a_resume(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    scores = iter([0.3, 0.7, 0.5, 0.4, 0.5, 0.6, 0.65, 0.9])
    seen = []

    def score(features_ND: Tensor, label_N: Tensor) -> float:
        seen.append(features_ND)
        return next(scores)

    monkeypatch.setattr("mam2.train.online_probe.cross_validated_ridge", score)
    run = tmp_path / "run"
    config = run_of(videos, labelled=str(videos), steps=6, every=2)
    assert pretrain(config, run)
    best = load_encoder(run / BEST)
    clip_NTCHW = watcher_of(videos, best, tmp_path).clip_NTCHW
    assert features(best, clip_NTCHW).equal(seen[1])
    with caplog.at_level(logging.WARNING, logger="mam2"):
        assert pretrain(replace(config, loop=replace(config.loop, duration=Steps(14))), run)
    assert features(load_encoder(run / BEST), clip_NTCHW).equal(seen[1])  # 0.7 is still the best
    assert any("has not risen for 5 looks; the best, 0.700" in r.getMessage() for r in caplog.records)
    assert pretrain(replace(config, loop=replace(config.loop, duration=Steps(16))), run)
    assert features(load_encoder(run / BEST), clip_NTCHW).equal(seen[7])  # 0.9
    assert [row["probe_ridge"] for row in log_rows(run) if "probe_ridge" in row] == [
        0.3,
        0.7,
        0.5,
        0.4,
        0.5,
        0.6,
        0.65,
        0.9,
    ]


def test_what_can_not_be_watched_is_refused(videos: Path, tmp_path: Path) -> None:
    lonely = tmp_path / "lonely"
    shutil.copytree(videos, lonely)
    for file in sorted((lonely / "left").iterdir())[1:]:
        file.unlink()
    with pytest.raises(UserError, match="has one video of the class 'left'"):
        pretrain(run_of(videos, labelled=str(lonely)), tmp_path / "run")
    with pytest.raises(UserError, match="does not exist"):
        pretrain(run_of(videos, labelled=str(tmp_path / "absent")), tmp_path / "run2")
    with pytest.raises(UserError, match=r"watch\.every is 0"):
        Watch(labelled="x", every=Steps(0))
    assert math.isfinite(rank_me(torch.zeros(4, 3)))
