"""CRC64NVME, the checksum that a server can verify over a whole object.

awscrt is imported inside the functions: it takes a tenth of a second that `--help` need not pay.
"""

import base64
from collections.abc import Sequence

from moola.store.journal import Part


def crc64(data: bytes | memoryview) -> str:
    """CRC64NVME as S3 shows it: base64 of 8 bytes, big-endian."""
    from awscrt import checksums

    return _to_text(checksums.crc64nvme(data))


def combine_crc64(parts: Sequence[Part]) -> str:
    """CRC64NVME of an object from those of its parts, of which there is at least one."""
    from awscrt import checksums

    first, *others = parts
    crc = _to_number(first.crc64nvme)

    for part in others:
        crc = checksums.combine_crc64nvme(crc, _to_number(part.crc64nvme), part.size)
    return _to_text(crc)


def _to_text(crc: int) -> str:
    return base64.b64encode(crc.to_bytes(8, "big")).decode()


def _to_number(text: str) -> int:
    return int.from_bytes(base64.b64decode(text), "big")
