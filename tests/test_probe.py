"""Probes on made-up features, and on the features of a tiny encoder for small rendered videos."""

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import mam2.probe.features
import mam2.probe.heads
import mam2.probe.probe
from mam2.config import UserError, from_json
from mam2.data import clips
from mam2.data.catalog import Catalog, read_catalog
from mam2.data.clips import Data
from mam2.data.shape import ClipShape, Listing
from mam2.data.views import ViewLoader
from mam2.model.attention import CrossAttention
from mam2.model.encoder import EncoderConfig, VideoEncoder
from mam2.model.pooling import AttentiveHead, Standardise
from mam2.model.weights import save_encoder
from mam2.probe.features import Features
from mam2.probe.heads import hold_out, knn_votes, probabilities
from mam2.probe.probe import Probe, fit_head, judge, probe_encoder, samples
from mam2.ridge import ridge

TINY = EncoderConfig(width=16, depth=1, num_heads=2, frames=3, size=16, patch_size=4)
QUICK = Probe(epochs=15, batch_size=32, learning_rates=(0.01, 0.1), weight_decays=(0.01,), trials=2, num_workers=0)
KINDS = ("linear", "ridge", "attentive", "knn")
SIZES = {"num_classes": 4, "num_heads": 2}


def made_up(num_videos: int, *, seed: int, signal: float, views: int = 2) -> Features:
    """Noise (N, V, 3, 1, 8); with a signal, the class is channel `label` of every frame."""
    generator = torch.Generator().manual_seed(seed)
    label_N = torch.arange(num_videos) % 4
    x_NVTSD = torch.randn(num_videos, views, 3, 1, 8, generator=generator)
    x_NVTSD[torch.arange(num_videos), ..., label_N] += signal
    return Features(x_NVTSD=x_NVTSD, label_N=label_N, index_N=torch.arange(num_videos), bad={})


def extract(encoder: VideoEncoder, catalog: Catalog, config: Probe, folder: Path, **views: int) -> Features:
    settings = config.extraction(encoder, **views, dtype=None)
    settings = replace(settings, data=replace(settings.data, timeout_seconds=5))  # a dead process is noticed after that
    return mam2.probe.features.extract(encoder, catalog, settings, folder)


@pytest.fixture
def encoder() -> VideoEncoder:
    torch.manual_seed(1)
    return VideoEncoder(TINY)


@pytest.fixture
def forwards(monkeypatch) -> list[int]:
    """The sizes of the batches that went through an encoder."""
    seen, forward = [], VideoEncoder.forward

    def counted(self: VideoEncoder, clip_BTCHW: Tensor) -> Tensor:
        seen.append(len(clip_BTCHW))
        return forward(self, clip_BTCHW)

    monkeypatch.setattr(VideoEncoder, "forward", counted)
    return seen


