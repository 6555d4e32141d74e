"""TLS between a connection and what is said over it. Knows no socket: bytes in, bytes out (RFC 8446 and before).

A certificate is verified unless the check says otherwise, and again with every twentieth probe: in between
the session is resumed, which costs both sides much less and proves nothing new.
"""

import ssl
from collections.abc import Callable
from dataclasses import dataclass, replace

from healthcheck.exchange import WINDOW, Exchange, Reason, Result, failed

RESUMPTIONS = 19

_NOT_YET, _EXPIRED, _OTHER_NAME, _OTHER_ADDRESS = 9, 10, 62, 64  # X509_V_ERR_*
_REASONS = {
    _NOT_YET: Reason.TLS_EXPIRED,
    _EXPIRED: Reason.TLS_EXPIRED,
    _OTHER_NAME: Reason.TLS_NAME,
    _OTHER_ADDRESS: Reason.TLS_NAME,
}


@dataclass(frozen=True, slots=True)
class Trust:
    """Whom to believe, and what to offer."""

    verify: bool = True
    ca: str = ""  # a file; empty: the system's
    alpn: tuple[str, ...] = ()

    def context(self) -> ssl.SSLContext:
        """OSError, with the file's name, if the CA file cannot be used."""
        try:
            context = ssl.create_default_context(cafile=self.ca or None)
        except OSError as error:
            raise OSError(f"{self.ca or 'system certificates'}: {error}") from error
        if not self.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if self.alpn:
            context.set_alpn_protocols(list(self.alpn))
        return context


SYSTEM = Trust()


class Client:
    """One target, as seen from this side: keeps its session."""

    __slots__ = ("_context", "_name", "_resumptions", "_session", "alpn", "valid_until")

    def __init__(self, context: ssl.SSLContext, name: str, alpn: tuple[str, ...] = ()) -> None:
        self._context = context
        self._name = name
        self._session: ssl.SSLSession | None = None
        self._resumptions = 0
        self.alpn = alpn
        self.valid_until: float | None = None

    def greet(self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO) -> ssl.SSLObject:
        session = self._session if self._resumptions < RESUMPTIONS else None
        self._resumptions = self._resumptions + 1 if session else 0
        return self._context.wrap_bio(
            incoming, outgoing, server_hostname=self._name or None, session=session
        )

    def met(self, ours: ssl.SSLObject) -> None:
        """After a handshake in full or short."""
        if ours.session_reused:
            return
        shown = ours.getpeercert() or {}
        until = shown.get("notAfter")
        self.valid_until = ssl.cert_time_to_seconds(until) if isinstance(until, str) else None

    def parted(self, ours: ssl.SSLObject) -> None:
        """The session of a full handshake serves them all: to take a copy costs as much as the handshake it saves."""
        if not ours.session_reused:
            self._session = ours.session


class Tls:
    """An exchange, wrapped."""

    __slots__ = ("_client", "_incoming", "_inner", "_open", "_ours", "_outgoing", "request")

    def __init__(self, client: Client, inner: Exchange) -> None:
        self._client = client
        self._inner = inner
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._ours = client.greet(self._incoming, self._outgoing)
        self._open = False
        self.request = b""
        self._shake()

    def receive(self, data: bytes) -> Result | None:
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()
        if not self._open and (result := self._shake()):
            return result
        if not self._open:
            return None
        result = self._read()
        self.request += self._outgoing.read()
        return result and replace(result, valid_until=self._client.valid_until)

    def overdue(self) -> Result:
        if self._open:
            return self._inner.overdue()
        return failed(Reason.TLS_TIMEOUT, "handshake incomplete")

    @property
    def agreed(self) -> str:
        """What the handshake came to; empty before its end."""
        if not self._open:
            return ""
        cipher = self._ours.cipher()
        how = "resumed" if self._ours.session_reused else "in full"
        return f"handshake {how}: {self._ours.version()}, {cipher[0] if cipher else 'no cipher'}"

    def again(self) -> bool:
        if not self._inner.again():
            return False
        self._say()
        return True

    def _shake(self) -> Result | None:
        try:
            self._ours.do_handshake()
        except ssl.SSLWantReadError:
            self.request += self._outgoing.read()
            return None
        except ssl.SSLCertVerificationError as error:
            reason = _REASONS.get(error.verify_code, Reason.TLS_UNTRUSTED)
            return failed(reason, error.verify_message)
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
            return failed(Reason.CLOSED_EARLY, "closed during the TLS handshake")
        except ssl.SSLError as error:
            return failed(Reason.TLS_PROTOCOL, _said(error))
        return self._met()

    def _met(self) -> Result | None:
        self._open = True
        self._client.met(self._ours)
        agreed = self._ours.selected_alpn_protocol()
        if self._client.alpn and agreed is None:
            return failed(Reason.TLS_ALPN, f"none of {', '.join(self._client.alpn)}")
        self._say()
        return None

    def _say(self) -> None:
        if self._inner.request:
            self._ours.write(self._inner.request)
            self._inner.request = b""
        self.request += self._outgoing.read()

    def _read(self) -> Result | None:
        try:
            while True:
                # 0 bytes: the other side's last word.
                if result := self._inner.receive(self._ours.read(WINDOW)):
                    self._client.parted(self._ours)
                    return result
        except ssl.SSLWantReadError:
            return None
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
            return self._inner.receive(b"")
        except ssl.SSLError as error:
            return failed(Reason.TLS_PROTOCOL, _said(error))


def begin(client: Client, converse: Callable[[], Exchange]) -> Tls:
    return Tls(client, converse())


def _said(error: ssl.SSLError) -> str:
    return (error.reason or str(error)).replace("_", " ").lower()
