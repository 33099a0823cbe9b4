"""The judgement of the soak: what has stopped to grow is flat, and what leaks slowly is not."""

import pytest

from tests.proof.soak.sampling import Limit, judge

WARM = [float(60 + min(number, 40)) for number in range(120)]


@pytest.mark.parametrize(
    ("samples", "limit", "flat"),
    [
        (WARM, Limit(), True),
        ([float(number % 7) for number in range(300)], Limit(), True),
        ([float(number) for number in range(90)], Limit(share=0.05), False),
        ([1_000 + number * 1.0 for number in range(90)], Limit(share=0.05), True),
        ([1_000 + number * 4.0 for number in range(90)], Limit(share=0.05), False),
        ([*WARM, 10_000], Limit(), True),
        ([*WARM, 10_000], Limit(most=9_999), False),
        ([20.0] * 60 + [21.0] * 60, Limit(), False),
        ([20.0] * 60 + [21.0] * 60, Limit(more=1), True),
        ([20.0] * 8, Limit(), False),
        ([], Limit(), False),
    ],
)
def test_what_is_flat(samples: list[float], limit: Limit, flat: bool) -> None:
    assert (judge(samples, limit).problem == "") is flat
