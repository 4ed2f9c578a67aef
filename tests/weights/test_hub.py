"""Weights by reference: a real client against a hub of this process."""

import csv
import json
import os
import pathlib
import pickle
import subprocess
import sys

import chex
from huggingface_hub import constants, file_download
import jax
import numpy as np
import pytest
import safetensors.numpy

import nfnets
from nfnets.errors import UserError
from nfnets.models.counting import parameter_shapes
from nfnets.tools import convert, info, models
from nfnets.weights import hub, reading
from nfnets.weights.timm import from_timm, to_timm
from tests import reference
from tests.weights.fake_hub import FakeHub

CLASSES = 4
CONFIG = {
    "architecture": "dm_nfnet_tiny",
    "num_classes": CLASSES,
    "label_names": ["tench", "goldfish", "shark", "ray"],
    "pretrained_cfg": {
        "tag": "dm_made_up",
        "input_size": [3, 32, 32],
        "test_input_size": [3, 48, 48],
        "interpolation": "bicubic",
        "crop_pct": 0.9,
        "crop_mode": "squash",
        "mean": [0.5, 0.4, 0.3],
        "std": [0.2, 0.25, 0.3],
    },
}
KNOWN = hub.Pretrained("nfnet_tiny", "dm_nfnet_tiny", "dm_made_up", 0.4, 12.5)


def formula_tensors(scale=1.0):
    model = nfnets.create_model("nfnet_tiny", CLASSES)
    params = reference.formula_params(parameter_shapes(model))
    tensors = to_timm(jax.tree.map(lambda array: np.asarray(array) * scale, params))
    return {key: np.asarray(array, np.float32, "C") for key, array in tensors.items()}


@pytest.fixture(scope="module")
def tensors():
    return formula_tensors()


@pytest.fixture
def fake(tensors, tmp_path, monkeypatch):
    """A hub with the weights of one name, and an empty cache."""
    server = FakeHub()
    monkeypatch.setattr(hub, "PRETRAINED", (KNOWN,))
    template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    for name, value in (
        ("ENDPOINT", server.endpoint),
        ("HUGGINGFACE_CO_URL_TEMPLATE", template),
        ("HF_HUB_CACHE", str(tmp_path / "cache")),
        ("HF_HUB_OFFLINE", False),
    ):
        monkeypatch.setattr(constants, name, value)
        # Older versions import the constants by name.
        monkeypatch.setattr(file_download, name, value, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    server.push(
        KNOWN.repository,
        model_safetensors=safetensors.numpy.save(tensors),
        config_json=json.dumps(CONFIG).encode(),
    )
    yield server
    server.close()


def test_a_name_brings_the_model_its_weights_and_their_preprocessing(fake, tensors):
    model, params, state = nfnets.from_pretrained("nfnet_tiny")
    assert (model.name, model.num_classes, state) == ("nfnet_tiny", CLASSES, {})
    chex.assert_trees_all_equal(params, from_timm(tensors))
    found = nfnets.read_weights_info("nfnet_tiny.dm_made_up")
    assert (found.image_size, found.preprocessing, found.crop_fraction) == (
        48,
        "squash",
        0.9,
    )
    assert found.mean_rgb == (127.5, 102.0, 76.5)
    assert found.stddev_rgb == pytest.approx((51.0, 63.75, 76.5))
    assert found.class_names == ("tench", "goldfish", "shark", "ray")
    assert found.source == "timm checkpoint nfnet_tiny.dm_made_up"


def test_files_are_downloaded_once_and_found_offline(fake, tmp_path):
    path = hub.find_weights("nfnet_tiny")
    assert [name for method, name in fake.requests if method == "GET"] == [
        f"/{KNOWN.repository}/resolve/{revision}"
        for revision in (
            "main/model.safetensors",
            fake.branches[KNOWN.repository, "main"] + "/config.json",
        )
    ]
    fake.requests.clear()
    assert hub.find_weights("nfnet_tiny") == path
    assert [method for method, _ in fake.requests] == ["HEAD"]
    fake.requests.clear()
    # The client reads its settings when it is imported.
    program = (
        "from nfnets.errors import UserError\n"
        "from nfnets.weights.hub import find_weights\n"
        f"print(find_weights('hf://{KNOWN.repository}'))\n"
        "try:\n    find_weights('hf://me/x')\n"
        "except UserError as error:\n    print(error)\n"
    )
    settings = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "cache")}
    lines = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **settings, "HF_ENDPOINT": fake.endpoint},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert lines == [
        str(path),
        "hf://me/x: model.safetensors is not cached, and HF_HUB_OFFLINE is set",
    ]
    assert not fake.requests


