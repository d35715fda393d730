//! One request, and what its failure means.

use std::error::Error;
use std::io;
use std::time::Duration;

use aws_sdk_dynamodb::error::{ProvideErrorMetadata, SdkError};
use tokio::time::{Instant, sleep, timeout_at};

use crate::store::{StoreError, StoreErrorKind};

/// How long to wait after DynamoDB has refused work the first time; twice as long each time after.
const FIRST_PAUSE: Duration = Duration::from_millis(25);
const LONGEST_PAUSE: Duration = Duration::from_millis(400);

/// DynamoDB's own answer, when it is a refusal.
pub(super) struct Refused<E> {
    pub(super) error: E,
    status: u16,
}

/// Asks until `deadline`. Sends a request again only when DynamoDB has said that there were too many
/// of them, in which case it has not carried it out; the SDK itself sends nothing again.
pub(super) async fn ask<T, E, F>(
    deadline: Instant,
    request: impl Fn() -> F,
) -> Result<Result<T, Refused<E>>, StoreError>
where
    E: ProvideErrorMetadata,
    F: Future<Output = Result<T, SdkError<E>>>,
{
    let mut pause = FIRST_PAUSE;
    loop {
        let refused = match timeout_at(deadline, request()).await {
            Ok(Ok(answer)) => return Ok(Ok(answer)),
            Ok(Err(SdkError::ServiceError(answer))) => Refused {
                status: answer.raw().status().as_u16(),
                error: answer.into_err(),
            },
            Ok(Err(error)) => return Err(unanswered(error)),
            Err(_) => return Err(late()),
        };
        if !is_throttled(refused.error.code()) {
            return Ok(Err(refused));
        }
        let wait = pause.mul_f64(rand::random_range(0.5..1.0));
        if Instant::now() + wait >= deadline {
            return Ok(Err(refused));
        }
        sleep(wait).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

fn is_throttled(code: Option<&str>) -> bool {
    matches!(
        code,
        Some(
            "ProvisionedThroughputExceededException"
                | "RequestLimitExceeded"
                | "ThrottlingException"
        )
    )
}

pub(super) fn late() -> StoreError {
    StoreError::new(StoreErrorKind::Timeout, "DynamoDB did not answer in time")
}

pub(super) fn damaged() -> StoreError {
    StoreError::new(
        StoreErrorKind::Corrupt,
        "the item is not a session record, or its payload is larger than this store allows",
    )
}

impl<E: ProvideErrorMetadata> From<Refused<E>> for StoreError {
    /// The name of DynamoDB's error is passed on, and its text is not: it quotes the request.
    fn from(refused: Refused<E>) -> Self {
        let code = refused.error.code();
        let text = refused.error.message().unwrap_or_default();
        let (kind, message) = meaning(code, text, refused.status);
        let named = code.filter(|code| code.bytes().all(|b| b.is_ascii_alphanumeric()));
        Self::new(
            kind,
            match named {
                Some(code) => format!("{message} ({code})"),
                None => message.to_owned(),
            },
        )
    }
}

fn meaning(code: Option<&str>, text: &str, status: u16) -> (StoreErrorKind, &'static str) {
    match code {
        Some("ResourceNotFoundException") => (StoreErrorKind::Config, "there is no such table"),
        Some("AccessDeniedException" | "KMSAccessDeniedFault" | "OptInRequired") => (
            StoreErrorKind::Config,
            "the credentials do not allow this request",
        ),
        Some(
            "ExpiredTokenException"
            | "IncompleteSignature"
            | "IncompleteSignatureException"
            | "InvalidClientTokenId"
            | "InvalidSignatureException"
            | "MissingAuthenticationToken"
            | "MissingAuthenticationTokenException"
            | "SignatureDoesNotMatch"
            | "UnrecognizedClientException",
        ) => (
            StoreErrorKind::Config,
            "DynamoDB does not accept the credentials, or this host's clock is wrong",
        ),
        Some("ValidationException") if text.contains("Item size") => {
            (StoreErrorKind::TooLarge, "DynamoDB takes 400 KB an item")
        }
        Some("ValidationException") => (
            StoreErrorKind::Config,
            "DynamoDB finds the request invalid: the table may have another form",
        ),
        Some("ItemCollectionSizeLimitExceededException") => (
            StoreErrorKind::Unavailable,
            "the table has an index that is full",
        ),
        code if is_throttled(code) => (
            StoreErrorKind::Unavailable,
            "the table's or the account's throughput is used up",
        ),
        Some(
            "InternalServerError"
            | "LimitExceededException"
            | "ReplicatedWriteConflictException"
            | "ResourceInUseException"
            | "ServiceUnavailable"
            | "TransactionConflictException",
        ) => (StoreErrorKind::Unavailable, "DynamoDB refuses for now"),
        _ if status >= 500 => (StoreErrorKind::Unavailable, "DynamoDB refuses for now"),
        _ => (StoreErrorKind::Other, "DynamoDB refuses"),
    }
}

/// The SDK's errors are not passed on: their `Debug` holds the request's answer.
fn unanswered<E>(error: SdkError<E>) -> StoreError {
    match error {
        SdkError::TimeoutError(_) => late(),
        SdkError::DispatchFailure(failure) if failure.is_timeout() => late(),
        SdkError::DispatchFailure(failure) => {
            let cause = failure.as_connector_error().and_then(io_error);
            if cause == Some(io::ErrorKind::InvalidData) {
                return StoreError::new(
                    StoreErrorKind::Config,
                    "the endpoint does not speak TLS, or this host does not trust its certificate",
                );
            }
            if failure.is_io() || cause.is_some() || failure.as_other().is_some() {
                let error = StoreError::new(StoreErrorKind::Unavailable, "cannot reach DynamoDB");
                return match cause {
                    Some(kind) => error.with_source(io::Error::from(kind)),
                    None => error,
                };
            }
            StoreError::new(
                StoreErrorKind::Config,
                "no request could be made: there are no valid credentials, or the endpoint does not \
                 speak DynamoDB's protocol",
            )
        }
        SdkError::ResponseError(answer) if answer.raw().status().is_server_error() => {
            StoreError::new(StoreErrorKind::Unavailable, "DynamoDB refuses for now")
        }
        SdkError::ResponseError(_) => {
            StoreError::new(StoreErrorKind::Other, "the answer is not DynamoDB's")
        }
        _ => StoreError::new(StoreErrorKind::Other, "the request could not be made"),
    }
}

/// The innermost of the system's errors that this one came from.
fn io_error(error: &(impl Error + 'static)) -> Option<io::ErrorKind> {
    let mut link: Option<&(dyn Error + 'static)> = Some(error);
    let mut found = None;
    while let Some(error) = link {
        link = match error.downcast_ref::<io::Error>() {
            None => error.source(),
            Some(error) => {
                found = Some(error.kind());
                // `source` would pass over what it holds.
                error.get_ref().map(|inner| inner as &(dyn Error + 'static))
            }
        };
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_mean_what_an_operator_can_do() {
        use StoreErrorKind::*;

        for (code, text, status, kind) in [
            ("ResourceNotFoundException", "", 400, Config),
            ("AccessDeniedException", "", 400, Config),
            ("UnrecognizedClientException", "", 400, Config),
            ("InvalidSignatureException", "", 400, Config),
            ("ExpiredTokenException", "", 400, Config),
            (
                "ValidationException",
                "Item size has exceeded",
                400,
                TooLarge,
            ),
            ("ValidationException", "One or more parameter", 400, Config),
            ("ThrottlingException", "", 400, Unavailable),
            (
                "ProvisionedThroughputExceededException",
                "",
                400,
                Unavailable,
            ),
            ("RequestLimitExceeded", "", 400, Unavailable),
            ("InternalServerError", "", 500, Unavailable),
            ("ServiceUnavailable", "", 503, Unavailable),
            ("SomethingNew", "", 503, Unavailable),
            ("SomethingNew", "", 400, Other),
        ] {
            assert_eq!(meaning(Some(code), text, status).0, kind, "{code}");
        }
        assert_eq!(meaning(None, "", 502).0, Unavailable);
        assert_eq!(meaning(None, "", 404).0, Other);
    }
}
