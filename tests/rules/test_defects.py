"""The registry of defects follows the library: each can be planted, takes something away, and gives it back."""

import pytest

from tests.support.defects import DEFECTS, defect, planted


@pytest.mark.parametrize("name", DEFECTS)
def test_each_defect_can_be_planted_and_ends_with_its_block(name: str) -> None:
    places = [(owner, attribute) for owner, attribute, _ in DEFECTS[name]()]
    before = [getattr(owner, attribute) for owner, attribute in places]

    with planted(name):
        assert all(
            getattr(owner, attribute) is not real for (owner, attribute), real in zip(places, before, strict=True)
        )

    assert places
    assert [getattr(owner, attribute) for owner, attribute in places] == before


def test_a_defect_of_what_is_not_there_any_more_says_so() -> None:
    defect("of the test")(lambda: [(DEFECTS, "no_such_function", lambda real: real)])
    try:
        with pytest.raises(AttributeError), planted("of the test"):
            pass
    finally:
        del DEFECTS["of the test"]
