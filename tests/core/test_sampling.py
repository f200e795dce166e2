import json
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.core.sampling import (
    ChangePolicy,
    IntervalPolicy,
    KeyframePolicy,
    Sampler,
    SamplingPolicy,
    is_changed,
    policy_from_json,
    policy_key,
    policy_to_json,
    sampler,
)
from worker.core.types import FloatArray
from worker.errors import InputInvalid


def gray(level: float, shape: tuple[int, int] = (2, 3)) -> FloatArray:
    return np.full(shape, level, dtype=np.float32)


def kept(
    policy: SamplingPolicy, times: Sequence[float], resume_after_s: float | None = None
) -> list[float]:
    stream = sampler(policy, resume_after_s)
    return [t_s for t_s in times if stream.keep(t_s, keyframe=True)]


def test_interval_by_hand():
    # First frames at or after 0, 1, 2 and 4 s; nothing was decoded in 3..4 s.
    times = [0.2, 0.9, 1.1, 1.9, 2.0, 2.5, 4.7, 4.9]
    assert kept(IntervalPolicy(1), times) == [0.2, 1.1, 2.0, 4.7]


@pytest.mark.parametrize(("fps", "every_s"), [(25, 1.0), (30, 0.1), (10, 0.3), (50, 0.04)])
def test_interval_counts_are_exact_on_times_that_rounding_moved(fps, every_s):
    # 0.1 * 3 and 3 / 10 differ in the last bit, and either may fall short of the multiple.
    frames = fps * 60
    for times in ([n / fps for n in range(frames)], [n * (1 / fps) for n in range(frames)]):
        step = round(every_s * fps)
        assert kept(IntervalPolicy(every_s), times) == times[::step]


def test_frames_before_the_start_or_out_of_order_are_not_kept_twice():
    assert kept(IntervalPolicy(1), [-0.5, 0.0, 1.0, 0.5, 1.0, 2.0]) == [0.0, 1.0, 2.0]


sorted_times = st.lists(st.integers(0, 4000), min_size=1, unique=True).map(
    lambda ticks: [tick / 100 for tick in sorted(ticks)]
)


@given(sorted_times, st.floats(0.02, 7), st.data())
def test_a_resumed_interval_run_decides_as_if_never_stopped(times, every_s, data):
    policy = IntervalPolicy(every_s)
    whole = kept(policy, times)
    cut = data.draw(st.integers(0, len(times) - 1))
    done = [t_s for t_s in whole if t_s <= times[cut]]
    # Told the last decoded frame, or the last kept one, whatever decoding restarts with.
    restart = data.draw(st.integers(0, cut + 1))
    assert done + kept(policy, times[restart:], resume_after_s=times[cut]) == whole
    assert done + kept(policy, times[restart:], resume_after_s=done[-1]) == whole


@given(sorted_times, st.floats(0.02, 7))
def test_interval_keeps_the_first_frame_of_every_slot(times, every_s):
    chosen = kept(IntervalPolicy(every_s), times)
    slots = [math.floor((t_s + 1e-6) / every_s) for t_s in times]
    assert chosen == [times[slots.index(slot)] for slot in sorted(set(slots))]


def test_keyframes_by_hand():
    stream = sampler(KeyframePolicy(min_gap_s=1.0))
    frames = [(0.0, True), (0.5, True), (0.9, False), (1.0, True), (3.0, False), (3.1, True)]
    assert [stream.keep(t_s, keyframe) for t_s, keyframe in frames] == [
        True, False, False, True, False, True,
    ]  # fmt: skip
    # 0.1 * 10 accumulated is 0.9999999999999999: still a full second.
    assert kept(KeyframePolicy(min_gap_s=1.0), [0.0, sum([0.1] * 10)]) == [0.0, sum([0.1] * 10)]


@given(sorted_times, st.floats(0, 7), st.data())
def test_a_resumed_keyframe_run_decides_as_if_never_stopped(times, min_gap_s, data):
    policy = KeyframePolicy(min_gap_s)
    whole = kept(policy, times)
    cut = data.draw(st.integers(0, len(whole) - 1))
    restart = data.draw(st.integers(0, times.index(whole[cut])))
    assert whole[: cut + 1] + kept(policy, times[restart:], resume_after_s=whole[cut]) == whole


def lit(places: dict[tuple[int, int], float], level: float = 100.0) -> np.ndarray:
    """A grey picture of 6 x 8 that is different at some places."""
    gray_hw = np.full((6, 8), level, dtype=np.float32)
    for place, value in places.items():
        gray_hw[place] = value
    return gray_hw


def test_change_by_hand():
    stream = sampler(ChangePolicy(level=10, max_gap_s=60, min_gap_s=1))
    frames = [(0, 100), (0.5, 200), (1, 110), (2, 111), (3, 121), (4, 122), (63, 122), (64, 122)]
    # First; too soon; |110-100| = 10 is not above 10; 11 is; then against 111: 10 no, 11 yes;
    # then unchanged, 59 s after 4 no, 60 s after yes.
    assert [stream.keep(t_s, gray_hw=lit({(2, 3): value})) for t_s, value in frames] == [
        True, False, False, True, False, True, False, True,
    ]  # fmt: skip


