"""Steps compiled for devices that are not there."""

import dataclasses
from importlib import util
import json
import re

import jax
import pytest

from nfnets import config_files
from nfnets.errors import UserError
from nfnets.models import count_parameters
from nfnets.pods import compilation
from nfnets.pods.compilation import AllReduce, StepReport
from nfnets.pods.topologies import CHIPS, Topology, open_topology
from nfnets.tools import pods
from nfnets.training.config import resolve

_REPORT = StepReport(
    topology="v4:2x2x1",
    model="nfnet_f0",
    num_devices=4,
    num_hosts=2,
    batch_size=128,
    image_size=192,
    microbatch=None,
    remat="none",
    compute_dtype="bfloat16",
    compile_seconds=61.2,
    argument_bytes=1_000_000_000,
    temporary_bytes=2_000_000_000,
    code_bytes=100_000_000,
    flops=2.75e12,
    traffic_bytes=12.28e9,
    part_seconds={"convolutions": 0.015, "augmentation": 0.005},
    all_reduces=(AllReduce("f32", 300_000_000, False),),
)
_TOPOLOGY = Topology("v4:2x2x1", CHIPS["v4"], [None] * 4, 2)


def test_lines_about_a_step():
    lines = list(pods.describe(_REPORT, _TOPOLOGY))
    assert lines == [
        "nfnet_f0 on v4:2x2x1: 4 x TPU v4, 32 images each, 192 px, bfloat16",
        "  memory       3.10 of 32 GB: fits (arguments 1.00, temporaries 2.00, program "
        "0.10)",
        "  all-reduce   1, 300.0 MB of f32, 0 of them asynchronous; at least 1.5 ms at the "
        "links' published rate",
        "  rooflines    10.0 ms for 2.750 TFLOP, 10.0 ms for 12.3 GB of memory traffic "
        "(upper bound)",
        "  step         20.0 ms by XLA's estimate of clock cycles, without all-reduces; "
        "not measured",
        "    convolutions              15.00 ms  75.0%",
        "    augmentation               5.00 ms  25.0%",
        "  input        2,977 images/s for each of 2 hosts, if the step takes 21.5 ms; 360 "
        "epochs of ImageNet in 21.5 hours",
        "  feed         3 cores of each host at 0.9 ms an image, measured on one CPU",
        "  compiled in  61 s",
    ]
    gather = ("gather", 200_000, 4.0, "jit(step)/augment/gather")
    warned = dataclasses.replace(_REPORT, gathers=[gather])
    assert list(pods.describe(warned, _TOPOLOGY))[-2] == (
        "  WARNING      gather of 200,000 elements, 4 times a step, which TPUs take one by "
        "one: jit(step)/augment/gather"
    )
    gpus = dataclasses.replace(_TOPOLOGY, chip=CHIPS["h100"])
    on_gpus = dataclasses.replace(warned, part_seconds={}, flops=None)
    assert not any("WARNING" in line for line in pods.describe(on_gpus, gpus))
    assert "no estimate: XLA gives none for GPUs" in "".join(pods.describe(on_gpus, gpus))


def test_a_step_that_does_not_fit_is_tried_in_other_forms(monkeypatch):
    tried = []

    def compile_step(config, topology):
        tried.append((config.model.remat, config.train.microbatch))
        size = config.train.microbatch or 32
        report = dataclasses.replace(_REPORT, microbatch=config.train.microbatch)
        if size == 32 and config.model.remat == "none":
            return dataclasses.replace(report, failure="RESOURCE_EXHAUSTED: hbm"), None
        return dataclasses.replace(report, temporary_bytes=size * 2_000_000_000), None

    monkeypatch.setattr(compilation, "compile_step", compile_step)
    config = config_files.load_config("nfnet_f0")
    config.data.batch_size = 128
    config.train.microbatch = "auto"
    resolved = resolve(config, num_train=1000, num_classes=10)
    reports = [r for r, _ in compilation.compile_until_fits(resolved, _TOPOLOGY)]
    assert tried == [("none", None), ("block", None), ("none", 16), ("none", 8)]
    fits = [compilation.fits(report, _TOPOLOGY) for report in reports]
    assert fits == [False, False, False, True]
    assert (
        "does not fit: RESOURCE_EXHAUSTED" in list(pods.describe(reports[0], _TOPOLOGY))[1]
    )