@pytest.mark.parametrize("pooling", ["space", "all"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_separable_is_found_and_what_is_not_is_chance(kind, pooling) -> None:
    config = replace(QUICK, kind=kind, pooling=pooling)
    train, test = (made_up(n, seed=n, signal=10) for n in (80, 100))
    assert judge(config, train, test, **SIZES)[0]["top1"] == 1.0
    noise, test = (made_up(n, seed=n, signal=0) for n in (80, 1000))
    assert judge(config, noise, test, **SIZES)[0]["top1"] == pytest.approx(0.25, abs=0.06)  # four standard errors


@pytest.mark.parametrize("kind", KINDS)
def test_the_test_videos_have_no_say(kind) -> None:
    config = replace(QUICK, kind=kind, learning_rates=(0.001, 0.01, 0.1), epochs=10)
    train, test = made_up(60, seed=0, signal=0.7), made_up(100, seed=1, signal=0.7)
    report, result, _ = judge(config, train, test, **SIZES)
    order = torch.randperm(100, generator=torch.Generator().manual_seed(2))
    other, permuted, _ = judge(config, train, replace(test, label_N=test.label_N[order]), **SIZES)
    assert other["chosen"] == report["chosen"]
    assert torch.equal(permuted.probabilities_BK, result.probabilities_BK)
    assert other["top1"] != report["top1"]
    wild = replace(test, x_NVTSD=100 * test.x_NVTSD[order] - 7)
    assert judge(config, train, wild, **SIZES)[0]["chosen"] == report["chosen"]
    if kind != "knn":
        assert other["sweep"] == report["sweep"]
        best = max(report["sweep"], key=lambda row: (row["held_out_top1"], -row["held_out_loss"]))
        assert report["chosen"].items() <= best.items()


def test_a_choice_is_made_among_all_settings_on_training_videos_only(monkeypatch) -> None:
    """Held-out videos are in no fit that judges them; the final fit is on all."""
    train, test = made_up(40, seed=0, signal=3), made_up(20, seed=1, signal=3)
    fitted, judged = [], []
    monkeypatch.setattr(mam2.probe.probe, "fit_head", lambda c, x, *a, **k: fitted.append(x) or fit_head(c, x, *a, **k))
    monkeypatch.setattr(mam2.probe.probe, "probabilities", lambda h, x: judged.append(x) or probabilities(h, x))
    judge(QUICK, train, test, **SIZES)
    all_x, test_x = samples(train, QUICK), samples(test, QUICK)
    assert [len(x) for x in fitted] == [32, 32, 32, 32, 40]
    assert torch.equal(fitted[-1], all_x)
    assert torch.equal(judged[-1], test_x)
    for part, held in zip(fitted[:-1], judged[:-1], strict=True):
        rows = torch.cat([part, held]).flatten(1)
        assert torch.equal(rows.unique(dim=0), all_x.flatten(1).unique(dim=0))
        assert len(rows) == 40


@pytest.mark.parametrize("kind", ["linear", "ridge", "attentive"])
def test_features_are_standardised_by_the_training_videos(kind) -> None:
    config = replace(QUICK, kind=kind, epochs=1)
    x_NV = samples(made_up(300, seed=0, signal=0), config) * 3 + 5
    setting = {"learning_rate": 0.01, "weight_decay": 0.0, "strength": 0.01}
    head = fit_head(config, x_NV, torch.arange(300) % 4, setting, **SIZES)
    standardise = head[0]
    rows = x_NV.flatten(0, -2)
    torch.testing.assert_close(standardise.mean_F, rows.mean(dim=0))
    torch.testing.assert_close(standardise.std_F, rows.std(dim=0, correction=0))
    z = standardise(rows)
    torch.testing.assert_close(z.mean(dim=0), torch.zeros(rows.shape[1]), atol=1e-5, rtol=0)
    before = standardise.mean_F.clone()
    probabilities(head, x_NV + 100)
    assert torch.equal(standardise.mean_F, before)


@pytest.mark.parametrize("num_videos", [5, 40])
def test_ridge_regression_is_the_textbooks_among_samples_or_features(num_videos) -> None:
    generator = torch.Generator().manual_seed(0)
    x_NF = torch.randn(num_videos, 12, generator=generator).double() + 3
    label_N = torch.arange(num_videos) % 3
    layer = ridge(x_NF, label_N, num_classes=3, strength=0.2)
    centred, target = x_NF - x_NF.mean(0), F.one_hot(label_N).double()
    penalty = 0.2 * centred.square().sum(1).mean() * torch.eye(12)
    weight = torch.linalg.inv(centred.T @ centred + penalty) @ centred.T @ (target - target.mean(0))
    torch.testing.assert_close(layer(x_NF), centred @ weight + target.mean(0))


def test_a_constant_feature_is_not_blown_up() -> None:
    x_NF = torch.full((10, 1, 2), 3.0, dtype=torch.float16)
    assert Standardise(x_NF)(torch.full((1, 2), 3.5)).tolist() == [[0.5, 0.5]]


def test_probabilities_are_averaged_over_views_whatever_the_batch(monkeypatch) -> None:
    monkeypatch.setattr(mam2.probe.heads, "VIDEOS_AT_ONCE", 4)
    config = replace(QUICK, epochs=2)
    train, test = made_up(40, seed=0, signal=2), made_up(10, seed=1, signal=2, views=3)
    x_NV = samples(test, config)
    setting = {"learning_rate": 0.1, "weight_decay": 0.0}
    head = fit_head(config, samples(train, config), train.label_N, setting, **SIZES)
    found = probabilities(head, x_NV)
    with torch.no_grad():
        wanted = torch.stack([head(x_NV[:, i]).softmax(dim=1) for i in range(3)]).mean(dim=0)
    torch.testing.assert_close(found, wanted)
    again = fit_head(config, samples(train, config), train.label_N, setting, **SIZES)
    assert torch.equal(probabilities(again, x_NV), found)


def test_neighbours_are_counted_as_one_would_by_hand() -> None:
    generator = torch.Generator().manual_seed(0)
    bank, query = torch.randn(30, 5, generator=generator), torch.randn(7, 5, generator=generator)
    label_N = torch.randint(3, (30,), generator=generator)
    for k in (1, 4, 30, 200):
        found = knn_votes(bank, label_N, query, k=k, temperature=0.07, num_classes=3)
        for i in range(7):
            cosines = [(float(torch.cosine_similarity(bank[j], query[i], dim=0)), int(label_N[j])) for j in range(30)]
            votes = torch.zeros(3)
            for cosine, label in sorted(cosines, reverse=True)[:k]:
                votes[label] += torch.tensor(cosine / 0.07).exp()
            torch.testing.assert_close(found[i], votes / votes.sum(), atol=1e-5, rtol=1e-4)


def test_one_query_attends_as_cross_attention_does() -> None:
    torch.manual_seed(0)
    head, attention = AttentiveHead(12, 3, 5), CrossAttention(12, 3)
    with torch.no_grad():
        head.query_D.normal_()
        head.value.bias.normal_()
        for layer in (attention.q, attention.out):
            layer.weight.copy_(torch.eye(12))
            layer.bias.zero_()
        attention.k.weight.copy_(head.key_DD)
        attention.v.load_state_dict(head.value.state_dict())
    x_BSD = torch.randn(2, 7, 12)
    query_B1D = head.query_D.expand(2, 1, -1)
    torch.testing.assert_close(head.pool(x_BSD), attention(query_B1D, x_BSD, x_BSD)[:, 0])
    equal_BSD = x_BSD[:, :1].expand(-1, 7, -1)
    torch.testing.assert_close(head.pool(equal_BSD), head.value(equal_BSD.mean(dim=1)))
    torch.testing.assert_close(head.pool(x_BSD[:, torch.randperm(7)]), head.pool(x_BSD))


def test_features_are_the_encoders(videos, encoder, tmp_path) -> None:
    catalog = read_catalog(Listing(root=videos), labelled=True)
    loader = ViewLoader(catalog, Data(num_workers=0), ClipShape(3, 16), clips=2, crops=1)
    with torch.no_grad():
        wanted = torch.stack([encoder(video.views_VTCHW) for video in loader])  # N, V, T, 16 patches, D
    one = extract(encoder, catalog, QUICK, tmp_path, clips=2, crops=1)
    torch.testing.assert_close(one.x_NVTSD[..., 0, :], wanted.mean(dim=3))
    assert one.label_N.tolist() == [0] * 4 + [1] * 4
    space, everything = (samples(one, replace(QUICK, pooling=p)) for p in ("space", "all"))
    torch.testing.assert_close(space, wanted.mean(dim=3).flatten(2))
    torch.testing.assert_close(everything, wanted.mean(dim=(2, 3)))

    attentive = replace(QUICK, kind="attentive", token_grid=2)
    tokens = extract(encoder, catalog, attentive, tmp_path, clips=2, crops=1)
    squares = wanted.unflatten(3, (2, 2, 2, 2)).mean(dim=(4, 6)).flatten(3, 4)
    assert tokens.x_NVTSD.dtype == torch.float16
    torch.testing.assert_close(tokens.x_NVTSD.float(), squares, atol=2e-3, rtol=2e-3)
    every = extract(encoder, catalog, replace(attentive, token_grid=9), tmp_path, clips=2, crops=1)
    torch.testing.assert_close(every.x_NVTSD.float(), wanted, atol=2e-3, rtol=2e-3)
    assert samples(every, attentive).shape == (8, 2, 3 * 16, 16)


def test_features_do_not_depend_on_the_batch(videos, encoder, tmp_path, monkeypatch) -> None:
    catalog = read_catalog(Listing(root=videos), labelled=True)
    found = []
    for n in (1, 2, 7, 100):
        monkeypatch.setattr(mam2.probe.features, "PROBED_AT_ONCE", n)
        found.append(extract(encoder, catalog, QUICK, tmp_path / str(n), clips=3, crops=1).x_NVTSD)
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], atol=1e-5, rtol=1e-5)


