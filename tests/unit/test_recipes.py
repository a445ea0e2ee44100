import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from angelshare.recipes import (
    STAGE_VERSIONS,
    canonical,
    digest,
    make_recipe,
    recipe_differences,
    recipe_key,
)

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text()
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.text(), plain, min_size=2))
def test_key_does_not_depend_on_the_order_of_keys(recipe):
    backwards = dict(reversed(recipe.items()))
    assert recipe_key("logits", recipe) == recipe_key("logits", backwards)


def test_swapping_two_roles_changes_the_key():
    there = make_recipe("logits", inputs={"teacher": "aa", "sequences": "bb"})
    swapped = make_recipe("logits", inputs={"teacher": "bb", "sequences": "aa"})
    assert recipe_key("logits", there) != recipe_key("logits", swapped)


def test_swapping_two_values_changes_the_key():
    assert digest("x", {"a": 1, "b": 2}) != digest("x", {"a": 2, "b": 1})


def test_kinds_never_share_a_key():
    assert recipe_key("logits", {"a": 1}) != recipe_key("corpus", {"a": 1})


def test_types_that_look_alike_are_told_apart():
    assert len({digest("x", v) for v in (1, 1.0, True, "1", None, [1], {"1": 1})}) == 7


def test_a_new_version_is_a_new_key(monkeypatch):
    before = recipe_key("logits", make_recipe("logits", k=16))
    monkeypatch.setitem(STAGE_VERSIONS, "logits", STAGE_VERSIONS["logits"] + 1)
    assert recipe_key("logits", make_recipe("logits", k=16)) != before


def test_golden_key():
    """The encoding itself may never change: every store in the world is named by it."""
    assert digest("angelshare/x", {"b": [1, 2.5, None], "a": "ü"}) == (
        "a40b1c5d20a20f5fd036f9dfaa4a382dd2dfe7e2148038b5a55377506940489e"
    )


@pytest.mark.parametrize("value", [math.nan, math.inf, {1, 2}, object(), b"x", {1: 2}])
def test_what_has_no_canonical_encoding_is_refused(value):
    with pytest.raises(TypeError, match="recipe"):
        canonical({"deep": [value]})


def test_differences_are_named_by_path():
    before = {"data": {"seed": 1, "rows": [1, 2]}, "same": 1}
    after = {"data": {"seed": 2, "rows": [1, 2]}, "same": 1, "new": None}
    assert list(recipe_differences(before, after)) == [
        ("data.seed", "1", "2"),
        ("new", "–", "null"),
    ]