@pytest.mark.parametrize("name", ["v4", "v9:2x2", "v4:2x", "h100", "gs://v4"])
def test_a_wrong_topology_is_one_line(name):
    with pytest.raises(UserError, match=r"unknown topology .*v4:4x4x8"):
        open_topology(name)


@pytest.mark.skipif(util.find_spec("libtpu") is not None, reason="libtpu is installed")
def test_a_missing_compiler_says_what_to_install():
    with pytest.raises(UserError, match=r"pip install 'nfnets\[pods\]'"):
        open_topology("v5e:2x2")


def test_recipes_by_name():
    assert config_files.load_config("digits").model.name == "nfnet_tiny"
    assert {"nfnet_f0", "nfnet_f6_sam", "imagefolder"} <= config_files.recipes().keys()
    with pytest.raises(UserError, match="no file nosuchrecipe"):
        config_files.load_config("nosuchrecipe")


def _compile(command, tmp_path, capsys):
    pods.main([*command, f"--out={tmp_path}"])
    (file,) = tmp_path.glob("*.json")
    text = file.with_suffix(".hlo.txt").read_text()
    return json.loads(file.read_text()), text, capsys.readouterr().out


def _assert_sound(report, text, parameters):
    """Asserts what holds for every step that is compiled for TPUs or GPUs."""
    assert report["failure"] is None
    reduced = sum(r["num_bytes"] for r in report["all_reduces"])
    # The gradients, and a few numbers for the metrics.
    assert 4 * parameters <= reduced <= 4 * parameters + 64
    assert {r["dtype"] for r in report["all_reduces"]} == {"f32"}
    assert len(report["all_reduces"]) <= 12
    if report["topology"] != "h100:8":
        assert report["gathers"] == []
    # Feature maps are in bfloat16; the classifier's products and histograms are not.
    results = re.findall(r"= (\w+)\[[\d,]*\]\S* convolution\((.*)", text)
    wide = [line for dtype, line in results if dtype == "f32"]
    assert not any("conv_general_dilated" in line for line in wide)


@pytest.mark.pods
def test_small_step_for_a_tpu(tmp_path, capsys):
    pytest.importorskip("libtpu")
    command = ["--config=digits", "--topology=v5e:2x2", "--batch=64"]
    command += ["--config.model.compute_dtype=bfloat16", "--config.data.image_size=48"]
    command += ["--config.augment.randaugment_layers=2", "--config.model.num_classes=10"]
    report, text, out = _compile(command, tmp_path, capsys)
    import nfnets

    params, _ = nfnets.create_model("nfnet_tiny", 10).shapes()
    _assert_sound(report, text, count_parameters(params))
    assert (report["num_devices"], report["num_hosts"]) == (4, 1)
    assert 0 < report["temporary_bytes"] < 1e9
    parts = report["part_seconds"]
    assert parts["augmentation"] > 0
    assert parts["convolutions"] > 0
    assert sum(parts.values()) < 0.1
    assert "fits" in out
    lines = (next(tmp_path.glob("*.lines.txt"))).read_text()
    assert "models/layers.py" in lines
    assert jax.default_backend() == "cpu"


@pytest.mark.long
@pytest.mark.parametrize("topology", ["v3:2x2", "h100:8"])
def test_nfnet_f0(topology, tmp_path, capsys):
    if topology == "h100:8":
        pytest.importorskip("jax_plugins.xla_cuda12")
    else:
        pytest.importorskip("libtpu")
    report, text, _ = _compile(
        ["nfnet_f0", f"--topology={topology}", "--batch=256"], tmp_path, capsys
    )
    _assert_sound(report, text, 71_489_368)
    assert report["temporary_bytes"] < 3e9
    if topology == "v3:2x2":
        seconds = sum(report["part_seconds"].values())
        assert seconds < 0.0733  # the paper's measurement
        assert report["part_seconds"]["augmentation"] < 0.15 * seconds
