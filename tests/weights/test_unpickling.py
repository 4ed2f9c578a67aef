"""Pickles of arrays and mappings are read; everything else is refused and not run."""

import base64
import collections
import io
import os
import pickle
import struct

import chex
import haiku as hk
from haiku._src import data_structures
import jax.numpy as jnp
import numpy as np
import pytest

from nfnets.errors import UserError
from nfnets.weights.published import read_published
from nfnets.weights.unpickling import PickledArray, load_pickle

TREE = {
    "net/~/conv": {
        "w": np.arange(12, dtype=np.float32).reshape(3, 4),
        "half": np.array([1.5, -2], np.float16),
        "fortran": np.asfortranarray(np.arange(6, dtype=np.float64).reshape(2, 3)),
        "big_endian": np.arange(3, dtype=">f4"),
        "empty": np.zeros((0, 2), np.float32),
        "count": np.arange(2, dtype=np.int32),
        "flags": np.array([True, False]),
    },
    "net/~/scalar": {"gain": np.zeros((), np.float32), "numpy": np.float32(0.5)},
}


# dill.dumps({"m": {"w": np.array([1.5, -2], np.float16), "b": np.float32(3)}}), 0.4.1.
DILL = (
    "gASV/gAAAAAAAAB9lIwBbZR9lCiMAXeUjApkaWxsLl9kaWxslIwNX2NyZWF0ZV9hcnJheZSTlCiMFm51"
    "bXB5Ll9jb3JlLm11bHRpYXJyYXmUjAxfcmVjb25zdHJ1Y3SUk5SMBW51bXB5lIwHbmRhcnJheZSTlEsA"
    "hZRDAWKUh5QoSwFLAoWUaAqMBWR0eXBllJOUjAJmMpSJiIeUUpQoSwOMATyUTk5OSv////9K/////0sA"
    "dJRiiUMEAD4AwJR0lE50lFKUjAFilGgHjAZzY2FsYXKUk5RoEowCZjSUiYiHlFKUKEsDaBZOTk5K////"
    "/0r/////SwB0lGJDBAAAQECUhpRSlHVzLg=="
)


def load(data):
    def finish(value):
        if isinstance(value, PickledArray):
            return value.value
        if isinstance(value, dict):
            return {key: finish(entry) for key, entry in value.items()}
        return value

    return finish(load_pickle("FILE", io.BytesIO(data)))


MAPPINGS = {
    "dict": dict,
    "OrderedDict": collections.OrderedDict,
    "FlatMap": data_structures.FlatMap,
    "frozendict": data_structures.frozendict,
    "immutable": data_structures.to_immutable_dict,
    "haiku": data_structures.to_haiku_dict,
}


