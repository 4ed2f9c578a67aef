"""Orders of the records in the endless training stream."""

import dataclasses
import functools

from grain.experimental import index_shuffle
import numpy as np

# Separate the random streams derived from one seed.
_ORDER_STREAM = 0
_CROP_STREAM = 1
_CLASS_STREAM = 2

# Up to this size, permutations are kept in memory: exactly uniform, whereas `index_shuffle`
# permutes blocks of at least 2**16 and takes up to 5 ms per call for two records.
_SMALL = 2**16
# With Grain's default of four, the differences of neighbors are far from uniform (chi2/dof
# 31 at 65,537 records) and epochs correlate. With eight, neither is detectable. 3 us.
_SHUFFLE_ROUNDS = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class StreamOrder:
    """Endless stream of training examples: one random permutation per epoch.

    A pure function of the position, so a run can resume anywhere at no cost.

    Attributes:
      seed: any 64-bit integer.
      num_records: records per epoch, in [1, 2**32].
    """

    seed: int
    num_records: int

    def record_index(self, position: int) -> int:
        """Returns the record at `position` >= 0 of the stream, in [0, num_records)."""
        epoch, place = divmod(position, self.num_records)
        if self.num_records <= _SMALL:
            return int(_permutation(self.seed, epoch, self.num_records)[place])
        return _shuffle(place, self.num_records, _epoch_seed(self.seed, epoch))

    def uniforms(self, start: int, count: int, draws: int) -> np.ndarray:
        """Returns the random numbers of the `count` examples from position `start` on.

        The numbers of a position are `draws` consecutive ones of a SplitMix64 generator
        (Steele, Lea and Flood, 2014), which computes each from its place alone.

        Returns:
          float64 [count, draws], uniform in [0, 1).
        """
        places = np.arange(1, count * draws + 1, dtype=np.uint64)
        places += np.uint64(start * draws % 2**64)
        bits: np.ndarray = places * np.uint64(0x9E3779B97F4A7C15)
        bits += _crop_seed(self.seed)
        bits = (bits ^ (bits >> 30)) * np.uint64(0xBF58476D1CE4E5B9)
        bits = (bits ^ (bits >> 27)) * np.uint64(0x94D049BB133111EB)
        bits ^= bits >> 31
        return ((bits >> 11) * 2.0**-53).reshape(count, draws)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class BalancedOrder(StreamOrder):
    """Endless stream of training examples that contains every class equally often.

    Consecutive examples form rounds with one example of each class, in random order. The
    examples of a class are those of a `StreamOrder` of its own: each record of the class
    once, then all of them again in another order. A pure function of the position, too.

    Attributes:
      labels: integers [num_records]; classes without records are left out.
    """

    labels: np.ndarray

    def record_index(self, position: int) -> int:
        """Returns the record at `position` >= 0 of the stream, in [0, num_records)."""
        classes = StreamOrder(seed=self.seed, num_records=len(self._starts) - 1)
        label = classes.record_index(position)
        start, end = self._starts[label : label + 2].tolist()
        order = StreamOrder(seed=_class_seed(self.seed, label), num_records=end - start)
        turn = position // classes.num_records
        return int(self._members[start + order.record_index(turn)])

    @functools.cached_property
    def _members(self) -> np.ndarray:
        """Records ordered by class."""
        return np.argsort(self.labels, kind="stable")

    @functools.cached_property
    def _starts(self) -> np.ndarray:
        """Start of each class in `_members`, and the end."""
        _, counts = np.unique(self.labels, return_counts=True)
        return np.concatenate([[0], np.cumsum(counts)])


def _shuffle(place: int, num_records: int, seed: int) -> int:
    """Returns the image of `place` under a permutation of [0, num_records)."""
    largest = num_records - 1
    if largest & (largest - 1) == 0:
        # Grain's function is not a permutation if `largest` is a power of four: it never
        # returns `largest`, but another index twice. Permute one more index and skip it.
        largest += 1
    while True:
        place = index_shuffle(
            index=place, max_index=largest, seed=seed, rounds=_SHUFFLE_ROUNDS
        )
        if place < num_records:
            return place


@functools.lru_cache(maxsize=64)
def _permutation(seed: int, epoch: int, num_records: int) -> np.ndarray:
    """Returns the order of an epoch, uint32 [num_records]."""
    rng = np.random.default_rng((_unsigned(seed), _ORDER_STREAM, epoch))
    return rng.permutation(num_records).astype(np.uint32)


@functools.lru_cache(maxsize=64)
def _epoch_seed(seed: int, epoch: int) -> int:
    """Returns an epoch's seed for `index_shuffle`, 32 bits."""
    sequence = np.random.SeedSequence((_unsigned(seed), _ORDER_STREAM, epoch))
    return int(sequence.generate_state(1)[0])


@functools.lru_cache(maxsize=64)
def _crop_seed(seed: int) -> np.uint64:
    """Returns the state from which the crops' random numbers start."""
    sequence = np.random.SeedSequence((_unsigned(seed), _CROP_STREAM))
    return sequence.generate_state(1, np.uint64)[0]


@functools.lru_cache(maxsize=2**16)
def _class_seed(seed: int, label: int) -> int:
    """Returns the seed of a class's order, 64 bits."""
    sequence = np.random.SeedSequence((_unsigned(seed), _CLASS_STREAM, label))
    return int(sequence.generate_state(1, np.uint64)[0])


def _unsigned(seed: int) -> int:
    """Maps negative seeds, which NumPy rejects, to non-negative ones."""
    return seed % 2**64
