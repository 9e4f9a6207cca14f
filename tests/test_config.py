"""Reading a configuration: every fault at once, each with file, line, key and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sipproxy.config import Config, load
from sipproxy.config_file import ConfigError, key_lines, split_address

TRUNK = '[[trunk]]\nname = "a"\nuri = "sip:192.0.2.1"\n'


def written(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "node.toml"
    file.write_text(text)
    return file


def faults_of(tmp_path: Path, text: str) -> list[tuple[int, str]]:
    with pytest.raises(ConfigError) as caught:
        load(written(tmp_path, text))
    assert all(fault.file == str(tmp_path / "node.toml") for fault in caught.value.faults)
    return [(fault.line, fault.key) for fault in caught.value.faults]


def test_load_empty_file_gives_the_defaults(tmp_path: Path) -> None:
    config = load(written(tmp_path, ""))
    assert config.listen == Config().listen
    assert config.store == Config().store
    assert config.trunk == ()


def test_load_relative_paths_become_absolute_from_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "lines.csv").write_text("")
    (tmp_path / "etc" / "node.toml").write_text('[node]\ndata_dir = "var"\n[policy]\nlines = ["lines.csv"]\n')
    monkeypatch.chdir(tmp_path)
    config = load("etc/node.toml")
    assert config.node.data_dir == str(tmp_path / "etc" / "var")
    assert config.policy.lines == (str(tmp_path / "etc" / "lines.csv"),)


def test_load_many_faults_are_told_at_once_in_order(tmp_path: Path) -> None:
    text = """
[node]
idd = "x"
[store]
deadline_ms = 3
slots = "maybe"
lease_s = 20
refresh_s = 11
[[listen]]
address = "127.0.0.1"
[[listen]]
address = "127.0.0.1:5060"
transport = "sctp"
[[trunk]]
name = "a"
[policy]
lines = [
  "absent.csv",
]
[metrics]
address = "here"
[cdr]
unbilled = ["mobile", "internal", "geografic",
    "velbet:mobile"]
