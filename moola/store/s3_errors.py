"""boto3's exceptions as ours. Messages carry codes and places, never what was signed."""

import contextlib
import re
from collections.abc import Iterator, Mapping
from urllib.parse import urlsplit

from botocore import exceptions as boto

from moola.errors import (
    ArtifactError,
    AuthError,
    DataError,
    ExpiredError,
    MoolaError,
    TryAgainError,
)
from moola.store.profile import NOT_KNOWN

# Error codes by what they mean. A HEAD response has no body, hence no code but its status.
EXISTS = ("PreconditionFailed", "412")
MISSING = ("NoSuchKey", "NotFound", "404")
NO_UPLOAD = ("NoSuchUpload", *MISSING)
CHANGED = (*MISSING, *EXISTS, "InvalidRange")
DAMAGED = ("BadDigest", "InvalidDigest", "XAmzContentChecksumMismatch", "XAmzContentSHA256Mismatch")
SIMULTANEOUS = ("ConditionalRequestConflict", "OperationAborted")  # two writers at one key
BUSY = ("SlowDown", "RequestTimeout")
EXPIRED = ("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired")
CLOCK = ("RequestTimeTooSkewed", "RequestInTheFuture", "RequestExpired")
UNKNOWN_KEYS = (
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "InvalidSecurity",
    "InvalidToken",
    "InvalidTokenId",
    "InvalidClientTokenId",
    "UnrecognizedClientException",
    "AuthFailure",
    "Unauthorized",
    "401",
)
REDIRECTS = (301, 302, 307, 308)
OTHER_REGION = (
    "PermanentRedirect",
    "TemporaryRedirect",
    "Redirect",
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
    "InvalidRegionName",
)
UNSUPPORTED = ("NotImplemented", "MethodNotAllowed", "501", "405")
ARCHIVED = ("InvalidObjectState",)
WRONG_SIZE = ("EntityTooLarge", "EntityTooSmall", "MaxMessageLengthExceeded")

# Of an account that has to be looked after before anything works; some providers say AccessDenied.
ACCOUNT_CODE = re.compile(
    r"cap_?exceeded|quota|storagefull|accountproblem|allaccessdisabled|paymentrequired",
    re.IGNORECASE,
)
ACCOUNT_WORDS = re.compile(
    r"\b(cap|quota) (has been |is )?exceeded\b|\bproblem with your account\b", re.IGNORECASE
)
UNKNOWN_HEADER = re.compile(
    r"unsupported|not supported|not implemented|checksum|crc64nvme|if-none-match", re.IGNORECASE
)

# What a key must be allowed, where S3's name of the right is not that of the operation.
RIGHTS = {
    "HeadObject": "s3:GetObject",
    "ListObjectsV2": "s3:ListBucket",
    "CreateMultipartUpload": "s3:PutObject",
    "UploadPart": "s3:PutObject",
    "CompleteMultipartUpload": "s3:PutObject",
    "ListParts": "s3:ListMultipartUploadParts",
    "ListMultipartUploads": "s3:ListBucketMultipartUploads",
}
LIST_RIGHT = "s3:ListBucket"

NO_CREDENTIALS = (
    boto.NoCredentialsError,
    boto.PartialCredentialsError,
    boto.CredentialRetrievalError,
    boto.TokenRetrievalError,
    boto.SSOError,
)
UNTRUSTED = re.compile(
    r"CERTIFICATE_VERIFY_FAILED|NO_CERTIFICATE_OR_CRL_FOUND|WRONG_VERSION_NUMBER"
    r"|No such file|Permission denied|doesn't match"
)
NO_ANSWER = (boto.HTTPClientError, boto.ConnectionError)
BAD_SETTINGS = (boto.BotoCoreError, ValueError)

NEW_TOKEN = (
    "the session token has expired: set new AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and "
    "AWS_SESSION_TOKEN and give the same command again, or `moola attach RUN` for a rented machine"
)
NO_S3 = (
    "AWS_ENDPOINT_URL_S3 must be the address of an S3 API, and what answers there is none: a web "
    "page, a console, a proxy"
)
PASSWORD = re.compile(r"(https?://)[^\s\"']*@")


