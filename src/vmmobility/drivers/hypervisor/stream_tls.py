"""TLS of the streams between hosts: the files of its certificates, who is believed, and handshakes.

A folder with QEMU's usual names: ca-cert.pem, server-cert.pem, server-key.pem, client-cert.pem,
client-key.pem, and ca-crl.pem if it is there.  They are read at each connection, so that renewed
ones count at once.  Both ends show a certificate of that authority, and are not older than TLS 1.3;
the one that is dialled must name the address that was dialled (subjectAltName).

In TLS 1.3 the end that dials has ended its handshake before its own certificate is looked at: so
the other says HELLO when it has.  To whom it does not speak TLS it says so in the clear.

Not here: octets after that (tls_pump.py), doors and connections (streams.py).  Rests on ssl.
"""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
from collections.abc import Generator
from pathlib import Path

from vmmobility.errors import HypervisorError

CA, CRL = "ca-cert.pem", "ca-crl.pem"
HELLO = b"vmmobility stream 1\n"
HANDSHAKE = 0x16  # the first octet of whoever speaks TLS
WANTED = "TLS is wanted here"
BOTH_OR_NONE = "set [hypervisor] tls at both ends, or at neither"
NO_TLS = json.dumps({"error": WANTED, "remedy": BOTH_OR_NONE}).encode() + b"\n"
UNREAD = 64 * 1024
ALERT = "ALERT"  # in OpenSSL's words for what the other end has said