def test_without_a_network_cached_files_are_taken(fake, monkeypatch):
    path = hub.find_weights("nfnet_tiny")
    fake.close()
    assert hub.find_weights("nfnet_tiny") == path
    monkeypatch.setattr("time.sleep", lambda _: None)  # between the client's attempts
    with pytest.raises(
        UserError, match=r"is not cached, and http://127.* cannot be reached"
    ):
        hub.find_weights("hf://me/x")


def test_a_branch_moves_and_a_commit_does_not(fake):
    old = fake.branches[KNOWN.repository, "main"]
    hub.find_weights("nfnet_tiny")
    changed = formula_tensors(2.0)
    fake.push(
        KNOWN.repository,
        model_safetensors=safetensors.numpy.save(changed),
        config_json=json.dumps(CONFIG).encode(),
    )
    name = "NFNet/~/linear"
    want = from_timm(changed)[name]["w"]
    assert np.array_equal(nfnets.load_weights("nfnet_tiny")[0][name]["w"], want)
    assert np.array_equal(nfnets.load_weights(f"nfnet_tiny@{old}")[0][name]["w"], want / 2)
    assert f"/snapshots/{old}/" in str(hub.find_weights(f"hf://{KNOWN.repository}@{old}"))


def test_damaged_transfers_are_removed(fake, tmp_path, monkeypatch):
    fake.damage = lambda content: content[:-1] + bytes([content[-1] ^ 1])
    with pytest.raises(UserError, match=r"model.safetensors arrived damaged: its SHA-256"):
        hub.find_weights("nfnet_tiny")
    assert not [path for path in tmp_path.rglob("*") if path.stat().st_size > 10**5]
    fake.damage = lambda content: content[:1000]
    monkeypatch.setattr("time.sleep", lambda _: None)
    with pytest.raises(
        UserError, match="model.safetensors was not downloaded: .*try again"
    ):
        hub.find_weights("nfnet_tiny")
    fake.damage = None
    assert hub.find_weights("nfnet_tiny").stat().st_size > 10**5


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hf://me/none", "hf://me/none: there is no such repository, or it is private"),
        ("nfnet_tiny@v9", "hf://timm/dm_nfnet_tiny.dm_made_up: it has no revision 'v9'"),
        ("hf://timm/dm_nfnet_tiny.dm_made_up/a/b.npz", "it has no file a/b.npz"),
        ("hf://me", "hf://me is not hf://OWNER/REPOSITORY"),
        ("hf://me/x@", "hf://me/x@ is not hf://OWNER/REPOSITORY"),
        ("hf://-/..", "this is not a valid name of a repository"),
        ("nfnet_tiny.ra", "the published weights of nfnet_tiny are dm_made_up, not 'ra'"),
        ("nfnet_f7", "no weights file nfnet_f7: nfnet_f7 is a model without published"),
        ("nfnet_tony", "published weights either; did you mean nfnet_tiny"),
        ("gs://bucket/w.npz", "gs://bucket/w.npz is not a local path"),
    ],
)
def test_references_that_lead_nowhere(fake, name, message):
    with pytest.raises(UserError) as error:
        hub.find_weights(name)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_other_networks_and_settings_are_refused(fake):
    other = safetensors.numpy.save({"layer1.weight": np.ones(2, np.float32)})
    fake.push("me/x", model_safetensors=other, config_json=b"{}")
    with pytest.raises(UserError, match=r"^hf://me/x: 'layer1.weight' is not a parameter"):
        nfnets.from_pretrained("hf://me/x")
    bilinear = {**CONFIG["pretrained_cfg"], "interpolation": "bilinear"}
    config = json.dumps({**CONFIG, "pretrained_cfg": bilinear}).encode()
    good = safetensors.numpy.save(formula_tensors())
    fake.push("me/x", model_safetensors=good, config_json=config)
    with pytest.raises(UserError, match="is not a config.json of timm: .*bilinear"):
        nfnets.from_pretrained("hf://me/x")


