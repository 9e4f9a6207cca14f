"""What the fuzz targets begin with: one good example of each kind, and the words that hold the grammar together."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from policy import codec
from sipproxy.engine.structs import Binding
from sipproxy.sip.flow import Flow

if TYPE_CHECKING:
    from policy.model import Snapshot

ROOT = Path(__file__).resolve().parents[2]

_SDP = (
    b"v=0\r\no=- 1 1 IN IP4 203.0.113.1\r\ns=-\r\nc=IN IP4 203.0.113.1\r\nt=0 0\r\n"
    b"m=audio 4000 RTP/AVP 8\r\nm=image 0 udptl t38\r\n"
)
_HEAD = (
    b"Via: SIP/2.0/UDP 203.0.113.1:5060;branch=z9hG4bK1;rport\r\nMax-Forwards: 70\r\n"
    b'From: "A, B" <sip:alice@sip.test>;tag=f1\r\nTo: <sip:%b@sip.test>\r\nCall-ID: c1@203.0.113.1\r\nCSeq: 1 %b\r\n'
    b"Contact: <sip:alice@203.0.113.1:5060>;expires=600\r\n"
)


def _request(method: bytes, user: bytes, more: bytes = b"", body: bytes = b"") -> bytes:
    head = _HEAD % (user, method) + more
    return b"%b sip:%b@sip.test SIP/2.0\r\n%bContent-Length: %d\r\n\r\n%b" % (method, user, head, len(body), body)


DIGESTS = (
    b'Digest username="alice", realm="sip.test", nonce="00ff00ff.abc", uri="sip:sip.test", response="'
    + b"0" * 32
    + b'", qop=auth, nc=00000001, cnonce="0a4f113b", algorithm=MD5',
    b'Digest realm="sip.test", nonce="n\\"1", qop="auth,auth-int", algorithm=SHA-256, opaque="x", stale=FALSE',
)
MESSAGES = (
    _request(b"INVITE", b"03023125001", b"Content-Type: application/sdp\r\n", _SDP),
    _request(b"INVITE", b"112"),
    _request(b"INVITE", b"+4960323001", b"P-Asserted-Identity: <sip:+493012345@carrier>\r\nPrivacy: id\r\n", _SDP),
    _request(b"REGISTER", b"alice", b"Authorization: " + DIGESTS[0] + b"\r\nSupported: outbound, path\r\n"),
    _request(b"BYE", b"alice", b"Route: <sip:192.0.2.1;lr;c=abc>\r\nt: <sip:x@y>;tag=1\r\n"),
    _request(b"OPTIONS", b"alice", b"v: SIP/2.0/TCP [2001:db8::1]:5060 ;branch=x, SIP / 2.0 / UDP a\r\nSubject: a\r\n b\r\n"),
    b"SIP/2.0 200 OK\r\n" + _HEAD % (b"x", b"INVITE") + b"l: 0\r\n\r\n",
)
URIS = (
    b"sip:+49%2030;phone-context=x@sip.test:5060;transport=tcp;lr?Subject=a&Route=%3Csip:x%3E",
    b'"A \\" B" <sips:[2001:db8::1]:5061;maddr=1.2.3.4>;tag=a;q=0.5;expires="7"',
    b"tel:+49-30-12;ext=1",
    b"urn:service:sos.police",
    b"SIP / 2.0 / UDP [::1]:5060;branch=z9hG4bK1;received=192.0.2.1;rport=5",
    b'a, "b,c" , <sip:a,b@c>, d(e,f)',
    b"4294967295 INVITE",
    b"*",
)
STUN = (
    bytes.fromhex("000100002112a442b7e7a701bc34d686fa87dfae"),
    bytes.fromhex("000100142112a442b7e7a701bc34d686fa87dfae000600057573657231000000002400046e0001ff"),
    bytes.fromhex("000100082112a442b7e7a701bc34d686fa87dfae8028000400000000"),
)
REGISTRATIONS = (
    (
        b'Contact: <sip:alice@203.0.113.1>;+sip.instance="<urn:uuid:1>";reg-id=1;q=0.5\r\nSupported: path, outbound\r\n'
        b"Path: <sip:203.0.113.1:5070;lr>, <sip:t@203.0.113.2;lr;ob>"
    ),
    b"Contact: <sip:203.0.113.1:5080;x=1;bnc>;expires=60\r\nRequire: gin\r\nProxy-Require: gin",
    b"m: <sip:alice@203.0.113.1:5060;transport=tcp>, <sips:b@[2001:db8::1]>;expires=0\r\nExpires: 60",
    b"Contact: *\r\nExpires: 0",
)
BODIES = (_SDP, b"--x\r\nContent-Type: application/sdp\r\n\r\n" + _SDP + b"--x--\r\n", b"m=audio 00000000001 x\nm=text\t9")
BINDINGS = tuple(
    msgspec.msgpack.encode(
        Binding("k", contact, flow, (), "c1", 3, 2**41, instance=instance, node="n2", token="t", at_ms=2**40)
    )
    for contact, flow, instance in (
        ("sip:alice@203.0.113.1:5060", Flow("UDP", 0, "203.0.113.1", 5060), ""),
        ("sip:alice@[2001:db8::1];transport=tcp", Flow("TCP", 0, "2001:db8::1", 5060, 7, ("a",)), "<urn:uuid:1>"),
    )
)
REPLIES = (
    b"*3\r\n:1\r\n:2\r\n:0\r\n",
    b"*2\r\n$1\r\n1\r\n$-1\r\n",
    b"-NOSCRIPT no script\r\n",
    b"alice\nn1\n1790000000000\toutgoing",
    b"alice\nn1\n1790000000000\noutgoing",
    b"beat\n7\nat_ms\n1790000000000\nlisten\nudp 192.0.2.9:5060,tcp [::1]:1\nfrom\n192.0.2.9\nstarted_at_ms\n5\ncalls\n1",
)
CONFIGS = (
    (ROOT / "config.example.toml").read_bytes(),
    (
        b'[node]\nid = "n1"\n[[listen]]\ntransport = "udp"\naddress = "127.0.0.1:5060"\n[registrar]\nrealm = "a"\n'
        b'[[trunk]]\nname = "t"\nuri = "sip:1.2.3.4"\naddresses = ["1.2.3.0/24:5060"]\n[limits]\nsource_per_s = 1.5\n'
    ),
)
FILES = (
    (
        b"line,profile,status,channels,location,area_code,account,kind,password,number\n"
        b"L1,velbert,active,3,town,02051,a1,single,secret-1,+492051988111\nT1,badnauheim,active,30,h,06032,t1,trunk,s,+496032555*\n"
    ),
    b"location,service,priority,uri,name,valid_from\ntown,110,1,sip:110@psap.example:5060,police,2027-01-01\n",
    (
        b"id,kind,value,action,direction,level,reason,profile,line,owner,ticket,valid_from,valid_until,windows,public\n"
        b"r1,prefix,+43900,block,outgoing,admin,fraud,,,noc,T-1,2026-01-01,2027-01-01,mo-fr 08:00-17:00,yes\n"
    ),
    (
        b'[[line]]\nline = "L1"\nprofile = "velbert"\nlocation = "t"\narea_code = "02051"\n[[line.account]]\naccount = "a"\n'
        b'kind = "single"\npassword = "p"\nnumbers = ["+492051988111"]\n'
    ),
    b'[[psap]]\nlocation = "t"\nservice = "110"\npriority = 1\nuri = "sip:110@psap"\n',
    b'[[block]]\nid = "r"\nkind = "class"\nvalue = "mobile"\nreason = "x"\nwindows = ["mo 08:00-09:00"]\n',
)
WORDS = (
    b"\r\n", b"\r\n ", b"\r\n\r\n", b"\n\n", b"\x00", b"\xff\xfe", b" :", b"SIP/2.0", b"sip:", b"sips:", b"tel:", b";tag=",
    b";lr", b";branch=z9hG4bK", b"Via", b"Route", b"Record-Route", b"Require", b"Proxy-Require", b"Content-Length", b"l",
    b"Contact", b"*", b"<", b">", b'"', b"\\", b"%00", b"%", b"[::1]", b"99999999999999999999", b"-1", b"+1", b"4294967296",
    b"INVITE", b"ACK", b"CANCEL", b"BYE", b"REGISTER", b"UPDATE", b"PRACK", b"Privacy: id;critical", b"Replaces",
    b"Session-Expires: 90", b"\xc0", b"\xc1", b"\xca\x7f\xc0\x00\x00", b"\xcb\x7f\xf8\x00\x00\x00\x00\x00\x00", b"\xdf",
    b"\xdd\xff\xff\xff\xff", b"\xcf\xff\xff\xff\xff\xff\xff\xff\xff", b"\xd3\x80\x00\x00\x00\x00\x00\x00\x00",
    b"\xfe\xfe\xfe\xfe", b"\xc1CDR", b"\xe2\x80\xa8", b"\xd9\xa1", b"1e9", b"inf", b"nan", b"0x1", b"[[", b"]]", b"'''",
    b"\xef\xbb\xbf",
)  # fmt: skip


def policy_values(snapshot: Snapshot) -> tuple[bytes, ...]:
    """Values of every policy table, as the store holds them."""
    rows = (*snapshot.lines.values(), *snapshot.accounts.values(), *snapshot.blocks, codec.Owner("alice", "L1"))
    return (*map(codec.encode, rows), *map(codec.encode_psap, snapshot.psap.values()))