class StreamTls:
    """The TLS of one node.  folder: of the files above."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def check(self, addresses: tuple[str, ...]) -> None:
        """See that two nodes with these files would believe each other, and that the server's names
        each of these addresses.  Raises HypervisorError, naming the file and the remedy."""
        for address in addresses or ("localhost",):
            client_context = self.context("client")
            client_context.check_hostname = bool(addresses)
            to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
            server = self.context("server").wrap_bio(to_server, to_client, server_side=True)
            client = client_context.wrap_bio(to_client, to_server, server_hostname=address)
            try:
                for _ in range(3):
                    for end in (client, server):
                        with contextlib.suppress(ssl.SSLWantReadError):
                            end.do_handshake()
            except ssl.SSLError as error:
                raise self._own_fault(error, client is end, address) from None

    def _own_fault(self, error: ssl.SSLError, client: bool, address: str) -> HypervisorError:
        """client: it is the client that does not believe what the server shows."""
        shown = self.folder / f"{'server' if client else 'client'}-cert.pem"
        why = _why(error)
        names = isinstance(error, ssl.SSLCertVerificationError) and error.verify_code in (62, 64)
        if names:
            return HypervisorError(
                f"{shown} does not name {address}, where this node is dialled",
                f"make one whose subjectAltName has IP:{address}",
            )
        return HypervisorError(
            f"{shown} would not be believed: {why}",
            f"have it signed by the authority of {self.folder / CA}, and renewed in time",
        )

    # -- handshakes ------------------------------------------------------------------------------

    def dial(self, connection: socket.socket, who: str, address: str, port: int) -> ssl.SSLSocket:
        """The client's handshake over a connection with a timeout, whose end is the result's.

        Raises HypervisorError; the connection is closed then.
        """
        peer = f"{address} port {port}"
        try:
            context = self.context("client")
            secured = context.wrap_socket(
                connection, server_hostname=address, do_handshake_on_connect=False
            )
        except BaseException:
            connection.close()
            raise
        try:
            secured.do_handshake()
            hello = b""
            while len(hello) < len(HELLO):
                part = secured.recv(len(HELLO) - len(hello))
                if not part:
                    raise ConnectionResetError("it has closed the connection")
                hello += part
            if hello != HELLO:
                raise HypervisorError(
                    f"{who}: {peer} speaks TLS, but not ours", "see that both ends run one version"
                )
        except OSError as error:
            secured.close()
            raise self._refusal(error, who, peer, address) from None
        except BaseException:
            secured.close()
            raise
        return secured

    def _refusal(self, error: OSError, who: str, peer: str, address: str) -> HypervisorError:
        ca = self.folder / CA
        if isinstance(error, ssl.SSLCertVerificationError):
            return HypervisorError(
                f"{who}: the certificate of {peer} is not believed: {error.verify_message}",
                f"it must be signed by the authority of {ca}, be in force, and name {address} "
                "(subjectAltName)",
            )
        if isinstance(error, ssl.SSLError) and ALERT in (error.reason or ""):
            return HypervisorError(
                f"{who}: {peer} does not take {self.folder / 'client-cert.pem'}: {_why(error)}",
                "see that both ends have the same authority, and that the certificate is in force",
            )
        return HypervisorError(
            f"{who}: {peer} does not speak TLS: {_why(error)}",
            f"{BOTH_OR_NONE}; the log of the other may say more (stream.refused)",
        )

    def answer(self, connection: socket.socket) -> Generator[bool, None, ssl.SSLSocket]:
        """The server's handshake over a connection that does not block.

        Yields what it waits for, True: until it can write, False: until it can read.  Its result
        takes the connection's place.  Raises HypervisorError, OSError.
        """
        context = self.context("server")
        while True:
            try:
                first = connection.recv(1, socket.MSG_PEEK)
                break
            except BlockingIOError:
                yield False
        if not first:
            raise ConnectionResetError("it has closed the connection")
        if first[0] != HANDSHAKE:
            with contextlib.suppress(OSError):
                connection.send(NO_TLS)
                connection.recv(UNREAD)  # else closing it could take the words with it
            raise HypervisorError("it does not speak TLS", BOTH_OR_NONE)
        secured = context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        try:
            said = False
            while not said:
                try:
                    secured.do_handshake()
                    said = secured.send(HELLO) > 0
                except ssl.SSLWantReadError:
                    yield False
                except ssl.SSLWantWriteError:
                    yield True
        except ssl.SSLError as error:
            secured.close()
            told = ALERT in (error.reason or "")
            shown = f"it does not believe {self.folder / 'server-cert.pem'}"
            raise HypervisorError(
                f"{shown if told else 'its certificate is not believed'}: {_why(error)}",
                f"have both signed by the authority of {self.folder / CA}, and renewed in time",
            ) from None
        except BaseException:
            secured.close()
            raise
        return secured

    # -- files -----------------------------------------------------------------------------------

    def context(self, end: str) -> ssl.SSLContext:
        """Of a "server" or a "client".  Raises HypervisorError."""
        server = end == "server"
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
        made.minimum_version = ssl.TLSVersion.TLSv1_3
        made.verify_mode = ssl.CERT_REQUIRED
        if server:
            made.num_tickets = 0  # nobody reads them: a close would then be a reset
        ca, crl = self.folder / CA, self.folder / CRL
        certificate, key = self.folder / f"{end}-cert.pem", self.folder / f"{end}-key.pem"
        for file in (ca, certificate, key):
            _readable(file)
        try:
            made.load_verify_locations(ca)
        except (OSError, ValueError) as error:
            raise _unusable(ca, error, "an authority's certificate, PEM") from None
        if crl.exists():
            _readable(crl)
            try:
                made.load_verify_locations(crl)
            except (OSError, ValueError) as error:
                raise _unusable(crl, error, "its list of revoked certificates, PEM") from None
            made.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
        if key.stat().st_mode & 0o007:
            raise HypervisorError(f"{key} is open to everyone", f"chmod o= {key}")
        try:
            made.load_cert_chain(certificate, key, _no_password)
        except (OSError, ValueError) as error:
            what = "the key of that certificate, both PEM and without a password"
            raise _unusable(key, error, what) from None
        return made


def _readable(file: Path) -> None:
    try:
        file.open("rb").close()
    except OSError as error:
        raise HypervisorError(
            f"{file} cannot be read: {error.strerror}",
            f"put it there, readable for the daemon's user; [hypervisor] tls names {file.parent}",
        ) from None


def _unusable(file: Path, error: Exception, what: str) -> HypervisorError:
    return HypervisorError(f"{file} cannot be used: {_why(error)}", f"it must be {what}")


def _no_password() -> str:
    raise ValueError("it has a password")


def _why(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    if isinstance(error, ssl.SSLError):
        return (error.reason or str(error)).replace("_", " ").lower()
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return str(error)


def refusal_in(connection: socket.socket) -> str:
    """What an end that wants TLS has said to one that does not speak it; "" if it has not."""
    try:
        said = connection.recv(len(NO_TLS), socket.MSG_DONTWAIT)
    except OSError:
        return ""
    return f"{WANTED} ({BOTH_OR_NONE})" if said == NO_TLS else ""
