"""Files in tar archives, read in their places: nothing is unpacked, and a name in an archive is a name only."""

from __future__ import annotations

import errno
import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from repq_cli.errors import DataError
from repq_cli.files import open_regular

BLOCK = 512  # bytes; two of zeros end an archive


class Member(NamedTuple):
    """A file of an archive: ``size`` bytes from ``start`` on."""

    archive: Path
    name: str
    start: int
    size: int

    def __str__(self) -> str:
        return f"{self.archive}/{self.name}"

    @property
    def parent(self) -> Path:
        """What it lies in."""
        return self.archive

    def open(self) -> BinaryIO:
        """Its bytes. Raises OSError, also where the archive has become shorter."""
        with open_regular(self.archive) as file:
            return io.BytesIO(self.read_from(file))

    def read_from(self, archive: BinaryIO) -> bytes:
        """Its bytes, of the archive that is open."""
        archive.seek(self.start)
        content = archive.read(self.size)
        if len(content) < self.size:
            raise OSError(errno.EIO, "its archive has become shorter")
        return content


def members(archive: Path) -> Iterator[Member]:
    """The files of an uncompressed archive, in order. Raises DataError for one that is damaged, and for links."""
    try:
        with open_regular(archive) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            length, before = os.fstat(file.fileno()).st_size, -1
            while (found := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # which would keep all of them
                end = found.offset_data + found.size
                if not before < found.offset < found.offset_data <= end <= length:
                    raise tarfile.ReadError(f"{found.name} ends at byte {end} of {length}")
                before = found.offset
                if not (found.isreg() or found.isdir()) or found.issparse():
                    raise DataError(
                        f"{archive} holds {found.name}, which is a link or a special file: write plain files into it."
                    )
                if found.isreg():
                    yield Member(archive, found.name, found.offset_data, found.size)
            file.seek(tar.offset)  # a header that is none ends an archive as well, for tarfile
            if file.read(BLOCK) != bytes(BLOCK):
                raise tarfile.ReadError("it breaks off, or is damaged, behind its last file that is whole")
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"The archive {archive} cannot be read ({error.strerror}): remove or replace it.") from error
    except Exception as error:  # given arbitrary bytes, tarfile raises errors of many kinds
        raise DataError(f"The archive {archive} is no tar that can be read ({error}): write it anew.") from error
