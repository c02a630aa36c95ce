"""Public keys as platforms join them: each that is clear gets in, none is dropped silently."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from crane_x7_remote import public_keys, settings
from crane_x7_remote.boot.sshd import _count_keys
from crane_x7_remote.errors import SettingsError, SshdError

KINDS = {"ed25519": (), "rsa": ("-b", "2048"), "ecdsa": ("-b", "384")}


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, str]:
    """Three keys of different kinds, each with a comment."""
    folder, made = tmp_path_factory.mktemp("keys"), []
    for kind, more in KINDS.items():
        path = folder / kind
        command = ["ssh-keygen", "-q", "-t", kind, *more, "-N", "", "-C", f"me@{kind}"]
        subprocess.run([*command, "-f", str(path)], check=True)
        made.append(path.with_suffix(".pub").read_text().strip())
    return made[0], made[1], made[2]


def _counted(lines: tuple[str, ...], folder: Path) -> int:
    """Return how many keys OpenSSH itself finds."""
    file = folder / "authorized_keys"
    file.write_text("\n".join(lines) + "\n")
    done = subprocess.run(["ssh-keygen", "-l", "-f", str(file)], capture_output=True, text=True)
    return len(done.stdout.splitlines())


JOINED = [" ", "\t", ",", ", ", ";", " ; ", "\\n", "\\r\\n", "\r\n", "\n\n", "\r", "|", "\u2028",
          "\xa0", "\u3000", " , \\n"]  # fmt: skip


@pytest.mark.parametrize("between", JOINED)
def test_keys_in_one_line_are_split_and_all_count(
    between: str, keys: tuple[str, str, str], tmp_path: Path
) -> None:
    text = between.join(keys)
    loaded = settings.load(environ={"PUBLIC_KEY": text})
    assert loaded.public_key is not None
    lines = tuple(loaded.public_key.splitlines())
    assert [line.split()[1] for line in lines] == [key.split()[1] for key in keys]
    assert _counted(lines, tmp_path) == 3
    assert [line.split()[2] for line in lines] == ["me@ed25519", "me@rsa", "me@ecdsa"]


@pytest.mark.parametrize(
    "shape",
    ['"{0}"', "'{0}\n{1}\n{2}'", '"{0}" "{1}"', '"{0}","{1}","{2}"', "\ufeff{0}\n", "{0}\\n",
     "# mine\n{0}\n\nnull\n{1}", "{0} laptop (ssh-ed25519 key)\n{1}", "{0}\\n# mine\\n{1}"],
)  # fmt: skip
def test_quotes_comments_and_marks_around_keys_do_no_harm(
    shape: str, keys: tuple[str, str, str], tmp_path: Path
) -> None:
    text = shape.format(*keys)
    found = public_keys.read(text)
    assert found.problems == ()
    expected = [key for key in keys if key in text]
    assert [line.split()[1] for line in found.lines] == [key.split()[1] for key in expected]
    assert _counted(found.lines, tmp_path) == len(expected)


def test_a_json_list_is_one(keys: tuple[str, str, str]) -> None:
    assert public_keys.read(json.dumps(keys)).lines == keys


def test_keys_without_comments_are_split_too(keys: tuple[str, str, str]) -> None:
    bare = [" ".join(key.split()[:2]) for key in keys]
    assert public_keys.read(",".join(bare)).lines == tuple(bare)


def test_a_no_break_space_inside_a_key_line_is_a_blank(
    keys: tuple[str, str, str], tmp_path: Path
) -> None:
    assert _counted((keys[0].replace(" ", "\xa0"),), tmp_path) == 0, "sshd would not read it"
    found = public_keys.read(keys[0].replace(" ", "\xa0"))
    assert found.lines == (keys[0],)


def test_a_comment_keeps_its_backslash(keys: tuple[str, str, str]) -> None:
    line = keys[0].replace("me@ed25519", "CORP\\nick@host")
    assert public_keys.read(line).lines == (line,)


@pytest.mark.parametrize(
    ("shape", "why"),
    [
        ("{0}\n{1:.200}", "line 2 is a damaged or truncated ssh-rsa key"),
        ("{0} {1:.200}", "line 1 is a damaged or truncated ssh-rsa key"),
        ('{0}\ncommand="rm -rf /" {1}', "line 2 begins with options"),
        ('{0} command="true" {1}', "line 1 holds options behind its ssh-ed25519 key"),
        ("{0} no-pty,no-agent-forwarding {1}", "line 1 holds options"),
        ('{0}\\ncommand="true" {1}', "line 1 holds options"),
        ("{0}{1}", "line 1 holds two keys without a separator"),
        ("hello {0}", "line 1 is not a public key"),
        ("-----BEGIN OPENSSH PRIVATE KEY-----", "line 1 is a private key"),
        ("ssh-dss AAAAB3NzaC1kc3MAAACB", "line 1 is not a public key"),
    ],
)
def test_what_is_not_clear_is_refused_with_line_and_reason(
    shape: str, why: str, keys: tuple[str, str, str]
) -> None:
    for name in ("SSH_PUBLIC_KEY", "PUBLIC_KEY"):
        with pytest.raises(SettingsError) as caught:
            settings.load(environ={name: shape.format(*keys)})
        assert f"{name}=***: {why}" in str(caught.value)
        assert "AAAA" not in str(caught.value)


def test_a_zero_width_character_inside_a_key_is_named(keys: tuple[str, str, str]) -> None:
    damaged = keys[0][:40] + "\u200b" + keys[0][40:]
    (problem,) = public_keys.read(damaged).problems
    assert problem.startswith("line 1 holds the character U+200B inside its ssh-ed25519 key")


@pytest.mark.parametrize("length", range(20, 79, 4))
def test_a_cut_key_is_never_taken(length: int, keys: tuple[str, str, str]) -> None:
    kind, blob, _ = keys[0].split()
    if length < len(blob):
        assert public_keys.read(f"{kind} {blob[:length]}").lines == ()


def test_an_unusable_injected_key_beside_a_usable_one_is_a_warning(
    keys: tuple[str, str, str],
) -> None:
    environ = {"SSH_PUBLIC_KEY": keys[0], "PUBLIC_KEY": f"{keys[1]}\nrubbish"}
    loaded = settings.load(environ=environ)
    assert (loaded.ssh_public_key, loaded.public_key) == (keys[0], keys[1])
    assert loaded.notes == (
        "PUBLIC_KEY: line 2 is not a public key; expected a line such as 'ssh-ed25519 …'; it is"
        " skipped",
    )
    with pytest.raises(SettingsError, match="SSH_PUBLIC_KEY"):
        settings.load(environ={"SSH_PUBLIC_KEY": "rubbish", "PUBLIC_KEY": keys[0]})
    assert settings.load(environ={"PUBLIC_KEY": "null", "SSH_PUBLIC_KEY": keys[0]}).notes == ()


def test_keys_that_openssh_does_not_count_are_named_by_place(
    keys: tuple[str, str, str], tmp_path: Path
) -> None:
    file = tmp_path / "authorized_keys"
    file.write_text("\n".join(keys) + "\n")
    _count_keys(file, keys)
    wrong = (keys[0], "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAAQA=", keys[2])
    file.write_text("\n".join(wrong) + "\n")
    with pytest.raises(SshdError, match=r"OpenSSH reads 2 of the 3 keys.*key 2 \(ssh-rsa\)"):
        _count_keys(file, wrong)
