"""What names a kept step: all that makes another program, and nothing else."""

import os
import sys
import types

import jax

import nfnets
from nfnets.training import fingerprint
from tests.training.test_step import make_config

digest = fingerprint.fingerprint


def test_the_fingerprint_is_of_all_that_makes_the_step(monkeypatch, tmp_path):
    package = tmp_path / "optax"
    (package / "inner").mkdir(parents=True)
    source = package / "inner" / "chain.py"
    source.write_text("1")
    config_file = tmp_path / "config.py"
    config_file.write_text("1")
    find_spec = fingerprint.importlib.util.find_spec

    def find(name):
        if name == "optax":
            return types.SimpleNamespace(origin=str(package / "__init__.py"))
        return find_spec(name)

    monkeypatch.setattr(fingerprint.importlib.util, "find_spec", find)
    monkeypatch.setattr(nfnets, "IMPORTED_NS", 2**62)
    monkeypatch.setattr(sys, "argv", ["train.py", f"--config={config_file}"])
    config = make_config()
    seen = [digest(config)]

    def changed():
        seen.append(digest(config))
        return seen[-1] not in seen[:-1]

    assert not changed()
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/elsewhere")
    monkeypatch.setenv("HOME", "/elsewhere")
    assert not changed()
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
    assert changed()
    source.write_text("12")
    assert changed()
    (package / ".#chain.py").symlink_to("an editor's lock, which leads nowhere")
    assert not changed()
    os.utime(source, (1e9, 1e9))
    assert changed()
    config_file.write_text("2")
    assert changed()
    with jax.default_matmul_precision("highest"):
        assert changed()
    assert not changed()
    for module, name, value in (
        (fingerprint.sys, "version", "another Python"),
        (fingerprint.importlib.metadata, "version", lambda package: "another release"),
        (fingerprint, "_devices", lambda: "another machine"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, value)
            assert changed(), name
        assert not changed()
    config = make_config(train__label_smoothing=0.2)
    assert changed()
    config = make_config(data__batch_size=32)
    assert changed()


def test_code_from_elsewhere_is_part_of_the_fingerprint(monkeypatch, tmp_path):
    module = tmp_path / "patches.py"
    module.write_text("1")
    monkeypatch.setattr(nfnets, "IMPORTED_NS", 2**62)
    config = make_config()
    without = digest(config)
    monkeypatch.syspath_prepend(tmp_path)
    __import__("patches")
    first = digest(config)
    module.write_text("2")
    second = digest(config)
    del sys.modules["patches"]
    assert len({without, first, second}) == 3


def test_there_is_none_while_the_code_changes(monkeypatch):
    monkeypatch.setattr(nfnets, "IMPORTED_NS", 0)  # before every file
    assert digest(make_config()) is None


def test_the_devices_are_described():
    described = fingerprint._devices()
    assert described["kinds"] == ["cpu"] * 4
    assert described["threads"] >= 1
    assert described["processor"]
