"""Find the positions of many moments in a log at once, without I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


class Bisection:
    """Narrows down, for several moments together, the last position that was recorded before each.

    ::

        search = Bisection(moments, low=0, high=head)
        while wanted := search.wanted():
            search.learn(read_moments_of(wanted))
        positions = search.found()

    Times in a log rise nearly always; where they do not, a position near the moment is found. A position that is not
    there counts as one from before the moment.

    :param low: a position from before all moments; ``0`` is before all positions.
    :param high: the last position.
    """

    def __init__(self, moments: Sequence[int], *, low: int, high: int) -> None:
        self._moments = tuple(moments)
        # Of each moment: recorded before it is `low`, and everything behind `high` is not.
        self._low = [min(low, high)] * len(self._moments)
        self._high = [high] * len(self._moments)

    def wanted(self) -> list[int]:
        """Return the positions to look at next, sorted; empty at the end."""
        return sorted({(low + high + 1) // 2 for low, high in zip(self._low, self._high, strict=True) if low < high})

    def learn(self, recorded: Mapping[int, int]) -> None:
        """Take the moments at which the wanted positions were recorded."""
        for index, moment in enumerate(self._moments):
            low, high = self._low[index], self._high[index]
            if low >= high:
                continue
            middle = (low + high + 1) // 2
            if recorded.get(middle, moment - 1) < moment:
                self._low[index] = middle
            else:
                self._high[index] = middle - 1

    def found(self) -> list[int]:
        """Return the position of each moment, in the order in which they were given."""
        return list(self._low)
