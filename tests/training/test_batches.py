"""Tests of `batches`."""

import threading
import time

from mpformer_hf.training.batches import StreamSampler


class SlowStream:
    """A stream of rows that take time."""

    def shuffle(self, seed, buffer_size):
        return self

    def set_epoch(self, epoch):
        pass

    def __iter__(self):
        for number in range(10_000):
            time.sleep(0.01)
            yield {"number": number}


def test_reading_a_stream_ends_with_its_use():
    before = set(threading.enumerate())
    stream = iter(StreamSampler(SlowStream(), seed=0, buffer=1, start=3))
    assert next(stream)[2] == {"number": 3}
    (reader,) = set(threading.enumerate()) - before
    stream.close()
    reader.join(timeout=5)
    assert not reader.is_alive()
