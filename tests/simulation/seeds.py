"""Runs a simulation with one seed after the other, until one breaks a promise."""

from collections.abc import Callable, Iterable

Simulate = Callable[[int], set[str]]


def first_failure(
    simulate: Simulate, seeds: Iterable[int], everything: Iterable[str] = ()
) -> str | None:
    """Return the first seed that breaks a promise, and which one; None if none does.

    Without a failure, asserts that `everything` happened in at least one run.
    """
    happened: set[str] = set()
    for seed in seeds:
        try:
            happened |= simulate(seed)
        except AssertionError as broken:
            return f"seed {seed}: {str(broken).partition(chr(10))[0]}"
    missing = set(everything) - happened
    assert not missing, f"never happened: {missing}"
    return None
