"""Whose fault it is: the codes that are tried are those of the table; the short form of the part shows the rest."""

from tests.proof.blame.part import outage_like


def test_the_codes_are_those_of_the_table() -> None:
    assert {code for _, code in outage_like("postgresql")} >= {"53000", "57014", "25006", "42501", "08000"}
    assert {code for _, code in outage_like("mariadb")} >= {"2006", "1969", "1021", "1142"}
