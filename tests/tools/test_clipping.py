"""The clipping report of a run."""

import json

import cv2
import numpy as np
import pytest

from nfnets.errors import UserError
from nfnets.tools import clipping
from nfnets.tools.clipping import plot_clipping

# Not in the order of depth.
LAYERS = ["NFNet/~/linear:b", "NFNet/~/nf_block_2/~/conv0:w", "NFNet/~/stem_conv0:w"]


def write_metrics(folder, layers):
    lines = []
    for step in (1, 2, 3):
        entry = {"step": step, "train/loss": 1.0}
        for number, layer in enumerate(layers):
            entry[f"train/agc_clipped_fraction/{layer}"] = number / 2
            entry[f"train/agc_max_ratio/{layer}"] = 10.0**-number
        lines.append(json.dumps(entry))
    (folder / "metrics.jsonl").write_text("\n".join(lines))


def test_the_report_shows_every_layer(tmp_path):
    write_metrics(tmp_path, LAYERS)
    out = tmp_path / "clipping.png"
    assert plot_clipping(tmp_path, out) == 3
    picture = cv2.imread(str(out))
    assert picture.shape[1] == 1600
    # The stem's rows are on top, all clipped: the lightest color; the head's at the bottom.
    left = picture[:, 250:700].mean(axis=(1, 2))
    inside = np.flatnonzero(left < 250)
    assert left[inside[:20]].mean() > left[inside[-20:]].mean()


def test_mistakes_are_named(tmp_path):
    with pytest.raises(UserError, match="it has no metrics.jsonl"):
        plot_clipping(tmp_path, tmp_path / "x.png")
    write_metrics(tmp_path, [])
    with pytest.raises(UserError, match=r"train with --config.train.log_layers=True"):
        plot_clipping(tmp_path, tmp_path / "x.png")


def test_order_and_command_line(tmp_path, capsys):
    paths = [
        "NFNet/~/stem_conv0:w",
        "NFNet/~/nf_block:skip_gain",
        "NFNet/~/nf_block_2/~/conv0:w",
        "NFNet/~/nf_block_10/~/conv0:w",
        "NFNet/~/final_conv:w",
        "NFNet/~/linear:b",
    ]
    assert sorted(sorted(paths), key=clipping._depth_order) == paths
    write_metrics(tmp_path, LAYERS)
    out = tmp_path / "clipping.png"
    clipping.main([str(tmp_path), f"--out={out}"])
    assert capsys.readouterr().out == f"{out}: 3 arrays of {tmp_path}\n"
    with pytest.raises(UserError, match="cannot write --out="):
        clipping.main([str(tmp_path), f"--out={tmp_path}/none/x.png"])