def test_huggingface_hub_is_optional(fake, tmp_path, tensors, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(
        UserError, match="needs huggingface_hub; pip install huggingface_hub"
    ):
        hub.find_weights("nfnet_tiny")
    path = tmp_path / "w.safetensors"
    safetensors.numpy.save_file(tensors, path)
    assert hub.find_weights(path) == path


def test_urls(fake, tensors, monkeypatch, capsys):
    url = f"{fake.endpoint}/bucket/F0_haiku.npz"
    params = from_timm(tensors)
    fake.urls["/bucket/F0_haiku.npz"] = pickle.dumps(params, 4)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match=f"{url} is not cached, and HF_HUB_OFFLINE is set"):
        hub.find_weights(url)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    chex.assert_trees_all_equal(nfnets.load_weights(url)[0], params)
    assert capsys.readouterr().err.startswith(f"downloading {url}, 0.8 MB\n")
    fake.requests.clear()
    assert nfnets.read_weights_info(url).source == f"haiku checkpoint {url}"
    assert not fake.requests
    with pytest.raises(UserError, match=r"/me/x/resolve/main/w: HTTP 404"):
        hub.find_weights(f"{fake.endpoint}/me/x/resolve/main/w")
    repository = f"{fake.endpoint}/{KNOWN.repository}/resolve/main/model.safetensors"
    fake.damage = lambda content: content[:1000]
    with pytest.raises(UserError, match=r"the transfer broke after 1,000 of 776,444 bytes"):
        hub.find_weights(repository)
    fake.damage = None
    assert hub.find_weights(repository).stat().st_size > 10**5
    fake.close()
    with pytest.raises(UserError, match="is not cached, and cannot be reached: "):
        hub.find_weights(url + "2")


def test_a_folder_for_the_hub_comes_back(fake, tensors, tmp_path, capsys):
    folder = tmp_path / "flowers"
    convert.main(["nfnet_tiny", "--to=hub", "--license=apache-2.0", f"--out={folder}"])
    assert "flowers: nfnet_tiny, 4 classes, from timm" in capsys.readouterr().out
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    card = files["README.md"].decode()
    assert card.startswith('---\nlibrary_name: nfnets\nlicense: "apache-2.0"\n')
    assert "nfnet_tiny, 191,545 parameters, 4 classes, for images of 48 x 48" in card
    assert "- Classes: tench, goldfish, shark, ray\n" in card
    assert json.loads(files["config.json"])["crop_fraction"] == 0.9
    fake.push(
        "me/flowers", **{name.replace(".", "_"): text for name, text in files.items()}
    )
    for name in (folder, "hf://me/flowers", "hf://me/flowers@main"):
        model, params, _ = nfnets.from_pretrained(name)
        assert model.spec == nfnets.create_model("nfnet_tiny", timm_compat=True).spec
        chex.assert_trees_all_equal(params, from_timm(tensors))
        found = nfnets.read_weights_info(name)
        assert (found.class_names, found.image_size) == (tuple(CONFIG["label_names"]), 48)
    with pytest.raises(UserError, match="has no metadata 'model'"):
        nfnets.save_pretrained(tmp_path / "x", params)


def test_other_classes_and_options(fake, capsys):
    model, params, _ = nfnets.from_pretrained("nfnet_tiny", 3, compute_dtype="bfloat16")
    assert "nfnet_tiny has 4 classes, this run has 3: the cl" in capsys.readouterr().out
    assert params["NFNet/~/linear"]["w"].shape[-1] == model.num_classes == 3
    assert model.policy.compute_dtype == np.dtype("bfloat16")


def test_commands(fake, capsys):
    models.main(["--pretrained"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == [
        *("nfnet_tiny.dm_made_up", "DeepMind", "0.4", "32", "32", "12.50"),
        "hf://timm/dm_nfnet_tiny.dm_made_up",
    ]
    with pytest.raises(UserError, match="no published weights match 'x'"):
        models.main(["--pretrained", "x"])
    info.main(["nfnet_tiny"])
    text = capsys.readouterr().out
    assert "nfnets convert nfnet_tiny --out=FILE.safetensors" in text
    assert "crop_fraction   0.9" in text


def test_known_weights_are_of_known_models():
    names = [(known.model, known.tag) for known in hub.PRETRAINED]
    assert len(set(names)) == len(names) == 14
    golden = pathlib.Path(__file__).parents[1] / "golden"
    counts = {}
    with (golden / "models.csv").open() as file:
        for row in csv.DictReader(file):
            counts[f"{row['family']}-{row['variant']}"] = int(row["params"])
    with (golden / "timm_models.csv").open() as file:
        counts |= {row["name"]: int(row["params"]) for row in csv.DictReader(file)}
    for known in hub.PRETRAINED:
        assert known.model in nfnets.list_models()
        published = f"NFNet-{known.model.removeprefix('nfnet_').upper()}"
        count = counts.get(known.model) or counts[published]
        assert known.params == round(count / 1e6, 1)


def test_names_of_imagenets_classes():
    names = reading.imagenet_classes()
    assert len(names) == len(set(names)) == 1000
    want = {
        0: "tench",
        134: "crane (bird)",
        281: "tabby",
        388: "giant panda",
        999: "toilet tissue",
    }
    assert {index: names[index] for index in want} == want
    settings = {**CONFIG["pretrained_cfg"], "tag": "dm_in1k"}
    config = {"architecture": "x", "num_classes": 1000, "pretrained_cfg": settings}
    assert reading._parse_timm_config(config).class_names == names
