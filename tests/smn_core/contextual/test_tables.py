"""Every entry of a table is the whole number nearest to what it stands for, by exact arithmetic."""

from smn_core.contextual.tables import MOST, ONE, STEPS, make_tables


def test_powers_are_the_nearest_whole_numbers():
    """`p - 1/2 <= 2^(16 + k/64) <= p + 1/2`, each side to the 64th power."""
    for k, p in enumerate(make_tables().powers.tolist()):
        exact = 2 ** (16 * STEPS + k) * 2**STEPS
        assert (2 * p - 1) ** STEPS <= exact <= (2 * p + 1) ** STEPS


def test_logarithms_are_the_nearest_whole_numbers():
    """`2^((L - 1/2)/64) <= 1 + m/256 <= 2^((L + 1/2)/64)`, each side to the 128th power."""
    for m, logarithm in enumerate(make_tables().logarithms.tolist()):
        exact = (256 + m) ** 128 * 2
        assert 2 ** (2 * logarithm) * 256**128 <= exact <= 2 ** (2 * logarithm + 2) * 256**128


def test_chances_are_the_nearest_whole_numbers_that_leave_room_for_both_bits():
    """`c = ONE / (1 + 2^(-x/64))` is `((ONE - c) / c)^64 = 2^-x`."""
    for x, c in enumerate(make_tables().chances.tolist(), -MOST):
        assert 1 <= c <= ONE - 1
        if 1 < c < ONE - 1:
            above, below = 2 * ONE - (2 * c - 1), 2 * ONE - (2 * c + 1)
            assert above**STEPS * 2 ** max(x, 0) >= (2 * c - 1) ** STEPS * 2 ** max(-x, 0)
            assert below**STEPS * 2 ** max(x, 0) <= (2 * c + 1) ** STEPS * 2 ** max(-x, 0)
