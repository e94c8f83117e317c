import numpy as np

from open_lm.data import keyed


def test_bits_are_those_of_splitmix64() -> None:
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert keyed.bits(np.array([0], dtype=np.uint64), np.arange(3)).tolist() == expected


def test_a_key_depends_on_seed_purpose_and_every_value_in_its_place() -> None:
    keys = [keyed.key(0, "a", 1, 2), keyed.key(1, "a", 1, 2), keyed.key(0, "b", 1, 2), keyed.key(0, "a", 2, 1), keyed.key(0, "a", 1)]
    assert len({int(k[0]) for k in keys}) == 5


def test_keys_of_an_array_are_the_keys_of_its_values() -> None:
    many = keyed.key(3, "x", 7, np.arange(4))
    assert many.tolist() == [int(keyed.key(3, "x", 7, i)[0]) for i in range(4)]


def test_a_permutation_holds_every_index_once_and_every_order_occurs_alike() -> None:
    orders = keyed.permutation(keyed.key(0, "p", np.arange(6000)), 3)
    assert (np.sort(orders, axis=1) == np.arange(3)).all()
    counts = np.unique(orders, axis=0, return_counts=True)[1]
    assert len(counts) == 6 and (abs(counts - 1000) < 150).all()


def test_fractions_lie_in_the_unit_interval() -> None:
    assert keyed.fractions(np.array([0, 2**64 - 1], dtype=np.uint64)).tolist() == [0.0, 1 - 2.0**-53]
