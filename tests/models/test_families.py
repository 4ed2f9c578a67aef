"""The other families against the published implementation."""

import csv

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nfnets
from nfnets.errors import UserError
from nfnets.models import (
    count_activations,
    count_multiply_adds,
    count_parameters,
    listing_hash,
)
from nfnets.models.counting import layer_calls, parameter_shapes
from nfnets.models.layers import conv2d
from nfnets.models.spec import StemConv
from tests import reference
from tests.models.helpers import block_input_variances

PREFIXES = {
    "NF_RegNet": "nf_regnet_",
    "NF_ResNet": "nf_resnet",
    "NF_ResNet-SE": "nf_seresnet",
    "ResNet": "resnet",
    "FixUp_ResNet": "fixup_resnet",
    "SkipInit_ResNet": "skipinit_resnet",
}
FAMILIES = (
    "nf_regnet_b0",
    "nf_resnet50",
    "nf_seresnet50",
    "resnet50",
    "resnet50_v1",
    "fixup_resnet50",
    "skipinit_resnet50",
)
# Few, narrow blocks: one transition, one block of equal width.
SMALL = {
    "stem": (StemConv(name="initial_conv", channels=8, kernel_size=3, stride=2),),
    "widths": (16, 24),
    "depths": (2, 1),
    "strides": (1, 2),
}


def published_rows():
    with (reference.DATA / "models.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["family"] in PREFIXES]
    return {
        PREFIXES[row["family"]] + row["variant"].lower().removeprefix("resnet"): row
        for row in rows
    }


PUBLISHED = published_rows()


def formula_state(shapes):
    """Formula arrays of batch normalization: variances near 1, means near 0."""
    return {
        module: {
            name: np.ones((), np.int32)
            if name == "counter"
            else ("var_ema" in module)
            + reference.formula_array(f"{module}:{name}", leaf.shape)
            for name, leaf in arrays.items()
        }
        for module, arrays in shapes.items()
    }


def relative_error(got, want):
    return np.abs(got - want).max() / want.std()


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.long if int(row["leaves"]) > 350 else ())
        for name, row in PUBLISHED.items()
    ],
)
def test_parameters_are_the_published_ones(name):
    model, row = nfnets.create_model(name), PUBLISHED[name]
    shapes = parameter_shapes(model)
    assert count_parameters(shapes) == int(row["params"])
    assert len(jax.tree.leaves(shapes)) == int(row["leaves"])
    assert listing_hash(shapes) == row["sha256"]
    assert model.spec.recipe.train_size == int(row["train_size"])
    assert model.spec.recipe.test_size == int(row["test_size"])


def test_every_name_is_a_model_whose_parameters_the_optimizer_knows():
    assert set(PUBLISHED) < set(nfnets.list_models())
    assert len(nfnets.list_models()) == 1 + 16 + 9 + 6 * 5 + 29
    for name in FAMILIES:
        small = {} if name.startswith("nf_regnet") else SMALL
        shapes = parameter_shapes(nfnets.create_model(name, **small))
        jax.eval_shape(nfnets.create_optimizer(0.1).init, shapes)


@pytest.mark.parametrize("name", ["nf_regnet_b0", "nf_regnet_b2"])
def test_multiply_adds_are_the_published_ones(name):
    # The published count includes fractions of pixels where strides do not divide the
    # size; it is proportional to the area, except for the linear layers.
    row = PUBLISHED[name]
    calls = layer_calls(nfnets.create_model(name), 64)
    convs = sum(call.multiply_adds for call in calls if call.is_conv)
    linear = sum(call.multiply_adds for call in calls if not call.is_conv)
    scaled = convs * int(row["test_size"]) ** 2 / 64**2
    assert int(scaled + linear) == int(row["macs_at_test_size"])


def test_costs_of_resnet50_are_the_published_ones():
    model = nfnets.create_model("resnet50")
    # "Designing network design spaces" (2020), table 4: 4.1 B, 11.1 M.
    assert round(count_multiply_adds(model, 224) / 1e9, 1) == 4.1
    assert round(count_activations(model, 224) / 1e6, 1) == 11.1


def test_costs_by_hand():
    model = nfnets.create_model(
        "nf_seresnet50",
        num_classes=5,
        stem=(StemConv(name="initial_conv", channels=8, kernel_size=7, stride=2),),
        widths=(16,),
        depths=(1,),
        strides=(2,),
    )
    # 32 px: the stem at 16, pooled to 8; conv0 at 8, the others at 4.
    convs = {
        "initial_conv": (16 * 16 * 8, 7 * 7 * 3),
        "conv0": (8 * 8 * 4, 8),
        "conv1": (4 * 4 * 4, 3 * 3 * 4),
        "conv2": (4 * 4 * 16, 4),
        "conv_shortcut": (4 * 4 * 16, 8),
    }
    linear = 16 * 4 + 4 * 16 + 16 * 5
    assert count_activations(model, 32) == sum(size for size, _ in convs.values())
    assert count_multiply_adds(model, 32) == linear + sum(
        size * fan_in for size, fan_in in convs.values()
    )


