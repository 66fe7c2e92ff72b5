"""Matched parameters, and which of the paper's kinds a model is."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goldfinch.config import RopeConfig
from goldfinch.errors import UserError
from goldfinch.experiments.compare.match_parameters import MULTIPLE, match_parameters, non_embedding_parameters
from goldfinch.experiments.compare.paper import ABLATION_LOSS, LARGE_LOSS, kind_of
from goldfinch.presets import KINDS, model_config


@given(st.sampled_from(list(KINDS)), st.integers(600_000, 2_000_000))
def test_no_other_multiple_of_eight_comes_nearer_to_the_target(kind, target):
    matched = match_parameters(model_config(f"{kind}-L3-D128", 300), target)
    assert matched.channel_width % MULTIPLE == 0
    miss = abs(non_embedding_parameters(matched) - target)
    for width in (matched.channel_width - MULTIPLE, matched.channel_width + MULTIPLE):
        if width:
            assert miss <= abs(non_embedding_parameters(dataclasses.replace(matched, channel_width=width)) - target)


def test_the_vocabulary_does_not_matter():
    small, large = (match_parameters(model_config("finch-L3-D128", size), 700_000) for size in (300, 65536))
    assert small.channel_width == large.channel_width


def test_all_kinds_come_within_a_percent_of_five_million():
    for kind in KINDS:
        matched = match_parameters(model_config(f"{kind}-L6-D256", 4096), 5_000_000)
        assert non_embedding_parameters(matched) == pytest.approx(5_000_000, rel=0.01)


def test_a_target_below_what_the_layers_take_is_refused():
    with pytest.raises(UserError, match="too few for 6 layers of width 256"):
        match_parameters(model_config("finch-L6-D256", 300), 100_000)


@pytest.mark.parametrize("size", ["L12-D768", "L6-D256"])
def test_every_kind_is_recognised_by_its_shape(size):
    for kind in KINDS:
        assert kind_of(dataclasses.replace(model_config(f"{kind}-{size}", 300), channel_width=200)) == kind
    assert kind_of(dataclasses.replace(model_config(f"goldfinch-{size}"), latent_ratio=4)) is None
    assert kind_of(dataclasses.replace(model_config(f"llama-{size}"), rope=RopeConfig(base=500.0))) is None


def test_the_papers_losses_are_of_kinds_that_presets_have():
    assert ABLATION_LOSS.keys() | LARGE_LOSS.keys() == KINDS.keys()
