"""The training stream's order: permutations, all different, reproducible."""

import itertools

import numpy as np
import pytest

from nfnets.data.order import BalancedOrder, StreamOrder


def epoch(order, number):
    start = number * order.num_records
    return [order.record_index(start + place) for place in range(order.num_records)]


@pytest.mark.parametrize("num_records", [1, 2, 3, 5, 64, 1797, 2**16, 2**16 + 1, 70_000])
def test_every_epoch_is_a_permutation(num_records):
    order = StreamOrder(seed=3, num_records=num_records)
    for number in (0, 1000) if num_records < 2**16 else (7,):
        assert sorted(epoch(order, number)) == list(range(num_records))


@pytest.mark.parametrize("num_records", [100, 2**16 + 1])
def test_epochs_and_seeds_differ(num_records):
    positions = range(100)
    orders = []
    for seed in (0, 1, -1):
        order = StreamOrder(seed=seed, num_records=num_records)
        for start in (0, num_records, 2 * num_records):
            orders.append([order.record_index(start + place) for place in positions])
    for first, second in itertools.combinations(orders, 2):
        assert sum(a == b for a, b in zip(first, second, strict=True)) < 10


def test_small_permutations_are_uniform():
    counts = {}
    order = StreamOrder(seed=0, num_records=3)
    for number in range(6000):
        key = tuple(epoch(order, number))
        counts[key] = counts.get(key, 0) + 1
    assert len(counts) == 6
    assert all(abs(count - 1000) < 150 for count in counts.values())


def test_large_permutations_mix_well():
    """Grain's default of four rounds exceeds the limit by a factor of twenty."""
    num_records = 2**16 + 1
    order = StreamOrder(seed=0, num_records=num_records)
    records = np.array([order.record_index(p) for p in range(num_records)])
    steps = np.diff(records) % num_records
    histogram = np.bincount(steps * 256 // num_records, minlength=256)
    expected = len(steps) / 256
    assert ((histogram - expected) ** 2 / expected).sum() / 255 < 1.4


def test_order_is_pinned():
    """A later version must resume a run with the same data."""
    small = StreamOrder(seed=0, num_records=10)
    assert epoch(small, 0) == [4, 6, 2, 7, 3, 5, 9, 0, 8, 1]
    large = StreamOrder(seed=0, num_records=1_281_167)
    records = [large.record_index(p) for p in (0, 1, 2, 1_281_167)]
    assert records == [556_536, 1_036_854, 1_046_717, 766_848]
    crops = (1000 * large.uniforms(7, 1, 4)).astype(int)
    assert crops.tolist() == [[955, 772, 372, 590]]


def split_mix(state):
    """SplitMix64 as published, one number after the other."""
    while True:
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        bits = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        bits = (bits ^ (bits >> 27)) * 0x94D049BB133111EB % 2**64
        yield bits ^ (bits >> 31)


def test_random_numbers_are_those_of_split_mix():
    # The first outputs of the published code with the seed 1234567.
    known = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert list(itertools.islice(split_mix(1234567), 3)) == known
    order = StreamOrder(seed=-5, num_records=10)
    state = np.random.SeedSequence((2**64 - 5, 1)).generate_state(1, np.uint64)[0]
    bits = list(itertools.islice(split_mix(int(state)), 60))
    expected = np.array([(one >> 11) / 2**53 for one in bits]).reshape(20, 3)
    np.testing.assert_array_equal(order.uniforms(0, 20, 3), expected)
    np.testing.assert_array_equal(order.uniforms(7, 9, 3), expected[7:16])


def test_random_numbers_are_uniform_and_independent():
    draws = StreamOrder(seed=0, num_records=10).uniforms(10**12, 20_000, 23)
    assert abs(draws.mean(axis=0) - 0.5).max() < 0.01
    assert abs(draws.var(axis=0) - 1 / 12).max() < 0.003
    assert draws.min() >= 0 and draws.max() < 1
    both = np.concatenate([draws[:-1], draws[1:]], axis=1)
    correlations = np.corrcoef(both, rowvar=False) - np.eye(46)
    assert abs(correlations).max() < 0.035
    other = StreamOrder(seed=1, num_records=10).uniforms(10**12, 20_000, 23)
    assert abs(np.corrcoef(draws.ravel(), other.ravel())[0, 1]) < 0.01


def balanced(counts, seed=0):
    labels = np.repeat(np.arange(len(counts)), counts)
    rng = np.random.default_rng(0)
    rng.shuffle(labels)
    return BalancedOrder(seed=seed, num_records=len(labels), labels=labels)


def test_balanced_order_draws_classes_equally_often():
    order = balanced([1, 50, 0, 7])
    records = np.array([order.record_index(p) for p in range(3 * 100)])
    # Each round has one record of every class that has any.
    for start in range(0, 300, 3):
        assert sorted(order.labels[records[start : start + 3]]) == [0, 1, 3]
    # In every round of a class, each of its records comes once.
    of_class = records[order.labels[records] == 1]
    for start in (0, 50):
        assert len(set(of_class[start : start + 50].tolist())) == 50
    assert of_class[:50].tolist() != of_class[50:].tolist()
    first = order.labels[records[::3]]
    assert {0, 1, 3} == set(first.tolist())


def test_balanced_order_is_a_function_of_seed_and_position():
    order = balanced([3, 5])
    expected = [order.record_index(p) for p in range(40)]
    again = balanced([3, 5])
    assert [again.record_index(p) for p in reversed(range(40))] == expected[::-1]
    other = balanced([3, 5], seed=1)
    assert [other.record_index(p) for p in range(40)] != expected
    assert expected[:8] == [6, 3, 2, 5, 7, 0, 4, 0]
