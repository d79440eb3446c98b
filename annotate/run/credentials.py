"""Keys of one run: without them nobody else on this machine may talk to its scheduler and workers.

A dask worker runs whatever it is sent, and its port on loopback is open to every user of the machine. So each local
cluster has a certificate of its own that exists in the memory of its processes alone, and takes no connection without
it.
"""

from __future__ import annotations

import logging
import subprocess
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distributed.security import Security

log = logging.getLogger(__name__)

_DAYS = "3650"


def run_credentials() -> Security | None:
    """TLS with a key made for this run; None, with a warning, where nothing that makes keys is installed."""
    from distributed.security import Security

    try:
        pair = _by_cryptography()
    except ImportError:  # it comes with the package, but not with every copy of it
        pair = _by_openssl()
    if pair is None:
        log.warning(
            "any user of this machine can run code in the workers of this run: pip install cryptography, or --workers 0"
        )
        return None
    key, certificate = pair
    return Security(
        require_encryption=True,
        tls_ca_file=certificate,
        tls_client_cert=certificate,
        tls_client_key=key,
        tls_scheduler_cert=certificate,
        tls_scheduler_key=key,
        tls_worker_cert=certificate,
        tls_worker_key=key,
    )


def _by_cryptography() -> tuple[str, str]:
    """Key and certificate in PEM. It is valid since long ago: where the clock is put back during a run, one that is
    valid from now on lets no worker in."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "theodolite")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime(2000, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(2100, 1, 1, tzinfo=UTC))
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return private.decode(), certificate.public_bytes(serialization.Encoding.PEM).decode()


def _by_openssl() -> tuple[str, str] | None:
    """Key and certificate in PEM, by the command of OpenSSL."""
    with tempfile.TemporaryDirectory() as folder:  # for its owner alone
        key, certificate = Path(folder, "key.pem"), Path(folder, "certificate.pem")
        command = [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
        ]
        command += ["-subj", "/CN=theodolite", "-days", _DAYS, "-keyout", str(key), "-out", str(certificate)]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=60)
        except (OSError, subprocess.SubprocessError):
            return None
        return key.read_text(), certificate.read_text()
