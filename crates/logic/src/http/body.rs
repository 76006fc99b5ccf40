//! Reads the body of a request, or the unwanted body of a rejected one.

use std::future::poll_fn;
use std::pin::Pin;

use axum::body::{Bytes, HttpBody};
use bytes::{Buf, BytesMut};

/// Bodies up to this size are copied out of the read buffer, which a message in flight would
/// otherwise keep in memory.
const COPY_BYTES_MAX: usize = 16 * 1024;

/// Why a body was not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BodyError {
    /// It is, or would become, larger than the limit.
    TooLarge,
    /// It ended early, or its chunks are malformed.
    Broken,
}

/// Reads a body of at most `limit` bytes. Reads nothing of a body that announces more.
pub(super) async fn read<B>(body: &mut B, limit: usize) -> Result<Bytes, BodyError>
where
    B: HttpBody<Data = Bytes> + Unpin,
{
    let announced = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    if announced > limit {
        return Err(BodyError::TooLarge);
    }
    let mut first = Bytes::new();
    let mut all = BytesMut::new();
    while let Some(data) = next_data(body).await? {
        if all.len() + first.len() + data.len() > limit {
            return Err(BodyError::TooLarge);
        }
        if all.is_empty() && first.is_empty() {
            first = data;
            continue;
        }
        if all.is_empty() {
            all.reserve(announced.max(first.len() + data.len()));
            all.extend_from_slice(&std::mem::take(&mut first));
        }
        all.extend_from_slice(&data);
    }
    Ok(match all.is_empty() {
        false => all.freeze(),
        true if first.len() <= COPY_BYTES_MAX => Bytes::copy_from_slice(&first),
        true => first,
    })
}

/// Reads and drops up to `limit` bytes of an unwanted body: otherwise the client would see a reset
/// instead of the response. Returns true when that was the whole body.
pub(super) async fn discard<B>(body: &mut B, limit: usize) -> bool
where
    B: HttpBody<Data = Bytes> + Unpin,
{
    let mut left = limit;
    loop {
        let Ok(data) = next_data(body).await else { return false };
        let Some(data) = data else { return true };
        match left.checked_sub(data.remaining()) {
            Some(rest) => left = rest,
            None => return false,
        }
    }
}

/// Returns the next chunk of data; trailers are skipped.
async fn next_data<B>(body: &mut B) -> Result<Option<Bytes>, BodyError>
where
    B: HttpBody<Data = Bytes> + Unpin,
{
    loop {
        match poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).await {
            None => return Ok(None),
            Some(Err(_)) => return Err(BodyError::Broken),
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;

    #[tokio::test]
    async fn the_limit_is_the_last_size_that_is_read() {
        for (size, limit, expected) in
            [(0, 0, Ok(0)), (5, 5, Ok(5)), (6, 5, Err(BodyError::TooLarge)), (100_000, 100_000, Ok(100_000))]
        {
            let mut body = Body::from(vec![7_u8; size]);
            assert_eq!(read(&mut body, limit).await.map(|bytes| bytes.len()), expected, "{size} of {limit}");
        }
    }
}
