"""What a stream says of a message, and what anybody else may say in its place."""

from __future__ import annotations

import pytest

from cdm.errors import Conflict, RequestRefused
from cdm.store.jetstream import acknowledged

pytestmark = pytest.mark.quick


def test_a_stream_tells_the_sequence_and_whether_it_knew_the_message() -> None:
    assert acknowledged(b'{"stream":"s","seq":7}') == (7, False)
    assert acknowledged(b'{"stream":"s","seq":7,"duplicate":true}') == (7, True)
    with pytest.raises(Conflict, match="wrong last sequence"):
        acknowledged(b'{"error":{"err_code":10071,"description":"wrong last sequence: 3"}}')


@pytest.mark.parametrize("answer", [b"", b"nonsense", b"{}", b"[]", b"5", b"null", b'{"seq":"x"}', b'{"seq":null}'])
def test_what_is_no_acknowledgement_is_refused(answer: bytes) -> None:
    with pytest.raises(RequestRefused):
        acknowledged(answer)
