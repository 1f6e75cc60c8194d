"""[api] of manager.toml: where the API listens, and what must be there for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmmobility.daemon.config import load_manager
from vmmobility.daemon.config_template import template
from vmmobility.errors import ConfigError

TLS = 'tls_certificate = "/c"\ntls_key = "/k"\n'
TOKENS = 'tokens = "/t"\n'


def loaded(folder: Path, api: str):
    file = folder / "manager.toml"
    file.write_text(template("manager").replace("[timers]", f"{api}\n[timers]", 1))
    return load_manager(file).api


def test_the_socket_alone(tmp_path: Path):
    assert loaded(tmp_path, "").listen == ()


def test_loopback_needs_no_tls(tmp_path: Path):
    api = loaded(tmp_path, f'listen = ["127.0.0.1:8749", "[::1]:8749"]\n{TOKENS}')
    assert [str(each) for each in api.listen] == ["127.0.0.1:8749", "[::1]:8749"]
    assert (api.tls_key, api.tokens) == (None, Path("/t"))


def test_everywhere_with_tls(tmp_path: Path):
    api = loaded(tmp_path, f'listen = ["192.0.2.1:443", "[::]:443"]\n{TLS}{TOKENS}')
    assert [str(each) for each in api.listen] == ["192.0.2.1:443", "[::]:443"]


@pytest.mark.parametrize(
    ("api", "key"),
    [
        (f'listen = ["192.0.2.1:8749"]\n{TOKENS}', "api.listen[0]"),
        (f'listen = ["127.0.0.1:1", "[2001:db8::1]:8749"]\n{TOKENS}', "api.listen[1]"),
        (f'listen = ["[::]:8749"]\n{TOKENS}', "api.listen[0]"),
        ('listen = ["127.0.0.1:8749"]', "api.tokens"),
        (f'listen = ["127.0.0.1:8749"]\n{TOKENS}tls_key = "/k"', "api.tls_certificate"),
        (f'listen = ["127.0.0.1:8749"]\n{TOKENS}tls_certificate = "/c"', "api.tls_key"),
        (f'listen = ["127.0.0.1:1", "127.0.0.1:1"]\n{TOKENS}', "api.listen[1]"),
        (f"listen = []\n{TOKENS}", "api.listen"),
        (TOKENS, "api.tokens"),
        (TLS, "api.tls_certificate"),
        (f'listen = ["127.0.0.1:1"]\ntoken = "/t"\n{TOKENS}', "api.token"),
        *(
            (f'listen = ["{text}"]\n{TOKENS}', "api.listen[0]")
            for text in ("127.0.0.1", "::1:8749", "[127.0.0.1]:1", "host:1", "127.0.0.1:0",
                         "127.0.0.1:65536", "[::1]", ":8749", "[fe80::1%eth0:1", "127.0.0.1:x")
        ),
    ],
)  # fmt: skip
def test_a_mistake_is_named(tmp_path: Path, api: str, key: str):
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, api)
    assert f": {key}: " in caught.value.message
    assert caught.value.remedy
