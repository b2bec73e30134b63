"""Tar files for tests."""

import io
import tarfile


def member(name, data, kind=tarfile.REGTYPE):
    """A member as `tar_bytes` takes it."""
    info = tarfile.TarInfo(name)
    info.size, info.type = len(data), kind
    return info, data


def tar_bytes(members, form=tarfile.PAX_FORMAT):
    """A tar file of ``(name, content)`` pairs or of what `member` makes."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as tar:
        for name, data in members:
            info, data = (name, data) if isinstance(name, tarfile.TarInfo) else member(name, data)
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()
