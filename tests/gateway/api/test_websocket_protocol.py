"""The WebSocket protocol, case by case, with the numbers of the Autobahn test suite.

https://crossbario.github.io/autobahn-testsuite/

Where API Gateway deviates, so do these cases: it accepts neither binary frames nor frames over
32 KB or messages over 128 KB, and offers no compression. The handler runs a message's text as code,
so the texts here are comments.
"""

import contextlib
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from gateway.server import Running
from tests.support.clients import eventually
from tests.support.echo import Echo, echoing
from tests.support.frames import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    Frame,
    Raw,
    closing,
    frame,
    handshake,
)
from tests.support.signing import Signed

FRAME_BYTES = 32 * 1024
MESSAGE_BYTES = 128 * 1024
DISCONNECT_SECONDS = 30.0


@pytest.fixture(scope="module")
def echo(echo_gateway: tuple[Running, Path]) -> Iterator[Echo]:
    with contextlib.closing(Echo(*echo_gateway)) as client:
        yield client


@pytest.fixture
def raw(echo: Echo) -> Iterator[Raw]:
    with handshake(echo.running.websocket) as connection:
        assert connection.status == 101
        yield connection


_numbers = iter(range(1_000_000))


def comment(size: int = 0) -> bytes:
    """Return a unique text of at least `size` bytes."""
    return f"#{next(_numbers)}#".encode().ljust(size, b"*")


def assert_arrived(echo: Echo, *texts: bytes) -> None:
    """Wait until handlers got all of these messages."""
    expected = {text.decode() for text in texts}
    eventually(lambda: expected <= {event["body"] for event in echo.events("MESSAGE")})


def assert_alive(raw: Raw) -> None:
    raw.write(frame(PING, b"alive"))
    assert raw.read() == Frame(PONG, b"alive")


def assert_failed(raw: Raw, code: int) -> None:
    ended = raw.ended()
    assert ended is not None
    assert ended[0] == code


# --- Opening


def test_a_valid_handshake_is_accepted(raw: Raw) -> None:
    """The key and its response are those of RFC 6455, section 1.3."""
    assert "sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=" in raw.head
    assert "sec-websocket-extensions" not in raw.head
    assert "sec-websocket-protocol" not in raw.head


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"Sec_WebSocket_Key": None}, 400),
        ({"Sec_WebSocket_Key": "c2hvcnQ="}, 400),
        ({"Sec_WebSocket_Key": "no base 64!"}, 400),
        ({"Sec_WebSocket_Version": None}, 400),
        ({"Sec_WebSocket_Version": "12"}, 400),
        ({"Connection": "keep-alive"}, 426),
        ({"Upgrade": "h2c"}, 426),
        ({"Upgrade": None}, 426),
    ],
)
def test_a_malformed_handshake_is_refused(echo: Echo, changes: dict[str, Any], status: int) -> None:
    with handshake(echo.running.websocket, **changes) as answered:
        assert answered.status == status


def test_12_compression_is_not_negotiated(echo: Echo) -> None:
    offer = "permessage-deflate; client_max_window_bits"
    with handshake(echo.running.websocket, Sec_WebSocket_Extensions=offer) as raw:
        assert raw.status == 101
        assert "sec-websocket-extensions" not in raw.head
        raw.write(frame(TEXT, b"\xca\x48\x04\x00", reserved=4))
        assert_failed(raw, 1002)


# --- 1: Framing


@pytest.mark.parametrize("size", [0, 125, 126, 127, 128, 4096, FRAME_BYTES])
def test_1_1_text_of_each_length_arrives(echo: Echo, raw: Raw, size: int) -> None:
    text = comment(size) if size else b""
    raw.write(frame(TEXT, text))
    assert_arrived(echo, text)


def test_1_1_7_text_in_single_octets_arrives(echo: Echo, raw: Raw) -> None:
    text = comment(300)
    for octet in frame(TEXT, text):
        raw.write(bytes([octet]))
    assert_arrived(echo, text)


@pytest.mark.parametrize("size", [0, 125, 126, FRAME_BYTES])
def test_1_2_binary_is_not_supported(raw: Raw, size: int) -> None:
    raw.write(frame(BINARY, b"\xfe" * size))
    assert_failed(raw, 1003)


def test_a_frame_without_a_mask_is_refused(raw: Raw) -> None:
    """Section 5.1."""
    raw.write(frame(TEXT, b"pass", masked=False))
    assert_failed(raw, 1002)


