//! The deadline of a call, which its client sends as `grpc-timeout`.
//!
//! tonic keeps it until a response begins. Rows come after that, and by gRPC's rules both ends stop at the deadline.

use std::time::Duration;

use futures::{Stream, StreamExt, stream};
use tonic::Status;
use tonic::metadata::MetadataMap;

/// The longest number that the header may have, in digits.
const DIGITS_MAX: usize = 8;

/// Ends a response at the deadline of its request, if that has one. What has not been sent then is dropped, and so stopped.
pub(super) fn until_deadline<T: Send + 'static>(
    response: impl Stream<Item = Result<T, Status>> + Send + Unpin + 'static,
    request: &MetadataMap,
) -> impl Stream<Item = Result<T, Status>> + Send + 'static {
    let left = request.get("grpc-timeout").and_then(|text| timeout(text.to_str().ok()?));
    let over = Box::pin(async move {
        match left {
            Some(left) => tokio::time::sleep(left).await,
            None => std::future::pending().await,
        }
    });
    stream::unfold(Some((response, over)), |open| async move {
        let (mut response, mut over) = open?;
        tokio::select! {
            biased;
            () = &mut over => Some((Err(Status::deadline_exceeded("the deadline of the call has passed")), None)),
            next = response.next() => Some((next?, Some((response, over)))),
        }
    })
}

/// Reads a timeout: up to eight digits and a unit. `None` if it is none.
fn timeout(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let is_number = number.len() <= DIGITS_MAX && number.bytes().all(|byte| byte.is_ascii_digit());
    let number: u64 = number.parse().ok().filter(|_| is_number)?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_as_grpc_writes_them() {
        let expected = [("2H", 7_200_000), ("3M", 180_000), ("4S", 4_000), ("5m", 5), ("6000u", 6), ("7000000n", 7)];
        for (text, milliseconds) in expected {
            assert_eq!(timeout(text), Some(Duration::from_millis(milliseconds)), "{text}");
        }
        for text in ["", "S", "5", "5s", "-5S", "+5S", "5 S", "123456789S", "5é", "é"] {
            assert_eq!(timeout(text), None, "{text}");
        }
    }

    #[tokio::test]
    async fn a_response_ends_at_its_deadline() {
        let mut request = MetadataMap::new();
        let endless = || Box::pin(stream::once(async { Ok(1) }).chain(stream::pending()));
        request.insert("grpc-timeout", "1m".parse().unwrap());
        let rest = until_deadline(endless(), &request).collect::<Vec<_>>().await;
        assert_eq!(rest.last().unwrap().as_ref().unwrap_err().code(), tonic::Code::DeadlineExceeded);
        let whole = stream::iter([Ok(1), Ok(2)]);
        assert_eq!(until_deadline(whole, &MetadataMap::new()).count().await, 2);
    }
}
