"""Adaptive gradient clipping: values by hand, equality with optax, foreign trees."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nfnets
from nfnets.optim import AdaptiveGradClipState, clipping_state

# shape -> axes of a unit (None: the whole array).
LAYOUTS = {
    (): None,
    (5,): None,
    (1, 1, 6): None,  # one dimension larger than 1 is a vector
    (1, 1, 1, 7): None,
    (4, 3): (0,),
    (4, 3, 2): (0,),
    (3, 3, 2, 5): (0, 1, 2),
    (2, 3, 3, 2, 5): (0, 1, 2, 3),
}


def norm(array, axes):
    return np.sqrt(np.sum(np.abs(array) ** 2, axis=axes, keepdims=True))


def clipped_by_hand(gradient, weight, axes, clipping, eps):
    """The definition, unit by unit, in float64."""
    allowed = clipping * np.maximum(norm(weight, axes), eps)
    actual = norm(gradient, axes)
    return np.where(actual >= allowed, gradient * allowed / actual, gradient)


def arrays(shape, seed, scale=1.0):
    return scale * np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def clip(gradient, weight, *args, **kwargs):
    transformation = nfnets.adaptive_grad_clip(*args, **kwargs)
    return transformation.update(gradient, transformation.init(weight), weight)


@pytest.mark.parametrize("shape", LAYOUTS)
def test_exact_values_for_every_rank(shape):
    axes = LAYOUTS[shape]
    weight = jnp.asarray(arrays(shape, 0))
    # Units from far below to far above the limit.
    spread = np.logspace(-3, 1, shape[-1] if shape else 1).reshape(shape and (-1,))
    gradient = jnp.asarray(arrays(shape, 1) * spread.astype(np.float32))
    got, state = clip(gradient, weight, 0.1, 1e-3)
    expected = clipped_by_hand(np.asarray(gradient), np.asarray(weight), axes, 0.1, 1e-3)
    np.testing.assert_allclose(got, expected, rtol=1e-5)

    ratios = norm(np.asarray(gradient), axes) / norm(np.asarray(weight), axes)
    np.testing.assert_allclose(state.clipped_fraction, (ratios > 0.1).mean(), rtol=1e-6)
    np.testing.assert_allclose(state.max_ratio, ratios.max(), rtol=1e-5)
    # Units within the limit keep their bits.
    inside = np.broadcast_to(ratios < 0.1, got.shape)
    np.testing.assert_array_equal(got[inside], gradient[inside])


def test_by_hand_with_eps_and_two_units():
    weight = jnp.array([[3.0, 0.0], [4.0, 0.0]])  # unit norms 5 and 0
    gradient = jnp.array([[0.6, 0.03], [0.8, 0.04]])  # unit norms 1 and 0.05
    got, state = clip(gradient, weight, 0.1, 0.2)
    # Limits 0.1 * 5 = 0.5 and 0.1 * 0.2 = 0.02.
    np.testing.assert_allclose(got, [[0.3, 0.012], [0.4, 0.016]], rtol=1e-6)
    assert state.clipped_fraction == 1.0
    np.testing.assert_allclose(state.max_ratio, 0.05 / 0.2, rtol=1e-6)


def test_a_unit_exactly_at_the_limit_is_not_counted():
    got, state = clip(jnp.array([0.5]), jnp.array([1.0]), 0.5)
    assert got == 0.5
    assert state.clipped_fraction == 0
    assert state.max_ratio == 0.5


@pytest.mark.parametrize("shape", [s for s in LAYOUTS if len(s) < 5])
@pytest.mark.parametrize("clipping", [1e-4, 0.01, 0.5])
@pytest.mark.parametrize("eps", [1e-3, 1.0])
def test_equals_optax(shape, clipping, eps):
    weight, gradient = jnp.asarray(arrays(shape, 2)), jnp.asarray(arrays(shape, 3, 0.3))
    theirs = optax.adaptive_grad_clip(clipping, eps)
    want, _ = theirs.update(gradient, theirs.init(weight), weight)
    got, _ = clip(gradient, weight, clipping, eps)
    np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize("axis", [(1, 2, 3), [1, 2, 3], lambda w: tuple(range(1, w.ndim))])
@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((5, 2, 3, 3), (1, 2, 3)),  # OIHW
        ((5, 2, 3), (1, 2)),  # OIW: reduced over the axes that it has
        ((5, 2), (1,)),  # a linear layer [out, in]
    ],
)
def test_layouts_of_torch(axis, shape, axes):
    weight, gradient = arrays(shape, 4), arrays(shape, 5)
    got, _ = clip(jnp.asarray(gradient), jnp.asarray(weight), 0.2, axis=axis)
    expected = clipped_by_hand(gradient, weight, axes, 0.2, 1e-3)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_axes_may_count_from_the_end():
    weight, gradient = arrays((5, 2, 3), 4), arrays((5, 2, 3), 5)
    got, _ = clip(jnp.asarray(gradient), jnp.asarray(weight), 0.2, axis=(-3, -1))
    expected = clipped_by_hand(gradient, weight, (0, 2), 0.2, 1e-3)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_vectors_stay_one_unit_under_given_axes():
    weight, gradient = arrays((5,), 6), arrays((5,), 7)
    got, _ = clip(jnp.asarray(gradient), jnp.asarray(weight), 0.2, axis=1)
    np.testing.assert_allclose(
        got, clipped_by_hand(gradient, weight, None, 0.2, 1e-3), rtol=1e-5
    )


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("magnitude", ["tiny", "huge"])
def test_half_precision_neither_overflows_nor_underflows(dtype, magnitude):
    limits = jnp.finfo(dtype)
    value = float(limits.max) / 32 if magnitude == "huge" else float(limits.tiny) * 4
    gradient = jnp.full((64, 2), value, dtype)
    weight = jnp.full((64, 2), value, dtype)
    got, state = clip(gradient, weight, 0.25, 1e-45)
    assert got.dtype == dtype
    # Gradient and weight norms are equal, so the ratio is 1 and the result a quarter.
    np.testing.assert_allclose(state.max_ratio, 1.0, rtol=1e-3)
    if magnitude == "huge":
        np.testing.assert_allclose(np.asarray(got, np.float64), value / 4, rtol=1e-2)
    assert np.isfinite(np.asarray(got, np.float64)).all()


def test_half_precision_sums_in_float32():
    # 4096 ones: a float16 sum would stop at 2048, a bfloat16 one at 256.
    for dtype in (jnp.float16, jnp.bfloat16):
        gradient = jnp.ones((4096, 1), dtype)
        _, state = clip(gradient, jnp.full((4096, 1), 2, dtype), 0.01)
        np.testing.assert_allclose(state.max_ratio, 0.5, rtol=1e-6)


def test_complex_units_are_scaled_as_a_whole():
    weight = jnp.array([[1 + 1j], [1 - 1j]])  # norm 2
    gradient = jnp.array([[3 + 4j], [0 + 0j]])  # norm 5
    got, state = clip(gradient, weight, 0.5)
    np.testing.assert_allclose(got, [[(3 + 4j) / 5], [0]], rtol=1e-6)
    assert got.dtype == jnp.complex64
    np.testing.assert_allclose(state.max_ratio, 2.5, rtol=1e-6)
    assert state.max_ratio.dtype == jnp.float32


def test_zero_gradients_stay_zero():
    got, state = clip(jnp.zeros((3, 2)), jnp.zeros((3, 2)), 0.1)
    np.testing.assert_array_equal(got, np.zeros((3, 2)))
    assert state.clipped_fraction == state.max_ratio == 0


def test_zero_weights_and_gradients_under_the_least_eps():
    for dtype in (jnp.float32, jnp.bfloat16):
        got, state = clip(jnp.zeros((3, 2), dtype), jnp.zeros((3, 2), dtype), 0.1, 1e-30)
        np.testing.assert_array_equal(got, np.zeros((3, 2)))
        assert state.max_ratio == 0


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_exploding_gradients_are_clipped_to_the_limit(dtype):
    gradient = jnp.full((4, 2), 1e18, dtype)
    got, state = clip(gradient, jnp.zeros((4, 2), dtype), 0.01, 1e-3)
    np.testing.assert_allclose(norm(np.asarray(got, np.float64), 0), 1e-5, rtol=1e-2)
    np.testing.assert_allclose(state.max_ratio, 2e21, rtol=1e-2)


def test_nan_gradients_are_not_hidden():
    gradient = jnp.array([[1.0, jnp.nan], [1.0, 1.0]])
    got, state = clip(gradient, jnp.ones((2, 2)), 0.1)
    assert np.isnan(got[:, 1]).all() and np.isfinite(got[:, 0]).all()
    assert np.isnan(state.max_ratio)


def test_vectorized_over_runs():
    weights, gradients = arrays((3, 4, 5), 8), arrays((3, 4, 5), 9)
    together, state = jax.vmap(lambda g, w: clip(g, w, 0.3))(gradients, weights)
    for run in range(3):
        alone, alone_state = clip(gradients[run], weights[run], 0.3)
        np.testing.assert_allclose(together[run], alone, rtol=1e-6)
        np.testing.assert_allclose(state.max_ratio[run], alone_state.max_ratio, rtol=1e-6)


def test_none_leaves_and_empty_trees_pass_through():
    transformation = nfnets.adaptive_grad_clip(0.1)
    params = {"a": jnp.ones(3), "b": None}
    state = transformation.init(params)
    got, _ = transformation.update({"a": jnp.full(3, 9.0), "b": None}, state, params)
    assert got["b"] is None
    np.testing.assert_allclose(got["a"], 0.1, rtol=1e-6)
    # An optimizer that trains part of the parameters hands over None for the others.
    got, state = transformation.update({"a": None, "b": None}, state, params)
    assert got == {"a": None, "b": None}
    assert state.clipped_fraction == 0
    got, state = transformation.update({}, transformation.init({}), {})
    assert got == {}
    assert state.max_ratio == 0


@pytest.mark.parametrize(
    "mask",
    [
        {"head": False, "body": {"w": True, "b": False}},
        lambda params: {"head": False, "body": {"w": True, "b": False}},
    ],
)
def test_masked_arrays_are_left_alone_and_not_counted(mask):
    params = {"head": jnp.ones(3), "body": {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}}
    gradients = jax.tree.map(lambda x: 100 * x, params)
    got, state = clip(gradients, params, 0.1, mask=mask, per_layer=True)
    np.testing.assert_array_equal(got["head"], gradients["head"])
    np.testing.assert_array_equal(got["body"]["b"], gradients["body"]["b"])
    np.testing.assert_allclose(got["body"]["w"], 0.1, rtol=1e-6)
    assert state.clipped_fraction == 1
    assert state.layer_max_ratio["head"] is None
    np.testing.assert_allclose(state.layer_max_ratio["body"]["w"], 100, rtol=1e-6)


def test_a_mask_may_be_a_prefix_of_the_tree():
    params = {"head": {"w": jnp.ones(2), "b": jnp.ones(2)}, "body": jnp.ones(2)}
    gradients = jax.tree.map(lambda x: 100 * x, params)
    got, _ = clip(gradients, params, 0.1, mask={"head": False, "body": True})
    np.testing.assert_array_equal(got["head"]["w"], [100, 100])
    np.testing.assert_allclose(got["body"], 0.1, rtol=1e-6)


def test_statistics_per_layer():
    params = {"a": jnp.ones((2, 2)), "b": jnp.ones(2)}
    gradients = {"a": jnp.array([[1.0, 0.001], [1.0, 0.001]]), "b": jnp.full(2, 0.5)}
    _, state = clip(gradients, params, 0.1, per_layer=True)
    np.testing.assert_allclose(state.layer_clipped_fraction["a"], 0.5)
    np.testing.assert_allclose(state.layer_clipped_fraction["b"], 1.0)
    np.testing.assert_allclose(state.layer_max_ratio["a"], 1.0, rtol=1e-6)
    np.testing.assert_allclose(state.layer_max_ratio["b"], 0.5, rtol=1e-6)
    np.testing.assert_allclose(state.clipped_fraction, 2 / 3, rtol=1e-6)
    np.testing.assert_allclose(state.max_ratio, 1.0, rtol=1e-6)


@jax.tree_util.register_pytree_node_class
class Module:
    """As in Equinox: a tree with a static name, functions among its leaves, callable."""

    def __init__(self, name, *leaves):
        self.name, self.leaves = name, leaves

    def __call__(self, x):
        raise AssertionError("a module is not a function of parameters")

    def tree_flatten(self):
        return self.leaves, self.name

    @classmethod
    def tree_unflatten(cls, name, leaves):
        return cls(name, *leaves)


WEIGHT, BIAS = jnp.ones((2, 2)), jnp.ones(3)
OTHERS = jnp.tanh, "text", 3, jnp.arange(3), jax.random.key(0), jnp.float32
MODULE = Module("outer", WEIGHT, Module("inner", BIAS), *OTHERS)
PLAIN = [WEIGHT, (BIAS, *OTHERS), {"a": optax.MaskedNode(), "b": None}]


def is_weight(leaf):
    return isinstance(leaf, jax.Array) and leaf.dtype == jnp.float32


@pytest.mark.parametrize("params", [MODULE, PLAIN])
@pytest.mark.parametrize("others", ["kept", "none"])
def test_other_leaves_pass_through(params, others):
    gradients = jax.tree.map(
        lambda x: 100 * x if is_weight(x) else x if others == "kept" else None, params
    )
    got, state = clip(gradients, params, 0.1, per_layer=True)
    assert jax.tree.structure(got) == jax.tree.structure(gradients)
    for leaf, before in zip(jax.tree.leaves(got), jax.tree.leaves(gradients), strict=True):
        if is_weight(before):
            np.testing.assert_allclose(leaf, 0.1, rtol=1e-6)
        else:
            assert leaf is before
    np.testing.assert_allclose(state.max_ratio, 100, rtol=1e-6)
    assert len(jax.tree.leaves(state.layer_max_ratio)) == 2


@pytest.mark.parametrize(
    "mask",
    [
        Module("outer", True, Module("inner", False), *[False] * 6),
        Module("outer", True, Module("inner", False), *OTHERS),
        Module("outer", True, None, *[None] * 6),  # None counts as False
        Module("outer", True, False, *[True] * 6),  # a prefix
        lambda params: Module("outer", True, Module("inner", False), *params.leaves[2:]),
    ],
)
def test_a_mask_may_be_a_module(mask):
    gradients = Module("outer", 100 * WEIGHT, Module("inner", 100 * BIAS), *[None] * 6)
    got, state = clip(gradients, MODULE, 0.1, mask=mask, per_layer=True)
    np.testing.assert_allclose(got.leaves[0], 0.1, rtol=1e-6)
    assert got.leaves[1].leaves[0] is gradients.leaves[1].leaves[0]
    assert len(jax.tree.leaves(state.layer_max_ratio)) == 1


def test_inside_of_masked_and_partition():
    params = {"head": jnp.ones(3), "body": {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}}
    gradients = jax.tree.map(lambda x: 100 * x, params)
    clipping = nfnets.adaptive_grad_clip(
        0.1, mask={"head": True, "body": {"w": True, "b": False}}
    )
    for optimizer in (
        optax.masked(clipping, {"head": False, "body": True}),
        optax.partition(
            {"clip": clipping, "keep": optax.identity()}, {"head": "keep", "body": "clip"}
        ),
    ):
        got, _ = optimizer.update(gradients, optimizer.init(params), params)
        np.testing.assert_array_equal(got["head"], gradients["head"])
        np.testing.assert_array_equal(got["body"]["b"], gradients["body"]["b"])
        np.testing.assert_allclose(got["body"]["w"], 0.1, rtol=1e-6)


def test_python_and_numpy_numbers():
    params = {"a": 2.0, "b": np.float32(2), "c": np.ones(2), "d": 1}
    got, _ = clip({"a": 5.0, "b": 5.0, "c": jnp.ones(2), "d": 7}, params, 0.1)
    np.testing.assert_allclose(got["a"], 0.2, rtol=1e-6)
    np.testing.assert_allclose(got["b"], 0.2, rtol=1e-6)
    np.testing.assert_allclose(got["c"], 0.1, rtol=1e-6)
    assert got["d"] == 7


def test_state_keeps_its_structure_from_init_to_update():
    params = {"a": jnp.ones((2, 2)), "b": None, "c": jnp.ones(2)}
    for per_layer in (False, True):
        transformation = nfnets.adaptive_grad_clip(0.1, per_layer=per_layer)
        before = transformation.init(params)
        # Parameters without a gradient are no units.
        for gradients in (params, {**params, "c": None}):
            _, after = transformation.update(gradients, before, params)
            assert jax.tree.structure(before) == jax.tree.structure(after)
            assert jax.tree.map(lambda x: (x.shape, x.dtype), before) == jax.tree.map(
                lambda x: (x.shape, x.dtype), after
            )
    assert after.clipped_fraction == 1
    np.testing.assert_allclose(after.layer_max_ratio["a"], 1, rtol=1e-6)
    assert after.layer_max_ratio["c"] == 0


def test_the_names_of_stored_states():
    """Checkpoints store the state by these names."""
    assert AdaptiveGradClipState._fields == (
        "clipped_fraction",
        "max_ratio",
        "layer_clipped_fraction",
        "layer_max_ratio",
    )


def test_in_an_optax_chain_under_jit():
    optimizer = optax.chain(nfnets.adaptive_grad_clip(0.1), optax.sgd(1.0))
    params = {"w": jnp.array([[3.0], [4.0]])}
    state = optimizer.init(params)

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update({"w": jnp.array([[6.0], [8.0]])}, state, params)
        return optax.apply_updates(params, updates), state

    params, state = step(params, state)
    np.testing.assert_allclose(params["w"], [[2.7], [3.6]], rtol=1e-6)
    assert isinstance(clipping_state(state), AdaptiveGradClipState)
    np.testing.assert_allclose(clipping_state(state).max_ratio, 2.0, rtol=1e-6)


def test_mistakes_are_named():
    transformation = nfnets.adaptive_grad_clip(0.1)
    with pytest.raises(nfnets.UserError, match=r"update\(gradients, state, params\)"):
        transformation.update({"w": jnp.ones(2)}, transformation.init({"w": jnp.ones(2)}))
    with pytest.raises(nfnets.UserError, match=r"clipping must .* in \(0, inf\), not 0"):
        nfnets.adaptive_grad_clip(0)
    with pytest.raises(nfnets.UserError, match=r"eps must be .* in \(0, inf\), not -1"):
        nfnets.adaptive_grad_clip(0.1, -1)
    six = jnp.ones((2,) * 6)
    with pytest.raises(nfnets.UserError, match=r"no rule for an array of shape \[2, 2, 2"):
        transformation.update(six, transformation.init(six), six)
