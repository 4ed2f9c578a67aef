"""The step that an earlier start has compiled: taken where it is the same, only there."""

import os
import pathlib
import shutil
import sys

import jax
from jax.experimental.compilation_cache import compilation_cache
import jax.numpy as jnp
import numpy as np
import pytest

import nfnets
from nfnets.training import step_cache
from nfnets.training.step import put_batch, replicate
from nfnets.training.step_cache import FOLDER, StepCache
from tests.training.test_step import make_config

TRAIN_PY = str(pathlib.Path(__file__).parents[2] / "train.py")


def configure(**settings):
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()  # JAX asks for its folder once


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where steps are kept, as if this were train.py, beside JAX's own cache."""
    monkeypatch.setattr(sys, "orig_argv", ["python", TRAIN_PY, "--workdir=x"])
    monkeypatch.setattr(nfnets, "IMPORTED_NS", 2**62)  # even if the code is seconds old
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    configure(**dict(zip(names, (str(tmp_path), 0.0), strict=True)))
    yield tmp_path / FOLDER
    configure(**before)


def files(folder):
    return sorted(folder.glob("*")) if folder.exists() else []


def run(config, refuse_to_trace=False):
    """Two updates of a small step on four devices; the state and the figures."""

    def step(state, batch):
        assert not refuse_to_trace
        total = jax.lax.psum(jnp.sum(batch["x"] * state["weight"]), "devices")
        return {"weight": state["weight"] + total}, {"total": total}

    mapped = jax.pmap(
        step, "devices", in_axes=(None, 0), out_axes=(None, None), donate_argnums=0
    )
    cache = StepCache(config)
    state = replicate({"weight": np.float32([1, 2])})
    batch = {"x": np.arange(8, dtype=np.float32).reshape(4, 2)}
    prepared = cache.prepare(mapped, jax.eval_shape(lambda: state), batch)
    for _ in range(2):
        state, figures = prepared(state, put_batch(batch))
    return state["weight"].tolist(), figures["total"].tolist()


# Sums over all devices: 12 x 1 + 16 x 2 = 44, then 12 x 45 + 16 x 46 = 1276.
EXPECTED = ([1321, 1322], 1276)


def test_a_kept_step_is_not_traced_again(folder, capsys):
    config = make_config()
    assert run(config) == EXPECTED
    assert len(files(folder)) == 1
    assert run(config, refuse_to_trace=True) == EXPECTED
    with pytest.raises(AssertionError):
        run(make_config(train__label_smoothing=0.2), refuse_to_trace=True)
    assert "WARNING" not in capsys.readouterr().out


def test_a_damaged_file_costs_a_line(folder, capsys):
    assert run(make_config()) == EXPECTED
    (file,) = files(folder)
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    assert run(make_config()) == EXPECTED
    assert f"WARNING   {file} is not usable (it is damaged)" in capsys.readouterr().out
    assert run(make_config()) == EXPECTED
    assert "WARNING" not in capsys.readouterr().out


def test_a_step_that_fails_is_not_kept(folder, monkeypatch):
    run(make_config())
    assert len(files(folder)) == 1

    def fail(*arguments, **options):
        def step(state, batch):
            raise jax.errors.JaxRuntimeError("NOT_FOUND: Function")

        return step

    load = "jax.experimental.serialize_executable.deserialize_and_load"
    monkeypatch.setattr(load, fail)
    with pytest.raises(jax.errors.JaxRuntimeError):
        run(make_config())
    assert not files(folder)


def test_what_jax_has_kept_is_not_written_again(folder):
    """XLA's CPU backend loses functions of a program that it has read."""
    run(make_config())
    shutil.rmtree(folder)
    assert run(make_config()) == EXPECTED
    assert not files(folder)


def test_the_last_used_steps_are_kept(folder):
    folder.mkdir()
    for age in range(step_cache._KEPT + 2):
        old = folder / f"{age}.bin"
        old.touch()
        os.utime(old, (1e9 - age, 1e9 - age))
    run(make_config())
    left = files(folder)
    assert len(left) == step_cache._KEPT
    assert {f"{age}.bin" for age in range(step_cache._KEPT - 1)} < {p.name for p in left}


def test_a_folder_that_cannot_be_written_costs_a_line(folder, capsys):
    folder.write_text("no folder")
    assert run(make_config()) == EXPECTED
    assert "WARNING   the compiled step is not kept: " in capsys.readouterr().out


@pytest.mark.parametrize(
    "argv", [["python", "-cpass", TRAIN_PY], ["python", "other/train.py"]]
)
def test_other_programs_keep_nothing(folder, monkeypatch, argv):
    monkeypatch.setattr(sys, "orig_argv", argv)
    assert run(make_config()) == EXPECTED
    assert not files(folder)


def test_code_that_changes_under_a_run_keeps_nothing(folder, monkeypatch):
    monkeypatch.setattr(nfnets, "IMPORTED_NS", 0)  # before every file
    assert run(make_config()) == EXPECTED
    assert not files(folder)
