"""The networks whose steps are timed."""

import dataclasses

from experiments import batch_norm_cost


def test_networks_differ_by_batch_norm():
    with_norm, without = list(batch_norm_cost.grid())[:2]
    assert dataclasses.replace(without, model=()) == with_norm
    models = [batch_norm_cost._config(s).model for s in (with_norm, without)]
    assert models[0].overrides == {}
    assert models[1].overrides == {"normalization": "none"}
