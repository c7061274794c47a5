"""Admission: a bound on images in work."""

import pytest

from service.admission import Admission, QueueFull


def test_it_counts_images_and_gives_their_places_back():
    admission = Admission(5)
    with admission.admit(3), admission.admit(2):
        assert admission.admitted == 5
        with pytest.raises(QueueFull), admission.admit(1):
            pass
        with pytest.raises(QueueFull):
            admission.admit(10).__enter__()
    assert admission.admitted == 0