def test_a_change_is_a_place_and_light_is_none():
    before = lit({})
    assert is_changed(lit({(1, 1): 111}), before, 10)
    assert not is_changed(lit({}, level=130), before, 10)  # it gets lighter
    assert is_changed(lit({}, level=141), before, 10)  # somebody put the light on
    assert is_changed(lit({(1, 1): 119}, level=130), before, 10)
    assert not is_changed(lit({(1, 1): 121}, level=130), before, 10)
    half = before.copy()
    half[:, 4:] = 200
    assert is_changed(half, before, 10)


@pytest.mark.parametrize("sigma", [0.5, 3.0, 8.0])
def test_a_noisy_camera_is_no_change_and_what_moves_in_it_is(sigma: float):
    chance = np.random.default_rng(2)
    still = chance.uniform(20, 200, (36, 64))

    def noisy() -> np.ndarray:
        return (still + chance.normal(0, sigma, still.shape)).astype(np.float32)

    assert not any(is_changed(noisy(), noisy(), level=10) for _ in range(200))
    with_somebody = noisy()
    with_somebody[20:23, 30] += 12 + 10 * sigma
    assert is_changed(with_somebody, noisy(), level=10)


def test_another_picture_is_a_change_however_noisy():
    chance = np.random.default_rng(3)
    one, other = chance.uniform(0, 255, (2, 36, 64)).astype(np.float32)
    assert is_changed(one, other, level=10)


def test_change_copies_its_reference_and_survives_a_new_picture_size():
    stream = sampler(ChangePolicy(level=10))
    reused = gray(100)
    assert stream.keep(0.0, gray_hw=reused)
    reused[:] = 200
    assert stream.keep(1.0, gray_hw=reused)
    assert stream.keep(2.0, gray_hw=gray(200, (4, 4)))


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=30),
    st.floats(1, 20),
    st.floats(0, 1),
    st.data(),
)
def test_a_resumed_change_run_decides_as_if_never_stopped(levels, max_gap_s, min_share, data):
    policy = ChangePolicy(level=0.6, max_gap_s=max_gap_s, min_gap_s=min_share * max_gap_s)

    def run(stream: Sampler, start: int) -> list[int]:
        return [
            t_s
            for t_s in range(start, len(levels))
            if stream.keep(float(t_s), gray_hw=gray(levels[t_s]))
        ]

    whole = run(sampler(policy), 0)
    last = data.draw(st.sampled_from(whole))
    restart = data.draw(st.integers(0, last))
    resumed = run(sampler(policy, resume_after_s=float(last)), restart)
    assert [t_s for t_s in whole if t_s <= last] + resumed == whole


def test_change_resumed_without_its_reference_keeps_the_next_frame():
    stream = sampler(ChangePolicy(level=10), resume_after_s=5.0)
    assert stream.keep(6.0, gray_hw=gray(1))


@pytest.mark.parametrize("policy", [IntervalPolicy(1), KeyframePolicy(), ChangePolicy(5)])
@pytest.mark.parametrize("t_s", [math.nan, math.inf])
def test_times_that_are_not_finite_are_refused(policy, t_s):
    with pytest.raises(InputInvalid, match="finite"):
        sampler(policy).keep(t_s, keyframe=True, gray_hw=gray(0))
    with pytest.raises(InputInvalid, match="finite"):
        sampler(policy, resume_after_s=t_s)


def test_change_refuses_a_missing_or_damaged_picture():
    for picture in (None, gray(math.nan)):
        with pytest.raises(InputInvalid, match="grey picture"):
            sampler(ChangePolicy(5)).keep(0.0, gray_hw=picture)


@pytest.mark.parametrize(
    ("made", "fields"),
    [
        (IntervalPolicy, {"every_s": 0}),
        (IntervalPolicy, {"every_s": -1.0}),
        (IntervalPolicy, {"every_s": math.nan}),
        (IntervalPolicy, {"every_s": math.inf}),
        (IntervalPolicy, {"every_s": "1"}),
        (IntervalPolicy, {"every_s": True}),
        (KeyframePolicy, {"min_gap_s": -0.1}),
        (ChangePolicy, {"level": 256}),
        (ChangePolicy, {"level": -1}),
        (ChangePolicy, {"level": 5, "max_gap_s": 0}),
        (ChangePolicy, {"level": 5, "max_gap_s": 2, "min_gap_s": 3}),
    ],
)
def test_policies_out_of_bounds_are_refused(made, fields):
    with pytest.raises(InputInvalid, match=list(fields)[-1]):
        made(**fields)


POLICIES: list[SamplingPolicy] = [IntervalPolicy(0.5), KeyframePolicy(2), ChangePolicy(5, 30, 1)]


@pytest.mark.parametrize("policy", POLICIES)
def test_policies_are_read_back_from_json(policy):
    assert policy_from_json(json.loads(json.dumps(policy_to_json(policy)))) == policy


def test_policy_keys_are_stable_and_equal_for_equal_policies():
    assert policy_key(IntervalPolicy(1)) == policy_key(IntervalPolicy(1.0))
    assert [policy_key(policy) for policy in POLICIES] == [
        "interval(every_s=0.5)",
        "keyframe(min_gap_s=2.0)",
        "change(level=5.0, max_gap_s=30.0, min_gap_s=1.0)",
    ]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"kind": "hourly"},
        {"kind": ["interval"]},
        {"kind": "interval"},
        {"kind": "interval", "every_s": 1, "every": 1},
        {"kind": "change"},
    ],
)
def test_bad_policy_json_is_refused(fields):
    with pytest.raises(InputInvalid, match="sampling"):
        policy_from_json(fields)
