"""The examples in the batches, for any number of hosts, threads and devices."""

import io
import itertools
import math

import numpy as np
from PIL import Image
import pytest

from nfnets import data
from nfnets.data import images, layout
from nfnets.data.order import StreamOrder
from nfnets.data.sources.base import ArraySource
from nfnets.errors import UserError
from tests.data.helpers import NumberedSource, picture

CROP = data.CropOptions(image_size=4)


def shard_of(host, hosts, devices):
    return data.HostShard(process_index=host, process_count=hosts, local_devices=devices)


def train(source, steps, **options):
    """The first `steps` batches."""
    options = {"seed": 0, "batch_size": 8, "crop": CROP, "threads": 2} | options
    with data.train_batches(source, **options) as batches:
        return [next(batches) for _ in range(steps)]


def flat(batches, field):
    """A field of all batches, one row per example."""
    arrays = [getattr(batch, field) for batch in batches]
    return np.concatenate([array.reshape(-1, *array.shape[2:]) for array in arrays])


def assert_same(first, second):
    for one, other in zip(first, second, strict=True):
        for field in ("images", "labels", "example_index"):
            np.testing.assert_array_equal(getattr(one, field), getattr(other, field))


def test_shapes_and_types():
    shard = data.HostShard(local_devices=2)
    (batch,) = train(NumberedSource(20), 1, shard=shard)
    assert batch.images.shape == (2, 4, 4, 4, 3) and batch.images.dtype == np.uint8
    assert batch.labels.shape == (2, 4) and batch.labels.dtype == np.int32
    assert batch.example_index.dtype == np.int32
    assert batch.example_index.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert batch.bad_records == ()


@pytest.mark.parametrize(
    ("length", "batch_size"), [(20, 8), (7, 8), (3, 8), (1, 4), (16, 8)]
)
def test_every_record_comes_once_per_epoch(length, batch_size):
    epochs = 4
    steps = math.ceil(epochs * length / batch_size)
    batches = train(NumberedSource(length), steps, batch_size=batch_size)
    labels = flat(batches, "labels")[: epochs * length].reshape(epochs, length)
    assert (np.sort(labels, axis=1) == np.arange(length)).all()
    if length > 3:
        assert len({tuple(row) for row in labels.tolist()}) == epochs


def test_stream_follows_the_order_and_its_random_numbers():
    source = NumberedSource(20)
    order = StreamOrder(seed=9, num_records=20)
    batches = train(source, 5, seed=9, start_step=2)
    for row in range(5 * 8):
        position = 2 * 8 + row
        record = source[order.record_index(position)]
        assert flat(batches, "labels")[row] == record.label
        (draws,) = order.uniforms(position, 1, images.DRAWS_PER_CROP)
        expected = images.random_crop(record.image, CROP, draws)
        np.testing.assert_array_equal(flat(batches, "images")[row], expected)


def test_resuming_gives_the_same_batches():
    source = NumberedSource(21)
    whole = train(source, 12)
    for start in (1, 5, 11):
        assert_same(train(source, 12 - start, start_step=start), whole[start:])


def test_late_start_costs_nothing():
    (batch,) = train(NumberedSource(21), 1, start_step=10**9)
    order = StreamOrder(seed=0, num_records=21)
    expected = [order.record_index(8 * 10**9 + place) for place in range(8)]
    assert batch.labels.ravel().tolist() == expected


@pytest.mark.parametrize("options", [{"threads": 0}, {"threads": 1}, {"threads": 7}])
@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_threads_and_prefetching_change_nothing(options, prefetch):
    source = NumberedSource(21)
    options = {"batch_size": 24, "prefetch": prefetch} | options
    assert_same(train(source, 4, **options), train(source, 4, batch_size=24))


