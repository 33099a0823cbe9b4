"""The plan of the part restored: how many cases there are, what its short form leaves out, and what has a control."""

from __future__ import annotations

from collections import Counter

from tests.proof.restored.cases import CASES
from tests.proof.restored.part import CONTROLS, chosen
from tests.proof.stores import KINDS


def test_the_short_form_has_its_kinds_of_case_once_and_each_store() -> None:
    short = {kind: [case.what for case in chosen(kind, short=True)] for kind in KINDS}

    assert Counter(what for each in short.values() for what in each) == Counter(one.what for one in CASES if one.short)
    assert all(len(each) >= 2 for each in short.values())


def test_each_control_is_of_one_kind_of_case() -> None:
    named = [case.control for case in CASES if case.control]

    assert sorted(named) == sorted(CONTROLS)
