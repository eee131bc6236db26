"""Signals become a flag that the run polls."""

import signal

import pytest
from accelerate import Accelerator

from hypernet.training.shutdown import Interrupted, ShutdownSignals


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_each_signal_is_recorded(name):
    number = getattr(signal, name)
    before = signal.getsignal(number)
    with ShutdownSignals(Accelerator(cpu=True)) as signals:
        signals.check()
        assert not signals.stop_wanted()
        signal.raise_signal(number)
        with pytest.raises(Interrupted):
            signals.check()
        assert signals.stop_wanted() and signals.reason == name
    assert signal.getsignal(number) is before


def test_nohup_counts():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with ShutdownSignals(Accelerator(cpu=True)) as signals:
            signal.raise_signal(signal.SIGHUP)
            assert not signals.stop_wanted()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_second_ctrl_c_does_not_wait():
    with ShutdownSignals(Accelerator(cpu=True)), pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
