from __future__ import annotations

import re
import tomllib

from hypothesis import given, settings
from hypothesis import strategies as st

from foveal.recipe import (
    AdamW,
    Affine,
    Checkpointing,
    Constant,
    Cosine,
    CustomTransform,
    Cutout,
    DataPart,
    Ema,
    Evaluation,
    Exponential,
    Flip,
    Frequency,
    Group,
    Linear,
    Logging,
    Loss,
    ModelPart,
    Muon,
    Normalization,
    OneCycle,
    Recipe,
    Resolution,
    RmsProp,
    Seeds,
    Sgd,
    Translate,
    describe,
    differences,
    override,
    to_toml,
)
from foveal.recipe.text import from_dict

modest = settings(max_examples=25, deadline=None)

counts = st.integers(1, 2**40)
whole = st.integers(0, 1000)
seeds = st.integers(0, 2**63 - 1)
shares = st.floats(0, 1)
decays = st.floats(0, 1, exclude_max=True)
positive = st.floats(1e-30, 1e30)
frequencies = st.one_of(
    st.builds(Frequency, st.integers(1, 10**12).map(float), st.just("steps")),
    st.builds(Frequency, st.floats(1e-9, 1e9), st.just("epochs")),
    st.just(Frequency(0, "never")),
)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
identifiers = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True)
plain = st.one_of(
    st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False, allow_infinity=False), texts
)
options = st.dictionaries(
    identifiers,
    st.recursive(
        plain,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(identifiers, inner, max_size=3),
        max_leaves=4,
    ),
    max_size=3,
)
base = {"learning_rate": positive, "weight_decay": st.floats(0, 1e30), "decayed": texts.map(re.escape)}
optimizers = st.one_of(
    st.builds(Sgd, momentum=decays, **base),
    st.builds(AdamW, betas=st.tuples(decays, decays), epsilon=positive, **base),
    st.builds(RmsProp, decay=decays, momentum=decays, epsilon=positive, **base),
    st.builds(
        Muon,
        momentum=st.floats(1e-9, 1, exclude_max=True),
        iterations=counts,
        arithmetic=st.sampled_from(["float32", "bfloat16"]),
        normalize=st.booleans(),
        rest_learning_rate=positive,
        rest_momentum=decays,
        **base,
    ),
)
ends = st.floats(1e-9, 1, exclude_max=True)
groups = st.builds(
    Group,
    parameters=texts.map(re.escape),
    learning_rate=st.none() | positive,
    weight_decay=st.none() | st.floats(0, 1e30),
    until=st.none() | ends,
)
resolutions = st.lists(ends, max_size=3, unique=True).flatmap(
    lambda shares: st.tuples(
        *(st.builds(Resolution, size=st.tuples(counts, counts), until=st.just(end)) for end in sorted(shares))
    )
)
schedules = st.one_of(
    st.builds(Constant, warmup_steps=whole),
    st.builds(
        Exponential, factor=st.floats(1e-9, 1), every=counts, staircase=st.booleans(), warmup_steps=whole
    ),
    st.builds(Cosine, final=shares, warmup=decays),
    st.builds(Linear, final=shares, warmup=decays),
    st.builds(OneCycle, peak=st.floats(1e-9, 1, exclude_max=True), start=shares, final=shares),
)
transforms = st.one_of(
    st.builds(Translate, pixels=counts),
    st.builds(Flip, probability=shares),
    st.builds(
        Affine,
        degrees=st.floats(0, 1e6),
        scale=st.tuples(positive, positive).map(lambda pair: tuple(sorted(pair))),
        shear=st.floats(0, 89),
        pixels=st.floats(0, 1e6),
    ),
    st.builds(Cutout, size=counts),
    st.builds(CustomTransform, name=st.just("package.module:factory"), options=options),
)
lengths = st.one_of(
    st.builds(lambda steps: {"steps": steps}, st.integers(1001, 2**40)),
    st.builds(lambda epochs: {"epochs": epochs}, positive),
)
automatic = st.just("auto")


@st.composite
def recipes(draw):
    micro_batch = draw(st.none() | st.integers(1, 1000))
    return Recipe(
        name=draw(identifiers),
        batch_size=draw(st.integers(1, 1000)) * (micro_batch or 1),
        micro_batch=micro_batch,
        **draw(lengths),
        precision=draw(st.sampled_from(["auto", "float32", "bfloat16"])),
        compile=draw(st.booleans() | automatic),
        device=draw(texts),
        threads=draw(counts | automatic),
        loader_threads=draw(counts | automatic),
        deterministic=draw(st.booleans()),
        data=draw(
            st.builds(
                DataPart,
                name=texts,
                path=st.none() | identifiers,
                options=options,
                validation=st.none() | whole,
                batching=st.sampled_from(["continuous", "drop_last", "keep_last"]),
                shuffle=st.sampled_from(["none", "global", "blocks"]),
            )
        ),
        model=draw(st.builds(ModelPart, name=texts, options=options)),
        augmentation=draw(st.lists(transforms, max_size=3)),
        normalization=Normalization(
            mean=tuple(draw(st.lists(st.floats(-1e6, 1e6), max_size=3))),
            deviation=tuple(draw(st.lists(positive, max_size=3))),
        ),
        loss=draw(st.builds(Loss, label_smoothing=decays)),
        resolution=draw(resolutions),
        optimizer=draw(optimizers),
        groups=draw(st.lists(groups, max_size=2)),
        schedule=draw(schedules),
        ema=draw(st.none() | st.builds(Ema, decay=ends, start=decays)),
        seed=draw(st.builds(Seeds, init=seeds, data=seeds)),
        evaluation=draw(
            st.builds(
                Evaluation,
                every=frequencies,
                final=st.booleans(),
                metrics=st.lists(texts, max_size=3),
                batch_size=counts,
                tta=st.sampled_from(["none", "flip", "flip+shift", "10-crop"]),
            )
        ),
        logging=draw(
            st.builds(
                Logging,
                every=frequencies,
                activations=st.lists(texts, max_size=3),
                activations_every=frequencies,
                loss_averages=st.none() | st.floats(0, 1, exclude_max=True),
                histograms=st.lists(st.sampled_from(["activations", "weights", "gradients"]), max_size=3),
                images=whole,
                graph=st.booleans(),
            )
        ),
        checkpoint=draw(st.builds(Checkpointing, every=frequencies, keep_last=counts, keep_best=whole)),
    )


@modest
@given(recipes())
def test_a_recipe_written_as_toml_is_read_as_it_was(recipe):
    assert from_dict(tomllib.loads(to_toml(recipe)), "test") == recipe


@modest
@given(recipes())
def test_a_described_recipe_is_read_as_it_was(recipe):
    assert from_dict(tomllib.loads(describe(recipe)), "test") == recipe


@modest
@given(recipes())
def test_overriding_nothing_changes_nothing(recipe):
    assert override(recipe, []) == recipe
    assert differences(recipe, recipe) == {}


@modest
@given(recipes(), seeds)
def test_one_setting_makes_one_difference(recipe, seed):
    changed = override(recipe, [f"seed.data={seed}"])
    expected = {} if seed == recipe.seed.data else {"seed.data": (recipe.seed.data, seed)}
    assert differences(recipe, changed) == expected
    assert changed.model_copy(update={"seed": recipe.seed}) == recipe
