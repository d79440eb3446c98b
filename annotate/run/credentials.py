"""Keys of one run: without them nobody else on this machine may talk to its scheduler and workers.

A dask worker runs whatever it is sent, and its port on loopback is open to every user of the machine. So each local
cluster has a certificate of its own that exists in the memory of its processes alone, and takes no connection without
it.
"""

from __future__ import annotations

import logging
import subprocess
import tempfile
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
        return Security.temporary()
    except ImportError:  # cryptography, which comes with the package, but not with every copy of it
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