@pytest.mark.parametrize(("hosts", "devices"), [(1, 4), (2, 2), (4, 1), (2, 1)])
def test_hosts_and_devices_share_the_same_batches(hosts, devices):
    source = NumberedSource(21)
    whole = train(source, 5)
    parts = [train(source, 5, shard=shard_of(h, hosts, devices)) for h in range(hosts)]
    for step, expected in enumerate(whole):
        for field in ("images", "labels", "example_index"):
            joined = np.concatenate([getattr(part[step], field) for part in parts])
            assert joined.shape[:2] == (hosts * devices, 8 // (hosts * devices))
            np.testing.assert_array_equal(
                joined.reshape(getattr(expected, field).shape), getattr(expected, field)
            )


def test_seeds_differ_and_repeat():
    source = NumberedSource(50)
    assert_same(train(source, 2, seed=3), train(source, 2, seed=3))
    labels = flat(train(source, 2, seed=3), "labels")
    assert (labels != flat(train(source, 2, seed=4), "labels")).any()


def test_every_epoch_has_new_crops():
    crop = data.CropOptions(image_size=6)
    crops = flat(train(NumberedSource(1), 4, crop=crop, batch_size=1), "images")
    assert len({one.tobytes() for one in crops}) == 4


@pytest.mark.parametrize("batch_size", [0, 7, -8])
def test_batch_size_must_fit_the_devices(batch_size):
    with pytest.raises(
        UserError, match=f"batch_size={batch_size} is not a multiple of the 2"
    ):
        train(NumberedSource(9), 1, batch_size=batch_size, shard=shard_of(0, 2, 1))


@pytest.mark.parametrize("field", ["threads", "workers", "prefetch"])
def test_negative_options_are_errors(field):
    with pytest.raises(UserError, match=f"data.{field}=-1 must not be negative"):
        train(NumberedSource(9), 1, **{field: -1})


@pytest.mark.parametrize(
    ("cores", "workers", "expected"),
    [(1, 0, 2), (2, 0, 4), (2, 1, 4), (6, 3, 4), (64, 0, 16)],
)
def test_threads_follow_the_cores(monkeypatch, cores, workers, expected):
    monkeypatch.setattr(layout, "_available_cores", lambda: cores)
    assert layout.Parallelism(workers=workers).num_threads == expected
    assert layout.Parallelism(workers=99).num_threads >= 1
    assert layout.Parallelism(threads=5, workers=workers).num_threads == 5
    assert layout.Parallelism(threads=0).num_threads == 0


def test_chunks_keep_every_thread_busy():
    shard = shard_of(0, 2, 1)

    def chunk(batch_size, **options):
        parallelism = layout.Parallelism(**options)
        return layout.Layout.choose(batch_size, shard, parallelism).chunk

    assert chunk(1024, threads=4) == 8  # at most
    assert chunk(16, threads=4) == 2  # 8 examples on this host, for four threads
    assert chunk(16, threads=2, workers=2) == 2
    assert chunk(4, threads=4) == 1
    assert chunk(2 * 9, threads=2) == 3  # a divisor


def test_impossible_shard_is_an_error():
    for shard in ((2, 2, 1), (-1, 2, 1), (0, 1, 0)):
        with pytest.raises(ValueError, match="invalid shard"):
            shard_of(*shard)


def evaluate(source, **options):
    options = {"batch_size": 8, "image_size": 4, "threads": 2} | options
    with data.eval_batches(source, **options) as batches:
        return list(batches)


LENGTHS = (1, 2, 7, 16, 33)
BATCH_SIZES = (1, 3, 8, 16, 40)
SHARDS = ((1, 1), (1, 3), (2, 1), (2, 2), (3, 4))


@pytest.mark.parametrize(("hosts", "devices"), SHARDS)
def test_evaluation_sees_every_example_once(hosts, devices):
    for length, batch_size in itertools.product(LENGTHS, BATCH_SIZES):
        source = NumberedSource(length)
        parts = [
            evaluate(source, batch_size=batch_size, shard=shard_of(host, hosts, devices))
            for host in range(hosts)
        ]
        assert len({len(part) for part in parts}) == 1  # All hosts take as many steps.
        seen = []
        for step in zip(*parts, strict=True):
            for batch in step:
                assert batch.mask.dtype == np.float32 and batch.mask.shape[0] == devices
                assert batch.images.shape == (*batch.mask.shape, 4, 4, 3)
                real = batch.mask.astype(bool)
                seen.extend(batch.labels[real].tolist())
                assert not batch.images[~real].any() and not batch.labels[~real].any()
        assert seen == list(range(length)), (length, batch_size, hosts, devices)


@pytest.mark.parametrize("method", ["resize_crop_32", "crop_resize", "resize"])
def test_evaluation_preprocesses(method):
    source = NumberedSource(5)
    batches = evaluate(source, preprocessing=method, image_size=8)
    for row in range(5):
        expected = data.preprocess_eval(source[row].image, 8, method)
        np.testing.assert_array_equal(flat(batches, "images")[row], expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "eval.batch_size=0 must be at least 1"),
        ({"image_size": 0}, "eval.image_size=0 must be at least 1"),
        ({"preprocessing": "middle"}, "unknown eval.preprocessing='middle'.*crop_resize"),
    ],
)
def test_invalid_evaluation_options_are_errors(options, message):
    with pytest.raises(UserError, match=message):
        evaluate(NumberedSource(3), **options)


def test_empty_splits_are_errors():
    with pytest.raises(UserError, match="training split has no records"):
        train(NumberedSource(0), 1)
    with pytest.raises(UserError, match="evaluation split has no records"):
        evaluate(NumberedSource(0))


def test_closed_batches_end():
    batches = data.train_batches(NumberedSource(9), seed=0, batch_size=4, crop=CROP)
    next(batches)
    batches.close()
    batches.close()
    with pytest.raises(StopIteration):
        next(batches)


