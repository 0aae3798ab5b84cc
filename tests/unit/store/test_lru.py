from chalicelib.store.lru import LruDict


def test_a_full_dictionary_drops_the_entry_set_longest_ago() -> None:
    cached: LruDict[str, int] = LruDict(2)
    cached["a"], cached["b"] = 1, 2
    cached["a"] = 3
    cached["c"] = 4
    assert dict(cached) == {"a": 3, "c": 4}
