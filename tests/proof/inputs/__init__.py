"""Pass hostile input: it is stored unchanged or refused by name, and nothing else happens."""

from tests.proof.inputs.part import prove

__all__ = ("prove",)
