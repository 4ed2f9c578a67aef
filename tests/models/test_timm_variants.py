"""timm's networks: sizes, values and initial behavior.

`tests/golden/timm_models.csv` holds the number of parameters and of arrays of timm 1.0.31's
own networks, and the SHA-256 of their names and shapes. `tests/golden/timm.npz` holds the
outputs of timm's networks with the formula parameters and images of `golden_params` and
`reference.formula_images`; tests/weights/test_timm.py computes both again.
"""

import csv
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nfnets
from nfnets.errors import UserError
from nfnets.models import count_parameters, get_spec
from nfnets.models.counting import parameter_shapes
from nfnets.models.names import block_index
from nfnets.weights.timm import from_timm
from tests import reference
from tests.models.helpers import block_input_variances
from tests.weights.helpers import GOLDEN_TIMM, golden_params, timm_listing_hash

with (reference.DATA / "timm_models.csv").open() as file:
    ROWS = {row["name"]: row for row in csv.DictReader(file)}

LIGHT = "eca_nfnet_l0"


@functools.cache
def block_sizes(name, depths):
    """Parameters outside of blocks, and of each block; the same for all deep variants."""
    outside, blocks = 0, [0] * sum(depths)
    for module, arrays in parameter_shapes(
        nfnets.create_model(name, depths=depths)
    ).items():
        index = block_index(module)
        if index is None:
            outside += count_parameters(arrays)
        else:
            blocks[index] += count_parameters(arrays)
    return outside, blocks


def same_but_for_depths(name):
    """The first network of the table that differs from this one in nothing but depths."""
    spec = get_spec(name)

    def shape(spec):
        return spec.module_name, spec.widths, spec.final_width, spec.block

    return next(n for n in ROWS if shape(get_spec(n)) == shape(spec))


@pytest.mark.parametrize("name", ROWS)
def test_parameters_are_as_many_as_timms(name):
    # All blocks of a stage but the first are equal: two of them stand for any number.
    depths = get_spec(name).depths
    short = tuple(min(depth, 2) for depth in depths)
    outside, blocks = block_sizes(same_but_for_depths(name), short)
    blocks = iter(blocks)
    total = outside
    for depth in depths:
        total += next(blocks)
        if depth > 1:
            total += (depth - 1) * next(blocks)
    assert total == int(ROWS[name]["params"])


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if int(row["leaves"]) < 125 else pytest.mark.long)
        for name, row in ROWS.items()
    ],
)
def test_names_and_shapes_are_timms(name):
    params = parameter_shapes(nfnets.create_model(name))
    params = jax.tree.map(lambda x: np.broadcast_to(np.float32(0), x.shape), params)
    assert count_parameters(params) == int(ROWS[name]["params"])
    assert len(jax.tree.leaves(params)) == int(ROWS[name]["leaves"])
    assert timm_listing_hash(nfnets.weights.timm.to_timm(params)) == ROWS[name]["sha256"]


def test_every_network_of_timm_is_a_model():
    assert set(ROWS) < set(nfnets.list_models())
    assert len(ROWS) == 29
    assert {name for name in nfnets.list_models() if name.startswith("timm_")} < set(ROWS)


@pytest.mark.parametrize("case", GOLDEN_TIMM)
def test_outputs_are_timms(case):
    name, overrides, _ = GOLDEN_TIMM[case]
    model = nfnets.create_model(name, 10, **overrides)
    params = from_timm(golden_params(model))
    images = reference.formula_images(2, 48)
    outputs, _ = jax.jit(lambda p: model.apply(p, {}, None, images))(params)
    expected = np.load(reference.DATA / "timm.npz")
    for key in ("logits", "pool"):
        want = expected[f"{case}:{key}"]
        assert np.abs(outputs[key] - want).max() < 1e-4 * want.std(), key


@pytest.fixture(scope="module")
def light():
    """A short ECA network with its initial parameters."""
    model = nfnets.create_model(
        LIGHT, 10, depths=(1,), widths=(96,), strides=(2,), final_width=256
    )
    params, state = model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    assert state == {}
    return model, params


