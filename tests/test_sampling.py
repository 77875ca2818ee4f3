"""Frames of dense and uniform clips, in training and in testing."""

import random

import numpy as np
import pytest

from mam2.config import UserError
from mam2.data.sampling import ShortVideo, dense, stride_at, uniform, uniform_views, views


def test_a_window_that_just_fits_has_one_place():
    assert dense(64, clip_frames=16, stride_frames=4, rng=random.Random(0)) == list(range(0, 64, 4))


def test_windows_start_everywhere_and_stay_inside():
    rng = random.Random(0)
    clips = [dense(70, clip_frames=16, stride_frames=4, rng=rng) for _ in range(200)]
    assert {clip[0] for clip in clips} == set(range(7))
    assert all(clip == list(range(clip[0], clip[0] + 64, 4)) for clip in clips)


def test_the_same_draw_gives_the_same_clip():
    assert dense(300, clip_frames=4, stride_frames=2, rng=random.Random(5)) == [130, 132, 134, 136]
    assert dense(300, clip_frames=4, stride_frames=2, rng=random.Random(6)) == [41, 43, 45, 47]


@pytest.mark.parametrize(("num_frames", "stride"), [(63, 3), (48, 3), (47, 2), (40, 2), (31, 1), (16, 1)])
def test_shrink_takes_the_largest_stride_that_fits(num_frames, stride):
    clip = dense(num_frames, clip_frames=16, stride_frames=4, rng=random.Random(1))
    assert clip == list(range(clip[0], clip[0] + 16 * stride, stride))
    assert clip[-1] < num_frames


def test_spread_clips_reach_from_the_first_frame_of_the_window_to_the_last():
    clip = dense(64, clip_frames=16, stride_frames=4, rng=random.Random(0), spread=True)
    assert clip == np.linspace(0, 63, 16).astype(int).tolist()  # SlowFast's
    assert clip[:3] + clip[-2:] == [0, 4, 8, 58, 63]
    for num_frames in range(16, 90):
        clip = dense(num_frames, clip_frames=16, stride_frames=4, rng=random.Random(0), spread=True)
        assert len(set(clip)) == 16
        assert clip[-1] < num_frames
    first, last = views(100, clip_frames=16, stride_frames=4, clips=2, spread=True)
    assert (first[0], first[-1], last[0], last[-1]) == (0, 63, 36, 99)
    assert views(20, clip_frames=1, stride_frames=4, clips=1, spread=True) == [[8]]


def test_no_frame_is_taken_twice_unless_repeats_are_asked_for():
    rng = random.Random(2)
    for num_frames in range(16, 80):
        assert len(set(dense(num_frames, clip_frames=16, stride_frames=4, rng=rng))) == 16
    for num_frames in range(64, 80):
        assert len(set(dense(num_frames, clip_frames=16, stride_frames=4, rng=rng, short="skip"))) == 16


def test_repeat_repeats_the_last_frame():
    clip = dense(10, clip_frames=6, stride_frames=3, rng=random.Random(0), short="repeat")
    assert clip == [0, 3, 6, 9, 9, 9]
    assert dense(1, clip_frames=3, stride_frames=1, rng=random.Random(0), short="repeat") == [0, 0, 0]


def test_too_few_frames_are_refused_with_the_way_out():
    with pytest.raises(ShortVideo) as caught:
        dense(9, clip_frames=16, stride_frames=4, rng=random.Random(0), path="/data/a.avi")
    assert str(caught.value) == (
        "/data/a.avi has 9 frames; a 16-frame clip needs at least 16. "
        "Leave the video out; to fine-tune, --data.short repeat repeats its last frame."
    )
    assert isinstance(caught.value, UserError)


def test_skip_refuses_whatever_is_shorter_than_the_window():
    with pytest.raises(ShortVideo, match=r"a\.avi has 63 frames; 16 frames 4 apart need at least 64\. Use --data"):
        dense(63, clip_frames=16, stride_frames=4, rng=random.Random(0), short="skip", path="a.avi")
    assert dense(64, clip_frames=16, stride_frames=4, rng=random.Random(0), short="skip")[-1] == 60


def test_one_view_is_the_centre():
    for num_frames in (100, 101):
        assert views(num_frames, clip_frames=4, stride_frames=5, clips=1) == [[40, 45, 50, 55]]


