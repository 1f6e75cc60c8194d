"""A fabric goes up, every node reaches every other, and it leaves nothing behind."""

from __future__ import annotations

import os
import subprocess

import pytest

from vmmobility.lab import fabric as fabrics
from vmmobility.lab import namespaces, teardown, workdir
from vmmobility.lab.namespaces import Namespaces

pytestmark = [pytest.mark.netns, pytest.mark.lab]


@pytest.mark.parametrize("name", ["three-racks-light", "one-segment", "three-racks-neighbours"])
def test_fabric_joins_all_nodes_and_leaves_nothing(name, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    fabric = fabrics.load_fabric(fabrics.built_in()[name])
    info = workdir.create(name, name, owned=True)
    spaces = Namespaces(fabric, info.lab_id)
    try:
        spaces.up()
        assert len(namespaces.existing(info.lab_id)) == len(fabric.names())
        source = spaces.name(fabric.of_kind("correspondent")[0].name)
        for node in fabric.nodes:
            for address in fabric.first_end(node.name).addresses:
                command = ["ip", "netns", "exec", source, "ping", "-c1", "-W2", str(address.ip)]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                assert done.returncode == 0, (node.name, done.stdout)
    finally:
        assert teardown.tear_down(info) == []
    assert namespaces.existing(info.lab_id) == []
    assert not workdir.base().exists()
    assert os.listdir(tmp_path) == []