def error_code(error: boto.ClientError) -> str:
    """The code; the HTTP status where a response has none."""
    return _given_code(error) or str(error_status(error))


def error_status(error: boto.ClientError) -> int:
    """The HTTP status of the response; 0 if it is not known."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def error_message(error: boto.ClientError) -> str:
    return str(error.response.get("Error", {}).get("Message") or "")


def is_missing(error: boto.ClientError) -> bool:
    """Whether there is no such object."""
    return error_code(error) in MISSING and not is_foreign(error)


def is_denied(error: boto.ClientError) -> bool:
    """Whether the keys are known and lack a right; S3 also says so of a missing object."""
    if error_code(error) not in ("AccessDenied", "Forbidden", "403"):
        return False
    return not (_names_kms(error) or _names_account(error) or is_foreign(error))


def is_unsupported(error: boto.ClientError) -> bool:
    """Whether the server does not know the operation, or one of its headers."""
    if error_code(error) in UNSUPPORTED or error_status(error) in (405, 501):
        return True
    if error_code(error) in DAMAGED or error_status(error) != 400:
        return False
    return UNKNOWN_HEADER.search(error_message(error)) is not None


def is_foreign(error: boto.ClientError) -> bool:
    """Whether a web page came in place of an error of S3: the address is not that of its API."""
    has_code = bool(_given_code(error)) and not _given_code(error).isdigit()
    has_body = error.operation_name != "HeadObject"
    return has_body and not has_code and "text/html" in _header(error, "content-type")


def _given_code(error: boto.ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code") or "")


def _header(error: boto.ClientError, name: str) -> str:
    headers = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    return str(headers.get(name) or "")


@contextlib.contextmanager
def boto_errors(place: str) -> Iterator[None]:
    """Raises boto3's exceptions in the block as MoolaErrors that name `place`."""
    try:
        yield
    except boto.ClientError as error:
        raise refusal(error, place) from error
    except NO_CREDENTIALS as error:
        raise AuthError(
            "the store needs AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY: "
            f"{without_password(str(error))} ({place})"
        ) from error
    except boto.SSLError as error:
        if not UNTRUSTED.search(str(error)):
            raise TryAgainError(
                f"the store did not answer: {without_password(str(error))} ({place})"
            ) from error
        raise DataError(
            "the store's certificate must be one that is trusted here: for a private authority set "
            "AWS_CA_BUNDLE to its PEM file; and AWS_ENDPOINT_URL_S3 must have the server's own "
            f"name, and https only where it speaks that: {without_password(str(error))} ({place})"
        ) from error
    except NO_ANSWER as error:
        raise TryAgainError(
            f"the store did not answer: {without_password(str(error))} ({place})"
        ) from error
    except BAD_SETTINGS as error:
        raise DataError(
            "the store's address or settings are not valid: "
            f"{without_password(str(error))} ({place})"
        ) from error
    except RuntimeError as error:  # botocore's, ten minutes before AWS_CREDENTIAL_EXPIRATION
        if "expired" not in str(error):
            raise
        raise ExpiredError(f"{NEW_TOKEN} (AWS_CREDENTIAL_EXPIRATION; {place})") from error


def require_fields(response: Mapping[str, object], *names: str) -> None:
    """Raises DataError for a response that lacks what each of S3's has."""
    missing = [name for name in names if name not in response]
    if missing:
        raise DataError(f"{NO_S3}: a response without {', '.join(missing)}")


def without_password(text: str) -> str:
    """The text without what stands before the @ of a web address."""
    return PASSWORD.sub(r"\1***@", text)


