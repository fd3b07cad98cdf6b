"""The file system of a database file. SQLite must not be kept on a network file system."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import psutil
from sqlalchemy import make_url

from conf.errors import ReadableError

NETWORK = re.compile("afs|beegfs|ceph|cifs|glusterfs|gpfs|lustre|ncpfs|nfs[34]?|orangefs|pvfs2|smb[23]|smbfs")
"""Types of network and cluster file systems, as /proc/mounts names them. 9p and virtiofs are not among them: they are
the local disks of virtual machines and sandboxes."""
NETWORK_FUSE = re.compile(
    "alluxio-fuse|blobfuse2?|ceph|ceph-fuse|curlftpfs|davfs|fuse_dfs|gcsfuse|glusterfs|goofys|juicefs|lizardfs|mfs|"
    "mount-s3|mountpoint-s3|rclone|s3fs|seaweedfs|smbnetfs|sshfs"
)
"""Programs behind FUSE that reach over a network; others (fuse-overlayfs, ntfs-3g) are local."""
REMEDY = (
    "set storage.rollout_store to a PostgreSQL database, as in postgresql+psycopg://user@host/name, or to an SQLite "
    "file on a local disk"
)


class NetworkFileSystem(ReadableError):
    """An SQLite database on a network file system."""


class Mount(NamedTuple):
    """A line of /proc/mounts."""

    device: str
    point: str
    kind: str
    """Type of the file system; with FUSE usually `fuse.` and the program's name."""

    @property
    def is_network(self) -> bool:
        name, _, program = self.kind.partition(".")
        if name != "fuse":
            return NETWORK.fullmatch(self.kind) is not None
        return NETWORK_FUSE.fullmatch((program or self.device.partition(":")[0]).lower()) is not None


def mounts() -> list[Mount]:
    return [Mount(part.device, part.mountpoint, part.fstype) for part in psutil.disk_partitions(all=True)]


def mount_of(path: Path, known: Iterable[Mount]) -> Mount | None:
    """The mount that holds the absolute `path`: the longest mount point above it, the last one of equals."""
    above = [mount for mount in known if path.is_relative_to(mount.point)]
    return max(reversed(above), key=lambda mount: len(mount.point.rstrip("/")), default=None)


def sqlite_file(url: str) -> Path | None:
    """The file of an SQLite database; None for one in memory and for other databases."""
    database = make_url(url)
    name = (database.database or "").removeprefix("file:")
    if database.get_backend_name() != "sqlite" or not name or name.startswith(":memory:"):
        return None
    return Path(name).resolve()


def network_mount(url: str) -> Mount | None:
    """The network file system that holds an SQLite database; None for local ones and for other databases."""
    path = sqlite_file(url)
    mount = mount_of(path, mounts()) if path else None
    return mount if mount and mount.is_network else None


def validate_file_system(url: str) -> None:
    """Raises NetworkFileSystem for an SQLite database on a network file system."""
    if mount := network_mount(url):
        raise NetworkFileSystem(
            f"{url}: {mount.point} is {mount.kind}, a network file system, where SQLite's locks and its write-ahead "
            f"log fail and rows are lost; {REMEDY}"
        )