# Protocol 3, of Python 3.0, is the first with an opcode for bytes.
@pytest.mark.parametrize("protocol", range(3, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("kind", MAPPINGS)
def test_arrays_in_every_mapping_and_protocol(kind, protocol):
    make = MAPPINGS[kind]
    data = pickle.dumps(make({m: make(a) for m, a in TREE.items()}), protocol)
    loaded = load(data)
    assert type(loaded) is dict
    chex.assert_trees_all_equal(loaded, TREE)
    assert all(type(arrays) is dict for arrays in loaded.values())
    for module, arrays in TREE.items():
        for name, array in arrays.items():
            assert loaded[module][name].dtype == array.dtype.newbyteorder("=")


def test_module_names_of_older_libraries():
    data = pickle.dumps(hk.data_structures.to_immutable_dict(TREE), 3)
    older = data.replace(b"numpy._core", b"numpy.core")
    assert older != data
    chex.assert_trees_all_equal(load(older), TREE)


def test_a_pickle_of_dill():
    data = base64.b64decode(DILL)
    want = {"m": {"w": np.array([1.5, -2], np.float16), "b": np.float32(3)}}
    chex.assert_trees_all_equal(load(data), want)


def test_pairs_and_numbers():
    params, state, more = load(pickle.dumps(({"m": {"n": 1.5}}, {}, [None, "text", 3])))
    assert params == {"m": {"n": 1.5}}
    assert state == {}
    assert more == [None, "text", 3]


class Reduced:
    """Pickles as a call."""

    def __init__(self, *reduced):
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced


def short(text):
    return b"\x8c" + bytes([len(text)]) + text


TOUCH = b"touch gone"
NUMPY = b"cnumpy._core.multiarray\n_reconstruct\n"
MALICIOUS = {
    "REDUCE": pickle.dumps(Reduced(os.system, ("touch gone",))),
    "REDUCE in an array's place": pickle.dumps({"m": {"w": Reduced(os.system, ("a",))}}),
    "GLOBAL": b"cos\nsystem\n(S'touch gone'\ntR.",
    "STACK_GLOBAL": b"\x80\x04"
    + short(b"os")
    + short(b"system")
    + b"\x93"
    + short(TOUCH)
    + b"\x85R.",
    "eval": b"c__builtin__\neval\n(S'1'\ntR.",
    "builtins": pickle.dumps(Reduced(eval, ("1",))),
    "getattr": pickle.dumps(Reduced(getattr, (1, "real"))),
    "dotted name": b"\x80\x04" + short(b"numpy") + short(b"ndarray.tofile") + b"\x93.",
    "numpy's own": b"cnumpy\nload\n(S'x'\ntR.",
    "INST": b"(S'touch gone'\nios\nsystem\n.",
    "OBJ": b"(cos\nsystem\nS'touch gone'\no.",
    "NEWOBJ": b"\x80\x02csubprocess\nPopen\n(S'ls'\nt\x81.",
    "NEWOBJ_EX": b"\x80\x04csubprocess\nPopen\n)}\x92.",
    "BUILD": b"cos\nenviron\n}S'x'\nI1\nsb.",
    "only named": b"cos\nsystem\n.",
    "in dill's array": b"cdill._dill\n_create_array\n(cos\nsystem\n(S'a'\nt(tNtR.",
    "in jax's array": b"cjax._src.array\n_reconstruct_array\n(cos\nsystem\n)(t}tR.",
    "default factory": b"ccollections\ndefaultdict\n(cos\nsystem\ntR.",
    "haiku": b"chaiku._src.data_structures\nto_haiku_dict\n(}tR.",
}


@pytest.mark.parametrize("kind", MALICIOUS)
def test_other_names_are_refused_before_anything_is_called(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"FILE is refused: it names '[\w.]+'; only NumPy"):
        load(MALICIOUS[kind])
    assert not list(tmp_path.iterdir())


def array_state(dtype, state):
    return NUMPY + b"(cnumpy\nndarray\nI0\nS'b'\ntR(I1\n(I1\nt" + dtype + b"I00\n" + state


F4 = b"cnumpy\ndtype\n(S'f4'\nI0\nI1\ntR"
BROKEN = {
    "persistent id": (b"Pout there\n.", "not a readable pickle.*persistent"),
    "binary persistent id": (b"\x80\x02K\x01Q.", "not a readable pickle.*persistent"),
    "array of objects": (
        pickle.dumps(np.array([{"a": 1}, None], object)),
        "an array of 'O8', not of numbers",
    ),
    "array of strings": (pickle.dumps(np.array(["a"])), "an array of 'U1'"),
    "array of fields": (pickle.dumps(np.zeros(1, "i4,f4")), "an array of 'V8'"),
    "list for data": (array_state(F4, b"(lI1\natb."), "an array of objects"),
    "no dtype": (array_state(b"N", b"S'abcd'\ntb."), "an array without a dtype"),
    "too few bytes": (
        NUMPY + b"(tR(I1\n(I5\nt" + F4 + b"I00\nCabcdtb.".replace(b"C", b"C\x04"),
        r"4 bytes for an array \[5\]",
    ),
    "array without data": (b"(Vm\n(Vw\n" + NUMPY + b"(tRdd.", "m:w is not an array"),
    "dill's array without state": (
        b"cdill._dill\n_create_array\n(" + NUMPY + b"(tNtR.",
        "not a readable pickle",
    ),
    "attributes of a function": (
        b"\x80\x02" + NUMPY + b"N}S'_function'\nI1\ns\x86b.",
        "sets '_function' of numpy._core.multiarray._reconstruct",
    ),
    "state of a function": (b"\x80\x02" + NUMPY + b"}S'a'\nI1\nsb.", "not a readable"),
    "a function alone": (NUMPY + b".", "holds a _Function, not Haiku parameters"),
    "extension code": (b"\x80\x02\x82\x01.", "not a readable pickle"),
    "new object of a function": (b"\x80\x02" + NUMPY + b")\x81.", "not a readable pickle"),
    "codecs": (b"c_codecs\nencode\n(Va\nS'rot13'\ntR.", "it names '_codecs.encode'"),
    "jax array": (pickle.dumps(jnp.ones(1)), r"it names 'jax\._src"),
    "byte order": (
        array_state(F4 + b"(I3\nS'x'\ntb", b"S'abcd'\ntb."),
        "it has the byte order 'x'",
    ),
    "cut short": (pickle.dumps(TREE)[:-40], "not a readable pickle"),
    "empty": (b"", "not a readable pickle"),
    "no pickle": (b"hello", "not a readable pickle"),
    "deep": (b"(l" * 5000 + b"a" * 4999 + b".", "holds a list, not Haiku"),
    "object": (pickle.dumps(1j), "it names 'builtins.complex'"),
    "set": (pickle.dumps({1, 2}), "holds a set"),
    "jump": (b"\x95" + struct.pack("<Q", 2**60) + b".", "not a readable pickle"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_invalid_files_are_one_line(kind, tmp_path):
    data, message = BROKEN[kind]
    path = tmp_path / "w.npz"
    path.write_bytes(data)
    with pytest.raises(UserError, match=message):
        read_published(path)
