"""Read what W&B writes offline."""

import struct
from collections.abc import Iterator
from pathlib import Path

from wandb.proto.wandb_internal_pb2 import Record


def read_records(log: Path) -> Iterator[Record]:
    """Yield the records of a .wandb file (LevelDB's log format: blocks of 32 KiB with parts of records)."""
    data, place, parts = log.read_bytes(), 7, b""
    while place < len(data) - 7:
        if 32768 - place % 32768 < 7:  # no room for a part's header
            place += 32768 - place % 32768
        length, kind = struct.unpack_from("<xxxxHB", data, place)
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or its last part
            record = Record()
            record.ParseFromString(parts)
            parts = b""
            yield record
