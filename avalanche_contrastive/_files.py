"""Files that are there whole or not at all. Standard library only."""

import errno
import glob
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

__all__ = ["FULL", "no_space", "remove_left_over", "replacing"]

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file to write, which takes the place of ``path`` when the block ends without an error.

    It is written beside the target and moved there, so that a kill or a full disk leaves the old file as it was. The
    folder is made if there is none. A file that is replaced keeps its mode; the mode of a new one follows the umask.

    Raises:
        OSError: it could not be written; where space is lacking, the message says how much is left.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
        with temporary.open("xb") as file:
            try:
                if path.exists():
                    os.chmod(temporary, stat.S_IMODE(path.stat().st_mode))
                yield file
                file.flush()
                os.fsync(file.fileno())
                os.replace(temporary, path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
    except OSError as error:
        if error.errno in FULL:
            raise OSError(error.errno, f"could not write {path}: {no_space(path.parent, error)}") from error
        raise


def no_space(folder: Path, error: OSError) -> str:
    """What is lacking, in words."""
    try:
        left = f"{shutil.disk_usage(folder).free / 1024:.0f} KiB free there, and a quota or limit may be lower"
    except OSError:
        left = "free space unknown"
    return f"{error.strerror} ({left}). What was there before is as it was; make room and give the same command again"


def remove_left_over(folder: Path, pattern: str, before: float) -> None:
    """Remove temporary files of killed processes: those that match and were last written before a time stamp."""
    for path in folder.glob(glob.escape(pattern).replace("[*]", "*")):
        try:
            if path.stat().st_mtime < before:
                path.unlink()
        except OSError:  # another process was faster, or the file is another user's
            continue