def test_initial_branches_are_zero_and_get_gradients(light):
    model, params = light
    images = reference.formula_images(2, 32)

    def loss(params, gain):
        params = {
            module: {
                name: array + gain if module.endswith("conv2") and name == "gain" else array
                for name, array in arrays.items()
            }
            for module, arrays in params.items()
        }
        outputs, _ = model.apply(params, {}, None, images, is_training=True)
        return jnp.mean(jnp.square(outputs["logits"])), outputs

    run = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (_, outputs), grads = run(params, 0.0)
    (_, opened), open_grads = run(params, 1.0)
    assert {"stem", "stage_1", "final_conv", "pool", "logits"} == set(outputs)
    assert outputs["pool"].shape == (2, 256)
    assert np.abs(opened["stage_1"] - outputs["stage_1"]).max() > 0.1
    block = "NFNet/~/nf_block/~"
    assert (params[f"{block}/conv2"]["gain"] == 0).all()
    assert (params[f"{block}/conv1b"]["gain"] == 1).all()
    # Only the last gains and biases of the branches get a gradient from the first step on.
    assert np.abs(grads[f"{block}/conv2"]["gain"]).max() > 0
    assert (grads[f"{block}/conv1"]["w"] == 0).all()
    for module, arrays in open_grads.items():
        for name, gradient in arrays.items():
            assert np.isfinite(gradient).all() and np.any(gradient), f"{module}:{name}"


def test_initial_values_are_distributed_as_in_timm(light):
    _, params = light
    kernels = [a["w"] for m, a in params.items() if m.endswith("channel_attention")]
    assert [kernel.shape for kernel in kernels] == [(3, 1, 1)]
    draws = nfnets.models.initializers.ECA.draw(jax.random.key(0), (3, 1, 4000), "float32")
    np.testing.assert_allclose(draws.std(), 1 / 3, rtol=0.02)  # PyTorch: 1 / sqrt(3 x 3)
    head = params["NFNet/~/linear"]
    np.testing.assert_allclose(head["w"].std(), 0.01, rtol=0.02)
    assert (head["b"] == 0).all()
    conv = params["NFNet/~/final_conv"]["w"]
    np.testing.assert_allclose(conv.std(), 96**-0.5, rtol=0.02)


def test_light_networks_keep_the_predicted_variance_within_stages():
    model = nfnets.create_model(LIGHT, depths=(2, 3), widths=(256, 512), strides=(1, 2))
    ratios = block_input_variances(model, 96, 2)
    # timm multiplies the first weights by gamma, although no activation precedes them.
    assert 2 < ratios[0] < 6  # measured: 4.2; 1.0 without gamma_in_weights
    np.testing.assert_allclose(ratios[1:3] / ratios[1], 1, atol=0.1)
    np.testing.assert_allclose(ratios[3:] / ratios[3], 1, atol=0.1)


def test_the_optimizer_clips_a_kernel_of_channel_attention_as_one_unit(light):
    _, params = light
    jax.eval_shape(nfnets.create_optimizer(0.1).init, params)  # knows every name
    module = "NFNet/~/nf_block/~/channel_attention"
    params = {module: params[module]}
    optimizer = nfnets.create_optimizer(1.0, weight_decay=0.0, momentum=0.0)
    gradients = jax.tree.map(jnp.ones_like, params)
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    kernel, update = params[module]["w"], updates[module]["w"]
    want = -0.01 * np.linalg.norm(kernel) / 3**0.5
    np.testing.assert_allclose(update, np.full((3, 1, 1), want), rtol=1e-5)


def test_recipes_are_timms():
    spec = get_spec(LIGHT)
    recipe = spec.recipe
    assert (recipe.train_size, recipe.test_size, recipe.top1) == (224, 288, 82.6)
    assert recipe.preprocessing == "crop_square"
    assert (spec.activation, spec.drop_rate, spec.stochdepth_rate) == ("silu", 0, 0)
    assert get_spec("nfnet_l0").recipe.top1 == 82.8
    top1 = [get_spec(f"eca_nfnet_l{n}").recipe.top1 for n in range(4)]
    assert top1 == [82.6, 84.0, 84.7, None]
    assert get_spec("timm_nf_resnet50").recipe.test_size == 288
    assert get_spec("timm_nf_regnet_b1").recipe.top1 == 79.3
    assert get_spec("timm_nfnet_f3").activation == "gelu_exact"
    assert get_spec("test_nfnet").recipe.stddev_rgb == (127.5, 127.5, 127.5)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"se_ratio": 0.25}, "a block has se_ratio or eca_gamma, not both"),
        ({"padding": "valid"}, "padding must be one of same, symmetric, not 'valid'"),
        ({"weight_standardization": False}, "gamma_in_weights needs weight_standard"),
        ({"timm_compat": True}, "timm_compat is for the published NFNets, not for eca_"),
    ],
)
def test_options_that_exclude_one_another(overrides, message):
    with pytest.raises(UserError, match=message):
        nfnets.create_model(LIGHT, **overrides)