"""
    assert faults_of(tmp_path, text) == [
        (3, "node.idd"),
        (5, "store.deadline_ms"),
        (6, "store.slots"),
        (10, "listen[1].address"),
        (13, "listen[2].transport"),
        (14, "trunk[1]"),
        (17, "policy.lines[1]"),
        (21, "metrics.address"),
        (23, "cdr.unbilled[3]"),
        (23, "cdr.unbilled[4]"),
    ]


@pytest.mark.parametrize(
    ("text", "line", "key", "words"),
    [
        ("[stroe]\n", 1, "stroe", "did you mean 'store'"),
        ("[log]\nlevel = 'loud'\n", 2, "log.level", "one of 'debug', 'info', 'warning', 'error', got 'loud'"),
        ("listen = []\n", 1, "listen", "0 entries"),
        ("listen = 5\n", 1, "listen", "write [[listen]]"),
        ("node = 5\n", 1, "node", "write [node]"),
        ("[node]\nid = '../x'\n", 2, "node.id", "'../x'"),
        ("[store]\nurl = 'http://x'\n", 2, "store.url", "redis://"),
        ("[store]\nrefresh_s = 46\n", 2, "store.refresh_s", "half of lease_s = 90"),
        ("[store]\ndeadline_ms = true\n", 2, "store.deadline_ms", "got bool"),
        ("[[listen]]\naddress = '0.0.0.0:5060'\n", 1, "listen[1]", "advertised"),
        ("[[listen]]\naddress = 'host.example:5060'\n", 2, "listen[1].address", "not an IP address"),
        ("[[listen]]\naddress = '::1:5060'\n", 2, "listen[1].address", "[::1]:5060"),
        ("[[listen]]\n[[listen]]\n", 2, "listen[2].address", "the same as listen[1]"),
        ("[[listen]]\nadvertised = 'a b'\n", 2, "listen[1].advertised", "host or host:port"),
        (TRUNK + TRUNK, 5, "trunk[2].name", "'a' is taken"),
        (TRUNK.replace("sip:", "tel:"), 3, "trunk[1].uri", "next hop"),
        (TRUNK + "addresses = ['192.0.2.0/24', '192.0.2.1/24']\n", 4, "trunk[1].addresses[2]", ""),
        ("[emergency]\naccess_networks = ['10.0.0.1/8']\n", 2, "emergency.access_networks[1]", "host bits"),
        ("[calls]\nroute_s = 61\n", 2, "calls.route_s", "at most setup_s"),
        ("[calls]\nsession_expires_s = 89\n", 2, "calls.session_expires_s", "at least min_se_s, which is 90"),
        ("[calls]\nmin_se_s = 89\n", 2, "calls.min_se_s", "90"),
        ("[calls]\nprobe_s = 7200\n", 1, "calls.reap_s", "above 7200"),
        ("[calls]\nprobe_s = 0\nreap_s = 1800\n", 3, "calls.reap_s", "above 1800"),
        ("[registrar]\ndefault_expires_s = 30\n", 2, "registrar.default_expires_s", "min_expires_s = 60"),
        ("[registrar]\nrealm = 'a\"b'\n", 2, "registrar.realm", "quote"),
        ("[registrar]\nalgorithms = ['MD5', 'MD5']\n", 2, "registrar.algorithms", "twice"),
        ("[registrar]\ncontact_networks = ['127.0.0.1/8']\n", 2, "registrar.contact_networks[1]", "host bits"),
        ("[registrar]\ncarrier_headers = ['X-Us-', 'Call']\n", 2, "registrar.carrier_headers[2]", "every message needs"),
        ("[registrar]\ncarrier_headers = ['X Us']\n", 2, "registrar.carrier_headers[1]", "no beginning of a header name"),
        ("[registrar]\npath_sources = ['192.0.2.1/24']\n", 2, "registrar.path_sources[1]", "host bits"),
        ("[registrar]\nservice_routes = ['sip:192.0.2.1']\n", 2, "registrar.service_routes[1]", "is not a route"),
        ("[registrar]\nstatic = ['sip:192.0.2.1']\n", 2, "registrar.static[1]", "not an account and a contact"),
        ("[registrar]\nstatic = ['pbx sip:pbx.example']\n", 2, "registrar.static[1]", "with an IP address"),
        ("[registrar]\nstatic = ['pbx sip:192.0.2.300']\n", 2, "registrar.static[1]", "192.0.2.300"),
        ("[registrar]\nstatic = ['pbx sip:192.0.2.1;transport=sctp']\n", 2, "registrar.static[1]", "needs a [[listen]]"),
        ("[registrar]\nalgorithms = []\n", 2, "registrar.algorithms", "length"),
        ("\n[node\n", 2, "", "not TOML"),
        ("[node]\nid = 'a'\nid = 'b'\n", 3, "", "not TOML"),
    ],
)
def test_load_one_fault_names_line_key_and_remedy(tmp_path: Path, text: str, line: int, key: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(written(tmp_path, text))
    [fault] = caught.value.faults
    assert (fault.line, fault.key) == (line, key)
    assert words in fault.detail
    assert str(caught.value).startswith(f"{tmp_path / 'node.toml'}:{line}: ")


def test_load_unreadable_file_says_how_to_name_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.toml: cannot be read \(No such file or directory\); name a file with -c"):
        load(tmp_path / "absent.toml")


def test_load_file_in_another_encoding_names_the_line(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_bytes(b"[node]\n# Zur\xfcck\n")
    with pytest.raises(ConfigError, match=r"node\.toml:2: not UTF-8"):
        load(file)


def test_key_lines_strings_and_arrays_that_look_like_keys_are_skipped() -> None:
    text = """a = '''
[not.a.table]
x = 1
'''
b = [ # ] not yet
  "]", "y = 2",
]
[t] # comment
c.d = { e = 1 }
[[l]]
k = "# no comment"
[[l]]
[l.m]
k = 1
"""
    lines = key_lines(text)
    assert lines == {
        ("a",): 1,
        ("b",): 5,
        ("t",): 8,
        ("t", "c"): 9,
        ("t", "c", "d"): 9,
        ("l",): 10,
        ("l", 0): 10,
        ("l", 0, "k"): 11,
        ("l", 1): 12,
        ("l", 1, "m"): 13,
        ("l", 1, "m", "k"): 14,
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [("127.0.0.1:5060", ("127.0.0.1", 5060)), ("[::1]:0", ("::1", 0)), ("host.example:65535", ("host.example", 65535))],
)
def test_split_address_valid_gives_host_and_port(text: str, expected: tuple[str, int]) -> None:
    assert split_address(text) == expected


@pytest.mark.parametrize("text", ["", ":5060", "host", "::1:5060", "h:65536", "h:-1", "h:٥٠٦٠", "h: 1", "h:"])
def test_split_address_invalid_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        split_address(text)


@given(st.text(max_size=200))
def test_key_lines_any_text_never_raises(text: str) -> None:
    assert all(1 <= line <= text.count("\n") + 1 for line in key_lines(text).values())


@pytest.mark.parametrize(
    ("keys", "key", "words"),
    [
        ("user = 'a'\n", "trunk[1].user", "password"),
        ("password = 'hidden-1'\n", "trunk[1].password", "user"),
        ("password = 4711\nuser = 'a'\n", "trunk[1].password", "text"),
        ("register = true\n", "trunk[1].register", "user"),
        ("user = 'a b'\npassword = 'hidden-1'\n", "trunk[1].user", "user part"),
        ("user = 'a'\npassword = 'hidden-1'\ndomain = 'x y'\n", "trunk[1].domain", "host"),
        ("ping_s = -1\n", "trunk[1].ping_s", ""),
    ],
)
def test_load_trunk_credentials_fault_names_the_key_and_never_the_password(
    tmp_path: Path, keys: str, key: str, words: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load(written(tmp_path, TRUNK + keys))
    assert [fault.key for fault in caught.value.faults] == [key]
    assert words in caught.value.faults[0].detail
    assert "hidden-1" not in str(caught.value)
    assert "4711" not in str(caught.value)


def test_trunk_shown_as_text_hides_its_password(tmp_path: Path) -> None:
    config = load(written(tmp_path, TRUNK + "user = 'a'\npassword = 'hidden-1'\n"))
    assert config.trunk[0].password == "hidden-1"
    assert "hidden-1" not in repr(config)


def test_load_tls_tells_what_it_lacks(tmp_path: Path) -> None:
    listen = '[[listen]]\ntransport = "tls"\naddress = "127.0.0.1:5061"\n'
    assert faults_of(tmp_path, listen) == [(2, "listen[1].transport")]
    assert faults_of(tmp_path, listen + '[tls]\ncertificate = "gone.pem"\n') == [(5, "tls.certificate")]
    (tmp_path / "node.pem").write_text("")
    tls = listen + '[tls]\ncertificate = "node.pem"\n'
    assert load(written(tmp_path, tls)).tls.certificate == str(tmp_path / "node.pem")
    trunk = '[[trunk]]\nname = "a"\nuri = "sip:a.example;transport=tls"\nnames = ["a.example"]\n'
    assert faults_of(tmp_path, tls + trunk) == [(9, "trunk[1].names")]
    assert faults_of(tmp_path, trunk.replace('names = ["a.example"]\n', "")) == [(3, "trunk[1].uri")]
    assert load(written(tmp_path, tls + 'clients = "optional"\n' + trunk)).trunk[0].names == ("a.example",)


def test_load_trunk_is_sent_from_a_listener_that_there_is(tmp_path: Path) -> None:
    text = '[[listen]]\naddress = "127.0.0.1:5060"\n[[listen]]\naddress = "127.0.0.2:5060"\n' + TRUNK
    assert load(written(tmp_path, text + 'listen = "127.0.0.2:5060"\n')).trunk[0].listen == "127.0.0.2:5060"
    assert faults_of(tmp_path, text + 'listen = "127.0.0.3:5060"\n') == [(8, "trunk[1].listen")]
