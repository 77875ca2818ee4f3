"""The token cache: what it gives back is what was computed, and whatever is damaged is computed again."""

import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import TINY, mam2

from mam2.config import UserError, to_json
from mam2.data.catalog import read_catalog
from mam2.data.clips import Data
from mam2.data.shape import Listing
from mam2.data.video.segment_path import fingerprint
from mam2.model.encoder import EncoderConfig
from mam2.targets.cache import TokenCache
from mam2.targets.maker import TargetMaker
from mam2.targets.table import TargetsConfig
from mam2.train.pretrain import Pretrain, token_cache

SHAPE = (2, 3)
CODES = torch.tensor([[[0, 1, 65535], [7, 8, 9]], [[1, 1, 1], [0, 0, 0]]])
RANDOM = TargetsConfig(appearance="random_projection", num_codes=64)


def open_cache(folder: Path, **identity: object) -> TokenCache:
    return TokenCache(folder, identity=identity, num_clips=10, shape=SHAPE)


def test_codes_come_back_under_their_numbers(tmp_path: Path) -> None:
    cache = open_cache(tmp_path / "new" / "folder")
    codes, found = cache.read(torch.tensor([0, 9]))
    assert not found.any()
    cache.write(torch.tensor([9, 4]), CODES)
    codes, found = open_cache(tmp_path / "new" / "folder").read(torch.tensor([4, 0, 9]))
    assert found.tolist() == [True, False, True]
    assert torch.equal(codes[[2, 0]], CODES)
    assert codes[1].count_nonzero() == 0
    assert cache.num_bytes == 10 * (4 + 12)


def test_what_is_damaged_is_absent(tmp_path: Path) -> None:
    cache = open_cache(tmp_path)
    cache.write(torch.tensor([3, 4]), CODES)
    data = bytearray(cache.file.read_bytes())
    assert len(data) == 5 * 16
    for change in (3 * 16, 3 * 16 + 4, 3 * 16 + 15):  # of the checksum, the first and the last code
        cache.file.write_bytes(data[:change] + bytes([data[change] ^ 1]) + data[change + 1 :])
        assert cache.read(torch.tensor([3, 4]))[1].tolist() == [False, True]
    cache.file.write_bytes(data[: 5 * 16 - 1])  # cut short
    assert cache.read(torch.tensor([3, 4]))[1].tolist() == [True, False]
    cache.file.write_bytes(data[: 3 * 16] + data[4 * 16 :] + data[3 * 16 : 4 * 16])  # rows that changed places
    assert not cache.read(torch.tensor([3, 4]))[1].any()


def test_another_identity_is_another_file(tmp_path: Path) -> None:
    cache = open_cache(tmp_path, tokenizer="a")
    cache.write(torch.tensor([0]), CODES[:1])
    assert not open_cache(tmp_path, tokenizer="b").read(torch.tensor([0]))[1].any()
    assert open_cache(tmp_path, tokenizer="a").read(torch.tensor([0]))[1].all()
    assert json.loads(cache.file.with_suffix(".json").read_text())["tokenizer"] == "a"


def test_a_disk_that_is_too_small_is_told_before_and_a_full_one_is_no_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(UserError, match=r"takes [\d.]+ GiB.*fewer --data.fixed-clips"):
        TokenCache(tmp_path, identity={}, num_clips=2**50, shape=SHAPE)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"Give another --targets\.cache"):
        open_cache(tmp_path / "file")
    cache = open_cache(tmp_path)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    cache.write(torch.tensor([1, 2]), CODES)
    assert "No space left" in caplog.text
    assert len(caplog.records) == 1
    assert not cache.read(torch.tensor([1, 2]))[1].any()


def test_the_tokenizer_sees_each_clip_once(tmp_path: Path) -> None:
    maker = TargetMaker(RANDOM, patch_size=4, device=torch.device("cpu"))
    clip, of = torch.randint(256, (3, 2, 3, 8, 8), dtype=torch.uint8), {"sample_B": torch.arange(3), "seed": 0}
    expected = maker(clip, **of).appearance
    maker.cache = TokenCache(tmp_path, identity={}, num_clips=10, shape=(2, 4))
    tokenizer, seen = maker.tokenizer, []
    maker.tokenizer = lambda frames: seen.append(len(frames)) or tokenizer(frames)
    maker.tokenizer.patch_size = 4
    assert torch.equal(maker(clip[:2], **of, fixed_B=torch.tensor([5, 7])).appearance, expected[:2])
    assert torch.equal(maker(clip, **of, fixed_B=torch.tensor([5, 1, 7])).appearance[:2], expected[:2])
    assert torch.equal(maker(clip, **of, fixed_B=torch.tensor([5, 7, 2])).appearance, expected)
    assert seen == [4, 2, 2]  # frames: two clips, then the one that was new, twice
    assert torch.equal(maker(clip, **of).appearance, expected)
    assert seen[3:] == [6]