def refusal(error: boto.ClientError, place: str) -> MoolaError:
    """The MoolaError for an error response of the server: what it means, and what to do."""
    code = error_code(error)
    status = error_status(error)
    response = _response_text(error, place)

    if code == "NoSuchBucket":
        return DataError(f"the bucket must exist: {response}")
    if code == "InvalidBucketName":
        return DataError(f"the bucket's name must be one that S3 takes: {response}")
    if status in REDIRECTS or code in OTHER_REGION or _names_region(error):
        return DataError(f"{_region_advice(error)}: {response}")
    if code in EXPIRED:
        return ExpiredError(f"{NEW_TOKEN}: {response}")
    if code in CLOCK:
        return AuthError(f"the clock of this machine is wrong, set it: {response}")
    if _names_account(error):
        return DataError(
            "the store is full or its account has to be looked after, see what the provider says "
            f"of caps, quota and payment: {response}"
        )
    if code in WRONG_SIZE or status == 413:
        return DataError(
            "the store, or a proxy before it, takes no part of this size: set another part_mib in "
            f"profile.json: {response}"
        )
    if is_foreign(error) and status < 500 and status != 429:
        return DataError(f"{NO_S3}: {response}")
    if code in UNKNOWN_KEYS or status == 401:
        return AuthError(f"the store refused the credentials: {response}")
    if _names_kms(error):
        return AuthError(
            "the bucket is encrypted with a KMS key, which must be enabled and allow these "
            f"credentials kms:GenerateDataKey and kms:Decrypt: {response}"
        )
    if code in ARCHIVED:
        return DataError(f"the object is archived, restore it first: {response}")
    if status == 403:
        return AuthError(f"{_right_advice(error)}: {response}")
    if is_unsupported(error):
        return DataError(f"{NOT_KNOWN}: {response}")
    if status >= 500 or status == 429 or code in (*BUSY, *SIMULTANEOUS):
        return TryAgainError(f"the store failed: {response}")
    return ArtifactError(f"the store refused: {response}")


def _response_text(error: boto.ClientError, place: str) -> str:
    """What the server said, and to which request."""
    status = str(error_status(error))
    code = error_code(error)
    named = status if code == status else f"{code} ({status})"
    message = error_message(error)
    words = f": {message}" if message else ""
    return f"{named} to {error.operation_name}{words} ({place})"


def _names_kms(error: boto.ClientError) -> bool:
    text = f"{error_code(error)} {error_message(error)}"
    return error_status(error) in (400, 403) and re.search(r"kms:\w|KMS", text) is not None


def _names_region(error: boto.ClientError) -> bool:
    is_about_region = re.search(r"\bregion\b", error_message(error).lower()) is not None
    return error_status(error) == 400 and is_about_region


def _names_account(error: boto.ClientError) -> bool:
    status = error_status(error)
    if status in (402, 507):
        return True
    if status in (400, 403, 409) and ACCOUNT_CODE.search(error_code(error)):
        return True
    return status == 403 and bool(ACCOUNT_WORDS.search(error_message(error)))


def _region_advice(error: boto.ClientError) -> str:
    fields: dict[str, object] = {**error.response.get("Error", {})}
    region = fields.get("Region") or _header(error, "x-amz-bucket-region")
    if region:
        return f"the bucket is in another region, set AWS_DEFAULT_REGION={region}"

    other = urlsplit(_header(error, "location"))
    endpoint = f"{other.scheme}://{other.netloc}" if other.netloc else fields.get("Endpoint")
    if endpoint:
        return (
            f"the store's address leads to {endpoint}: set AWS_DEFAULT_REGION to the bucket's "
            "region and AWS_ENDPOINT_URL_S3 to the address that does not lead elsewhere"
        )
    return "the bucket is in another region, set AWS_DEFAULT_REGION to the bucket's region"


def _right_advice(error: boto.ClientError) -> str:
    operation = error.operation_name
    right = RIGHTS.get(operation, f"s3:{operation}")
    if right == "s3:GetObject":
        right += f", or, if the object does not exist, {LIST_RIGHT}"
    return f"the keys may not do this, they lack {right} (policies: Stores in the docs)"