def test_features_are_computed_once_for_an_encoder_its_videos_and_views(videos, encoder, forwards, tmp_path) -> None:
    root = shutil.copytree(videos, tmp_path / "videos")
    views = {"clips": 1, "crops": 1}

    def call(encoder: VideoEncoder, config: Probe, **views: int) -> Features:
        return extract(encoder, read_catalog(Listing(root=root), labelled=True), config, tmp_path, **views)

    first = call(encoder, QUICK, **views)
    assert sum(forwards) == 8
    again = call(encoder, replace(QUICK, kind="knn", pooling="all", seed=5), **views)
    assert torch.equal(again.x_NVTSD, first.x_NVTSD)
    assert sum(forwards) == 8
    call(encoder, QUICK, clips=2, crops=1)
    assert sum(forwards) == 24
    call(encoder, replace(QUICK, stride_frames=1), **views)
    assert sum(forwards) == 32
    call(encoder, replace(QUICK, kind="attentive"), **views)
    assert sum(forwards) == 40
    with torch.no_grad():
        encoder.norm.bias[0] += 1
    other = call(encoder, QUICK, **views)
    assert sum(forwards) == 48
    torch.testing.assert_close(other.x_NVTSD[..., 0], first.x_NVTSD[..., 0] + 1)
    os.utime(root / "left" / "0.mp4", ns=(0, 0))
    call(encoder, QUICK, **views)
    assert sum(forwards) == 56


