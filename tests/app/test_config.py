"""Where the app may listen, and what it takes for that."""

from pathlib import Path

import pytest

from sds3d.cli import main
from sds3d.errors import ConfigError
from sds3d.ui.config import AppConfig


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "[::1]", "127.3.2.1"])
def test_this_machine_needs_no_password(host: str) -> None:
    assert AppConfig(host=host).auth is None


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", ""])
def test_a_host_that_others_reach_needs_one(host: str) -> None:
    with pytest.raises(ConfigError, match="--host"):
        AppConfig(host=host)
    if host:
        assert AppConfig(host=host, auth="ann:secret").auth == "ann:secret"


@pytest.mark.parametrize("auth", ["", "ann", "ann:", ":tell-nobody"])
def test_a_password_is_whole_and_is_not_repeated(auth: str) -> None:
    with pytest.raises(ConfigError, match="USER:PASSWORD") as raised:
        AppConfig(auth=auth)
    assert "tell-nobody" not in str(raised.value)


def test_names_by_which_others_come_need_a_password_and_are_names() -> None:
    with pytest.raises(ConfigError, match=r"--trusted-host .*--auth"):
        AppConfig(trusted_host=("mesh.example.org",))
    served = AppConfig(trusted_host=("mesh.example.org",), auth="ann:secret")
    assert not served.is_local
    assert AppConfig().is_local
    assert AppConfig(trusted_host=("localhost",)).is_local
    for name in ("https://mesh.example.org", "mesh.example.org:443", "", "a b", "*", "a/b"):
        with pytest.raises(ConfigError, match=r"--trusted-host is .* without a port"):
            AppConfig(trusted_host=(name,), auth="ann:secret")


def test_the_flag_of_a_trusted_name_may_be_given_several_times(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    served: list[AppConfig] = []
    monkeypatch.setattr("sds3d.ui.serve.run", lambda config, *_: served.append(config))
    words = ["--auth", "ann:secret", "--trusted-host", "a.example", "--trusted-host", "b.example"]
    main(["app", "--out", str(tmp_path), *words])
    assert served[0].trusted_host == ("a.example", "b.example")


def test_the_command_line_refuses_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["app", "--host", "0.0.0.0", "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "--auth" in said.err
    assert len(said.err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_port_that_is_taken_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["app", "--port", port, "--out", str(tmp_path)]) == 2
    assert f"port {port}" in capsys.readouterr().err