# --- 2: Pings and pongs


@pytest.mark.parametrize("payload", [b"", b"Hello", bytes(range(125)), b"\xff" * 125])
def test_2_pings_are_answered_with_their_payload(raw: Raw, payload: bytes) -> None:
    raw.write(frame(PING, payload))
    assert raw.read() == Frame(PONG, payload)


def test_2_5_a_ping_of_126_octets_is_a_protocol_error(raw: Raw) -> None:
    raw.write(frame(PING, b"\xfe" * 126))
    assert_failed(raw, 1002)


def test_2_6_a_ping_in_single_octets_is_answered(raw: Raw) -> None:
    for octet in frame(PING, b"slowly" * 20):
        raw.write(bytes([octet]))
    assert raw.read() == Frame(PONG, b"slowly" * 20)


def test_2_7_to_9_unsolicited_pongs_are_ignored(raw: Raw) -> None:
    raw.write(frame(PONG), frame(PONG, b"unasked"))
    assert_alive(raw)


def test_2_10_ten_pings_at_once_are_answered_in_order(raw: Raw) -> None:
    payloads = [f"payload-{number}".encode() for number in range(10)]
    raw.write(*(frame(PING, payload) for payload in payloads))
    assert [raw.read() for _ in payloads] == [Frame(PONG, payload) for payload in payloads]


# --- 3, 4: Reserved bits and opcodes


@pytest.mark.parametrize("reserved", range(1, 8))
@pytest.mark.parametrize("opcode", [TEXT, PING, CLOSE])
def test_3_reserved_bits_are_a_protocol_error(raw: Raw, reserved: int, opcode: int) -> None:
    raw.write(frame(opcode, reserved=reserved))
    assert_failed(raw, 1002)


@pytest.mark.parametrize("opcode", [3, 4, 5, 6, 7, 11, 12, 13, 14, 15])
@pytest.mark.parametrize("payload", [b"", b"reserved"])
def test_4_reserved_opcodes_are_a_protocol_error(raw: Raw, opcode: int, payload: bytes) -> None:
    raw.write(frame(opcode, payload))
    assert_failed(raw, 1002)


# --- 5: Fragments


@pytest.mark.parametrize("opcode", [PING, PONG, CLOSE])
def test_5_1_2_fragmented_control_frames_are_a_protocol_error(raw: Raw, opcode: int) -> None:
    raw.write(frame(opcode, b"frag", final=False), frame(CONTINUATION, b"ment"))
    assert_failed(raw, 1002)


def pieces(text: bytes, size: int) -> list[bytes]:
    """Return a message in fragments of `size` octets."""
    starts = range(0, len(text), size)
    return [
        frame(
            CONTINUATION if start else TEXT,
            text[start : start + size],
            final=start + size >= len(text),
        )
        for start in starts
    ]


@pytest.mark.parametrize(("size", "piece"), [(20, 10), (8000, 1), (FRAME_BYTES * 2, FRAME_BYTES)])
def test_5_3_a_message_in_fragments_arrives(echo: Echo, raw: Raw, size: int, piece: int) -> None:
    text = comment(size)
    raw.write(*pieces(text, piece))
    assert_arrived(echo, text)


def test_5_3_empty_fragments_are_accepted(echo: Echo, raw: Raw) -> None:
    text = comment()
    nothing = frame(CONTINUATION, final=False)
    raw.write(frame(TEXT, final=False), *[nothing] * 1000, frame(CONTINUATION, text))
    assert_arrived(echo, text)


def test_5_6_pings_between_fragments_are_answered_at_once(echo: Echo, raw: Raw) -> None:
    text = comment(40)
    first, second, *others = pieces(text, 10)
    raw.write(first, frame(PING, b"between"))
    assert raw.read() == Frame(PONG, b"between")
    raw.write(second, frame(PING, b"again"), *others)
    assert raw.read() == Frame(PONG, b"again")
    assert_arrived(echo, text)


@pytest.mark.parametrize("final", [True, False])
def test_5_9_a_continuation_without_a_start_is_a_protocol_error(raw: Raw, final: bool) -> None:
    raw.write(frame(CONTINUATION, b"of what?", final=final))
    assert_failed(raw, 1002)


