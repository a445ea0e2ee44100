"""SIGTERM while work must end by itself: noted, asked for, and honoured at the end."""

import os
import signal

import pytest

from angelshare.energy.windows import Terminated, postponed_termination


def test_the_body_is_told_and_what_it_raises_becomes_the_termination():
    def body():
        with postponed_termination() as terminated:
            assert not terminated()
            os.kill(os.getpid(), signal.SIGTERM)
            assert terminated()
            raise RuntimeError("stopped at a step, with a checkpoint")

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated) as ended:
        body()
    assert ended.value.signal == signal.SIGTERM
    assert isinstance(ended.value.__cause__, RuntimeError)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_body_that_reaches_its_end_is_finished():
    with postponed_termination():
        os.kill(os.getpid(), signal.SIGTERM)


def test_an_error_without_a_signal_stays_what_it_is():
    with pytest.raises(RuntimeError), postponed_termination():
        raise RuntimeError
