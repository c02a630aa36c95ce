"""ROSBRIDGE_HOST, _PORT and _PROXY: read as people write them, or refused before anybody dials."""

from __future__ import annotations

import pytest

from crane_x7_remote import settings
from crane_x7_remote.errors import SettingsError
from crane_x7_remote.rosbridge.connection import LinkConfig


@pytest.mark.parametrize(
    ("written", "host", "port"),
    [
        ("robot", "robot", 9090),
        (" robot \n", "robot", 9090),
        ('"robot"', "robot", 9090),
        ("robot:9091", "robot", 9091),
        ("ws://robot:9091", "robot", 9091),
        ("WS://robot:9091/", "robot", 9091),
        ("ws://robot", "robot", 9090),
        ("http://robot", "robot", 9090),
        ("http://robot:80/", "robot", 80),
        ("crane-x7-local.tail1234.ts.net.", "crane-x7-local.tail1234.ts.net.", 9090),
        ("my_robot_1", "my_robot_1", 9090),
        ("ロボット.local", "ロボット.local", 9090),
        ("100.64.0.7:9092", "100.64.0.7", 9092),
        ("[::1]", "::1", 9090),
        ("[::1]:9091", "::1", 9091),
        ("ws://[fd7a:115c:a1e0::7]:9091", "fd7a:115c:a1e0::7", 9091),
        ("::1", "::1", 9090),
        ("fe80::1%eth0", "fe80::1%eth0", 9090),
        ("", "crane-x7-local", 9090),
    ],
)
def test_a_host_is_read_as_people_write_it(written: str, host: str, port: int) -> None:
    loaded = settings.load(environ={"ROSBRIDGE_HOST": written})
    assert (loaded.rosbridge_host, loaded.rosbridge_port) == (host, port)
    assert LinkConfig(host, port).uri.startswith("ws://")


@pytest.mark.parametrize(
    ("written", "why"),
    [
        ("wss://robot:9090", r"wss:// \(TLS\) is not supported"),
        ("https://robot", r"https:// \(TLS\) is not supported"),
        ("ftp://robot", "ftp:// is not a rosbridge scheme"),
        ("ws://robot:9090/path", "names the path"),
        ("robot:", "port '', expected 1 to 65535"),
        ("robot:0", "port '0'"),
        ("robot:99999", "port '99999'"),
        ("robot:" + "9" * 5000, "port '9"),
        ("robot:9090:9091", "is not an IPv6 address"),
        ("[::1", "expected an IPv6 address in brackets"),
        ("[robot]:9090", "expected an IPv6 address in brackets"),
        ("my robot", "is not a host name or address"),
        ("robot,other", "is not a host name or address"),
        ("me@robot", "is not a host name or address"),
        ("-robot", "is not a host name or address"),
        ("robot..local", "is not a host name or address"),
        ("a" * 64, "is not a host name or address"),
        ("rob\x1b[2Jot", "is not a host name or address"),
        ("rob\u202eot", "is not a host name or address"),
        ("192.168.1.500", "is not an IPv4 address"),
        ("192.168.1", "is not an IPv4 address"),
        ("{error}", "is not a host name or address"),
    ],
)
def test_what_is_no_host_is_refused_at_once(written: str, why: str) -> None:
    with pytest.raises(SettingsError, match=f"ROSBRIDGE_HOST=.*{why}") as caught:
        settings.load(environ={"ROSBRIDGE_HOST": written})
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_port_in_the_host_and_another_beside_it_is_a_contradiction() -> None:
    both = {"ROSBRIDGE_HOST": "ws://robot:9091", "ROSBRIDGE_PORT": "9090"}
    with pytest.raises(SettingsError, match="names port 9091, and ROSBRIDGE_PORT is 9090"):
        settings.load(environ=both)
    same = settings.load(environ=both | {"ROSBRIDGE_PORT": "9091"})
    assert (same.rosbridge_host, same.rosbridge_port) == ("robot", 9091)
    by_flag = settings.load({"rosbridge_host": "other:9092"}, {"ROSBRIDGE_HOST": "robot"})
    assert (by_flag.rosbridge_host, by_flag.rosbridge_port) == ("other", 9092)


@pytest.mark.parametrize(
    ("written", "why"),
    [
        ("127.0.0.1:1055", "has no scheme"),
        ("socks5h://127.0.0.1", "has no port"),
        ("socks5h://127.0.0.1:0", "has no port"),
        ("socks5h://127.0.0.1:99999", "has no port from 1 to 65535"),
        ("socks5h://127.0.0.1:abc", "has no port from 1 to 65535"),
        ("socks5h://:1055", "has no host"),
        ("socks5h://[::1:1055", "malformed address"),
        ("socks://127.0.0.1:1055", "socks:// is not a supported proxy scheme"),
        ("https://127.0.0.1:1055", "https:// is not a supported proxy scheme"),
        ("http://127.0.0.1:1055/x", "has text after the port"),
        ("http://a b:1055", "is not a host name"),
    ],
)
def test_what_is_no_proxy_is_refused_at_once(written: str, why: str) -> None:
    with pytest.raises(SettingsError, match=f"ROSBRIDGE_PROXY=.*{why}"):
        settings.load(environ={"ROSBRIDGE_PROXY": written})


def test_the_password_of_a_proxy_is_not_shown() -> None:
    with pytest.raises(SettingsError) as caught:
        settings.load(environ={"ROSBRIDGE_PROXY": "http://me:sesame@proxy"})
    assert "sesame" not in str(caught.value)
    assert settings.load(environ={"ROSBRIDGE_PROXY": " http://me:sesame@proxy:1/ "}).rosbridge_proxy


@pytest.mark.parametrize(
    "proxy", ["socks5h://[::1]:1055", "socks5://localhost:1055", "http://user:pw@proxy.example:1"]
)
def test_proxies_that_can_be_dialled_are_taken(proxy: str) -> None:
    assert settings.load(environ={"ROSBRIDGE_PROXY": proxy}).rosbridge_proxy == proxy