def test_a_cache_belongs_to_tokenizer_videos_and_clips(videos: Path, tmp_path: Path) -> None:
    catalog = read_catalog(Listing(root=videos), labelled=False)
    config = Pretrain(
        data=Data(root=str(videos), fixed_clips=2),
        encoder=EncoderConfig(width=16, depth=1, num_heads=2, frames=4, size=16, patch_size=4),
        targets=replace(RANDOM, cache=str(tmp_path)),
    )

    def file_of(config: Pretrain) -> Path:
        maker = TargetMaker(config.targets, patch_size=4, device=torch.device("cpu"))
        assert maker.tokenizer
        return token_cache(config, catalog, maker.tokenizer).file

    first = file_of(config)
    assert file_of(replace(config, data=replace(config.data, num_workers=7))) == first
    assert file_of(replace(config, optim=replace(config.optim, base_lr=1.0))) == first
    others = [
        replace(config, data=replace(config.data, fixed_clips=3)),
        replace(config, data=replace(config.data, flip=False)),
        replace(config, data=replace(config.data, stride_frames=2)),
        replace(config, encoder=replace(config.encoder, frames=8)),
        replace(config, encoder=replace(config.encoder, tubelet=2)),
        replace(config, targets=replace(config.targets, num_codes=65)),
        replace(config, targets=replace(config.targets, precision="bf16")),
        replace(config, loop=replace(config.loop, seed=1)),
    ]
    assert len({first, *map(file_of, others)}) == 1 + len(others)
    data = replace(config.data, repeats=3)
    maker = TargetMaker(config.targets, patch_size=4, device=torch.device("cpu"))
    cache = token_cache(replace(config, data=data), catalog, maker.tokenizer)
    assert cache.num_bytes == 8 * 2 * 3 * (4 + 2 * 4 * 16)  # videos, fixed clips, repeats; checksum, frames, patches
    identity = json.loads(cache.file.with_suffix(".json").read_text())
    changes_no_clip = {
        "root",
        "split",
        "path_column",
        "label_column",
        "num_workers",
        "timeout_seconds",
        "max_bad_share",
    }
    assert identity.pop("data") == {k: v for k, v in to_json(data).items() if k not in changes_no_clip}
    assert (identity.pop("videos"), identity.pop("tokenizer")[:2]) == (
        fingerprint(item.path for item in catalog.items),
        ["random_projection", 64],
    )
    assert identity == {"clip": [4, 16, 4, 1], "num_clips": 48, "precision": "fp32", "seed": 0, "shape": [4, 16]}
    path = Path(catalog.items[0].path)
    os.utime(path, (1, 1))
    assert file_of(config) != first
    assert file_of(replace(config, targets=replace(config.targets, num_codes=65536))) not in (first, *others)
    with pytest.raises(UserError, match="of up to 65536"):
        file_of(replace(config, targets=replace(config.targets, num_codes=65537)))
    with pytest.raises(UserError, match="fixed-clips"):
        replace(config, data=replace(config.data, fixed_clips=0))
    with pytest.raises(UserError, match="'pixels' has none"):
        TargetsConfig(appearance="pixels", cache="x")


def test_training_with_a_cache_is_training_without(videos: Path, tmp_path: Path) -> None:
    words = ["pretrain", "mam2_tiny", *TINY, "--loop.duration", "6 steps", "--data.root", videos]
    words += ["--data.fixed-clips", "2"]
    logs = []
    for out, more in (
        ("plain", ()),
        ("first", ("--targets.cache", tmp_path)),
        ("again", ("--targets.cache", tmp_path)),
    ):
        done = mam2(*words, "--out", tmp_path / out, *more)
        assert done.returncode == 0, done.stderr
        rows = [json.loads(line) for line in (tmp_path / out / "log.jsonl").read_text().splitlines()]
        logs.append([(row["loss"], row["grad_norm"]) for row in rows])
    assert logs[0] == logs[1] == logs[2]
    (file,) = tmp_path.glob("*.tokens")
    assert 0 < file.stat().st_size <= 8 * 2 * (4 + 2 * 3 * 16)
