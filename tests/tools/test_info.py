"""What `nfnets info` and `nfnets models` print."""

import dataclasses
import pickle

import numpy as np
import pytest

import nfnets
from nfnets.errors import UserError
from nfnets.tools import info, models
from nfnets.weights import describe_model
from nfnets.weights.files import write_safetensors
from tests.weights.helpers import MICRO, micro_model, micro_params


def test_content_of_a_weights_file(tmp_path, capsys):
    path = tmp_path / "w.safetensors"
    described = dataclasses.replace(
        describe_model(micro_model(), MICRO),
        class_names=("a", "b", "c", "d", "e"),
        source="made up",
    )
    params = micro_params()
    state = {"bn": {"average": np.ones(3, np.float32), "counter": np.int32(1)}}
    nfnets.save_weights(path, params, state, described)
    info.main([str(path)])
    lines = capsys.readouterr().out.splitlines()
    printed = {line[:16].strip(): line[16:] for line in lines}
    arrays = [array for module in params.values() for array in module.values()]
    assert printed == {
        "model": "nfnet_tiny",
        "num_classes": "5",
        "overrides": str(MICRO),
        "class_names": "a, b, c, ...",
        "image_size": "32",
        "mean_rgb": "123.675, 116.28, 103.53",
        "stddev_rgb": "58.395, 57.12, 57.375",
        "preprocessing": "resize_crop_32",
        "source": "made up",
        "checksum": nfnets.read_weights_info(path).checksum,
        "params": f"{sum(a.size for a in arrays):,} in {len(arrays)} arrays",
        "state": "4 in 2 arrays",
        "dtypes": f"F32 ({len(arrays) + 1}), I32 (1)",
        "bytes": f"{path.stat().st_size:,}",
    }
    nfnets.save_weights(path, {"m": {"n": np.ones(2)}})
    info.main([str(path)])
    printed = capsys.readouterr().out
    assert printed.startswith("checksum ")
    assert "2 in 1 arrays" in printed


def test_files_of_other_formats(tmp_path, capsys):
    path = tmp_path / "a file"
    write_safetensors(path, {"stem.conv1.weight": np.ones(2)}, {})
    info.main([str(path)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith(
        "holds a PyTorch state dictionary, such as timm's. To convert it:"
    )
    assert lines[1] == f"nfnets convert '{path}' --out=FILE.safetensors"
    path.write_bytes(pickle.dumps({"m": {"n": np.ones(2)}}))
    info.main([str(path)])
    assert "DeepMind's published checkpoints" in capsys.readouterr().out
    with pytest.raises(UserError, match="no weights file nowhere: "):
        info.main(["nowhere"])


def test_list_of_models(capsys):
    models.main([])
    title, *lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(nfnets.list_models())
    assert " ".join(title.split()) == "model blocks train px test px top-1 %"
    models.main(["nfnet_f[01]"])
    _, *lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [
        ["nfnet_f0", "12", "192", "256", "83.6"],
        ["nfnet_f1", "24", "224", "320", "84.7"],
    ]
    models.main(["nfnet_f7"])
    assert capsys.readouterr().out.split()[-1] == "-"
    with pytest.raises(UserError, match="no model matches 'nfnet_g'"):
        models.main(["nfnet_g"])