@pytest.mark.parametrize(
    ("name", "file", "has_gradients"),
    [
        pytest.param(
            "nf_regnet_b0", "NF_RegNet-B0", True, marks=pytest.mark.long, id="regnet_grads"
        ),
        ("nf_regnet_b0", "NF_RegNet-B0", False),
        ("nf_resnet50", "NF_ResNet-ResNet50", True),
        ("resnet50", "ResNet-ResNet50", True),
        ("fixup_resnet50", "FixUp_ResNet-ResNet50", False),
        ("skipinit_resnet50", "SkipInit_ResNet-ResNet50", False),
    ],
)
def test_outputs_and_gradients_are_the_published_ones(name, file, has_gradients):
    expected = np.load(reference.DATA / f"{file}.npz")
    model = nfnets.create_model(name, drop_rate=0.0, stochdepth_rate=0.0)
    params, state = model.shapes()
    params, state = reference.formula_params(params), formula_state(state)
    images = reference.formula_images(2, 64)

    def loss_fn(params):
        outputs, _ = model.apply(params, state, None, images, is_training=True)
        log_probs = jax.nn.log_softmax(outputs["logits"])
        return -jnp.mean(log_probs[jnp.arange(2), jnp.array([1, 7])]), outputs

    def run(params):
        trained = None
        if has_gradients:
            trained = jax.value_and_grad(loss_fn, has_aux=True)(params)
            if not state:  # evaluation is the same: saves the second compilation
                return trained[0][1], trained
        return model.apply(params, state, None, images, is_training=False)[0], trained

    evaluated, trained = jax.jit(run)(params)
    for key in ("logits", "pool"):
        assert relative_error(evaluated[key], expected[key]) < 1e-4, key
    if trained is None:
        return
    (loss, outputs), grads = trained
    if "train_logits" in expected:
        # The variance of the last stage's eight values loses digits; the published outputs
        # differ from float64 by 2e-4.
        assert relative_error(outputs["logits"], expected["train_logits"]) < 5e-4
    np.testing.assert_allclose(loss, expected["loss"], rtol=1e-3)
    assert len(expected["grad_names"]) == len(jax.tree.leaves(grads))
    for path, norm in zip(expected["grad_names"], expected["grad_norms"], strict=True):
        module, _, leaf = path.rpartition(":")
        np.testing.assert_allclose(
            np.linalg.norm(grads[module][leaf]), norm, rtol=1e-3, err_msg=path
        )


def test_post_activation_batch_norm_by_hand():
    """Against the block written out and torchvision's count; no outputs are published."""
    shapes = parameter_shapes(nfnets.create_model("resnet50_v1"))
    assert count_parameters(shapes) == 25557032

    model = nfnets.create_model("resnet50_v1", num_classes=3, **SMALL)
    images = jax.random.normal(jax.random.key(0), (3, 32, 32, 3))
    params, state = model.shapes()
    params, state = reference.formula_params(params), formula_state(state)

    def norm(x, name):
        bn = params[f"ResNet/~/{name}"]
        mean, var = (
            state[f"ResNet/~/{name}/~/{kind}_ema"]["average"] for kind in ("mean", "var")
        )
        return bn["scale"] * (x - mean) / np.sqrt(var + 1e-5) + bn["offset"]

    def conv(x, name, stride=1):
        return conv2d(x, params[f"ResNet/~/{name}"]["w"], stride)

    def block(x, name, stride=1, projects=True):
        inner = jax.nn.relu(norm(conv(x, f"{name}/~/conv0"), f"{name}/~/bn0"))
        inner = jax.nn.relu(norm(conv(inner, f"{name}/~/conv1", stride), f"{name}/~/bn1"))
        inner = norm(conv(inner, f"{name}/~/conv2"), f"{name}/~/bn2")
        if projects:
            x = norm(conv(x, f"{name}/~/conv_shortcut", stride), f"{name}/shortcut_bn")
        return jax.nn.relu(inner + x)

    @jax.jit
    def run():
        x = jax.nn.relu(norm(conv(images, "initial_conv", 2), "initial_bn"))
        stem = jax.lax.reduce_window(
            x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "SAME"
        )
        x = block(block(stem, "res_block_v1"), "res_block_v1_1", projects=False)
        x = block(x, "res_block_v1_2", stride=2)
        want = {"stem": stem, "stage_2": x, "pool": x.mean((1, 2))}
        return want, model.apply(params, state, None, images)[0]

    want, got = run()
    for key, value in want.items():
        np.testing.assert_allclose(got[key], value, rtol=1e-4, atol=1e-5, err_msg=key)


