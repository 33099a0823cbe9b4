"""Concurrency primitives: worker thread, fair lock, signal, clock, guarded callbacks."""