def test_5_15_a_continuation_after_the_end_is_a_protocol_error(echo: Echo, raw: Raw) -> None:
    text = comment(20)
    raw.write(*pieces(text, 10))
    assert_arrived(echo, text)
    raw.write(frame(CONTINUATION, b"more"))
    assert_failed(raw, 1002)


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_5_18_a_message_within_a_message_is_a_protocol_error(raw: Raw, opcode: int) -> None:
    raw.write(frame(TEXT, b"one", final=False), frame(opcode, b"two"))
    assert_failed(raw, 1002)


# --- 6: UTF-8

VALID = [
    "Κσ\u1f79με",  # 6.2
    "\u00ed\u8877\U00010000\U0010ffff",  # 6.5, 6.7
    "\u0000\u007f\u0080\u07ff\u0800\uffff",
    "\ufffe\uffff\U0001fffe\U0010fffe",  # 6.22: noncharacters, yet valid
    "\ud7ff\ue000\ufffd",
]
INVALID = [
    b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xed\xa0\x80edited",  # 6.3
    b"\xf4\x90\x80\x80",  # 6.4: above U+10FFFF
    b"\xf8\x88\x80\x80\x80",  # 6.8: five octets
    b"\x80",  # 6.10: a lone continuation byte
    b"\xbf\x80\xbf",
    b"\xc0\xaf",  # 6.17: overlong encodings
    b"\xe0\x80\xaf",
    b"\xf0\x80\x80\xaf",
    b"\xed\xa0\x80",  # 6.20: surrogates
    b"\xed\xbf\xbf",
    b"\xed\xa0\x80\xed\xb0\x80",
    b"\xe1\xbd",  # 6.14: incomplete
    b"\xff",
]


@pytest.mark.parametrize("text", VALID)
@pytest.mark.parametrize("piece", [1, 2, 3, 1000])
def test_6_valid_text_is_accepted_however_it_is_fragmented(
    echo: Echo, raw: Raw, text: str, piece: int
) -> None:
    message = comment() + text.replace("\u0000", "").encode()
    raw.write(*pieces(message, piece))
    assert_arrived(echo, message)


@pytest.mark.parametrize("octets", INVALID)
@pytest.mark.parametrize("piece", [1, 1000])
def test_6_invalid_text_is_refused_however_it_is_fragmented(
    raw: Raw, octets: bytes, piece: int
) -> None:
    raw.write(*pieces(b"#" + octets, piece))
    assert_failed(raw, 1007)


# --- 7: Closing


def test_7_1_frames_after_a_close_are_ignored(echo: Echo, raw: Raw) -> None:
    ignored = comment()
    raw.write(closing(1000), frame(TEXT, ignored), frame(PING, b"ignored"))
    assert raw.read() == Frame(CLOSE, struct.pack("!H", 1000))
    assert raw.read() is None
    _assert_disconnected(echo, 1000, "")
    assert ignored.decode() not in {event["body"] for event in echo.events("MESSAGE")}


def _assert_disconnected(echo: Echo, code: int, reason: str) -> None:
    def last() -> tuple[int, str] | None:
        contexts = [event["requestContext"] for event in echo.events("DISCONNECT")]
        endings = [(one["disconnectStatusCode"], one["disconnectReason"]) for one in contexts]
        return endings[-1] if endings else None

    eventually(lambda: last() == (code, reason))


def test_7_1_5_a_close_between_fragments_is_answered_with_its_code(echo: Echo, raw: Raw) -> None:
    """Section 5.4: a control frame may come in the middle of a fragmented message."""
    raw.write(frame(TEXT, b"#frag", final=False), closing(1000, b"enough"), frame(CONTINUATION))
    assert raw.read() == Frame(CLOSE, struct.pack("!H", 1000) + b"enough")
    assert raw.read() is None
    _assert_disconnected(echo, 1000, "enough")
    assert "#frag" not in {event["body"] for event in echo.events("MESSAGE")}


def test_7_3_1_a_close_without_a_code_is_answered(echo: Echo, raw: Raw) -> None:
    raw.write(frame(CLOSE))
    assert raw.read() == Frame(CLOSE, b"")
    assert raw.read() is None
    _assert_disconnected(echo, 1005, "Client-side close frame status not set")


def test_7_3_2_a_close_of_one_octet_is_a_protocol_error(raw: Raw) -> None:
    raw.write(frame(CLOSE, b"\x03"))
    assert_failed(raw, 1002)