@pytest.mark.parametrize("name", FAMILIES)
def test_end_points_in_half_precision(name):
    small = SMALL | ({"strides": (2, 2)} if name.startswith("nf_regnet") else {})
    model = nfnets.create_model(name, num_classes=7, compute_dtype="bfloat16", **small)
    params, state = model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    outputs, after = jax.eval_shape(
        lambda key: model.apply(params, state, key, jnp.ones((2, 32, 32, 3)), True),
        jax.random.key(0),
    )
    ends = {"stem", "stage_1", "stage_2", "pool", "logits"}
    if name.startswith("nf_regnet"):
        ends |= {"final_conv"}
        side, features = 16, model.spec.final_width
    else:
        side, features = 8, 24
    assert set(outputs) == ends
    assert outputs["stem"].shape == (2, side, side, 8)
    assert outputs["stage_2"].shape == (2, 4, 4, 24)
    assert outputs["pool"].shape == (2, features)
    assert outputs["logits"].shape == (2, 7)
    for key, value in outputs.items():
        half = key not in ("pool", "logits")
        assert value.dtype == (jnp.bfloat16 if half else jnp.float32), key
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    assert jax.tree.map(jnp.result_type, state) == jax.tree.map(lambda x: x.dtype, after)


def test_initial_values_have_the_published_distributions():
    def draw(name, **options):
        images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
        model = nfnets.create_model(name, 100, depths=(1, 1, 1, 2), **options)
        return model.init(jax.random.key(2), images)[0]

    fixup = draw("fixup_resnet50")
    block = "FixUp_ResNet/~/res_block_4"
    conv1, shortcut = f"{block}/~/conv1", "FixUp_ResNet/~/res_block_3/~/conv_shortcut"
    np.testing.assert_allclose(
        fixup[conv1]["w"].std(), np.sqrt(2 / (9 * 512)) * 5**-0.25, rtol=0.01
    )  # 5 blocks
    np.testing.assert_allclose(
        fixup[f"{block}/~/conv0"]["w"].std(), np.sqrt(2 / 512) * 5**-0.25, rtol=0.01
    )
    np.testing.assert_allclose(fixup[shortcut]["w"].std(), np.sqrt(2 / 2048), rtol=0.01)
    assert (fixup[f"{block}/~/conv2"]["w"] == 0).all()
    assert fixup[block]["scale"] == 1
    assert fixup[block]["bias3b"] == 0
    # Haiku's default elsewhere: truncated at two standard deviations.
    stem = fixup["FixUp_ResNet/~/initial_conv"]["w"]
    np.testing.assert_allclose(stem.std(), 0.8796 / np.sqrt(147), rtol=0.02)
    assert np.abs(stem).max() <= 2 / np.sqrt(147)
    assert (fixup["FixUp_ResNet/~/linear"]["w"] == 0).all()

    skipinit = draw("skipinit_resnet50")
    conv = skipinit["SkipInit_ResNet/~/nf_res_block_4/~/conv1"]
    np.testing.assert_allclose(conv["w"].std(), 0.8796 / np.sqrt(9 * 512), rtol=0.01)
    assert (conv["b"] == 0).all()
    assert (skipinit["SkipInit_ResNet/~/linear"]["w"] == 0).all()

    he = draw("resnet50", conv_init="he")["ResNet/~/res_block_v2_4/~/conv1"]["w"]
    np.testing.assert_allclose(he.std(), np.sqrt(2 / (9 * 512)), rtol=0.01)

    head = draw("nf_resnet50")["NF_ResNet/~/linear"]["w"]
    np.testing.assert_allclose(head.std(), 0.01, rtol=0.01)


def test_recipes_are_the_published_ones():
    specs = {name: nfnets.create_model(name).spec for name in nfnets.list_models()}
    regnets = [specs[f"nf_regnet_b{number}"] for number in range(9)]
    decays = [spec.recipe.weight_decay for spec in regnets]
    np.testing.assert_allclose(decays, [(5 + n) * 1e-5 for n in range(9)])
    rates = [spec.drop_rate for spec in regnets]
    assert rates == [0.2, 0.2, 0.3, 0.3, 0.4, 0.4, 0.5, 0.5, 0.5]
    assert all(spec.activation == "silu" for spec in regnets)
    for name in FAMILIES:
        batch_norm = name.startswith("resnet")
        assert specs[name].stochdepth_rate == (0.0 if batch_norm else 0.1), name
    for name in FAMILIES[1:]:
        recipe = specs[name].recipe
        assert (recipe.train_size, recipe.test_size) == (224, 224)
        assert recipe.weight_decay == 1e-4
        assert specs[name].activation == "relu"


def test_nf_resnet_keeps_the_predicted_variance():
    model = nfnets.create_model("nf_resnet50", stochdepth_rate=0.0)
    ratios = block_input_variances(model, 224, 2)
    assert len(ratios) == 16
    np.testing.assert_allclose(ratios[1:], 1, atol=0.1)  # published: 0.98 to 1.03


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"normalization": "layer"}, "must be one of none, batch, fixup, not 'layer'"),
        ({"conv_init": "xavier"}, "must be one of truncated, he, fixup, not 'xavier'"),
    ],
)
def test_wrong_choices_are_named(overrides, message):
    with pytest.raises(UserError, match=message):
        nfnets.create_model("resnet50", **overrides)
