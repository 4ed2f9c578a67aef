"""Pickles of arrays and mappings are read; everything else is refused and not run."""

import base64
import collections
import io
import os
import pickle
import struct

import haiku as hk
from haiku._src import data_structures
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nfnets.errors import UserError
from nfnets.weights.unpickling import load_pickle
from tests.weights.helpers import assert_same_trees

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
    return load_pickle("FILE", io.BytesIO(data))


MAPPINGS = {
    "dict": dict,
    "OrderedDict": collections.OrderedDict,
    "defaultdict": lambda d: collections.defaultdict(dict, d),
    "plain defaultdict": lambda d: collections.defaultdict(None, d),
    "FlatMap": data_structures.FlatMap,
    "frozendict": data_structures.frozendict,
    "immutable": data_structures.to_immutable_dict,
    "haiku": data_structures.to_haiku_dict,
}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("kind", MAPPINGS)
def test_arrays_in_every_mapping_and_protocol(kind, protocol):
    make = MAPPINGS[kind]
    data = pickle.dumps(make({m: make(a) for m, a in TREE.items()}), protocol)
    loaded = load(data)
    assert type(loaded) is dict
    assert_same_trees(loaded, TREE)
    assert all(type(arrays) is dict for arrays in loaded.values())
    for module, arrays in TREE.items():
        for name, array in arrays.items():
            assert loaded[module][name].dtype == array.dtype.newbyteorder("=")


def test_module_names_of_older_libraries():
    data = pickle.dumps(hk.data_structures.to_immutable_dict(TREE), 0)
    older = data.replace(b"numpy._core", b"numpy.core")
    assert older != data
    assert_same_trees(load(older), TREE)


def test_jax_arrays():
    tree = jax.tree.map(jnp.asarray, {"m": {"w": jnp.arange(3.0), "n": jnp.int32(7)}})
    assert_same_trees(load(pickle.dumps(tree)), jax.device_get(tree))


def test_a_pickle_of_dill():
    data = base64.b64decode(DILL)
    want = {"m": {"w": np.array([1.5, -2], np.float16), "b": np.float32(3)}}
    assert_same_trees(load(data), want)


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
    "STACK_GLOBAL": b"\x80\x04" + short(b"os") + short(b"system") + b"\x93"
    + short(TOUCH) + b"\x85R.",
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
def test_whatever_names_anything_else_is_refused_by_name(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"FILE is refused: it names '[\w.]+'; only NumPy"):
        load(MALICIOUS[kind])
    assert not list(tmp_path.iterdir())


def array_state(dtype, state):
    return NUMPY + b"(cnumpy\nndarray\nI0\nS'b'\ntR(I1\n(I1\nt" + dtype + b"I00\n" + state


F4 = b"cnumpy\ndtype\n(S'f4'\nI0\nI1\ntR"
BROKEN = {
    "persistent id": (b"Pout there\n.", "refers to an outside object 'out there'"),
    "binary persistent id": (b"\x80\x02K\x01Q.", "refers to an outside object '1'"),
    "array of objects": (
        pickle.dumps(np.array([{"a": 1}, None], object)),
        "an array of 'O8': only numbers",
    ),
    "array of strings": (pickle.dumps(np.array(["a"])), "an array of 'U1'"),
    "array of fields": (pickle.dumps(np.zeros(1, "i4,f4")), "an array of 'V8'"),
    "list for data": (array_state(F4, b"(lI1\natb."), "an array of objects"),
    "no dtype": (array_state(b"N", b"S'abcd'\ntb."), "an array without a dtype"),
    "too few bytes": (
        NUMPY + b"(tR(I1\n(I5\nt" + F4 + b"I00\nCabcdtb.".replace(b"C", b"C\x04"),
        r"4 bytes for an array \[5\]",
    ),
    "array without data": (NUMPY + b"(tR.", "an array without data"),
    "foreign array": (
        b"cjax._src.array\n_reconstruct_array\n(cnumpy\ndtype\n(t(tNtR.",
        "built by no NumPy function",
    ),
    "attributes of a substitute": (
        b"\x80\x02" + NUMPY + b"N}S'_function'\nI1\ns\x86b.",
        "sets '_function' of numpy._core.multiarray._reconstruct",
    ),
    "state of a substitute": (b"\x80\x02" + NUMPY + b"}S'a'\nI1\nsb.", "no readable"),
    "a function alone": (NUMPY + b".", "holds a Substitute"),
    "extension code": (b"\x80\x02\x82\x01.", "no readable pickle"),
    "new object of a substitute": (b"\x80\x02" + NUMPY + b")\x81.", "no readable pickle"),
    "other encodings": (b"c_codecs\nencode\n(Va\nS'rot13'\ntR.", "bytes as 'rot13'"),
    "cut short": (pickle.dumps(TREE)[:-40], "no readable pickle"),
    "empty": (b"", "no readable pickle"),
    "no pickle": (b"hello", "no readable pickle"),
    "deep": (b"(l" * 5000 + b"a" * 4999 + b".", "refused|no readable"),
    "object": (pickle.dumps(1j), "it names 'builtins.complex'"),
    "set": (pickle.dumps({1, 2}), "it holds a set"),
    "jump": (b"\x95" + struct.pack("<Q", 2**60) + b".", "no readable pickle"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_no_tree_of_arrays_is_one_line(kind):
    data, message = BROKEN[kind]
    with pytest.raises(UserError, match=message):
        load(data)
