"""No statement is built of values, and nothing runs what it is handed; the rule finds what is planted."""

import pytest

from tests.proof.security.sql_rule import ALLOWED, PLANTED, broken, sources


def test_no_statement_is_built_of_values() -> None:
    found = {(one.module, one.function): str(one) for module, source in sources() for one in broken(module, source)}
    unreasoned = [found[place] for place in found if place not in ALLOWED]

    assert not unreasoned, "bind it as a parameter, or say in ALLOWED what the part is and why it cannot be a value"
    assert set(ALLOWED) <= found.keys(), "what is allowed is there no longer"


@pytest.mark.parametrize("name", PLANTED)
def test_the_rule_finds_what_is_planted(name: str) -> None:
    assert broken("planted.py", PLANTED[name])


@pytest.mark.parametrize(
    "source",
    [
        "def a(c, x):\n    c.execute('SELECT ?', (x,))\n",
        "LIMIT = 5\ndef a(c):\n    c.execute(f'SELECT 1 LIMIT {LIMIT}')\n",
        "def a(c, xs):\n    places = ', '.join('?' * len(xs))\n    c.execute(f'SELECT 1 WHERE a IN ({places})', xs)\n",
        "def a(c, x):\n    c.execute(f'PRAGMA busy_timeout={int(x)}')\n",
    ],
)
def test_constants_numbers_and_places_for_parameters_are_no_values(source: str) -> None:
    assert not broken("harmless.py", source)