def test_7_3_5_the_longest_reason_is_accepted(echo: Echo, raw: Raw) -> None:
    raw.write(closing(1000, b"r" * 123))
    assert raw.read() == Frame(CLOSE, struct.pack("!H", 1000) + b"r" * 123)
    _assert_disconnected(echo, 1000, "r" * 123)


def test_7_3_6_a_reason_that_is_too_long_is_a_protocol_error(raw: Raw) -> None:
    raw.write(closing(1000, b"r" * 124))
    assert_failed(raw, 1002)


def test_7_5_a_reason_that_is_not_utf_8_is_refused(raw: Raw) -> None:
    raw.write(closing(1000, b"\xff\xfe"))
    assert_failed(raw, 1007)


@pytest.mark.parametrize(
    "code",
    [
        1000,
        1001,
        1002,
        1003,
        1007,
        1008,
        1009,
        1010,
        1011,
        1012,
        1013,
        1014,
        3000,
        3999,
        4000,
        4999,
    ],
)
def test_7_7_valid_close_codes_are_answered(raw: Raw, code: int) -> None:
    raw.write(closing(code))
    assert raw.read() == Frame(CLOSE, struct.pack("!H", code))
    assert raw.read() is None


@pytest.mark.parametrize(
    "code", [0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535]
)
def test_7_9_invalid_close_codes_are_a_protocol_error(raw: Raw, code: int) -> None:
    raw.write(closing(code))
    assert_failed(raw, 1002)


# --- 9: Limits


def test_9_the_largest_message_arrives(echo: Echo, raw: Raw) -> None:
    text = comment(MESSAGE_BYTES)
    raw.write(*pieces(text, FRAME_BYTES))
    assert_arrived(echo, text)


@pytest.mark.parametrize(
    ("size", "piece"),
    [
        (FRAME_BYTES + 1, FRAME_BYTES + 1),
        (MESSAGE_BYTES + 1, FRAME_BYTES),
        (MESSAGE_BYTES + 1, 1000),
    ],
)
def test_9_larger_frames_and_messages_close_the_connection(raw: Raw, size: int, piece: int) -> None:
    raw.write(*pieces(comment(size), piece))
    assert_failed(raw, 1009)


def test_9_an_impossible_length_is_refused_at_once(raw: Raw) -> None:
    """No memory is reserved for it."""
    raw.write(bytes([0x81, 0xFF]) + struct.pack("!Q", 2**62))
    assert_failed(raw, 1009)


def test_9_a_length_with_its_first_bit_set_is_refused(raw: Raw) -> None:
    raw.write(bytes([0x81, 0xFF]) + struct.pack("!Q", 2**63))
    ended = raw.ended()
    assert ended is not None
    assert ended[0] in (1002, 1009)


# --- Clients that don't respond


def test_a_client_that_is_gone_is_disconnected(tmp_path: Path) -> None:
    """It doesn't even answer the close frame."""
    with (
        echoing(tmp_path / "events", idle_timeout=0.3) as echo,
        handshake(echo.running.websocket),
    ):
        eventually(lambda: echo.events("DISCONNECT"), DISCONNECT_SECONDS)
        [event] = echo.events("DISCONNECT")
        assert event["requestContext"]["disconnectStatusCode"] == 1001


def test_a_client_that_never_reads_is_disconnected(tmp_path: Path) -> None:
    """More is queued than the network buffers, so not even the close frame gets through."""
    with (
        echoing(tmp_path / "events", idle_timeout=1, closing_timeout=1) as echo,
        handshake(echo.running.websocket),
    ):
        [event] = echo.events("CONNECT")
        path = f"/ws/@connections/{quote(event['requestContext']['connectionId'])}"
        signed = Signed(echo.running.aws)
        while echo.http.post(path, content=b"*" * MESSAGE_BYTES, auth=signed).status_code == 200:
            pass
        eventually(lambda: echo.events("DISCONNECT"), DISCONNECT_SECONDS)
        assert echo.http.get(path, auth=signed).status_code == 410


def test_an_unfinished_frame_does_not_delay_other_clients(echo: Echo) -> None:
    with handshake(echo.running.websocket) as other:
        other.connection.sendall(frame(TEXT, comment(1000))[:500])
        with handshake(echo.running.websocket) as raw:
            assert_alive(raw)
