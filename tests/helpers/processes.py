"""Run code as the several processes of a run would, in threads of this process."""

import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

from hypernet.data.processes import Processes

SECONDS = 20  # until a communication times out


def run_processes(count, work, seconds=SECONDS):
    """Return what `work` returns for each `Processes`, or the exception that it raises.

    A process "dies" by calling the `die` of its `Processes`.
    """
    barrier, slots = threading.Barrier(count), [b""] * count

    def exchange_of(index):
        def exchange(value):
            slots[index] = pickle.dumps(value)
            barrier.wait(seconds)
            values = [pickle.loads(slot) for slot in slots]
            barrier.wait(seconds)
            return values

        return exchange

    def run(index):
        processes = Processes(index, count, exchange_of(index))
        processes.die = barrier.abort
        try:
            return work(processes)
        except BaseException as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))
