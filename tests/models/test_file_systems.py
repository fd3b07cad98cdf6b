"""Which file systems SQLite may be kept on."""

from pathlib import Path

import pytest

from models import file_systems
from models.file_systems import Mount, NetworkFileSystem, mount_of, network_mount, sqlite_file
from models.inference.rollout_store import RolloutStore
from models.llm.reply_store import ReplyStore

MOUNTS = [
    Mount("/dev/vda", "/", "ext4"),
    Mount("server:/home", "/home", "nfs4"),
    Mount("/dev/vdb", "/home/ann/scratch", "xfs"),
    Mount("systemd-1", "/net", "autofs"),
    Mount("//server/share", "/net", "cifs"),
]


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/data/x", "ext4"),
        ("/homes/x", "ext4"),
        ("/home", "nfs4"),
        ("/home/ann/x", "nfs4"),
        ("/home/ann/scratch/x", "xfs"),
        ("/net/x", "cifs"),  # mounted over the other
    ],
)
def test_the_longest_mount_point_holds_a_path(path: str, kind: str):
    mount = mount_of(Path(path), MOUNTS)
    assert mount is not None
    assert mount.kind == kind


def test_without_mounts_nothing_holds_a_path():
    assert mount_of(Path("/x"), []) is None


@pytest.mark.parametrize(
    ("kind", "device", "is_network"),
    [
        ("ext4", "/dev/vda", False),
        ("overlay", "overlay", False),
        ("tmpfs", "tmpfs", False),
        ("9p", "root", False),
        ("fuseblk", "/dev/sda1", False),
        ("fuse.fuse-overlayfs", "fuse-overlayfs", False),
        ("nfs", "server:/x", True),
        ("nfs4", "server:/x", True),
        ("cifs", "//server/x", True),
        ("smb3", "//server/x", True),
        ("lustre", "10.0.0.1@tcp:/x", True),
        ("fuse.sshfs", "ann@server:", True),
        ("fuse.gcsfuse", "bucket", True),
        ("fuse", "mountpoint-s3", True),
        ("fuse", "JuiceFS:team", True),
        ("fuse", "/dev/fuse", False),
    ],
)
def test_network_file_systems(kind: str, device: str, is_network: bool):
    assert Mount(device, "/x", kind).is_network is is_network


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:////data/rollouts.sqlite", Path("/data/rollouts.sqlite")),
        ("sqlite:///runs/rollouts.sqlite", Path("runs/rollouts.sqlite").resolve()),
        ("sqlite:///file:/data/x.sqlite?uri=true", Path("/data/x.sqlite")),
        ("sqlite://", None),
        ("sqlite:///:memory:", None),
        ("postgresql+psycopg://ann@server/rollouts", None),
    ],
)
def test_the_file_of_a_database(url: str, path: Path | None):
    assert sqlite_file(url) == path


def test_a_run_refuses_an_sqlite_store_on_a_network_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    on_network = [Mount("/dev/vda", "/", "ext4"), Mount("server:/runs", str(tmp_path / "net"), "nfs4")]
    monkeypatch.setattr(file_systems, "mounts", lambda: on_network)
    url = f"sqlite:///{tmp_path / 'net' / 'rollouts.sqlite'}"
    for store in (RolloutStore, ReplyStore):
        with pytest.raises(NetworkFileSystem) as failure:
            store(url)
        message = str(failure.value)
        assert message.startswith(f"{url}: {tmp_path / 'net'} is nfs4, a network file system")
        assert "set storage.rollout_store to a PostgreSQL database" in message
        assert "\n" not in message
    assert not (tmp_path / "net").exists()
    RolloutStore(f"sqlite:///{tmp_path / 'rollouts.sqlite'}").close()


def test_a_link_counts_as_the_place_that_it_leads_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "net").mkdir()
    (tmp_path / "runs").symlink_to(tmp_path / "net")
    monkeypatch.setattr(file_systems, "mounts", lambda: [Mount("server:/runs", str(tmp_path / "net"), "nfs")])
    found = network_mount(f"sqlite:///{tmp_path / 'runs' / 'rollouts.sqlite'}")
    assert found is not None
    assert found.point == str(tmp_path / "net")


def test_the_mounts_of_this_machine_hold_the_root():
    assert mount_of(Path("/"), file_systems.mounts()) is not None
