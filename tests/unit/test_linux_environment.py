"""environment.py: what a machine lacks is named, with its remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmmobility.drivers.linux import environment, sysctl
from vmmobility.errors import EnvironmentProblem


def settings_at(root: Path, *folders: str, patch: pytest.MonkeyPatch) -> None:
    for folder in folders:
        (root / folder).mkdir(parents=True)
    patch.setattr(sysctl, "_ROOT", root)


def test_a_kernel_without_ipv6_is_refused_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As with ipv6.disable=1; netfilter's settings of IPv6 may be there all the same.
    settings_at(tmp_path, "net/ipv4/conf", "net/ipv6/nf", patch=monkeypatch)
    with pytest.raises(EnvironmentProblem, match="has no IPv6") as refusal:
        environment.check_ip_versions()
    assert "ipv6.disable=1" in refusal.value.remedy


def test_ipv6_that_is_turned_off_by_a_setting_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings_at(tmp_path, "net/ipv4/conf", "net/ipv6/conf/all", patch=monkeypatch)
    (tmp_path / "net/ipv6/conf/all/disable_ipv6").write_text("1\n")
    environment.check_ip_versions()


def test_a_start_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings_at(tmp_path, "net/ipv4/conf", patch=monkeypatch)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr(environment, "check_tun_device", lambda: None)
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/sbin/{name}")
    with pytest.raises(EnvironmentProblem, match="has no IPv6"):
        environment.check_rights_and_programs()
