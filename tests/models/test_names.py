"""Haiku names of stem, blocks and classifier."""

import jax
import pytest

import nfnets
from nfnets.models import names


def test_paths_are_those_of_the_published_checkpoints():
    assert names.module_path("NFNet", "nf_block", "conv0") == "NFNet/~/nf_block/~/conv0"
    assert names.head_module("NFNet") == "NFNet/~/linear"
    assert names.block_name("nf_block", 0) == "nf_block"
    assert names.block_name("nf_block", 12) == "nf_block_12"


@pytest.mark.parametrize(
    ("path", "is_head", "is_stem", "block"),
    [
        ("NFNet/~/linear", True, False, None),
        ("NFNet/~/linear:b", True, False, None),
        ("NFNet/~/linear_1:w", False, False, None),
        ("NFNet/~/stem_conv0", False, True, None),
        ("NFNet/~/stem_conv3:gain", False, True, None),
        ("ResNet/~/initial_bn/~/mean_ema:hidden", False, True, None),
        ("ResNet/~/final_bn:scale", False, False, None),
        ("NFNet/~/final_conv:w", False, False, None),
        ("NFNet/~/nf_block:skip_gain", False, False, 0),
        ("NFNet/~/nf_block_11", False, False, 11),
        ("NFNet/~/nf_block_1/~/squeeze_excite/~/linear:w", False, False, 1),
        ("NF_ResNet/~/nf_res_block_3/~/conv0:w", False, False, 3),
        ("ResNet/~/res_block_v1/shortcut_bn:scale", False, False, 0),
        ("ResNet/~/res_block_v2_10/~/bn0:offset", False, False, 10),
        ("FixUp_ResNet:bias1", False, False, None),
    ],
)
def test_parts_are_recognized(path, is_head, is_stem, block):
    assert names.is_head(path) == is_head
    assert names.is_stem(path) == is_stem
    assert names.block_index(path) == block


@pytest.mark.parametrize("name", ["nfnet_f0", "nf_regnet_b0", "resnet50", "resnet50_v1"])
def test_every_module_of_a_network_has_its_place(name):
    model = nfnets.create_model(name)
    modules = [module for tree in model.shapes() for module in tree]
    blocks = {names.block_index(module) for module in modules} - {None}
    assert blocks == set(range(sum(model.spec.depths)))
    assert [m for m in model.shapes()[0] if names.is_head(m)] == [
        names.head_module(model.spec.module_name)
    ]
    stem = {m.split("/")[2] for m in modules if names.is_stem(m)}
    assert {conv.name for conv in model.spec.stem} <= stem


def test_key_paths_of_any_depth_become_strings():
    tree = {"Net/~/linear": {"w": 1}, "list": [{"deep": {"b": 2}}]}
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    assert list(map(names.parameter_path, paths)) == ["Net/~/linear:w", "list:0:deep:b"]
