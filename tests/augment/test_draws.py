"""Random draws by key and position, and the Beta quantiles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nfnets.augment import draws


@pytest.mark.parametrize("implementation", ["threefry2x32", "rbg"])
def test_bits_depend_on_key_and_position_only(implementation):
    key = jax.random.key(3, impl=implementation)
    index = jnp.array([5, 0, 7, 2], jnp.int32)
    whole = np.asarray(draws.example_bits(key, index, 6))
    one_by_one = [draws.example_bits(key, index[i : i + 1], 6)[0] for i in range(4)]
    np.testing.assert_array_equal(whole, np.stack(one_by_one))
    assert len(np.unique(whole)) == whole.size
    other = draws.example_bits(jax.random.key(4, impl=implementation), index, 6)
    assert not np.any(whole == np.asarray(other))


def test_below_is_uniform_and_in_range():
    bits = draws.example_bits(jax.random.key(0), jnp.arange(30_000), 1)[:, 0]
    for bound in (1, 2, 7, 16, 25):
        counts = np.bincount(np.asarray(draws.below(bits, bound)), minlength=bound)
        assert counts.size == bound
        expected = bits.size / bound
        # Five standard deviations of a binomial count.
        assert np.all(np.abs(counts - expected) <= 5 * np.sqrt(expected))


def test_from_table_picks_all_entries_equally():
    table = np.arange(1 << 15, dtype=np.int32)
    bits = jnp.array([0, 2**17 - 1, 2**17, 2**31, 2**32 - 1], jnp.uint32)
    picked = np.asarray(draws.from_table(bits, table))
    np.testing.assert_array_equal(picked, [0, 0, 1, 2**14, 2**15 - 1])


# Distribution functions in closed form.
_EXACT = {
    0.5: lambda x: 2 / np.pi * np.arcsin(np.sqrt(x)),
    1.0: lambda x: x,
    2.0: lambda x: 3 * x**2 - 2 * x**3,
    3.0: lambda x: 10 * x**3 - 15 * x**4 + 6 * x**5,
}


@pytest.mark.parametrize("alpha", _EXACT)
def test_beta_quantiles_against_closed_forms(alpha):
    quantiles = draws.beta_quantiles(alpha)
    probability = (np.arange(1 << 15) + 0.5) / (1 << 15)
    np.testing.assert_allclose(_EXACT[alpha](quantiles), probability, atol=1e-6)


# Quantiles at 0.1, 0.25 and 0.4 from scipy.stats.beta.ppf.
@pytest.mark.parametrize(
    ("alpha", "expected"),
    [
        (0.2, (0.000247764692, 0.0238147188, 0.216341859)),
        (0.05, (9.71182360e-15, 8.83284505e-7, 0.0105760582)),
        (20.0, (0.399102028, 0.446497064, 0.479853795)),
    ],
)
def test_beta_quantiles_against_scipy(alpha, expected):
    quantiles = draws.beta_quantiles(alpha)
    probability = (np.arange(1 << 15) + 0.5) / (1 << 15)
    found = np.interp((0.1, 0.25, 0.4), probability, quantiles)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    np.testing.assert_allclose(quantiles + quantiles[::-1], 1, atol=1e-12)


@pytest.mark.parametrize("alpha", [0.01, 100.0])
def test_beta_quantiles_at_the_limits(alpha):
    quantiles = draws.beta_quantiles(alpha)
    assert np.all(np.isfinite(quantiles)) and np.all(np.diff(quantiles) >= 0)
    # Var = 1 / (4 (2 alpha + 1)).
    np.testing.assert_allclose(np.var(quantiles), 0.25 / (2 * alpha + 1), rtol=1e-3)
