import gc

import pytest

from jgraph._collection import no_collection


@pytest.mark.parametrize("was_on", [True, False])
def test_the_collector_is_as_it_was_also_after_an_error(was_on: bool) -> None:
    before = gc.isenabled()
    try:
        (gc.enable if was_on else gc.disable)()
        with pytest.raises(AttributeError, match="of_no_module"), no_collection():
            assert_off_and_fail()
        assert gc.isenabled() == was_on
    finally:
        (gc.enable if before else gc.disable)()


def assert_off_and_fail() -> None:
    assert not gc.isenabled()
    raise AttributeError("of_no_module")