@pytest.mark.parametrize("kind", ["unreadable", "undecodable"])
def test_bad_training_records_are_replaced_by_the_next(kind, caplog):
    source = NumberedSource(6, **{kind: (2, 3)})
    with caplog.at_level("WARNING", logger="absl"):
        batches = train(source, 6, batch_size=3)
    expected = flat(train(NumberedSource(6), 6, batch_size=3), "labels")
    expected = np.where((expected == 2) | (expected == 3), 4, expected)
    np.testing.assert_array_equal(flat(batches, "labels"), expected)
    # Each is reported once, in the batch that met it first.
    reported = [name for batch in batches for name in batch.bad_records]
    assert sorted(reported) == ["record 2", "record 3"]
    assert caplog.text.count("Replaced an unreadable training record: record 2: ") == 1


def test_replacement_wraps_around():
    batches = train(NumberedSource(4, unreadable=(3,)), 1, batch_size=4)
    assert sorted(flat(batches, "labels").tolist()) == [0, 0, 1, 2]


def test_too_many_bad_records_end_the_run():
    source = NumberedSource(50, unreadable=tuple(range(0, 50, 5)))
    assert train(source, 20, max_bad_records=10)
    assert train(source, 20, max_bad_records=13, bad_records_so_far=3)
    message = "unreadable training records, more than data.max_bad_records=9; .*record"
    with pytest.raises(UserError, match=f"10 {message}"):
        train(source, 20, max_bad_records=9)
    with pytest.raises(UserError, match=f"10 {message}"):
        # The earlier ones count: this run stops at its fifth.
        train(source, 20, max_bad_records=9, bad_records_so_far=5)
    with pytest.raises(UserError, match=r"^13 unreadable training records"):
        train(source, 20, max_bad_records=12, bad_records_so_far=3)


def test_only_bad_records_is_an_error():
    source = NumberedSource(5, unreadable=tuple(range(5)))
    with pytest.raises(UserError, match="5 training records in a row are unreadable"):
        train(source, 1)
    source = NumberedSource(500, unreadable=tuple(range(500)))
    with pytest.raises(UserError, match="100 training records in a row are unreadable"):
        train(source, 1, max_bad_records=1000)


@pytest.mark.parametrize("kind", ["unreadable", "undecodable"])
def test_bad_evaluation_record_is_named(kind):
    with pytest.raises(UserError, match=r"cannot read record 3: .*; repair or remove it"):
        evaluate(NumberedSource(9, **{kind: (3,)}))


def imbalanced_source():
    labels = np.array([0] * 29 + [1] * 3)
    return ArraySource(np.zeros((32, 6, 9, 3), np.uint8), labels, "array")


def test_balanced_batches_have_as_many_examples_of_each_class():
    batches = train(imbalanced_source(), 6, sampling="balanced")
    for batch in batches:
        assert np.bincount(batch.labels.ravel()).tolist() == [4, 4]
    late = train(imbalanced_source(), 3, sampling="balanced", start_step=3, threads=1)
    assert_same(late, batches[3:])
    uniform = flat(train(imbalanced_source(), 4), "labels")
    assert np.bincount(uniform).tolist() == [29, 3]


def test_balanced_sampling_needs_labels():
    with pytest.raises(UserError, match=r"sampling=balanced needs the labels .* NumberedS"):
        train(NumberedSource(8), 1, sampling="balanced")
    with pytest.raises(UserError, match=r"'other' must be uniform or balanced"):
        data.check_sampling(NumberedSource(8), "other")
    assert data.check_sampling(NumberedSource(8), "uniform") is None


class TurnedSource(NumberedSource):
    """Files whose EXIF orientation is a half turn."""

    def __getitem__(self, index):
        file = io.BytesIO()
        exif = Image.Exif()
        exif[0x0112] = 3
        Image.fromarray(picture()).save(file, "PNG", exif=exif)
        return data.Record(file.getvalue(), 0, "turned")


@pytest.mark.parametrize("apply_exif", [False, True])
def test_batches_are_turned_by_their_orientation(apply_exif):
    expected = picture()[::-1, ::-1] if apply_exif else picture()
    options = {"preprocessing": "resize", "apply_exif": apply_exif}
    with data.eval_batches(
        TurnedSource(1), batch_size=1, image_size=20, **options
    ) as batches:
        got = next(batches).images[0, 0]
    want = images.preprocess_eval(expected, 20, "resize")
    np.testing.assert_array_equal(got, want)
    crop = data.CropOptions(image_size=20, min_area=1.0, min_aspect=1.25, max_aspect=1.25)
    (batch,) = train(TurnedSource(1), 1, crop=crop, batch_size=4, apply_exif=apply_exif)
    for image in batch.images[0]:
        assert any(np.array_equal(image, one) for one in (want, want[:, ::-1]))