def test_an_interrupted_extraction_resumes(videos, encoder, forwards, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(mam2.probe.features, "VIDEOS_PER_FILE", 3)
    catalog = read_catalog(Listing(root=videos), labelled=True)
    whole = extract(encoder, catalog, QUICK, tmp_path, clips=1, crops=1)
    files = sorted(tmp_path.glob("*/*.safetensors"))
    assert len(files) == 3
    files[1].unlink()
    forwards.clear()
    again = extract(encoder, catalog, QUICK, tmp_path, clips=1, crops=1)
    assert sum(forwards) == 3
    assert torch.equal(again.x_NVTSD, whole.x_NVTSD)
    assert again.index_N.tolist() == list(range(8))


def test_damaged_videos_are_left_out_up_to_a_share(videos, encoder, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(mam2.probe.features, "VIDEOS_PER_FILE", 4)
    root = shutil.copytree(videos, tmp_path / "videos")
    sound = extract(encoder, read_catalog(Listing(root=root), labelled=True), QUICK, tmp_path, clips=1, crops=1)
    (root / "approach" / "2.mp4").write_bytes(b"no video")
    found = extract(encoder, read_catalog(Listing(root=root), labelled=True), QUICK, tmp_path, clips=1, crops=1)
    assert found.index_N.tolist() == [0, 1, 3, 4, 5, 6, 7]
    assert torch.equal(found.x_NVTSD, sound.x_NVTSD[found.index_N])
    assert list(found.bad) == [str(root / "approach" / "2.mp4")]
    (root / "approach" / "3.mp4").write_bytes(b"no video")  # one in each file of features: found at the end
    with pytest.raises(UserError, match="2 of 8 videos can't be used"):
        extract(encoder, read_catalog(Listing(root=root), labelled=True), QUICK, tmp_path, clips=1, crops=1)


def test_a_portion_in_which_a_process_died_is_made_again(videos, encoder, tmp_path, monkeypatch) -> None:
    catalog = read_catalog(Listing(root=videos), labelled=True)
    guilty, honest = catalog.items[2].path, clips.open_video

    def dies(path, **settings):
        if path == guilty:
            os.kill(os.getpid(), signal.SIGKILL)
        return honest(path, **settings)

    monkeypatch.setattr(clips, "open_video", dies)
    one = replace(QUICK, num_workers=1)
    found = extract(encoder, catalog, one, tmp_path, clips=1, crops=1)
    assert found.index_N.tolist() == [0, 1, 3, 4, 5, 6, 7]
    monkeypatch.setattr(clips, "open_video", honest)
    assert extract(encoder, catalog, one, tmp_path, clips=1, crops=1).index_N.tolist() == list(range(8))


def test_a_share_of_each_class_is_held_out_in_turn() -> None:
    label_N = torch.tensor([0] * 10 + [1] * 5 + [2] * 2 + [3])
    parts = torch.stack([hold_out(label_N, share=0.2, seed=0, trial=trial) for trial in range(5)])
    assert parts[:, :10].sum(dim=1).tolist() == [2] * 5
    assert parts[:, :15].sum(dim=0).tolist() == [1] * 15  # every one once
    assert parts[:, 15:17].sum(dim=1).tolist() == [1] * 5
    assert not parts[:, 17].any()
    most = hold_out(label_N, share=0.99, seed=0)
    assert all((~most)[label_N == label].any() for label in range(4))


@pytest.mark.parametrize("kind", KINDS)
def test_a_probe_from_videos_to_json(kind, videos, encoder, tmp_path) -> None:
    save_encoder(tmp_path / "encoder.safetensors", encoder)
    config = replace(QUICK, kind=kind, encoder=str(tmp_path), train=str(videos), test=str(videos), shots=3, epochs=5)
    report = probe_encoder(config, tmp_path / "out")
    assert json.loads((tmp_path / "out" / f"probe_{kind}.json").read_text()) == report
    assert from_json(Probe, report["config"]) == config
    assert (report["kind"], report["num_train"], report["num_videos"]) == (kind, 6, 8)
    assert set(report["per_class"]) == {"left", "approach"}
    correct = torch.tensor(report["confusion"]).diag().sum().item()
    assert report["top1"] == pytest.approx(correct / 8)
    assert report["top5"] == 1.0
    assert set(report["baseline"]) == {"top1", "top5", "chosen", "sweep"}
    assert len(list((tmp_path / "out" / "features").iterdir())) == 4
    assert probe_encoder(config, tmp_path / "out") == report
    assert probe_encoder(replace(config, baseline=False), tmp_path / "out")["baseline"] is None


def test_train_and_test_should_differ(videos, encoder, tmp_path, caplog) -> None:
    save_encoder(tmp_path / "e.safetensors", encoder)
    roots = {"encoder": str(tmp_path / "e.safetensors"), "train": str(videos), "test": str(videos)}
    probe_encoder(replace(QUICK, kind="knn", baseline=False, **roots), tmp_path)
    assert "8 videos are in both train and test" in caplog.text


def test_wrong_settings_are_refused(videos, encoder, tmp_path) -> None:
    save_encoder(tmp_path / "encoder.safetensors", encoder)
    for name, value in (
        *(("kind", "svm"), ("pooling", "time"), ("shots", -1), ("test_clips", 0), ("held_out", 1.0)),
        *(("learning_rates", ()), ("learning_rates", (0.0,)), ("neighbours", (0,)), ("weight_decays", (-1.0,))),
        *(("temperature", 0.0), ("trials", 0), ("stride_frames", 0)),
    ):
        with pytest.raises(UserError, match=name):
            replace(QUICK, **{name: value})
    given = {"encoder": str(tmp_path), "train": str(videos), "test": str(videos)}
    for name in given:
        with pytest.raises(UserError, match=f"{name} is empty"):
            probe_encoder(replace(QUICK, **{**given, name: ""}), tmp_path / "out")
    with pytest.raises(UserError, match="nothing can be held out to judge 2 settings"):
        probe_encoder(replace(QUICK, **given, shots=1), tmp_path / "out")
    single = replace(QUICK, **given, shots=1, learning_rates=(0.01,), baseline=False)
    report = probe_encoder(single, tmp_path / "out")
    assert (report["num_train"], report["sweep"]) == (2, [])
    assert report["chosen"] == {"learning_rate": 0.01, "weight_decay": 0.01}


def test_real_clips_go_through(real_data: Path, encoder, tmp_path) -> None:
    root = real_data / "arid6" / "val"
    catalog = read_catalog(Listing(root=root), labelled=True)
    some = replace(catalog, items=catalog.items[::12])
    found = extract(encoder, some, QUICK, tmp_path, clips=2, crops=3)
    assert found.x_NVTSD.shape == (len(some.items), 6, 3, 1, 16)
    assert not found.bad
    assert found.x_NVTSD.isfinite().all()