def test_views_are_spread_from_the_first_frame_to_the_last():
    assert views(20, clip_frames=4, stride_frames=2, clips=3) == [
        [0, 2, 4, 6],
        [6, 8, 10, 12],
        [12, 14, 16, 18],
    ]
    assert [clip[0] for clip in views(300, clip_frames=16, stride_frames=4, clips=5)] == [
        0,
        59,
        118,
        177,
        236,
    ]


def test_views_of_short_videos_shrink_then_repeat():
    assert views(9, clip_frames=4, stride_frames=4, clips=2) == [[0, 2, 4, 6], [1, 3, 5, 7]]
    assert views(3, clip_frames=5, stride_frames=4, clips=2) == [[0, 1, 2, 2, 2]] * 2
    assert views(1, clip_frames=2, stride_frames=1, clips=1) == [[0, 0]]


def test_uniform_takes_one_frame_of_each_segment():
    rng = random.Random(0)
    clips = [uniform(50, clip_frames=4, rng=rng) for _ in range(2000)]
    segments = [range(12), range(12, 25), range(25, 37), range(37, 50)]
    for place, segment in enumerate(segments):
        assert {clip[place] for clip in clips} == set(segment)  # all of the video, to the last frame
    firsts = [clip[0] for clip in clips]
    assert max(map(firsts.count, range(12))) < 1.5 * min(map(firsts.count, range(12)))


def test_uniform_repeats_frames_only_of_videos_shorter_than_the_clip():
    rng = random.Random(1)
    for num_frames in range(16, 100):
        clip = uniform(num_frames, clip_frames=16, rng=rng)
        assert clip == sorted(set(clip))
        assert len(clip) == 16
        assert clip[-1] < num_frames
    assert uniform(16, clip_frames=16, rng=rng) == list(range(16))
    for num_frames in range(1, 16):
        clip = uniform(num_frames, clip_frames=16, rng=rng)
        assert clip == sorted(clip)
        assert set(clip) == set(range(num_frames))
    assert uniform(3, clip_frames=7, rng=rng) == [0, 0, 0, 1, 1, 2, 2]
    assert uniform(1, clip_frames=3, rng=rng) == [0, 0, 0]


def test_the_same_draw_gives_the_same_uniform_clip():
    assert uniform(300, clip_frames=4, rng=random.Random(5)) == [32, 120, 217, 228]
    assert uniform(300, clip_frames=4, rng=random.Random(6)) == [73, 85, 212, 258]


def test_two_uniform_views_are_starts_and_middles_of_the_segments():
    starts, middles = uniform_views(320, clip_frames=16, clips=2)
    assert starts == list(range(0, 320, 20))
    assert middles == list(range(10, 320, 20))
    assert uniform_views(50, clip_frames=4, clips=2) == [[0, 12, 25, 37], [6, 18, 31, 43]]
    assert uniform_views(48, clip_frames=4, clips=3) == [[0, 12, 24, 36], [4, 16, 28, 40], [8, 20, 32, 44]]
    assert uniform_views(50, clip_frames=4, clips=1) == [[6, 18, 31, 43]]


def test_uniform_views_of_any_video_are_in_order_and_inside():
    for num_frames in range(1, 70):
        for clips in (1, 2, 3, 5):
            views_of_it = uniform_views(num_frames, clip_frames=16, clips=clips)
            assert len(views_of_it) == clips
            for clip in views_of_it:
                assert len(clip) == 16
                assert clip == sorted(clip)
                assert clip[-1] < num_frames
                assert num_frames < 16 or len(set(clip)) == 16
    assert uniform_views(3, clip_frames=5, clips=2) == [[0, 0, 1, 1, 2], [0, 0, 1, 2, 2]]


@pytest.mark.parametrize(
    ("fps", "stride", "found"),
    [
        (30, 4, 4),
        (29.97, 4, 4),
        (25, 4, 3),
        (24, 4, 3),
        (60, 4, 8),
        (15, 4, 2),
        (10, 4, 1),
        (15, 3, 2),
        (6, 1, 1),
        (1, 4, 1),
        (0, 4, 4),
    ],
)
def test_the_stride_follows_the_frame_rate(fps, stride, found):
    assert stride_at(fps, stride) == found
    assert stride_at(fps / 2, stride, target_fps=15) == found
