"""Proof that a launch was claimed by the account's holder.

Whoever can write to the store's prefix can write a launch. So what it asks for is rented without
asking a person only where it carries a proof: an HMAC-SHA256 over the launch and its store, under a
key that no rented machine ever gets. That key is derived from MOOLA_SIGNING_KEY, or from
RUNPOD_API_KEY where there is none; the restricted key of a machine gives another one.
"""

import hashlib
import hmac
from collections.abc import Mapping

from moola.errors import DataError
from moola.runs.protocol import canonical_json

SIGNING_KEY = "MOOLA_SIGNING_KEY"  # for accounts with several keys: a laptop's and a cron job's
ACCOUNT_KEY = "RUNPOD_API_KEY"
NEVER_ON_A_MACHINE = (SIGNING_KEY, ACCOUNT_KEY)
LEAST_CHARACTERS = 32  # of MOOLA_SIGNING_KEY
PURPOSE = b"moola: proof of a launch"


def signing_key(environment: Mapping[str, str], account_key: str | None = None) -> bytes | None:
    """The key of this process's proofs, 32 bytes; None where there is no secret to derive it from.

    `account_key` is the one that the provider is spoken to with; RUNPOD_API_KEY where it is None.
    Raises DataError for a MOOLA_SIGNING_KEY that could be guessed: the proofs lie in the store.
    """
    own_secret = environment.get(SIGNING_KEY, "").strip()
    if own_secret and len(own_secret) < LEAST_CHARACTERS:
        raise DataError(
            f"{SIGNING_KEY} must have at least {LEAST_CHARACTERS} characters, such as those that "
            f"`openssl rand -hex 32` prints; it has {len(own_secret)}"
        )

    secret = own_secret or (account_key or environment.get(ACCOUNT_KEY, "")).strip()
    if not secret:
        return None
    return hmac.digest(secret.encode(), PURPOSE, hashlib.sha256)


def proof_of(launch: Mapping[str, object], store_url: str, key: bytes) -> str:
    """The proof of a launch (all its fields but the proof) in a store, 64 hex digits."""
    statement = canonical_json({"launch": dict(launch), "store": store_url})
    return hmac.new(key, statement, hashlib.sha256).hexdigest()


def is_proven(
    launch: Mapping[str, object], proof: str | None, store_url: str, key: bytes | None
) -> bool:
    """Was this launch, as it stands, claimed in this store by a holder of the key?"""
    if proof is None or key is None:
        return False
    try:
        expected = proof_of(launch, store_url, key)
    except ValueError:  # NaN in a field that nothing reads
        return False
    return hmac.compare_digest(proof, expected)
