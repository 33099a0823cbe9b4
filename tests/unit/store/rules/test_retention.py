"""Which rule counts for a conversation, and which values are refused."""

from typing import Any

import pytest

from letopis.store import PINNED, ContentRetention, InvalidInput, RetentionRule
from letopis.store.rules.retention import MAX_RULES, SECONDS_PER_DAY

RULES = ContentRetention(
    max_age_days=30,
    max_messages=100,
    rules=(
        RetentionRule(tag="legal"),
        RetentionRule(owner="7", max_age_days=10),
        RetentionRule(tag="short", archived_max_age_days=0.5),
    ),
)


@pytest.mark.parametrize(
    ("owner", "tags", "name"),
    [
        *(("42", (), "default"), (None, (), "default"), ("42", ("other",), "default")),
        *(("7", (), "owner 7"), ("7", ("short",), "owner 7")),
        *(("42", ("short",), "tag short"), ("7", ("short", "legal"), "tag legal")),
        *(("7", (PINNED,), None), ("42", ("legal", PINNED), None)),
    ],
)
def test_the_first_rule_that_matches_counts(owner: str | None, tags: tuple[str, ...], name: str | None) -> None:
    assert getattr(RULES.rule_for(owner, tags), "name", None) == name


def test_each_age_is_looked_at_once() -> None:
    day = SECONDS_PER_DAY
    assert RULES.ages == (0, day // 2, 10 * day, 30 * day)
    assert RULES.least_age == 10 * day
    assert ContentRetention().ages == (0,)
    assert ContentRetention(max_messages=3).least_age is None


def test_rules_limit_checkpoints_if_one_names_a_limit_of_them() -> None:
    few, old = RetentionRule(tag="few", checkpoints_last=3), RetentionRule(owner="7", checkpoints_max_age_days=0.5)
    content = ContentRetention(max_age_days=30, rules=(few, RetentionRule(tag="legal"), old))
    assert content.limits_checkpoints and not RULES.limits_checkpoints
    assert all(ContentRetention(rules=(rule,)).limits_checkpoints for rule in (few, old))
    assert old.checkpoints_max_age == SECONDS_PER_DAY // 2 and few.checkpoints_max_age is None
    assert ContentRetention(checkpoints_last=2).default == RetentionRule(checkpoints_last=2)
    assert content.ages == (0, 30 * SECONDS_PER_DAY)


def test_other_rules_have_another_fingerprint() -> None:
    assert RULES.fingerprint == ContentRetention(**{name: getattr(RULES, name) for name in RULES.__slots__}).fingerprint
    assert RULES.fingerprint != ContentRetention(max_age_days=30, max_messages=100).fingerprint


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        *(("max_age_days", wrong) for wrong in (0, -1, 30_000, float("nan"), True, "30")),
        *((field, 0) for field in ("archived_max_age_days", "checkpoints_max_age_days")),
        *((field, wrong) for field in ("max_messages", "checkpoints_last") for wrong in (0, 2.5)),
        ("rules", (RetentionRule(max_age_days=3),)),
        ("rules", (RetentionRule(owner="7", tag="x"),)),
        ("rules", ({"owner": "7"},)),
        ("rules", (RetentionRule(owner="7"),) * (MAX_RULES + 1)),
    ],
)
def test_what_makes_no_sense_is_refused(field: str, wrong: Any) -> None:
    with pytest.raises(InvalidInput, match=rf"^{field}: "):
        ContentRetention(**{field: wrong})


@pytest.mark.parametrize("values", [{"owner": ""}, {"tag": "a\nb"}, {"tag": 7}])
def test_a_rule_names_an_owner_or_a_tag_that_can_exist(values: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        RetentionRule(**values)
