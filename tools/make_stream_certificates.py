"""Certificates for the streams between hosts ([hypervisor] tls), by openssl: to try them out.

    python tools/make_stream_certificates.py FOLDER NODE=ADDRESS[,ADDRESS] ...

makes an authority in FOLDER/authority, unless there is one, and FOLDER/NODE for each node with all
that its [hypervisor] tls names.  What an authority of one's own has to put into the certificates
can be read here; docs/operators-guide.md says it, too.  Needs openssl.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc")
USES = {"server": "serverAuth", "client": "clientAuth"}
DAYS = 365


def openssl(*words: str | Path) -> None:
    done = subprocess.run(["openssl", *map(str, words)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"error: openssl {words[0]}: {done.stderr.strip()}")


class Authority:
    """A certificate authority in a folder."""

    def __init__(self, folder: Path, days: int = DAYS) -> None:
        self.certificate, self._key = folder / "ca-cert.pem", folder / "ca-key.pem"
        if not self._key.exists():
            folder.mkdir(parents=True, exist_ok=True)
            made = ("-keyout", self._key, "-out", self.certificate, "-days", str(days))
            openssl("req", "-x509", *NEW_KEY, *made, "-subj", "/CN=vmmobility streams")

    def issue(self, folder: Path, addresses: Sequence[str], days: int = DAYS) -> Path:
        """All that a node dialled at these addresses needs; the folder."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "ca-cert.pem").write_bytes(self.certificate.read_bytes())
        for end, use in USES.items():
            key, request = folder / f"{end}-key.pem", folder / f"{end}.csr"
            openssl("req", *NEW_KEY, "-keyout", key, "-out", request, "-subj", f"/CN={end}")
            key.chmod(0o640)
            said = f"extendedKeyUsage = {use}\n"
            if end == "server" and addresses:
                said += f"subjectAltName = {', '.join(f'IP:{each}' for each in addresses)}\n"
            extensions = folder / f"{end}.ext"
            extensions.write_text(said)
            signed = ("-CA", self.certificate, "-CAkey", self._key, "-days", str(days))
            made = ("-out", folder / f"{end}-cert.pem", "-extfile", extensions)
            openssl("x509", "-req", "-in", request, *signed, *made)
            request.unlink()
            extensions.unlink()
        return folder


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("node", nargs="+", help="NODE=ADDRESS[,ADDRESS]")
    words = parser.parse_args()
    authority = Authority(words.folder / "authority")
    for each in words.node:
        name, _, addresses = each.partition("=")
        made = authority.issue(words.folder / name, [a for a in addresses.split(",") if a])
        sys.stdout.write(f"{made}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
