"""Fuzzes the body of a POST: it is refused with a reason, or can be stored and framed."""

import sys

import atheris

with atheris.instrument_imports(include=["chalicelib"]):
    from chalicelib.clock import EpochMs
    from chalicelib.delivery.frames import MAX_FRAME_BYTES, Framing
    from chalicelib.errors import BadRequest, PayloadTooLarge
    from chalicelib.protocol.encryption import Encryption, FixedKeys
    from chalicelib.protocol.http_request import json_body
    from chalicelib.protocol.messages import Message, accept, parse_messages
    from chalicelib.protocol.strict_json import encode, parse_json
    from chalicelib.protocol.ulid import Stamp
    from chalicelib.settings import MasterKey

FRAME_BYTES = 32768
HEADERS = {"content-type": "application/json"}
STAMP = Stamp(EpochMs(1_795_477_071_772), 7)
FRAMING = Framing(FRAME_BYTES, Encryption(FixedKeys([MasterKey("k1", bytes(32))])))


def try_one(data: bytes) -> None:
    try:
        drafts = parse_messages(json_body(HEADERS, data), may_encrypt=True)
        messages = accept(drafts, sender="alice", stamp=STAMP)
        stored = [encode(message.to_dict()) for message in messages]
        framer = FRAMING.framer(messages, None)
    except (BadRequest, PayloadTooLarge) as refused:
        assert refused.detail
        return
    for frame in framer.frames((1 << len(messages)) - 1, "bob"):
        assert len(frame.body) <= MAX_FRAME_BYTES
    for text in stored:
        fields = parse_json(text.decode())
        assert isinstance(fields, dict)
        assert encode(Message.from_dict(fields).to_dict()) == text


if __name__ == "__main__":
    atheris.Setup(sys.argv, try_one)
    atheris.Fuzz()
