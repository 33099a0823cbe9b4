"""Diagnostics: doctor, integrity check, salvage, new origin."""
